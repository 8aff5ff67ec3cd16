"""The contract suite for pytest: one class of tests from rows of the contract."""

from collections import Counter
from types import ModuleType
from typing import Any

from certbench.errors import MissingBackendError
from certbench.testing.case import Case
from certbench.testing.law import Law, NotConcerned, named
from certbench.testing.laws import LAWS


def contract_suite(*cases: Case) -> type:
    """Return a class of tests that holds certifiers to every law; assign it to a name that begins with `Test`.

    Each law is a method `test_<law>`, with one test per certifier and question. A name that stands in several rows gets
    the number of its row.

    Args:
        cases: rows, one per certifier and setting.

    Raises:
        ValueError: there is no row, so that nothing would be tested.
        MissingBackendError: pytest is not installed.
    """
    if not cases:
        raise ValueError("a contract suite needs at least one Case")
    pytest = _pytest()
    often = Counter(case.name for case in cases)
    ids = [f"{case.name}-{i}" if often[case.name] > 1 else case.name for i, case in enumerate(cases)]
    methods = {f"test_{law.name}": _method(pytest, law) for law in LAWS.values()}
    suite = type("ContractSuite", (), {"__doc__": contract_suite.__doc__, **methods})
    return pytest.mark.parametrize("case", cases, ids=ids)(suite)  # type: ignore[no-any-return]


def _pytest() -> ModuleType:
    try:
        import pytest
    except ImportError as error:
        message = 'the contract suite needs pytest; install it by: pip install "certbench[testing]"'
        raise MissingBackendError(message) from error
    return pytest


def _method(pytest: ModuleType, law: Law) -> Any:
    """Return one law as a method that pytest can collect."""

    def ask(request: Any, case: Case, question: tuple[Any, ...]) -> None:
        __tracebackhide__ = True
        if case.backend is not None:
            request.getfixturevalue(case.backend)
        try:
            law.check(case, question)
        except NotConcerned as reason:
            pytest.skip(str(reason))

    def once(self: Any, request: Any, case: Case) -> None:
        __tracebackhide__ = True
        ask(request, case, ())

    def each(self: Any, request: Any, case: Case, question: tuple[Any, ...]) -> None:
        __tracebackhide__ = True
        ask(request, case, question)

    method: Any = once if law.questions == ((),) else each
    method.__doc__ = law.statement
    if method is each:
        method = pytest.mark.parametrize("question", law.questions, ids=[named(part) for part in law.questions])(each)
    return method
