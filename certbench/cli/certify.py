"""The command `certbench certify`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from certbench.cli.console import err, out
from certbench.cli.show_network import sizes_of
from certbench.errors import ConfigError, UnsupportedError
from certbench.exit_codes import ExitCode
from certbench.files.numbers import number, whole

if TYPE_CHECKING:
    from torch import Tensor

    from certbench.core.certificate import Certificate


def certify(
    model: Annotated[str, typer.Argument(help="A model of the zoo, a file (.onnx, .pt2), or module:function.")],
    data: Annotated[str, typer.Option(help="Data set by its name, a file (.npz, .csv, ...), or a folder of pictures.")],
    layout: Annotated[str | None, typer.Option(help="Order of the axes of images: NHWC, NCHW, or HW.")] = None,
    scale: Annotated[str | None, typer.Option(help="Factor for every input, as 1/255; bytes need one.")] = None,
    labels: Annotated[str | None, typer.Option(help="Name, column or file of the labels, if unusual.")] = None,
    features: Annotated[str | None, typer.Option(help="Name or columns of the inputs, if unusual, as age,sex.")] = None,
    split: Annotated[str, typer.Option(help="Part of a data set that has several.")] = "test",
    dtype: Annotated[str | None, typer.Option(help="Precision of the inputs: float32 or float64.")] = None,
    norm: Annotated[str, typer.Option(help="Norm of the perturbations: L1, L2 or Linf.")] = "Linf",
    eps: Annotated[str, typer.Option(help="Radii at which certified inputs are counted, as 2/255,8/255.")] = "",
    certifier: Annotated[
        str, typer.Option(help="Certifiers with their usual options, as crown,lipschitz (see `certbench list`).")
    ] = "alpha-crown",
    inputs: Annotated[int, typer.Option(help="Number of inputs, from the first on.", min=1)] = 10,
    domain: Annotated[str, typer.Option(help="Smallest and largest value of an input, as 0,1; or data.")] = "",
    threat_scale: Annotated[str, typer.Option(help="What radius 1 is in each feature: numbers, std, or a file.")] = "",
    move: Annotated[str, typer.Option(help="Features that move, counted from 0, as 0,3; or a file with a mask.")] = "",
    fixed: Annotated[str, typer.Option(help="Features that do not move, as 0,3; or a file with a mask.")] = "",
    weights: Annotated[str | None, typer.Option(help="File with the parameters of what module:function makes.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="Shape of one input, as 3,32,32, if not the data's.")] = None,
    output: Annotated[str | None, typer.Option(help="Name or place of the output that has the logits.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Threshold of a single logit.")] = None,
    trust: Annotated[bool, typer.Option(help="Allow a pickled module to run its code when it is opened.")] = False,
    download: Annotated[bool, typer.Option(help="Allow timm and transformers to download weights.")] = False,
    attack: Annotated[bool, typer.Option(help="Hold certificates of base classifiers against attacks.")] = False,
    seed: Annotated[int, typer.Option(help="Base of all random draws.")] = 0,
) -> None:
    """Certify the first inputs of a data set, and print a table of radii; nothing is stored."""
    from certbench.attacks.certified import certify as certified
    from certbench.core.claims import Subject
    from certbench.core.options import build
    from certbench.core.threat import ThreatModel
    from certbench.models import data as data_sets
    from certbench.runs.load import cure_of_shape, labelled, load_for, same_order
    from certbench.runs.threats import Wishes, made

    threat, radii = ThreatModel.of(norm), _numbers(eps)
    if not all(0 <= radius < math.inf for radius in radii):
        raise ConfigError(f"--eps {eps!r} has a radius below 0, or an infinite one")
    if move and fixed:
        raise ConfigError("write --move or --fixed, not both: the other features are the rest")
    wishes = Wishes(
        domain="data" if domain == "data" else (_numbers(domain) or None),
        scale=threat_scale if threat_scale == "std" else _or_file(threat_scale, _numbers),
        move=_or_file(move, _places),
        fixed=_or_file(fixed, _places),
    )
    names = [part.strip() for part in certifier.split(",")]
    chosen = [build(name) for name in names]
    dataset = data_sets.load(
        data_sets.source(
            path=data,
            split=split,
            layout=layout,
            scale=scale,
            dtype=dtype,
            features=features.split(",") if features and "," in features else features,
            labels=labels,
            take=inputs,
        )
    )
    classifier = load_for(
        dataset,
        model,
        weights,
        input_shape=sizes_of(input_shape),
        output=int(output) if output is not None and output.lstrip("-").isdigit() else output,
        threshold=threshold,
        trust=trust,
        download=download,
    )
    if not same_order(classifier.input_shape, dataset.input_shape):
        shapes = f"{classifier.input_shape}; {dataset.name} has {dataset.input_shape}"
        raise ConfigError(f"{model} takes {shapes}; {cure_of_shape(classifier, dataset)}")
    labelled(classifier, dataset)
    x = dataset.inputs[:inputs].reshape(-1, *classifier.input_shape).double()
    classes = dataset.labels[:inputs]
    (threat,) = made([threat], wishes, dataset, dataset.inputs[:inputs])
    predicted = classifier.double()(x).argmax(dim=1).cpu()

    found: dict[str, Certificate] = {}
    for name, built in zip(names, chosen, strict=True):
        try:
            held = attack and built.subject is Subject.BASE
            found[name] = certified(built, classifier, x, threat, seed=seed, throw=False, attack=held)
        except UnsupportedError as error:
            err.print(f"{name}: {error}", soft_wrap=True)
    table = Table("input", "label", "class", *found, box=None, pad_edge=False)
    for i in range(len(x)):
        cells = (_cell(one, i, int(classes[i])) for one in found.values())
        table.add_row(str(i), str(int(classes[i])), str(int(predicted[i])), *cells)
    right = int((predicted == classes).sum())
    title = f"{classifier.name}, {dataset.name}, {threat}: {right} of {len(x)} inputs are classified correctly"
    out.print(title, soft_wrap=True)
    read_as = [] if classifier.input_shape == dataset.input_shape else [f"read in shape {classifier.input_shape}"]
    out.print(f"data {dataset.name}: {'; '.join([*dataset.done, *read_as])}", soft_wrap=True)
    out.print(table)
    for name, one in found.items():
        out.print(f"{name}: {_summary(one, classes, radii)}", soft_wrap=True)
    complete = len(found) == len(names) and all(o.answered for one in found.values() for o in one.outcome)
    raise typer.Exit(ExitCode.OK if complete else ExitCode.INCOMPLETE)


def _cell(certificate: "Certificate", i: int, label: int) -> str:
    """Return a radius, in brackets if the class is not the label; and the outcome, if the method did not end."""
    radius, outcome = f"{float(certificate.radius[i]):.6g}", certificate.outcome[i]
    shown = radius if int(certificate.prediction[i]) == label else f"({radius})"
    return shown if outcome.value == "completed" else f"{shown} {outcome.value}"


def _summary(certificate: "Certificate", labels: "Tensor", radii: list[float]) -> str:
    """Return the numbers of inputs certified at some radii, and the mean radius where the class is right."""
    right = certificate.prediction == labels
    parts = [
        f"{int((right & (certificate.radius >= eps)).sum())} of {len(labels)} certified at {eps:g}" for eps in radii
    ]
    finite = certificate.radius[right & certificate.radius.isfinite()]
    none = "no finite radius" if right.any() else "no right answer, so no mean radius"
    return "; ".join([*parts, f"mean radius {float(finite.mean()):.6g}" if len(finite) else none])


def _or_file(text: str, read: Callable[[str], list[Any]]) -> Any:
    """Read numbers; leave the path of a file as it is."""
    from certbench.runs.suite import THREAT_FILES

    if not text:
        return None
    return text if Path(text).suffix in THREAT_FILES else tuple(read(text))


def _places(text: str) -> list[int]:
    """Read places of features.

    Raises:
        ConfigError: one of them is no whole number.
    """
    try:
        return [whole(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _numbers(text: str) -> list[float]:
    """Read numbers with commas between them, or fractions as 8/255.

    Raises:
        ConfigError: one of them is no number.
    """
    try:
        return [number(part.strip()) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(str(error)) from None
