"""Tests mirror the rooms: the test of `certbench/a/b.py` is `tests/a/test_b.py`, and no test imports another one."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "certbench"
ELSEWHERE = {"laws", "support", "third_party"}
"""Folders that mirror no room: laws across modules, what tests share, and a package of somebody else."""

EXCEPTIONS = {
    "auditing/test_other_packages.py": "the audit of certifiers of other packages goes through the whole room",
}
"""Tests in a room that are named after no module, and why."""

FILES = [file.relative_to(TESTS) for file in sorted(TESTS.rglob("test_*.py")) if "third_party" not in file.parts]


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parts[0] not in ELSEWHERE and len(file.parts) > 1], ids=str
)
def test_a_test_lies_where_its_module_lies_and_has_its_name(file: Path) -> None:
    name = file.name.removeprefix("test_")
    room = PACKAGE / file.parent
    named_after_its_room = name == f"{file.parent.name}.py" and (room / "__init__.py").exists()
    assert (room / name).exists() or named_after_its_room or file.as_posix() in EXCEPTIONS


def test_every_exception_is_still_there() -> None:
    assert {file for file in EXCEPTIONS if not (TESTS / file).exists()} == set()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_test_imports_another_one(file: Path) -> None:
    for node in ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert not (name.startswith("tests.") and name.rpartition(".")[2].startswith("test_")), name
