"""The cards of the models that come with the package."""

from pathlib import Path


def cards() -> dict[str, Path]:
    """The cards of the models that come with the package, name to file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "models" / "weights").glob("*.json"))}
