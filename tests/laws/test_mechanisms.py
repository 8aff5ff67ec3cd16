"""Laws of all smoothing that draws otherwise than by adding noise: splitting, discrete, ablation, patches."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L1, L2, Certifier, Classifier, ConfigError, Outcome, UnsupportedError
from certbench.core.evidence import SplittingEvidence
from certbench.core.threat import L0
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.ablation import (
    Ablation,
    DiscreteSmoothing,
    RandomizedAblation,
    Replacement,
)
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, Mechanism
from certbench.verifiers.smoothing.patches import PatchSmoothing
from certbench.verifiers.smoothing.splitting import DeterministicSplitting, Splitting, SplittingSmoothing
from certbench.verifiers.smoothing.votes import Vote
from tests.support.grids import Half, Shown, grid, half, scored
from tests.support.watched import Watched

# All of them

SAMPLED = [
    (SplittingSmoothing(n=1500), L1),
    (SplittingSmoothing(lam=0.2, n=1500), L1),
    (DiscreteSmoothing(keep=0.5, grid=16, n=1500), L0),
    (RandomizedAblation(keep=2, n=1500), L0),
]
EXACT = [
    (DeterministicSplitting(grid=16), L1),
    (DeterministicSplitting(grid=16, points="all"), L1),
    (DeterministicSplitting(lam=0.2, grid=16), L1),
]
ids = [f"{type(certifier).__name__}-{i}" for i, (certifier, _) in enumerate(SAMPLED + EXACT)]


@pytest.mark.machine
@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_neither_batch_nor_order_matter_and_the_evidence_can_be_stored(
    certifier: Certifier, threat: certbench.ThreatModel
) -> None:
    x = torch.randint(17, (5, 12), generator=torch.Generator().manual_seed(0)).double() / 16
    x[0] = 1.0
    module = Shown() if isinstance(certifier, RandomizedAblation) else Half()
    classifier = Classifier(module.eval(), (12,), 2)
    whole = certbench.certify(certifier, classifier, x, threat)
    order = torch.tensor([4, 2, 0, 1, 3])
    other = certbench.certify(certifier, classifier, x[order], threat, batch_size=2)
    assert torch.equal(other.radius, whole.radius[order])
    assert torch.equal(other.prediction, whole.prediction[order])
    assert json.loads(json.dumps(whole.evidence)) == list(whole.evidence)
    assert (whole.radius > 0).any()
    assert whole.prediction[0] == 1


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3), math.nan)


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_nan_votes_for_no_class(certifier: Certifier, threat: certbench.ThreatModel) -> None:
    certificate = certbench.certify(certifier, Classifier(Broken().eval(), (4,), 3), torch.ones(2, 4), threat)
    assert (certificate.prediction == ABSTAIN).all()
    assert (certificate.radius == 0).all()
    assert set(certificate.outcome) == {Outcome.ABSTAINED}


def test_the_evidence_says_how_it_came_about() -> None:
    vote = Vote([3, 2], [7, 3], 0, 0.2, 0.8, 10, 0.1, "two-class", 5)
    assert vote.evidence(SplittingEvidence, lam=0.5).seed == f"{5:032x}"


@pytest.mark.parametrize("mechanism", [Splitting(0.5), Splitting(0.1), Replacement(0.5, 16), Ablation(2, 1, 0.0)])
def test_more_draws_extend_fewer(mechanism: Mechanism) -> None:
    counter, x = Counter(half(4), mechanism, None, None), torch.full((1, 4), 0.5, dtype=torch.float64)
    few, many = (counter.count(x, n, [3], ESTIMATION) for n in (1500, 2500))
    assert (int(few.sum()), int(many.sum())) == (1500, 2500)
    assert (few <= many).all()
    assert not torch.equal(counter.count(x, 1500, [3], SELECTION), few) or few.max() == 1500


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: SplittingSmoothing(lam=0), "lam"),
        (lambda: SplittingSmoothing(alpha=1), "alpha"),
        (lambda: SplittingSmoothing(n=0), "n"),
        (lambda: DeterministicSplitting(lam=0.001), "lam"),
        (lambda: DeterministicSplitting(grid=0), "grid"),
        (lambda: DeterministicSplitting(offsets=-1), "offsets"),
        (lambda: DiscreteSmoothing(keep=0.5, grid=1), "keep"),
        (lambda: DiscreteSmoothing(keep=1), "keep"),
        (lambda: DiscreteSmoothing(grid=0), "grid"),
        (lambda: RandomizedAblation(keep=0), "keep"),
        (lambda: PatchSmoothing(size=0), "size"),
        (lambda: PatchSmoothing(threshold=math.nan), "threshold"),
    ],
)
def test_options_that_no_run_could_use_are_refused(make: Callable[[], object], option: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.path == (option,)


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_other_norms_and_inputs_are_refused(certifier: Certifier, threat: certbench.ThreatModel) -> None:
    with pytest.raises(UnsupportedError, match="L2 is not offered"):
        certbench.certify(certifier, half(4), torch.ones(1, 4), L2)
    if not isinstance(certifier, RandomizedAblation):
        with pytest.raises(ConfigError, match=r"this noise is for \[0, 1\]"):
            certbench.certify(certifier, half(4), torch.full((1, 4), 1.1), threat)


def test_what_a_method_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 1/16"):
        certbench.certify(DeterministicSplitting(grid=16), half(4), torch.full((1, 4), 0.3), L1)
    with pytest.raises(UnsupportedError, match="TwoChannel"):
        certbench.certify(RandomizedAblation(keep=2, encode="two-channel"), half(4), torch.ones(1, 4), L0)
    with pytest.raises(UnsupportedError, match="4 pixels"):
        certbench.certify(RandomizedAblation(keep=5), half(4), torch.ones(1, 4), L0)
    with pytest.raises(UnsupportedError, match="no images"):
        PatchSmoothing(encode="zero").certify(half(4), torch.ones(1, 4))
    with pytest.raises(UnsupportedError, match="larger than the image"):
        PatchSmoothing(size=7).certify(scored(1, 4, 5, 0, 0.0), torch.ones(1, 1, 4, 5))


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED)
def test_another_alpha_or_rule_costs_no_forward_pass(
    certifier: Any, threat: certbench.ThreatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    watched = Watched(Half()).eval()
    classifier, x = Classifier(watched, (4,), 2), grid(4, 1)[:3] * 0.5 + 0.25

    def certify(changed: Any) -> tuple[list[dict[str, Any]], int]:
        state = changed.prepare(classifier, threat)
        state = replace(state, counter=replace(state.counter, key="content", content=False))  # its rows are a buffer
        watched.rows.zero_()  # type: ignore[operator]
        return list(changed.certify(state, x, [1, 2, 3]).evidence), int(watched.rows)  # type: ignore[arg-type]

    built = replace(certifier, n=1500, n0=50, **({"keep": 2} if isinstance(certifier, RandomizedAblation) else {}))
    first, rows = certify(built)
    assert rows == 3 * (1000 + 2000)
    assert certify(replace(built, alpha=0.2, rule="one-vs-rest"))[1] == 0
    assert certify(built) == (first, 0)
    assert certify(replace(built, n=2500))[1] == 3 * 2000
    assert certify(built) == (first, 0)
    other = {"lam": 0.7} if isinstance(certifier, SplittingSmoothing) else {"keep": 1}
    other = {"grid": 64} if isinstance(certifier, DiscreteSmoothing) else other
    assert certify(replace(built, **other))[1] == 3 * 3000
