"""VNN-LIB: properties, lists of instances and counterexamples, as the competition of verifiers (VNN-COMP) has them."""
