"""Fixtures shared by the tests, and the checks that run only here: shapes at run time, backends that must be there."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support import building, shapes

shapes.install()

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Published networks and verdicts, where they are at hand; a stranger's machine has none."""


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("CERTBENCH_TEST_THREADS", "1")))


collect_ignore = ["third_party"]
"""A package of somebody else; test_third_party.py runs its tests where it is installed."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist and a wheel of this tree."""
    return building.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def bundle() -> ModuleType:
    """The loader of the published networks."""
    if not (SHARED / "bundle.py").exists():
        pytest.skip("the bundle of published networks is not at hand")
    spec = importlib.util.spec_from_file_location("bundle", SHARED / "bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lirpa() -> ModuleType:
    """auto-LiRPA; missing, it skips a test, or fails it where every backend is required."""
    from certbench.errors import MissingBackendError
    from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa

    try:
        return auto_lirpa()
    except MissingBackendError as error:
        if os.environ.get("CERTBENCH_REQUIRE_BACKENDS"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def solvers() -> None:
    """cvxpy and HiGHS; missing, they skip a test, or fail it where every backend is required."""
    missing = [name for name in ("cvxpy", "highspy") if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CERTBENCH_REQUIRE_BACKENDS"):
        pytest.fail(f"not installed: {missing}")
    if missing:
        pytest.skip(f"not installed: {missing}")
