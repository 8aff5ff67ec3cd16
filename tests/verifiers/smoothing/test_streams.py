"""Noise that torch draws on a device, the classifier in bfloat16, and compiled: other counts, and evidence says so."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import certbench
from certbench import L2, Classifier, ConfigError, UnsupportedError
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter
from certbench.verifiers.smoothing.noise.base import exponential, integers, normal, symmetric
from certbench.verifiers.smoothing.noise.families import NOISES, Gaussian, Laplace, Noise, Uniform
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing
from certbench.verifiers.smoothing.splitting import Splitting

CPU = torch.device("cpu")
GPU = pytest.param(
    torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"), id="cuda"
)
devices = pytest.mark.parametrize("device", [pytest.param(CPU, id="cpu"), GPU])
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


def generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@devices
def test_draws_on_a_device_have_the_laws_they_are_named_after(device: torch.device) -> None:
    stream, n = generator(device), 300_000
    laws = [
        (normal(stream, n, 1), stats.norm()),
        (exponential(stream, n, 1), stats.expon()),
        (symmetric(stream, n, 1), stats.uniform(-1, 2)),
        (Gaussian(0.3).draw(stream, n, 1), stats.norm(scale=0.3)),
        (Laplace(0.3).draw(stream, n, 1), stats.laplace(scale=0.3 / math.sqrt(2))),
        (Uniform(0.3).draw(stream, n, 1), stats.uniform(-0.3 * math.sqrt(3), 0.6 * math.sqrt(3))),
    ]
    for drawn, law in laws:
        assert drawn.device.type == device.type and drawn.dtype == torch.float32
        assert stats.kstest(drawn[:, 0].cpu().numpy().astype(np.float64), law.cdf).pvalue > 1e-4


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
def test_normal_draws_pass_where_torchs_float32_ones_end(device: torch.device) -> None:
    """4e-7 of the draws lie beyond 5.07, where we look; 5.77 itself is passed once in 1.2e8 draws."""
    beyond = sum(int((normal(generator(device, seed), 2_000_000, 1).abs() > 5.07).sum()) for seed in range(4))
    assert stats.binomtest(beyond, 8_000_000, 2 * float(stats.norm.sf(5.07))).pvalue > 1e-4


def test_whole_numbers_have_every_bit() -> None:
    drawn = integers(generator(CPU), 2**63, 4000)
    assert (drawn >= 0).all()
    for bit in range(63):
        assert abs(int((drawn >> bit & 1).sum()) - 2000) < 5 * math.sqrt(1000)


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


@pytest.mark.parametrize("share", [None, 3])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_classifier_is_another_one_and_says_so(
    backend: str, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    classifier, x = network("mlp"), inputs(2)
    built = Smoothing(Gaussian(0.5), n=2000, share=share, compile=True)
    found = certbench.certify(built, classifier, x, L2)
    assert all(e["compiled"] == f"torch {torch.__version__}" for e in found.evidence)
    known = len(counting._COUNTED)
    plain = certbench.certify(Smoothing(Gaussian(0.5), n=2000, share=share), classifier, x, L2)
    assert len(counting._COUNTED) == 2 * known  # counted by itself
    for a, b in zip(plain.evidence, found.evidence, strict=True):
        assert np.abs(np.array(a["counts"]) - np.array(b["counts"])).max() <= 2
    counting._COUNTED.clear()
    assert certbench.certify(built, classifier, x[1:], L2).evidence[0] == found.evidence[1]
    assert "compile=true" in certbench.core.options.label(built).lower()


def test_without_a_compiler_it_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def broken(*arguments: object, **settings: object) -> object:
        def run(*rows: object) -> object:
            raise InvalidCxxCompiler

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler"):
        certbench.certify(Smoothing(Gaussian(0.5), n=10, compile=True), network("mlp"), inputs(1), L2)


def test_options_that_no_run_could_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        certbench.core.options.build({"name": "smoothing", "precision": "float16"})
    with pytest.raises(ConfigError, match="round the noise"):
        Smoothing(precision="bfloat16", also=(("1", 0.5),))


@pytest.mark.parametrize("share", [None, 3])
def test_the_twelfth_classifier_is_compiled_like_the_first(share: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles one code object for eight functions, and runs all others as they are without a word."""
    ran = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        return lambda *arguments: ran.append(graph) or graph.forward(*arguments)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    alive = []
    for width in range(5, 17):
        module = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 3)).eval()
        counter = Counter.of(Classifier(module, (3,), 3), Gaussian(0.5), share, compiled=True)
        ran.clear()
        counter.count(torch.rand(1, 3, dtype=torch.float64), 1000, [1], ESTIMATION)
        assert len(ran) == 1, width
        alive.append(counter)


def test_a_classifier_that_compiles_in_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Prints(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    classifier = Classifier(nn.Sequential(Prints(), nn.Linear(3, 3)).eval(), (3,), 3)
    with pytest.raises(UnsupportedError, match="cannot compile the classifier"):
        Counter.of(classifier, Gaussian(0.5), compiled=True)
