"""Messages name what to install where auto-LiRPA does not import."""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from certbench.errors import MissingBackendError
from certbench.verifiers.linear.lirpa import release_0_3


def test_a_package_that_auto_lirpa_misses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "__init__.py"
    source.write_text("__version__ = '0.7.1'\n", encoding="utf-8")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named 'graphviz' for {name}", name="graphviz")

    monkeypatch.delitem(sys.modules, "auto_LiRPA", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None, origin=str(source)))
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingBackendError, match="pip install --no-deps graphviz"):
        release_0_3.auto_lirpa()


def test_an_absent_auto_lirpa_is_installed_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "auto_LiRPA", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingBackendError) as caught:
        release_0_3.auto_lirpa()
    assert release_0_3.INSTALL in str(caught.value)
