"""The manifest of a run: what was asked for, with which versions, on which machine."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from certbench.core.classifier import Classifier
from certbench.core.options import describe
from certbench.files.json_text import plain
from certbench.models.data.base import Dataset
from certbench.results.folder import MANIFEST
from certbench.runs.suite import Suite


def manifest_of(suite: Suite, dataset: Dataset, models: list[Classifier], threads: int) -> dict[str, Any]:
    """Describe a run at its start."""
    box = {"domain": suite.threats[0].domain, "scale": suite.threats[0].scale} if suite.threats else {}
    packages = ["certbench", "torch", "auto-LiRPA", "foolbox", "highspy", "cvxpy", "scs", "numpy", "scipy"]
    return {
        "suite": plain(suite.settings.model_dump()),
        **({"threat": plain(box)} if suite.threats and suite.threats[0].coordinates else {}),
        "certifiers": [describe(certifier) for certifier in suite.certifiers],
        "data": {
            "name": dataset.name,
            "sha256": dataset.fingerprint(),
            "inputs": suite.settings.inputs,
            "done": list(dataset.done),
            **({"classes": list(dataset.classes)} if dataset.classes else {}),
            **({"features": list(dataset.features)} if dataset.features else {}),
        },
        "models": {model.name: model.fingerprint() for model in models},
        "classes": {model.name: model.num_classes for model in models},
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "device": str(models[0].device)},
        "threads": threads,
        "command": shlex.join(["certbench", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Return what the manifest in a folder says of the calls of its run before; nothing if it says none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["history"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []  # a run of before, or a damaged manifest, which is written anew
    return [call for call in found if isinstance(call, dict)] if isinstance(found, list) else []


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _commit() -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"
