import sys

import pytest

from certbench import MissingBackendError
from certbench.testing import LAWS, Case, contract_suite

pytest_plugins = ["pytester"]


def test_without_pytest_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(MissingBackendError, match=r'pip install "certbench\[testing\]"'):
        contract_suite(Case({"name": "lipschitz"}))


def test_a_suite_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one Case"):
        contract_suite()


def test_every_law_is_a_test_with_the_words_of_the_law() -> None:
    suite = contract_suite(Case({"name": "lipschitz"}))
    for name, law in LAWS.items():
        assert getattr(suite, f"test_{name}").__doc__ == law.statement
        assert law.statement.endswith(".")


def test_a_row_in_a_file_is_all_that_is_needed(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef nothing():\n    pytest.skip('a package is missing')\n")
    pytester.makepyfile(
        """
        from certbench.testing import Case, contract_suite

        ROWS = [Case({"name": "lipschitz"}), Case({"name": "lipschitz", "rule": "naive"}, backend="nothing")]
        TestMine = contract_suite(*ROWS)
        """
    )
    result = pytester.runpytest("-k", "round_trip or layers", "-rs", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, skipped=5)
    assert "a package is missing" in result.stdout.str()


def test_rows_of_one_certifier_are_told_apart(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from certbench.testing import Case, contract_suite

        TestMine = contract_suite(Case({"name": "lipschitz"}), Case({"name": "crown"}), Case({"name": "crown"}))
        """
    )
    result = pytester.runpytest("--collect-only", "-q", "-k", "closed_form and L2", "-p", "no:cacheprovider")
    ids = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert ids == [f"TestMine::test_closed_form[L2-{name}]" for name in ("lipschitz", "crown-1", "crown-2")]
