"""No damaged file makes a command raise what nobody foresaw, hang, or end with a code that means something else."""

import sys
import time
from pathlib import Path

import pytest

from tests import fuzz


def test_readers_accept_or_refuse_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_plane", raising=False)
    fuzz.prepare()
    found: list[str] = []
    counts = fuzz.fuzz([*fuzz.READERS], seed=0, count=10, until=time.monotonic() + 20, wrong=found.append)
    sys.modules.pop("my_plane", None)
    assert found == []
    assert len(counts) > len(fuzz.READERS)  # some files are accepted, others are refused


@pytest.mark.parametrize("way", ["raises", "hangs", "prints"])
def test_what_is_wrong_is_found(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> object:
        if way == "raises":
            raise ZeroDivisionError
        if way == "prints":
            print("\x1b[2J0 unsound")
        while way == "hangs":
            pass
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("certbench.external.recertify.recertify_file", read)
    monkeypatch.setattr(fuzz, "LONGEST", 0.2)
    Path("counts.txt").write_text("a,b\n1,2\n")
    found: list[str] = []
    fuzz.fuzz(["counts as text"], seed=0, count=1, until=time.monotonic() + 5, wrong=found.append)
    assert len(found) == 1 and {"raises": "ends with 70", "hangs": "hangs", "prints": "prints"}[way] in found[0]
