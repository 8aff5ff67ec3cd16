"""The zoo: its models, their weights and their cards."""

import hashlib
import json
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

from certbench import Linf, build, certify
from certbench.errors import ConfigError, UnsupportedError
from certbench.models import zoo
from certbench.models.architectures.denoisers import DiffusionDenoiser
from certbench.models.data.base import Dataset
from certbench.models.recipes.base import CertifiedObjective
from tests.support import mnist

LEAST = {
    **{"linear": 0.92, "plain": 0.96, "small": 0.94, "pgd": 0.96, "ibp": 0.95, "gaussian": 0.95, "lipschitz": 0.95},
    **{"denoised": 0.95, "stability": 0.96, "diffusion": 0.95, "multistep": 0.95},
}
"""Test accuracy that a recipe reaches, by the end of the model's name."""


@pytest.mark.machine
def test_training_again_comes_within_a_point_of_the_card(tmp_path: Path) -> None:
    card = zoo.train("linear", tmp_path / "new")
    assert card["accuracy"]["test"] == pytest.approx(zoo.card("linear")["accuracy"]["test"], abs=0.01)
    assert card == zoo.card("linear", tmp_path / "new")
    assert zoo.load("linear", tmp_path / "new").name == "linear"


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
    """The code of diffusion asks for numbers that it computes from its buffers, which no graph shows."""
    del lirpa
    crown = build({"name": "crown", "search": {"name": "ladder", "eps": [0.005]}})
    inputs = mnist.load(zoo.TABLE[name].data).inputs[:3]
    if isinstance(zoo.TABLE[name].preprocessor, DiffusionDenoiser):
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
