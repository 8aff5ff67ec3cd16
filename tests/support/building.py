"""Build this tree and install it, for tests of packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Root of the checkout."""

GENERATED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "reports")
"""What a build leaves behind, and what is not packed."""

DEPENDENCIES = list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
"""Folders of the installed dependencies. With `python -S` an editable install there is not followed."""


def python(*arguments: str | Path, cwd: Path, code: int = 0) -> str:
    """Run Python outside this checkout; return what it prints, and fail if it ends with another exit code."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHONPATH", "PYTEST_"))}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def build(place: Path) -> dict[str, Path]:
    """Build an sdist and a wheel, each from the tree, in a folder."""
    tree = place / "tree"  # a copy: building leaves folders behind, and packs what an earlier build left
    shutil.copytree(ROOT, tree, symlinks=True, ignore=GENERATED)
    python("-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", place, tree, cwd=place)
    (sdist,), (wheel,) = place.glob("*.tar.gz"), place.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def install(what: Path, target: Path) -> None:
    """Install a distribution or a source tree into a folder; no network is needed."""
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--target"]
    python("-m", "pip", "install", *options, target, what, cwd=target.parent)
