"""The command `list`."""

from certbench.core import registry
from certbench.models.cards import cards
from certbench.runs.shipped import suites
from tests.cli.conftest import Run


def test_the_list_has_everything(certbench: Run) -> None:
    code, out, _ = certbench("list")
    assert code == 0
    words = {line.split()[0] for line in out.splitlines() if line}
    assert {*registry.table(), *cards(), *suites()} <= words
    text = " ".join(out.split())  # long ones are wrapped
    assert all(" ".join(registry.summary(name).split()) in text for name in registry.table())
