"""The suites that come with the package."""

from pathlib import Path


def suites() -> dict[str, Path]:
    """Return the files of the suites that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "runs" / "suites").glob("*.yaml"))}
