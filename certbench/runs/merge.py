"""Put the shards of a run together."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from certbench.errors import ConfigError
from certbench.files.locking import FolderLock
from certbench.files.writing import write
from certbench.results.folder import MANIFEST, RESULTS, RunFolder, RunResults, read_results
from certbench.results.store import Store

SAME = ("suite", "data", "models", "certifiers", "threat")
"""Parts of a manifest that shards have in common."""

FREE = ("executor", "workers")
"""Settings of a suite on which no answer depends."""


def merge(folders: Sequence[Path], into: Path) -> RunResults:
    """Put the results of several folders of one suite into one folder, which may hold results of the suite already.

    Answers are known by keys made of content alone. No failure replaces an answer, and the closest counterexample
    stays. The manifests of the parts are kept in that of the whole.

    Args:
        folders: folders of the parts.
        into: folder of the whole.

    Raises:
        ConfigError: a folder is not that of a run, or the runs are not of one suite, with the same models and data.
        StoreError: a folder cannot be read or written; what was stored stays.
    """
    opened = [RunFolder(folder) for folder in folders]
    parts = [one.manifest(_whole) for one in opened]
    if into.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(f"{into} is one of the parts; give a folder of its own for the whole")
    if (into / RESULTS).exists():
        opened.append(RunFolder(into))
        parts.append(opened[-1].manifest(_whole))
    for one, part in zip(opened, parts, strict=True):
        for key in SAME:
            if _common(part, key) != _common(parts[0], key):
                raise ConfigError(f"{one.path} and {opened[0].path} are not parts of one run: their {key} differ")
    lock = FolderLock(into)
    try:
        whole = Store(into / RESULTS)
    except BaseException:
        lock.close()
        raise
    try:
        for folder in folders:
            whole.take(folder / RESULTS)
        unattacked = whole.unattacked() if parts[0]["suite"]["attacks"]["steps"] else 0
        merged = [earlier for part in parts for earlier in part.get("parts", [_own(part)])]
        manifest = {key: value for key, value in parts[0].items() if key not in ("shard", "parts")} | {"parts": merged}
        write(into / MANIFEST, json.dumps(manifest, indent=2))
    finally:
        whole.close()
        lock.close()
    return replace(read_results(into), unattacked=unattacked)


def _whole(manifest: Any) -> dict[str, Any]:
    """Take a manifest, if it says what merging needs."""
    int(manifest["suite"]["attacks"]["steps"])
    return dict(manifest)


def _own(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of its part alone."""
    return {key: value for key, value in manifest.items() if key not in SAME}


def _common(manifest: dict[str, Any], key: str) -> Any:
    found = manifest.get(key)
    if key == "suite" and isinstance(found, dict):
        return {name: value for name, value in found.items() if name not in FREE}
    return found
