"""Stored runs whose manifests were written before data sets had settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from certbench.errors import ConfigError
from certbench.runs.reopen import reopen
from tests.support.runs import Bench


def test_bytes_of_a_run_of_before_are_divided_by_255_as_they_were(tmp_path: Path) -> None:
    """Manifests had the path of the data alone, and bytes were divided unasked."""
    bench = Bench(tmp_path)
    path = str(tmp_path / "bytes.npz")
    np.savez(path, x=np.array([[200, 10], [10, 200], [30, 10]], dtype=np.uint8), y=np.array([0, 1, 0]))
    finished = bench.run("lipschitz", data={"path": path, "scale": "1/255"})
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["data"]["done"][1] == "divided by 255"
    manifest["suite"]["data"] = path
    (finished.folder / "manifest.json").write_text(json.dumps(manifest))
    stored = reopen(finished.folder)
    assert all(stored.proves(entry) for entry in stored.entries) and len(stored.entries) == 3
    np.savez(path, x=np.array([[200, 10], [10, 201], [30, 10]], dtype=np.uint8), y=np.array([0, 1, 0]))
    with pytest.raises(ConfigError, match="are not those of this run"):
        reopen(finished.folder)
