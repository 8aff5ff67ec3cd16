"""Architectures, recipes, the zoo with its cards, and users' own models."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from torch import nn

from certbench import Classifier, Linf, build, certify
from certbench.errors import ConfigError, UnsupportedError
from certbench.formats.factory import load_external
from certbench.models import data, training, zoo
from certbench.models.architectures import plain
from certbench.models.architectures.denoisers import ConvolutionalDenoiser, DiffusionDenoiser
from certbench.models.data.base import Dataset
from certbench.models.recipes.adversarial import Adversarial
from certbench.models.recipes.base import CertifiedObjective, Objective, Step
from certbench.models.recipes.gaussian import GaussianNoise
from certbench.models.recipes.interval_bounds import IntervalBounds, interval_bounds
from certbench.models.recipes.lipschitz_margin import LipschitzMargin, lipschitz_constant
from certbench.models.recipes.plain import CrossEntropy
from certbench.networks.normalise import Normalise
from tests.support import mnist

LEAST = {
    **{"linear": 0.92, "plain": 0.96, "small": 0.94, "pgd": 0.96, "ibp": 0.95, "gaussian": 0.95, "lipschitz": 0.95},
    **{"denoised": 0.95, "stability": 0.96, "diffusion": 0.95, "multistep": 0.95},
}
"""Test accuracy that a recipe reaches, by the end of the model's name."""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def network(name: str, input_shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> nn.Sequential:
    """An untrained network in float64."""
    channels = input_shape[0]
    mean, std = [0.1 * (k + 3) for k in range(channels)], [0.5 / (k + 1) for k in range(channels)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        normalise = Normalise(mean, std, len(input_shape))
        return plain.ARCHITECTURES[name](input_shape, 10, normalise).double().eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


# Architectures


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (3, 13, 9)])
@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_architectures_take_images_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    assert network(name, shape)(draw(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_dense_architectures_take_vectors(name: str) -> None:
    assert network(name, (6,))(draw(5, 6)).shape == (5, 10)


def test_normalisation_is_per_channel_and_stored() -> None:
    layer, x = Normalise([0.25, 0.5], [2.0, 4.0]), torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.25) / 2, (x[:, 1] - 0.5) / 4], dim=1)
    assert torch.equal(layer(x), expected)
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())


# Bounds used in training


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_interval_bounds_enclose_sampled_points(name: str, eps: float) -> None:
    module, x = network(name), draw(4, 1, 8, 8)
    lower, upper = interval_bounds(module, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    uniform = 2 * draw(200, *x.shape) - 1
    for change in (uniform, uniform.sign()):
        logits = torch.stack([module(point) for point in (x + eps * change).clamp(0, 1)])
        assert (logits >= lower - 1e-9).all() and (logits <= upper + 1e-9).all()


def test_interval_bounds_are_exact_on_a_linear_network() -> None:
    module, x, eps = network("linear"), draw(4, 1, 8, 8), 0.1
    rows = module[2].weight.abs().sum(dim=1) / module[0].std.item()
    lower, upper = interval_bounds(module, x - eps, x + eps)
    assert torch.allclose(upper - module(x), eps * rows) and torch.allclose(module(x) - lower, eps * rows)


@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_interval_margins_hold_at_sampled_points(name: str) -> None:
    module, x, y, eps = network(name), draw(10, 1, 8, 8), torch.arange(10), 0.05
    objective = IntervalBounds(eps)
    margins = objective.margins(module, x, y, eps)
    assert (margins[y, y] == 0).all()
    for change in 2 * draw(100, *x.shape) - 1:
        logits = module((x + eps * change.sign()).clamp(0, 1))
        assert (logits[y, y][:, None] - logits >= margins - 1e-9).all()


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_lipschitz_margins_hold_along_the_steepest_direction(name: str) -> None:
    module, x, y, eps = network(name), draw(10, 1, 8, 8), torch.arange(10), 0.3
    margins = LipschitzMargin(eps).margins(module, x, y, eps)
    assert (margins[y, y] == 0).all()
    for other in range(10):
        moving = x.clone().requires_grad_()
        logits = module(moving)
        (gradient,) = torch.autograd.grad((logits[y, y] - logits[:, other]).sum(), moving)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        logits = module(x - eps * gradient / norm)
        reached = logits[y, y] - logits[:, other]
        assert (reached >= margins[:, other] - 1e-9).all()
        if name == "linear":
            assert torch.allclose(reached, margins[:, other])


def test_lipschitz_constants_are_the_products_of_spectral_norms() -> None:
    module = network("mlp")
    expected = module[2].weight.svd().S[0] * module[4].weight.svd().S[0] * module[6].weight.svd().S[0]
    assert torch.isclose(lipschitz_constant(module), expected / module[0].std.min())


def test_layers_without_bounds_are_refused() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ConfigError, match="no interval bounds for GELU"):
        interval_bounds([nn.GELU()], x, x)
    with pytest.raises(ConfigError, match="no interval bounds for Conv2d"):
        interval_bounds([nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")], x, x)
    with pytest.raises(ConfigError, match="no Lipschitz constant for Conv2d"):
        lipschitz_constant(network("cnn"))
    with pytest.raises(ConfigError, match="the last layer must be linear, not ReLU"):
        IntervalBounds(0.1).margins(nn.Sequential(nn.ReLU()), x, torch.tensor([0]), 0.1)


# Training


def test_a_ball_grows_after_the_warmup_and_then_stays() -> None:
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    steps = [Step(x, y, progress, torch.Generator()) for progress in (0.0, 0.1, 0.35, 0.6, 1.0)]
    assert [round(step.grown(0.1, 0.5), 9) for step in steps] == [0, 0, 0.5, 1, 1]


OBJECTIVES = [
    CrossEntropy(),
    GaussianNoise(0.25),
    Adversarial(2.0, 0.1, steps=3),
    Adversarial(math.inf, 0.02, steps=3),
    IntervalBounds(0.05),
    LipschitzMargin(0.1),
]


@pytest.mark.machine
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_adversarial_points_lie_in_the_ball_and_cost_more_than_random_ones(p: float) -> None:
    module, x, y, eps = network("mlp"), draw(10, 1, 8, 8), torch.arange(10), 0.3
    step = Step(x, y, 0.0, torch.Generator().manual_seed(0))
    start, end = (Adversarial(p, eps, steps).ascend(module, step) for steps in (0, 10))
    for points in (start, end):
        assert (points >= 0).all() and (points <= 1).all()
        assert torch.linalg.vector_norm((points - x).flatten(1), ord=p, dim=1).amax() <= eps * (1 + 1e-9)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(module(end), y) > loss(module(start), y)).all() and (loss(module(end), y) > loss(module(x), y)).all()
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.machine
def test_adversarial_training_moves_the_classes_apart(digits: Dataset) -> None:
    x, y = digits.inputs.double(), digits.labels
    step, attack = Step(x, y, 0.0, torch.Generator().manual_seed(0)), Adversarial(2.0, 0.6, 20)
    accuracy = []
    for name in ("mlp-plain", "mlp-pgd"):
        module = zoo.load(name).double().module
        assert isinstance(module, nn.Sequential)
        accuracy.append(float((module(attack.ascend(module, step)).argmax(dim=1) == y).double().mean()))
    assert accuracy[1] > accuracy[0] + 0.1


def test_adversarial_training_in_another_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"norm 1\.0; write 2 or inf"):
        Adversarial(1.0, 0.1)


@pytest.mark.machine
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_learns_by_its_seed_alone(objective: Objective) -> None:
    digits = data.load("digits", "train")
    recipe, random, threads = training.Recipe(objective, epochs=3), torch.get_rng_state(), torch.get_num_threads()

    def train(seed: int) -> nn.Sequential:
        def build() -> nn.Sequential:
            return plain.mlp((1, 8, 8), 10, Normalise([0.3], [0.4]))

        return training.train(build, recipe, digits, seed)

    first = train(0)
    torch.rand(3)
    torch.set_num_threads(2)
    again = train(0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    torch.set_rng_state(random)
    assert not torch.equal(first[2].weight, train(1)[2].weight)
    assert torch.equal(torch.get_rng_state(), random)
    assert not first.training and not any(parameter.requires_grad for parameter in first.parameters())
    assert (first(digits.inputs).argmax(dim=1) == digits.labels).float().mean() > 0.8


def test_too_few_inputs_to_train_on_are_refused(digits: Dataset) -> None:
    few = Dataset("few", digits.inputs[:5], digits.labels[:5], 10)
    with pytest.raises(ConfigError, match="few has 5 inputs, less than a batch of 64"):
        training.train(lambda: network("linear"), zoo.TABLE["linear"].recipe, few, 0)


@pytest.mark.machine
def test_training_again_comes_within_a_point_of_the_card(tmp_path: Path) -> None:
    card = zoo.train("linear", tmp_path / "new")
    assert card["accuracy"]["test"] == pytest.approx(zoo.card("linear")["accuracy"]["test"], abs=0.01)
    assert card == zoo.card("linear", tmp_path / "new")
    assert zoo.load("linear", tmp_path / "new").name == "linear"


# The zoo


@pytest.mark.parametrize("name", zoo.names())
def test_cards_say_what_the_table_says(name: str) -> None:
    card, entry, model = zoo.card(name), zoo.TABLE[name], zoo.load(name)
    assert card["name"] == name and card["architecture"] == entry.architecture and card["seed"] == entry.seed
    settings = asdict(entry.recipe)
    settings["objective"] = {"name": type(entry.recipe.objective).__name__, **settings["objective"]}
    assert card["settings"] == settings
    preprocessor = entry.preprocessor
    made = None if preprocessor is None else {"name": type(preprocessor).__name__, **asdict(preprocessor)}
    assert card.get("preprocessor") == made
    assert card["recipe"] == (type(entry.recipe.objective).__doc__ or "").splitlines()[0]
    assert card["data"] == entry.data
    for split in ("train", "test"):
        part = mnist.load(entry.data, split)
        assert card["splits"][split] == {"inputs": len(part), "sha256": part.fingerprint()}
    assert card["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert card["layers"] == [str(layer) for layer in model.module.children()]
    assert card["sha256"] == hashlib.sha256((zoo.WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()


@pytest.mark.machine
@pytest.mark.parametrize("name", zoo.names())
def test_the_accuracy_on_a_card_is_the_measured_one(name: str) -> None:
    test, model = mnist.load(zoo.TABLE[name].data), zoo.load(name)
    logits = torch.cat([model(part) for part in test.inputs.split(2000)])
    first, second = logits.topk(2, dim=1).values.T
    assert ((first - second) > 1e-5 * logits.abs().amax(dim=1)).all()  # no input so near a border that rounding decides
    accuracy = (logits.argmax(dim=1) == test.labels).double().mean()
    assert float(accuracy) == pytest.approx(zoo.card(name)["accuracy"]["test"], abs=1e-9)
    assert float(accuracy) >= LEAST[name.rpartition("-")[2]]


@pytest.mark.machine
@pytest.mark.parametrize("name", zoo.names())
def test_the_certified_accuracy_on_a_card_is_the_measured_one(name: str, digits: Dataset) -> None:
    objective, card = zoo.TABLE[name].recipe.objective, zoo.card(name)
    if not isinstance(objective, CertifiedObjective):
        assert card["certified"] is None
        return
    module = zoo.load(name).double().module
    assert isinstance(module, nn.Sequential)
    proved = objective.certified(module, digits.inputs.double(), digits.labels)
    assert float(proved.double().mean()) == pytest.approx(card["certified"]["accuracy"], abs=1e-9)
    assert card["certified"]["accuracy"] >= 0.7
    assert (str(objective.claim()[0]), objective.claim()[1]) == (card["certified"]["threat"], card["certified"]["eps"])


@pytest.mark.parametrize("name", ["mlp-ibp", "cnn-ibp"])
def test_the_ibp_certifier_proves_what_training_proved(name: str, digits: Dataset, lirpa: ModuleType) -> None:
    del lirpa
    model, card = zoo.load(name), zoo.card(name)["certified"]
    ibp = build({"name": "ibp", "search": {"name": "ladder", "eps": [card["eps"]]}})
    certificate = certify(ibp, model, digits.inputs, Linf.within(0, 1))
    proved = (certificate.radius >= card["eps"]) & (certificate.prediction == digits.labels)
    assert float(proved.double().mean()) == pytest.approx(card["accuracy"], abs=0.005)


@pytest.mark.parametrize("name", zoo.names())
def test_linear_bounds_read_every_model(name: str, lirpa: ModuleType) -> None:
    """auto-LiRPA 0.3 fails on a normalisation whose constants have no batch axis.

    Diffusion clips inside, and convolutional denoisers have transposed convolutions.
    """
    del lirpa
    crown = build({"name": "crown", "search": {"name": "ladder", "eps": [0.005]}})
    inputs = mnist.load(zoo.TABLE[name].data).inputs[:3]
    unread = (DiffusionDenoiser, ConvolutionalDenoiser)
    if isinstance(zoo.TABLE[name].preprocessor, unread):
        with pytest.raises(UnsupportedError):
            certify(crown, zoo.load(name), inputs, Linf)
        return
    assert (certify(crown, zoo.load(name), inputs, Linf).radius > 0).any()


def test_all_weights_together_are_small() -> None:
    files = list(zoo.WEIGHTS.iterdir())
    assert {file.name for file in files} == {f"{name}.{end}" for name in zoo.names() for end in ("json", "safetensors")}
    assert sum(file.stat().st_size for file in files) < 2.5e6


def test_loading_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    model = zoo.load("mlp-plain")
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for path in (*zoo.WEIGHTS.glob("linear.*"), *zoo.WEIGHTS.glob("mlp-plain.*")):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_damaged_weights_are_refused_unread(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes) -> None:
        pytest.fail("damaged weights were read")

    monkeypatch.setattr(safetensors.torch, "load", fail)
    path = copied / "linear.safetensors"
    whole = path.read_bytes()
    other = (copied / "mlp-plain.safetensors").read_bytes()
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0", b"", other):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"linear\.safetensors is damaged.*certbench train linear --out"):
            zoo.load("linear", copied)


def test_missing_files_are_refused(copied: Path) -> None:
    (copied / "linear.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"linear\.safetensors cannot be read.*certbench train linear"):
        zoo.load("linear", copied)
    (copied / "linear.json").unlink()
    with pytest.raises(ConfigError, match=r"linear\.json cannot be read.*certbench train linear"):
        zoo.load("linear", copied)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"name": "linear"}), "\udcff"])
def test_damaged_cards_are_refused(copied: Path, content: str) -> None:
    (copied / "linear.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"linear\.json (cannot be read|is no card).*certbench train linear"):
        zoo.load("linear", copied)


def test_an_unknown_model_is_refused_with_the_nearest(tmp_path: Path) -> None:
    for ask in (zoo.card, zoo.load, lambda name: zoo.train(name, tmp_path)):
        with pytest.raises(ConfigError, match="unknown model 'mlp-plane'; did you mean 'mlp-plain'"):
            ask("mlp-plane")


def test_imports_point_down_and_stay_light() -> None:
    code = """
import sys, certbench.models
assert "torch" not in sys.modules and "numpy" not in sys.modules
import certbench.models.zoo
assert not [name for name in sys.modules if name.startswith("certbench.verifiers")]
assert "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Users' own models

SOURCE = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 10))

def double(): return small().double()
def half(): return small().half()
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 10))
def deep(): return nn.Sequential(*small(), nn.Linear(10, 10))
def needy(classes): return small()
def broken(): raise OSError("no such disk")
def nothing(): return None
def tied():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    module[2].weight = module[1].weight
    return module
number = 3
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module and weights, the current one; imports are undone afterwards."""
    for name in [name for name in sys.modules if name.startswith("users_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_nets.py").write_text(SOURCE)
    (tmp_path / "users_typo.py").write_text("import users_missing_package")
    (tmp_path / "users_folder").mkdir()
    (tmp_path / "users_folder" / "nets.py").write_text(SOURCE)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 10))
    safetensors.torch.save_file(small.state_dict(), tmp_path / "w.safetensors")
    torch.save(small.state_dict(), tmp_path / "w.pt")
    shutil.copy(tmp_path / "w.pt", tmp_path / "renamed.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-8])
    return tmp_path


def load(factory: str, weights: str = "w.safetensors", classes: int = 10) -> Classifier:
    return load_external(factory, weights, input_shape=(1, 8, 8), num_classes=classes)


@pytest.mark.parametrize("module", ["users_nets", "users_folder.nets"])
def test_ones_own_model_is_loaded_exactly(workplace: Path, module: str, digits: Dataset) -> None:
    state = torch.get_rng_state()
    model = load(f"{module}:small")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.name == f"{module}:small" and not model.module.training
    stored = safetensors.torch.load_file(workplace / "w.safetensors")
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.module.state_dict().items())
    hidden = torch.relu(digits.inputs.flatten(1) @ stored["1.weight"].T + stored["1.bias"])
    assert torch.allclose(model(digits.inputs), hidden @ stored["4.weight"].T + stored["4.bias"], atol=1e-5)


def test_widening_is_exact(workplace: Path) -> None:
    stored = safetensors.torch.load_file(workplace / "w.safetensors")
    for key, tensor in load("users_nets:double").module.state_dict().items():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, stored[key].double())


def test_shared_parameters_are_loaded(workplace: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    module[2].weight = module[1].weight
    safetensors.torch.save_model(module, str(workplace / "tied.safetensors"))
    loaded, x = load("users_nets:tied", "tied.safetensors").module, torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), module(x))


@pytest.mark.parametrize(
    ("factory", "weights", "message"),
    [
        ("users_nets", "w.safetensors", "write module:function"),
        (":small", "w.safetensors", "write module:function"),
        ("users_absent:small", "w.safetensors", "there is no module 'users_absent' to import"),
        ("users_nets.py:small", "w.safetensors", r"there is no module 'users_nets.py'.*without \.py"),
        ("users_folder/nets:small", "w.safetensors", "there is no module.*dots for folders"),
        ("users_typo:small", "w.safetensors", "importing 'users_typo' fails.*users_missing_package"),
        (".users_nets:small", "w.safetensors", "importing '.users_nets' fails"),
        ("users_nets:smal", "w.safetensors", "unknown function of 'users_nets' 'smal'; did you mean 'small'"),
        ("users_nets:number", "w.safetensors", "unknown function of 'users_nets' 'number'"),
        ("users_nets:needy", "w.safetensors", r"users_nets:needy\(\) fails: TypeError.*'classes'"),
        ("users_nets:broken", "w.safetensors", "fails: OSError: no such disk"),
        ("users_nets:nothing", "w.safetensors", "returns NoneType, not a torch.nn.Module"),
        ("users_nets:small", "absent.safetensors", "there is no file absent.safetensors"),
        ("users_nets:small", "w.pt", r"w\.pt is a pickle.*safetensors\.torch\.save_file\(model\.state_dict"),
        ("users_nets:small", "renamed.safetensors", r"not a safetensors file.*save_file\(model\.state_dict"),
        ("users_nets:small", "cut.safetensors", "not a safetensors file, or damaged"),
        ("users_nets:wide", "w.safetensors", r"(?s)another module.*size mismatch for 1\.weight"),
        ("users_nets:deep", "w.safetensors", r"(?s)another module.*Missing key.*5\.bias"),
        ("users_nets:tied", "w.safetensors", r"(?s)another module"),
        ("users_nets:half", "w.safetensors", "float32 and would be rounded to torch.float16"),
    ],
)
def test_mistakes_with_ones_own_model_are_named(workplace: Path, factory: str, weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(factory, weights)


def test_the_wrong_class_count_is_named(workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"users_nets:small gives logits of shape \(2, 10\)"):
        load("users_nets:small", classes=7)
