"""The cards of the models that come with the package."""

from pathlib import Path


def cards() -> dict[str, Path]:
    """Return the card files of the models that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "models" / "weights").glob("*.json"))}
