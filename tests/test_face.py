"""The face of the package: every public name is there, documented, and hidden by no module of the same name."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import certbench

NAMES = [name for name in certbench.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(certbench, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert found.__name__ == name and found.__doc__
    if inspect.ismodule(found):
        assert found is importlib.import_module(certbench._MODULES[name]) and found.__doc__
    assert importlib.util.find_spec(f"certbench.{name}") is None  # its import would take the place of the name


def test_the_lazy_names_are_the_public_ones() -> None:
    assert {*certbench._LAZY, *certbench._MODULES} <= set(NAMES)
    with pytest.raises(AttributeError, match="no attribute 'certfy'"):
        certbench.certfy  # noqa: B018


def test_modules_of_the_face_need_no_import_of_their_own() -> None:
    code = "import certbench\n"
    code += "certbench.black_box.labels, certbench.patches.PatchSmoothing, certbench.regression.smoothed_output_bounds"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_face_is_light() -> None:
    code = "import certbench, sys; certbench.compare, certbench.update_baseline, certbench.audit_log, certbench.check\n"
    code += "assert not {'torch', 'scipy', 'rich', 'typer'} & sys.modules.keys(), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_only_the_command_line_prints() -> None:
    """But for `python -m certbench.checker`, which does without the command line, and tables on a console given."""
    allowed = {"checker/__init__.py", "report/tables.py", "comparison/output.py", "files/safe_text.py"}
    package = Path(certbench.__file__).parent
    printing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "print(" in path.read_text(encoding="utf-8").replace("fingerprint(", "")
    }
    assert {name for name in printing if not name.startswith("cli/")} <= allowed
