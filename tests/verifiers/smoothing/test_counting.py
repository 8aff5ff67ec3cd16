"""Counts do not depend on order, batches or interruptions, and are not made twice; shared noise; noise on a grid."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, NumericalError, UnsupportedError
from certbench.networks.sequences import split
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, rows_of
from certbench.verifiers.smoothing.noise.base import Noise
from certbench.verifiers.smoothing.noise.families import Gaussian, Laplace, Uniform
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian, variation
from certbench.verifiers.smoothing.smoothing import Smoothing
from certbench.verifiers.smoothing.splitting import Splitting
from certbench.verifiers.smoothing.streams import stream_of
from tests.support.halfspaces import halfspace, points
from tests.support.watched import SEEDS, Watched

pytestmark = pytest.mark.machine


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())


@pytest.mark.parametrize("share", [None, 5])
@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5), Uniform(0.5)], ids=lambda noise: type(noise).__name__)
def test_neither_order_nor_batches_nor_interruptions_matter(noise: Noise, share: int | None) -> None:
    classifier, x = network("cnn"), inputs(4)
    whole = Counter(classifier, noise, share, None).count(x, 2500, SEEDS, ESTIMATION)
    assert (whole.sum(dim=1) == 2500).all()
    order = [2, 0, 3, 1]
    turned = Counter(classifier, noise, share, None).count(x[order], 2500, [SEEDS[i] for i in order], ESTIMATION)
    assert torch.equal(turned, whole[order])
    single = [
        Counter(classifier, noise, share, None).count(x[i : i + 1], 2500, [SEEDS[i]], ESTIMATION) for i in range(4)
    ]
    assert torch.equal(torch.cat(single), whole)
    counter = Counter(classifier, noise, share, "remembers")
    assert (counter.count(x, 1300, SEEDS, ESTIMATION) <= whole).all()  # interrupted, then asked for more
    assert torch.equal(counter.count(x, 2500, SEEDS, ESTIMATION), whole)
    assert not torch.equal(counter.count(x, 2500, SEEDS, SELECTION), whole)


def test_what_was_counted_is_not_counted_again() -> None:
    watched = Watched(network("mlp").module).eval()
    classifier, x = Classifier(watched, (1, 4, 4), 4), inputs(3)
    counter = Counter(classifier, Gaussian(0.5), None, "key")
    watched.rows.zero_()  # type: ignore[operator]
    first = counter.count(x, 2000, SEEDS[:3], ESTIMATION)
    assert watched.rows == 6000
    assert torch.equal(counter.count(x, 2000, SEEDS[:3], ESTIMATION), first)
    assert watched.rows == 6000
    counter.count(x, 3000, SEEDS[:3], ESTIMATION)
    assert watched.rows == 9000
    assert torch.equal(counter.count(x, 2000, SEEDS[:3], ESTIMATION), first)  # fewer than are known: anew


def test_another_norm_rule_or_alpha_costs_no_forward_pass() -> None:
    classifier, x = network("mlp"), inputs(3)
    certbench.certify({"name": "smoothing", "n": 2000, "n0": 1000}, classifier, x, L2)
    known = {key: chunks for key, (chunks, _) in counting._COUNTED.items()}
    for threat in (L1, Linf):
        for spec in ({"rule": "one-vs-rest"}, {"alpha": 0.01}):
            certbench.certify({"name": "smoothing", "n": 2000, "n0": 1000, **spec}, classifier, x, threat)
    assert {key: chunks for key, (chunks, _) in counting._COUNTED.items()} == known


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual"])
def test_shared_noise_goes_through_the_first_layers_once_and_votes_alike(kind: str) -> None:
    classifier, x = network(kind), inputs(4)
    head, tail = split(classifier)
    noise = torch.randn(50, 1, 4, 4)
    for point in x.float():
        moved = head(point[None]) + head(noise) - head(torch.zeros(1, 1, 4, 4))
        torch.testing.assert_close(tail(moved), classifier(point + noise), rtol=1e-4, atol=1e-4)
    drawn = Gaussian(0.5).sample(stream_of(7, ESTIMATION, 0), rows_of(16), 16)
    plain = classifier(x[:1].float() + torch.from_numpy(drawn).view(-1, 1, 4, 4)).argmax(dim=1)
    counts = Counter(classifier, Gaussian(0.5), 7, None).count(x[:1], 1000, SEEDS[:1], ESTIMATION)[0]
    assert (counts - torch.bincount(plain, minlength=4)).abs().max() <= 1


def test_a_normalisation_by_the_batch_is_no_first_layer() -> None:
    norm = nn.BatchNorm1d(16, track_running_stats=False)
    classifier = Classifier(nn.Sequential(nn.Flatten(), norm, nn.Linear(16, 4)).eval(), (1, 4, 4), 4)
    assert [type(layer) for layer in split(classifier)[0]] == [nn.Flatten]  # type: ignore[attr-defined]


def test_chunks_have_bounded_size() -> None:
    assert rows_of(16) == 1000 and rows_of(150_528) == 27 and rows_of(10**9) == 1


def orthogonal(d: int) -> nn.Linear:
    layer = nn.Linear(d, d, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))[0])
    return layer


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_noise_behind_a_linear_layer_certifies_what_it_does_at_the_input_over_the_layers_norm(gain: float) -> None:
    """A rotation and its inverse: behind a gain, noise of as much more certifies the same."""
    rotation, scaling, back = orthogonal(4), nn.Linear(4, 4, bias=False), orthogonal(4)
    with torch.no_grad():
        scaling.weight.copy_(gain * torch.eye(4))
        back.weight.copy_(rotation.weight.T / gain)
    half = halfspace().module
    classifier = Classifier(nn.Sequential(rotation, nn.Sequential(scaling, back), half).eval(), (4,), 2)
    x = points(6, 0.4)
    at_input = certbench.certify(Smoothing(Gaussian(0.25), n=5000), classifier, x, L2)
    hidden = certbench.certify(Smoothing(Gaussian(0.25 * gain), n=5000, layer="1.0"), classifier, x, L2)
    torch.testing.assert_close(hidden.radius, at_input.radius, rtol=0.1, atol=0)
    assert (hidden.radius <= 0.4).sum() >= 5
    assert hidden.evidence[0]["constants"]["2"] == pytest.approx(gain, rel=1e-6)
    assert hidden.evidence[0]["dimension"] == 4


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(0.5), Uniform(0.5)], ids=lambda noise: type(noise).__name__)
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_hidden_noise_holds_against_the_exact_smoothed_classifier(noise: Noise, threat: certbench.ThreatModel) -> None:
    """Behind it all a half-space: the smoothed class changes where the features reach its border."""
    first = nn.Linear(4, 3)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0, 0.5, 0.0, 1.0], [0.0, -1.0, 1.0, 0.0], [0.3, 0.0, 0.0, 1.0]]))
        first.bias.zero_()
    classifier = Classifier(nn.Sequential(first, halfspace(3).module).eval(), (4,), 2)
    x = points(20, 0.2)
    border = (x @ first.weight[0].double()) / torch.linalg.vector_norm(first.weight[0].double(), threat.q)
    certificate = certbench.certify(Smoothing(noise, n=3000, layer="0"), classifier, x, threat)
    assert (certificate.radius > 0).any()
    assert (certificate.radius <= border).all()


def test_layers_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="known: 0, 1, 2, 3, 4, 5"):
        certbench.certify(Smoothing(layer="5", n=10), network("mlp"), inputs(1), L2)
    with pytest.raises(UnsupportedError, match="goes around 'inner'"):
        certbench.certify(Smoothing(layer="inner", n=10), network("residual"), inputs(1), L2)
    with pytest.raises(ConfigError, match="features of a layer are not"):
        Smoothing(IntegerGaussian(), layer="1")


class Reader(nn.Module):
    """Class 0 where every number is one that x + a float32 noise can be, and class 1 else (Voráček and Hein, 2023)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)

    def forward(self, z: Tensor) -> Tensor:
        noise = z - self.x  # type: ignore[operator]
        reached = ((self.x + noise) == z) & (noise.abs() < 2.0)  # type: ignore[operator]
        share = reached.flatten(1).double().mean(dim=1)
        return torch.stack([share, torch.full_like(share, 1 - 1e-9)], dim=1).float()


def test_ordinary_noise_falls_for_a_reader_of_its_rounding_and_integer_noise_does_not() -> None:
    d = 3072
    levels = torch.randint(40, 216, (1, d), generator=torch.Generator().manual_seed(0))
    x = (levels.double() / 255).float()
    near = ((levels + (torch.arange(d) % 2 * 2 - 1)).double() / 255).float()
    distance = float((x.double() - near.double()).norm())
    classifier = Classifier(Reader(x).eval(), (d,), 2)
    fooled = certbench.certify(Smoothing(Gaussian(0.25), n=1000), classifier, x.double(), L2)
    votes = Counter.of(classifier, Gaussian(0.25)).count(near.double(), 1000, [0], ESTIMATION)
    assert fooled.prediction == 0 and fooled.radius > distance and votes[0, 0] < 20  # a false certificate
    noise = IntegerGaussian(0.25)
    here, there = (Counter.of(classifier, noise).count(at, 1000, [0], ESTIMATION)[0] for at in (x, near))
    sound = certbench.certify(Smoothing(noise, n=1000), classifier, x.double(), L2)
    assert sound.radius == 0 or torch.equal(here > 500, there > 500)


def test_integer_noise_is_rounded_gaussian_noise() -> None:
    noise, stream = IntegerGaussian(0.1, grid=10), np.random.Generator(np.random.SFC64(0))
    drawn = noise.integers(stream, 4000, 50).flatten().numpy()
    from scipy.special import ndtr

    expected = np.array([ndtr(i + 0.5) - ndtr(i - 0.5) for i in range(-3, 4)])
    found = np.array([(drawn == i).mean() for i in range(-3, 4)])
    assert np.abs(found - expected).max() < 5 * math.sqrt(0.25 / drawn.size)
    assert 0 < variation(25.5, 3072) < 1e-9


def test_what_a_classifier_sees_depends_on_integer_sums_alone() -> None:
    noise = IntegerGaussian(0.25)
    a, b = (torch.tensor([level / 255]).float() for level in (100, 140))
    seen = [
        set(noise.perturb(x, np.random.Generator(np.random.SFC64(i)), 50_000).flatten().tolist())
        for i, x in enumerate((a, b))
    ]
    grid = {float(np.float32(i / 255)) for i in range(-400, 700)}
    assert seen[0] <= grid and seen[1] <= grid and len(seen[0] & seen[1]) > 250


def test_inputs_off_the_grid_are_refused() -> None:
    with pytest.raises(NumericalError, match="not on the grid of 1/255"):
        certbench.certify(Smoothing(IntegerGaussian(), n=100), halfspace(), points(1, 0.1234567), L2)


def test_counts_of_another_prefix_are_not_taken_for_ones_own() -> None:
    """The same layers behind the noise, other ones before it: once a false certificate by what was remembered."""
    last = halfspace(4).module

    def certify(gain: float) -> certbench.Certificate:
        first = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            first.weight.copy_(gain * torch.eye(4))
        classifier = Classifier(nn.Sequential(first, nn.Identity(), last).eval(), (4,), 2)
        return certbench.certify(Smoothing(Gaussian(0.25), n=2000, n0=1000, layer="0"), classifier, points(1, 0.05), L2)

    alone = certify(1.0)
    counting._COUNTED.clear()
    assert certify(20.0).radius > 0
    assert certify(1.0).evidence == alone.evidence
    assert certify(-1.0).prediction != 1


@pytest.mark.parametrize("options", [{"share": 3}, {"layer": "1"}], ids=str)
def test_not_even_the_last_bits_depend_on_the_batch(options: dict[str, object]) -> None:
    """A classifier that reads the last bits of a wide layer's output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Bits()).eval()
    classifier, x = Classifier(module, (1, 28, 28), 2), torch.rand(33, 1, 28, 28, dtype=torch.float64)
    built = Smoothing(Gaussian(0.25), n=1000, **options)  # type: ignore[arg-type]
    together = certbench.certify(built, classifier, x, L2, batch_size=33)
    counting._COUNTED.clear()
    alone = certbench.certify(built, classifier, x[:3], L2, batch_size=1)
    assert list(together.evidence[:3]) == list(alone.evidence)


class Bits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        odd = x.contiguous().view(torch.int32).sum(dim=1) % 2
        return torch.stack([odd.float(), 0.5 * torch.ones(len(x))], dim=1)


def test_uniform_noise_certifies_more_in_l1_where_inputs_lie_in_the_unit_box() -> None:
    """Only beyond what one coordinate can move: for a classifier that hardly changes its mind."""
    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.weight[1, 0] = 0.1
        module.bias.copy_(torch.tensor([0.2, 0.0]))
    classifier, x = Classifier(module.eval(), (4,), 2), points(4, 0.4)
    built = Smoothing(Uniform(1.0), n=3000)
    plain, box = (certbench.certify(built, classifier, x, threat) for threat in (L1, L1.within(0, 1)))
    assert (box.radius > 1.05 * plain.radius).all() and (plain.radius > 1).all()
    small = [certbench.certify(Smoothing(Uniform(0.25), n=1000), network("mlp"), inputs(4), threat).radius
             for threat in (L1, L1.within(0, 1))]  # fmt: skip
    torch.testing.assert_close(small[0], small[1])


@pytest.mark.parametrize("share", [None, 5])
def test_what_is_remembered_of_other_noise_seeds_or_classifiers_is_not_taken(share: int | None) -> None:
    """All looks share a memory; each must be what it is with a memory of its own."""
    runs = [
        (Counter.of(classifier, noise, share), seed, phase)
        for classifier in (network("mlp"), network("cnn"))
        for noise in (Gaussian(0.2), Gaussian(0.9), Laplace(0.9))
        for seed in (3, 4)
        for phase in (SELECTION, ESTIMATION)
    ]
    x = inputs(1)
    together = [counter.count(x, 1500, [seed], phase).tolist() for counter, seed, phase in runs]
    assert len(counting._COUNTED) == 2 * len(runs)
    for (counter, seed, phase), counts in zip(runs, together, strict=True):
        counting._COUNTED.clear()
        alone = counter.count(x, 1500, [seed], phase).tolist()
        assert counter.count(x, 1500, [seed], phase).tolist() == alone == counts

    assert len({str(counts) for counts in together}) == len(runs) // (1 if share is None else 2)


def test_votes_of_other_seeds_or_noise_are_not_taken_nor_part_of_a_chunk_for_all_of_it() -> None:
    classifier, point = network("mlp"), inputs(1)[0]

    def votes(sigma: float, seed: int, draws: int) -> list[int]:
        return list(Counter.of(classifier, Gaussian(sigma)).votes(point, draws, seed, ESTIMATION, 50, 1))

    looks = [(sigma, seed, draws) for draws in (130, 500) for sigma in (0.2, 0.9) for seed in (3, 4)]
    together = [votes(*look) for look in looks]
    for look, found in zip(looks, together, strict=True):
        counting._COUNTED.clear()
        assert votes(*look) == found
    assert len({str(found) for found in together}) == len(looks)


def test_two_looks_at_once_see_the_same_votes_and_leave_them_as_they_are() -> None:
    counter, point = Counter.of(network("mlp"), Gaussian(0.9)), inputs(1)[0]

    def look(draws: int = 1000) -> Iterator[int]:
        return counter.votes(point, draws, 3, ESTIMATION, 50, 1)

    true = list(replace(counter, key=None).votes(point, 1000, 3, ESTIMATION, 50, 1))
    assert len(true) == 20 and len(set(true)) > 5
    list(look(100))
    pairs = list(zip(look(), look(), strict=True))
    assert pairs == list(zip(true, true, strict=True)) and list(look()) == true
    counting._COUNTED.clear()
    opened = look()
    assert [next(opened) for _ in range(5)] == true[:5]
    assert list(look()) == true
    opened.close()  # it has seen less
    (entry,) = counting._COUNTED.values()
    assert entry == (20, tuple(true))
    assert torch.is_grad_enabled()


def test_what_a_caller_does_with_counts_does_not_reach_the_memory() -> None:
    counter, point = Counter.of(network("mlp"), Gaussian(0.5)), inputs(1)[0]
    nothing = torch.zeros(4, dtype=torch.int64)
    for draws in (1000, 1500):
        first = counter.fold(point, draws, 3, SELECTION, 1000, (), nothing, counting.add_votes)
        kept = first.clone()
        first += 100
        again = counter.fold(point, draws, 3, SELECTION, 1000, (), nothing, counting.add_votes)
        assert torch.equal(again, kept)
        again += 100
        assert torch.equal(counter.count(point[None], draws, [3], SELECTION)[0], kept)
    assert not nothing.any()


@pytest.mark.parametrize("share", [None, 5])
def test_a_state_of_other_weights_leaves_no_counts_behind(share: int | None) -> None:
    """Prepared, trained, used, and back to the checkpoint: once a false certificate by what was remembered."""
    classifier, x = halfspace(), points(1, 1.0)
    certifier = Smoothing(Gaussian(0.25), n=1000, share=share)
    alone = certbench.certify(certifier, classifier, x, L2)
    counting._COUNTED.clear()
    state = certifier.prepare(classifier, L2)
    with torch.no_grad():
        classifier.module.weight.mul_(-1)  # type: ignore[operator, union-attr]
        between = certifier.certify(state, x, [0])
        assert between.prediction == 0 and not counting._COUNTED
        classifier.module.weight.mul_(-1)  # type: ignore[operator, union-attr]
    assert certbench.certify(certifier, classifier, x, L2).evidence == alone.evidence


def test_a_state_of_a_layer_stays_the_network_that_its_constants_are_of() -> None:
    first = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))
    classifier = Classifier(nn.Sequential(first, nn.Identity(), halfspace().module).eval(), (4,), 2)
    certifier, x = Smoothing(Gaussian(0.25), n=1000, layer="0"), points(1, 0.05)
    state = certifier.prepare(classifier, L2)
    before = certifier.certify(state, x, [0])
    with torch.no_grad():
        first.weight.mul_(20)  # features 20 times as far from the border, and as fast
    counting._COUNTED.clear()
    after = certifier.certify(state, x, [0])
    assert after.evidence == before.evidence and (after.radius <= 0.05).all()


def test_counts_of_a_gpu_and_of_the_cpu_are_two_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of noise that NumPy draws for both: logits differ in the last bits."""
    counter, point = Counter.of(network("mlp"), Splitting(0.5)), inputs(1)[0]
    here = counter._now()
    assert here is not None and counter.device is None
    monkeypatch.setattr(Classifier, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    there = replace(counter, content=False)._now()
    assert there is not None and there != here
    names = {counting._name(now, point, 3, ESTIMATION, 1000) for now in (here, there)}
    assert len(names) == 2 and counting._name(None, point, 3, ESTIMATION, 1000) is None
