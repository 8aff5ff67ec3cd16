"""The zoo: small trained classifiers with their cards.

`weights/NAME.safetensors` holds what `train(NAME, folder)` made. `weights/NAME.json` is the model's card: what it is,
how it was trained, how good it is, and the sha256 of the weights. Weights with another sha256 are refused.

To add a model, write a line in `TABLE`, run `certbench train NAME --out models/weights`, and commit both files.
"""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from certbench.core.classifier import Classifier
from certbench.core.registry import unknown
from certbench.errors import ConfigError
from certbench.files.writing import write
from certbench.models import data
from certbench.models.architectures.denoisers import ConvolutionalDenoiser, Denoiser, DiffusionDenoiser, Preprocessor
from certbench.models.architectures.plain import ARCHITECTURES
from certbench.models.data.base import Dataset
from certbench.models.recipes.adversarial import Adversarial
from certbench.models.recipes.base import CertifiedObjective, Objective
from certbench.models.recipes.denoising import Denoising
from certbench.models.recipes.gaussian import GaussianNoise
from certbench.models.recipes.interval_bounds import IntervalBounds
from certbench.models.recipes.lipschitz_margin import LipschitzMargin
from certbench.models.recipes.noise_prediction import NoisePrediction
from certbench.models.recipes.plain import CrossEntropy
from certbench.models.recipes.stability import Stability
from certbench.models.training import Recipe
from certbench.models.training import train as train_network
from certbench.networks.normalise import Normalise

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights and cards."""


@dataclass(frozen=True)
class ZooModel:
    """The architecture, recipe and data from which a model of the zoo is made.

    Attributes:
        architecture: a name in `ARCHITECTURES`.
        recipe: the training recipe.
        data: the training data, as `data.load` names it.
        seed: seed of initial parameters, shuffles and noise.
        preprocessor: a pre-processor before a trained classifier of that architecture; then it alone is trained.
    """

    architecture: str
    recipe: Recipe
    data: str = "digits"
    seed: int = 0
    preprocessor: Preprocessor | None = None


# Epochs, learning rates and decays are judgements. They were chosen with the test split in sight, so accuracies are a
# little too good. With seed 1, accuracies on the digits are within 0.8 points of every card; MNIST was not tried.
TABLE = {
    "linear": ZooModel("linear", Recipe(CrossEntropy(), epochs=50, learning_rate=2e-3)),
    "mlp-plain": ZooModel("mlp", Recipe(CrossEntropy(), epochs=40, weight_decay=0.5)),
    "mlp-small": ZooModel("mlp-small", Recipe(CrossEntropy(), epochs=40, weight_decay=0.5)),
    "mlp-gaussian": ZooModel("mlp", Recipe(GaussianNoise(sigma=0.25), epochs=60)),
    "mlp-pgd": ZooModel("mlp", Recipe(Adversarial(p=2.0, eps=0.3), epochs=60)),
    "mlp-ibp": ZooModel("mlp", Recipe(IntervalBounds(eps=0.1), epochs=120)),
    "mlp-lipschitz": ZooModel("mlp", Recipe(LipschitzMargin(eps=0.3), epochs=60)),
    "cnn-plain": ZooModel("cnn", Recipe(CrossEntropy(), epochs=40, weight_decay=0.5)),
    "cnn-gaussian": ZooModel("cnn", Recipe(GaussianNoise(sigma=0.25), epochs=60)),
    "cnn-ibp": ZooModel("cnn", Recipe(IntervalBounds(eps=0.1), epochs=120)),
    "cnn-denoised": ZooModel(
        "cnn", Recipe(Denoising(sigma=0.25), epochs=400, learning_rate=2e-3), preprocessor=Denoiser("cnn-plain")
    ),
    "cnn-denoised-stability": ZooModel(
        "cnn",
        Recipe(Stability(sigma=0.25), epochs=100, learning_rate=2e-3, weight_decay=0.1),
        preprocessor=Denoiser("cnn-plain"),
    ),
    "cnn-diffusion": ZooModel(
        "cnn",
        Recipe(NoisePrediction(), epochs=800, learning_rate=2e-3),
        preprocessor=DiffusionDenoiser("cnn-plain", sigma=0.25),
    ),
    "cnn-diffusion-multistep": ZooModel(
        "cnn",
        Recipe(NoisePrediction(), epochs=800, learning_rate=2e-3),
        preprocessor=DiffusionDenoiser("cnn-plain", sigma=0.25, steps=20),
    ),
    "mnist-cnn-plain": ZooModel("cnn-small", Recipe(CrossEntropy(), epochs=4, batch_size=128), "mnist"),
    "mnist-cnn-gaussian": ZooModel("cnn-small", Recipe(GaussianNoise(sigma=0.5), epochs=4, batch_size=128), "mnist"),
    "mnist-cnn-denoised": ZooModel(
        "cnn-small",
        Recipe(Denoising(sigma=0.5), epochs=3, batch_size=128, learning_rate=3e-3),
        "mnist",
        preprocessor=ConvolutionalDenoiser("mnist-cnn-plain"),
    ),
    "mnist-cnn-denoised-stability": ZooModel(
        "cnn-small",
        Recipe(Stability(sigma=0.5), epochs=3, batch_size=128, learning_rate=3e-3),
        "mnist",
        preprocessor=ConvolutionalDenoiser("mnist-cnn-plain"),
    ),
}


def names() -> list[str]:
    """List every model of the zoo."""
    return list(TABLE)


def card(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """Read the card of a model, as `train` wrote it.

    Raises:
        ConfigError: no model has this name, or its card cannot be read.
    """
    _entry(name)
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_cure(name, folder)}") from error
    if not isinstance(content, dict) or not {"sha256", "input_shape", "num_classes"} <= content.keys():
        raise ConfigError(f"{path} is no card of a model; {_cure(name, folder)}")
    return content


def load(name: str, folder: Path = WEIGHTS) -> Classifier:
    """Load a model of the zoo; its weights must have the sha256 on its card, or they are not read.

    Raises:
        ConfigError: no model has this name, or its files are missing, damaged or from different trainings.
    """
    facts, path = card(name, folder), folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_cure(name, folder)}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise ConfigError(
            f"{path} is damaged, or not the file of its card: its sha256 is {found}, not {facts['sha256']}; "
            + _cure(name, folder)
        )
    shape, classes = tuple(facts["input_shape"]), facts["num_classes"]
    with torch.random.fork_rng(devices=[]):  # initial parameters are drawn, and then replaced
        module = ARCHITECTURES[TABLE[name].architecture](shape, classes, _unit(shape))
        preprocessor = TABLE[name].preprocessor
        if preprocessor is not None:
            module = nn.Sequential(preprocessor.build(shape), *module)
    module.load_state_dict(safetensors.torch.load(content))
    return Classifier(module.eval().requires_grad_(False), shape, classes, name)


def train(name: str, folder: Path | str) -> dict[str, Any]:
    """Train a model of the zoo from scratch; write `NAME.safetensors` and its card `NAME.json`.

    Args:
        name: a model of the zoo.
        folder: folder for both files, created if it is missing; files of an earlier training are replaced.

    Returns:
        The card.

    Raises:
        ConfigError: no model has this name.
        StoreError: the folder cannot be written.
    """
    entry, folder = _entry(name), Path(folder)
    training, test = data.load(entry.data, "train"), data.load(entry.data)
    shape, classes = training.input_shape, training.num_classes
    pixels = training.inputs.transpose(0, 1).flatten(1)
    normalise = Normalise(pixels.mean(dim=1).tolist(), pixels.std(dim=1).tolist(), len(shape))

    def build() -> nn.Sequential:
        if entry.preprocessor is None:
            return ARCHITECTURES[entry.architecture](shape, classes, normalise)
        behind = load(entry.preprocessor.classifier)  # its parameters are fixed
        return nn.Sequential(entry.preprocessor.build(shape), *behind.module.children())

    module = train_network(build, entry.recipe, training, entry.seed)
    content = safetensors.torch.save(module.state_dict())
    objective = entry.recipe.objective
    facts: dict[str, Any] = {
        "name": name,
        "architecture": entry.architecture,
        "layers": [str(layer) for layer in module],
        "input_shape": list(shape),
        "num_classes": classes,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "recipe": (type(objective).__doc__ or "").partition("\n")[0],
        "settings": {
            **asdict(entry.recipe),
            "objective": {"name": type(objective).__name__, **asdict(entry.recipe)["objective"]},
        },
        "seed": entry.seed,
        "data": entry.data,
        "splits": {
            split: {"inputs": len(part), "sha256": part.fingerprint()}
            for split, part in (("train", training), ("test", test))
        },
        "accuracy": {"train": _accuracy(module, training), "test": _accuracy(module, test)},
        "certified": _certified(module, objective, test),
        "torch": torch.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    if entry.preprocessor is not None:
        facts["preprocessor"] = {"name": type(entry.preprocessor).__name__, **asdict(entry.preprocessor)}
    write(folder / f"{name}.safetensors", content, create_folder=True)
    write(folder / f"{name}.json", json.dumps(facts, indent=2) + "\n")
    return facts


def _entry(name: str) -> ZooModel:
    if name not in TABLE:
        raise ConfigError(unknown("model", name, TABLE))
    return TABLE[name]


def _cure(name: str, folder: Path) -> str:
    return f"reinstall certbench, or make both files again: certbench train {name} --out {folder}"


def _unit(input_shape: tuple[int, ...]) -> Normalise:
    """Make a normalisation whose numbers will be loaded later."""
    return Normalise([0.0] * input_shape[0], [1.0] * input_shape[0], len(input_shape))


def _accuracy(module: nn.Module, dataset: Dataset) -> float:
    parts = torch.split(dataset.inputs, 2000)  # all of MNIST at once would take gigabytes
    found = [module(part).argmax(dim=1) for part in parts]
    return _share(torch.cat(found) == dataset.labels)


def _certified(module: nn.Sequential, objective: Objective, test: Dataset) -> dict[str, Any] | None:
    """Return the share of inputs for which the objective's own certificate proves the label; None if it has none."""
    if not isinstance(objective, CertifiedObjective):
        return None
    threat, eps = objective.claim()
    proved = objective.certified(copy.deepcopy(module).double(), test.inputs.double(), test.labels)
    return {"threat": str(threat), "eps": eps, "accuracy": _share(proved)}


def _share(true: Bool[Tensor, " n"]) -> float:
    return round(float(true.double().mean()), 4)
