"""The suites that come with the package."""

from pathlib import Path


def suites() -> dict[str, Path]:
    """The suites that come with the package, name to file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "runs" / "suites").glob("*.yaml"))}
