"""Tests mirror the rooms: the test of `certbench/a/b.py` is `tests/a/test_b.py`, and no test imports another one."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "certbench"
ELSEWHERE = {"laws", "support", "third_party"}
"""Folders that mirror no room: laws across modules, what tests share, and a package of somebody else."""

EXCEPTIONS = {
    "auditing/test_other_packages.py": "the audit of certifiers of other packages goes through the whole room",
}
"""Tests in a room that are named after no module, and why."""

FILES = [file.relative_to(TESTS) for file in sorted(TESTS.rglob("test_*.py")) if "third_party" not in file.parts]


def test_a_test_lies_where_its_module_lies_and_has_its_name() -> None:
    lost = [file for file in FILES if len(file.parts) > 1 and file.parts[0] not in ELSEWHERE and not mirrors(file)]
    assert [file.as_posix() for file in lost if file.as_posix() not in EXCEPTIONS] == []
    assert {file.as_posix() for file in lost} == set(EXCEPTIONS)


def mirrors(file: Path) -> bool:
    """Whether there is a module of this name, or the test is named after its room."""
    name = file.name.removeprefix("test_")
    return (PACKAGE / file.parent / name).exists() or name == f"{file.parent.name}.py"


def test_no_test_imports_another_one() -> None:
    found = [(file.as_posix(), name) for file in FILES for name in imported(file)]
    assert [(file, name) for file, name in found if name.startswith("tests.") and ".test_" in name] == []


def imported(file: Path) -> Iterator[str]:
    """The modules that a test imports."""
    for node in ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nobody_inside_imports_the_face() -> None:
    """The face is for users; import-linter knows rooms, not the package that holds them."""
    found = []
    folders = [PACKAGE, (PACKAGE / "verifiers").resolve(), (PACKAGE / "models").resolve()]
    for file in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "certbench":
                rooms = {path.stem for path in PACKAGE.iterdir()}
                found += [(file.name, alias.name) for alias in node.names if alias.name not in rooms]
    assert found == []
