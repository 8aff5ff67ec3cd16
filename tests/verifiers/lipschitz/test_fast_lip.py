import itertools

import pytest
import torch
from torch import Tensor

import certbench
from certbench import L1, L2, Linf, ThreatModel, UnsupportedError
from certbench.networks.reading import relu_network
from certbench.testing import inputs, network
from certbench.verifiers.lipschitz import fast_lip
from certbench.verifiers.lipschitz.fast_lip import FastLip, RecurJac
from certbench.verifiers.lipschitz.local import LocalLipschitz
from certbench.verifiers.lipschitz.masked_product import MaskedProduct
from tests.support.slopes import CHORDS, KINDS, NORMS, PLAIN, Question, jacobian, mlp, net, question, short


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("chords", [False, True])
def test_recurjac_is_never_steeper_than_fast_lip(threat: ThreatModel, chords: bool) -> None:
    cases = [question("mlp", threat), question("cnn", threat)]
    cases += [Question(mlp(6, 9, 8, 7, 3, seed=s), inputs(6, s).flatten(1)[:, :6], threat) for s in range(4)]
    for case in cases:
        better, plain = case.slope(RecurJac(chords=chords)), case.slope(FastLip(chords=chords))
        assert (better <= plain * (1 + 1e-9)).all()
        assert (better < 0.98 * plain).any()


def steepest_corner(case: Question) -> Tensor:
    """Of all tangents, for one input and one margin."""
    slopes = case.slopes(chords=False)
    low, high = (torch.cat(ends, dim=1)[0] for ends in (slopes.low, slopes.high))
    open_ = (low < high).nonzero().squeeze(1)
    corners = low.repeat(2 ** len(open_), 1)
    corners[:, open_] = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(open_))), dtype=torch.float64)
    drawn = list(corners.split([part.shape[1] for part in slopes.low], dim=1))
    return (case.rows[0] @ jacobian(case.state.network, drawn)).abs().amax()


@pytest.mark.parametrize("known", ["signs", "slopes"])
def test_recurjac_is_exact_where_signs_or_slopes_are_known_and_fast_lip_is_not(known: str) -> None:
    """With one input, so that norms are of one entry: outer weights of known sign, or a first layer that is stable."""
    classifier = mlp(1, 4, 4, 2, seed=2)
    first, second, last = (classifier.module[i] for i in (0, 2, 4))  # type: ignore[index]
    if known == "signs":
        second.weight.data.abs_()
        last.weight.data.abs_()[1].neg_()
    else:
        first.bias.data.fill_(100.0)
        second.bias.data = -second.weight.data @ first.bias.data
    case = Question(classifier, torch.zeros(1, 1, dtype=torch.float64), L2, scale=10)
    exact = steepest_corner(case)
    torch.testing.assert_close(case.slope(RecurJac()).squeeze(), exact, rtol=1e-9, atol=0)
    assert case.slope(FastLip()).squeeze() > 1.05 * exact


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_norm_is_at_most_that_of_the_entries(kind: str) -> None:
    for chords in (False, True):
        plain, gram = (question(kind, L2).slope(FastLip(chords=chords, gram=gram)) for gram in (False, True))
        assert (gram <= plain).all()
        assert (gram < 0.98 * plain).any()
    for threat in (L1, Linf):
        assert torch.equal(*(question(kind, threat).slope(FastLip(gram=gram)) for gram in (False, True)))


def test_the_gram_norm_itself_is_a_bound_and_is_no_more_than_that_of_the_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, radius = torch.randn(2, 2, 3, 7, generator=generator, dtype=torch.float64)
    radius = radius.clamp(min=0)
    first = relu_network(mlp(5, 7, 2)).layers[0].maps[0]
    found = fast_lip._together(first, centre, radius)
    weight = first.matrix()
    assert (found <= (centre @ weight).abs().add(radius @ weight.abs()).norm(dim=-1) * (1 + 1e-12)).all()
    for signs in itertools.product([-1.0, 1.0], repeat=7):
        row = (centre + torch.tensor(signs, dtype=torch.float64) * radius) @ weight
        assert (row.norm(dim=-1) <= found * (1 + 1e-12)).all()


def test_gram_changes_nothing_where_another_layer_reads_the_input() -> None:
    asked = Question(net("skip", from_input=True), inputs(4), L2, scale=3.0)
    assert torch.equal(asked.slope(FastLip()), asked.slope(FastLip(gram=True)))


def test_large_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_lip, "WORK", 1000)
    with pytest.raises(UnsupportedError, match="multiplications"):
        certbench.certify(RecurJac(), network("mlp"), inputs(1), L2)
    monkeypatch.setattr("certbench.verifiers.lipschitz.masked_product.DENSE", 100)
    with pytest.raises(UnsupportedError, match="12 x 16 matrix, too large"):
        certbench.certify(MaskedProduct(), network("mlp"), inputs(1), L2)


@pytest.mark.parametrize("certifier", PLAIN + CHORDS, ids=short)
def test_blocks_change_nothing(certifier: LocalLipschitz, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = question("mlp", L2).slope(certifier)
    monkeypatch.setattr(fast_lip, "ENTRIES", 100)
    monkeypatch.setattr("certbench.verifiers.lipschitz.masked_product.DENSE", 300)
    torch.testing.assert_close(question("mlp", L2).slope(certifier), whole, rtol=1e-12, atol=0)
