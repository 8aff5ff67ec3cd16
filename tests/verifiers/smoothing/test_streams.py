"""Noise that torch draws on a device, and the classifier in bfloat16: other counts, and evidence says so."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import certbench
from certbench import L2, Classifier, ConfigError
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter
from certbench.verifiers.smoothing.noise.families import NOISES, Gaussian, Noise
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing
from certbench.verifiers.smoothing.splitting import Splitting
from tests.support.devices import CPU, devices, generator

every = pytest.mark.parametrize(
    "noise", [*(kind(0.5) for kind in NOISES.values()), IntegerGaussian(0.5)], ids=lambda noise: type(noise).__name__
)
SEEDS = [11, 12, 13]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())


@pytest.fixture
def torch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but on the CPU."""
    monkeypatch.setattr(counting, "generator_of", lambda device: device)


def moved(classifier: Classifier, device: torch.device) -> Classifier:
    return Classifier(classifier.module.to(device), classifier.input_shape, classifier.num_classes)


@devices
@every
def test_a_device_draws_what_numpy_does(noise: Noise, device: torch.device) -> None:
    """Two samples of one law: of a coordinate, of another one, and of the largest."""
    ours = noise.draw(generator(device, 5), 20_000, 6).cpu().numpy()
    theirs = noise.draw(np.random.Generator(np.random.SFC64(5)), 20_000, 6).numpy()
    for a, b in ((ours[:, 0], theirs[:, 0]), (ours[:, 5], theirs[:, 5]), (ours.max(1), theirs.max(1))):
        assert stats.ks_2samp(a, b).pvalue > 1e-4
    assert abs(np.corrcoef(ours.T)[0, 1:]).max() < 5 / math.sqrt(len(ours)) or type(noise).__name__ == "PowInf"


@devices
@every
def test_a_streams_key_alone_decides_what_is_drawn(noise: Noise, device: torch.device) -> None:
    first, again, other = (noise.draw(generator(device, seed), 50, 6) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    stream = generator(device, 1)
    assert torch.equal(noise.draw(stream, 50, 6), first) and not torch.equal(noise.draw(stream, 50, 6), first)


@devices
@pytest.mark.parametrize("share", [None, 5])
@pytest.mark.parametrize("noise", [Gaussian(0.5), IntegerGaussian(0.5)], ids=lambda noise: type(noise).__name__)
def test_order_batches_and_interruptions_do_not_matter_there(
    noise: Noise, share: int | None, device: torch.device
) -> None:
    if share is not None and not noise.additive:
        return
    classifier, x = moved(network("cnn"), device), (inputs(3) * 255).round() / 255
    whole = Counter(classifier, noise, share, None, device).count(x, 2500, SEEDS, ESTIMATION)
    assert whole.device == CPU and (whole.sum(dim=1) == 2500).all()
    order = [2, 0, 1]
    turned = Counter(classifier, noise, share, None, device).count(
        x[order], 2500, [SEEDS[i] for i in order], ESTIMATION
    )
    assert torch.equal(turned, whole[order])
    counter = Counter(classifier, noise, share, "remembers", device)
    counter.count(x[:2], 1300, SEEDS[:2], ESTIMATION)
    assert torch.equal(counter.count(x, 2500, SEEDS, ESTIMATION), whole)
    assert not torch.equal(counter.count(x, 2500, SEEDS, SELECTION), whole)
    numpy = Counter(classifier, noise, share, "remembers").count(x, 2500, SEEDS, ESTIMATION)
    assert not torch.equal(numpy, whole)  # not taken for those of the other stream
    assert (numpy - whole).abs().max() < 6 * math.sqrt(2 * 2500 / 4)


@pytest.mark.usefixtures("torch_draws")
def test_evidence_names_the_stream() -> None:
    classifier, x = network("mlp"), inputs(2)
    found = certbench.certify(Smoothing(Gaussian(0.5), n=1000), classifier, x, L2)
    assert all(e["stream"] == f"torch {torch.__version__} on cpu" for e in found.evidence)
    assert Counter.of(classifier, Splitting(0.5)).device is None  # no additive noise: NumPy draws


def test_usual_evidence_names_neither_stream_nor_precision_nor_compiler() -> None:
    found = certbench.certify(Smoothing(Gaussian(0.5), n=100), network("mlp"), inputs(1), L2).evidence[0]
    assert not {"stream", "precision", "compiled"} & set(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_classifier_on_a_gpu_draws_there() -> None:
    classifier = moved(network("cnn"), torch.device("cuda"))
    for share in (None, 3):
        found = certbench.certify(Smoothing(Gaussian(0.5), n=2000, share=share), classifier, inputs(3).cuda(), L2)
        assert all(torch.cuda.get_device_name() in e["stream"] for e in found.evidence)


@pytest.mark.parametrize("share", [None, 3])
@pytest.mark.parametrize("layer", [None, "0"])
def test_bfloat16_is_another_classifier_and_says_so(share: int | None, layer: str | None) -> None:
    classifier, x = network("cnn"), inputs(3)
    made = [Smoothing(Gaussian(0.5), n=2000, share=share, layer=layer, precision=p) for p in (None, "bfloat16")]  # type: ignore[arg-type]
    plain, short = (certbench.certify(built, classifier, x, L2) for built in made)
    assert all(e["precision"] == "bfloat16" for e in short.evidence)
    counters = [built.prepare(classifier, L2).counter for built in made]
    assert counters[0].key != counters[1].key and counters[1].classifier.dtype == torch.bfloat16
    assert classifier.dtype == torch.float32  # what was given stays as it was
    for a, b in zip(plain.evidence, short.evidence, strict=True):
        assert np.abs(np.array(a["counts"]) - np.array(b["counts"])).max() < 100  # draws are the same
    again = certbench.certify(made[0], classifier, x, L2)
    assert [e["counts"] for e in again.evidence] == [e["counts"] for e in plain.evidence]
    assert "precision=bfloat16" in certbench.core.options.label(made[1])


def test_noise_is_not_rounded_before_it_is_added() -> None:
    """In bfloat16 sums around 1 are rounded to 2^-7; noise of 2^-12 would be lost on the way if it were added there."""
    seen = []

    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.float())
            return torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)

    module = nn.Sequential(nn.Linear(1, 1, bias=False), Watch()).eval()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    classifier = Classifier(module.to(torch.bfloat16), (1,), 2)
    seen.clear()
    Counter(classifier, Gaussian(2.0**-12), None, None).count(torch.tensor([[1 + 2.0**-8]]), 1000, [0], ESTIMATION)
    assert 300 < int((seen[0] > 1).sum()) < 700  # the middle between two numbers: either, by the noise


def test_options_that_no_run_could_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        certbench.core.options.build({"name": "smoothing", "precision": "float16"})
    with pytest.raises(ConfigError, match="round the noise"):
        Smoothing(precision="bfloat16", also=(("1", 0.5),))
