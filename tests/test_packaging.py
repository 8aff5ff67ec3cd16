"""What is built holds each module once, imports under its own name, and is what bootstrap.py installs."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.building import DEPENDENCIES, ROOT, install, python

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def shipped() -> set[str]:
    """Every file of the package under its name in the wheel; read from the folders, not from pyproject."""
    package = ROOT / "certbench"
    kinds = ("py.typed", "runs/suites/*.yaml", "report/templates/*", "models/weights/*")
    files = [file for kind in kinds for file in package.glob(kind)]
    files += [file for folder in (".", "verifiers", "models") for file in (package / folder).rglob("*.py")]
    return {file.relative_to(ROOT).as_posix() for file in files if file.is_file()}


def test_the_wheel_holds_every_file_once_and_nothing_else(built: dict[str, Path]) -> None:
    names = Counter(name for name in zipfile.ZipFile(built["wheel"]).namelist() if ".dist-info/" not in name)
    assert names == Counter(shipped())


def test_the_sdist_holds_every_file_once_and_no_tests_or_reports(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        inside = [member.name.partition("/")[2] for member in archive if not member.isdir()]
    about = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    names = Counter(name for name in inside if name not in about and not name.startswith("certbench.egg-info/"))
    assert names == Counter(re.sub(r"^certbench/(?=verifiers/|models/)", "", name) for name in shipped())


INSPECT = """
import json, sys
sys.path[:0] = sys.argv[1:]  # what was installed, then its dependencies; -S leaves the editable install out
import certbench, certbench.models, certbench.verifiers
from certbench.core import registry
certifiers = [registry.find(name) for name in registry.table()]
print(json.dumps({
    "packages": [module.__file__ for module in (certbench, certbench.models, certbench.verifiers)],
    "classes": {f"{cls.__module__}:{cls.__qualname__}": sys.modules[cls.__module__].__file__ for cls in certifiers},
    "table": sorted(registry.table().values()),
}))
"""


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_what_is_built_installs_and_imports_under_its_own_names(
    kind: str, built: dict[str, Path], tmp_path: Path
) -> None:
    install(built[kind], tmp_path)
    installed = [file for file in (tmp_path / "certbench").rglob("*") if file.is_file()]
    assert {file.relative_to(tmp_path).as_posix() for file in installed} == shipped()

    found = json.loads(python("-I", "-S", "-c", INSPECT, tmp_path, *DEPENDENCIES, cwd=built[kind].parent))
    folders = [tmp_path / folder for folder in ("certbench", "certbench/models", "certbench/verifiers")]
    assert found["packages"] == [str(folder / "__init__.py") for folder in folders]
    assert sorted(found["classes"]) == found["table"] != []
    assert all(folders[2] in Path(file).parents for file in found["classes"].values())


@pytest.mark.parametrize("name", ["verifiers", "models"])
def test_the_folders_at_the_top_do_not_import_under_their_short_names(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert f"ImportError: import certbench.{name}, not {name}" in done.stderr


def test_pyproject_lists_every_folder_of_modules() -> None:
    folders = {
        str(Path(path).relative_to(ROOT)).replace(os.sep, ".")
        for path, _, files in os.walk(ROOT / "certbench", followlinks=True)
        if "__init__.py" in files
    }
    assert folders == set(SETUPTOOLS["packages"])


def test_the_links_and_the_package_dirs_are_the_same_folders() -> None:
    for package, folder in SETUPTOOLS["package-dir"].items():
        link = ROOT / package.replace(".", "/")
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder


def test_the_editable_install_serves_the_checkout(tmp_path: Path) -> None:
    code = "import certbench, certbench.models, certbench.verifiers; "
    code += "print(certbench.__file__, certbench.models.__file__, certbench.verifiers.__file__, sep='\\n')"
    files = [Path(line).resolve() for line in python("-I", "-c", code, cwd=tmp_path).splitlines()]
    assert files == [ROOT / folder / "__init__.py" for folder in ("certbench", "models", "verifiers")]


def test_everything_asked_for_is_pinned() -> None:
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    asked += [entry for extra in PROJECT["project"]["optional-dependencies"].values() for entry in extra]
    assert {normal(entry) for entry in asked} <= pinned


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


# bootstrap.py


@pytest.fixture
def bootstrap(tmp_path: Path) -> Any:
    """bootstrap.py at another place, with what it runs written down instead."""
    for name in ("bootstrap.py", "pyproject.toml", "constraints.txt", "requirements-nodeps.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return load(tmp_path)


def load(place: Path) -> Any:
    spec = importlib.util.spec_from_file_location("bootstrap", place / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []

    def run(*command: Any) -> None:
        words = [str(word) for word in command]
        module.ran.append(words)
        if "venv" in words:
            module.BIN.mkdir(parents=True, exist_ok=True)
            (module.BIN / "python").touch(0o755)

    module.run = run
    return module


def installs(module: Any) -> int:
    """How many programs a set-up runs, from now on."""
    module.ran.clear()
    module.setup()
    return len(module.ran)


def test_a_finished_setup_is_not_repeated(bootstrap: Any) -> None:
    assert installs(bootstrap) == 3
    assert installs(bootstrap) == 0


def test_changed_pins_are_installed_into_the_same_environment(bootstrap: Any) -> None:
    bootstrap.setup()
    with (bootstrap.ROOT / "constraints.txt").open("a") as file:
        file.write("more==1\n")
    assert installs(bootstrap) == 2
    assert not any("venv" in words for words in bootstrap.ran)
    assert installs(bootstrap) == 0


def test_an_interrupted_setup_leaves_no_stamp(bootstrap: Any) -> None:
    run = bootstrap.run

    def interrupted(*command: Any) -> None:
        run(*command)
        if "--require-hashes" in command:
            raise SystemExit(130)

    bootstrap.run = interrupted
    with pytest.raises(SystemExit):
        bootstrap.setup()
    assert not bootstrap.STAMP.exists()
    bootstrap.run = run
    assert installs(bootstrap) == 3


def test_an_environment_without_its_python_is_made_anew(bootstrap: Any) -> None:
    bootstrap.setup()
    (bootstrap.BIN / "python").unlink()
    assert installs(bootstrap) == 3


def test_an_interrupted_clean_leaves_no_stamp(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap.setup()
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: sys.exit(130))
    with pytest.raises(SystemExit):
        bootstrap.main("clean")
    monkeypatch.undo()
    assert installs(bootstrap) == 3


def test_a_moved_checkout_is_noticed(bootstrap: Any, tmp_path: Path) -> None:
    bootstrap.setup()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert installs(load(moved)) == 3


def test_every_install_is_constrained(bootstrap: Any) -> None:
    bootstrap.setup()
    install, without_dependencies = bootstrap.ran[1:]
    assert install[install.index("-c") + 1] == "constraints.txt"
    assert "--no-deps" in without_dependencies
    assert bootstrap.ENVIRONMENT["PIP_CONSTRAINT"] == bootstrap.ENVIRONMENT["PIP_BUILD_CONSTRAINT"] == "constraints.txt"


def test_leftovers_in_the_environment_bend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"PIP_INDEX_URL": "a", "PIP_EXTRA_INDEX_URL": "b", "PIP_CERT": "c", "PIP_NO_CACHE_DIR": "1", "PIPELINE": "d"}
    bending = {"PYTHONPATH": "a", "PYTHONHOME": "b", "PIP_TARGET": "c", "PIP_USER": "1", "PIP_NO_DEPS": "1"}
    for key, value in {**kept, **bending}.items():
        monkeypatch.setenv(key, value)
    environment = load(ROOT).ENVIRONMENT
    assert kept.items() <= environment.items()
    assert not bending.keys() & environment.keys()


def test_arguments_are_passed_on(bootstrap: Any) -> None:
    bootstrap.setup()
    bootstrap.ran.clear()
    bootstrap.main("test", "-k", "smoothing")
    assert bootstrap.ran == [[str(bootstrap.BIN / "pytest"), "-n", "auto", "-k", "smoothing"]]


def test_bench_runs_the_default_suite(bootstrap: Any) -> None:
    bootstrap.main("bench")
    assert bootstrap.ran[-1] == [str(bootstrap.BIN / "certbench"), "run", "default"]


def test_an_unknown_command_is_refused_with_the_known_ones(bootstrap: Any) -> None:
    with pytest.raises(SystemExit, match=r"setup\|bench\|test"):
        bootstrap.main("benhc")


def test_an_old_python_gets_one_line(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ast.parse((ROOT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 8, 0))
    with pytest.raises(SystemExit, match=r"^certbench needs Python 3\.11 or newer"):
        bootstrap.main("test")
    assert bootstrap.ran == []


def test_make_and_bootstrap_offer_the_same(bootstrap: Any) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert targets[1].split() == list(bootstrap.COMMANDS)
