"""Architectures, training recipes, data sets, and the zoo: trained weights with their cards."""

if __name__ != "certbench.models":
    raise ImportError("import certbench.models, not models: a second copy of every class would be made")
