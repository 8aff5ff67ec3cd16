"""Certified radii per second against peers, in turns in one process, as ratios: `python -m benchmarks.radii`.

Contenders of a race take turns, so that other work of the machine slows all of them alike. A contender's time is the
time per radius in its best round, and beside it in its median round. Preparation and a first call are not timed.
"""

import argparse
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import certbench
from certbench import Classifier, Linf
from certbench.core.margins import margin_rows
from certbench.models import data, zoo
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa

BUNDLE = Path(__file__).parents[2] / "shared" / "data" / "bundle.py"
"""Loader of the published networks, if they are available."""
PUBLISHED = ("eran/mnist_6_100", "eran/mnist_conv_small", "auto_lirpa/mnist_cnn_small")
ZOO = ("mlp-plain", "cnn-plain")
THREAT = Linf.within(0, 1)
RELATIVE = 1e-3
"""Relative precision of every contender's radius."""

Radii = Callable[[Float[Tensor, "n ..."]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Contender:
    """A method that computes certified radii.

    Attributes:
        name: name in the table.
        radii: function from a batch of inputs to radii.
        inputs: number of the race's inputs that it gets; a slow contender gets fewer, and its time is per radius, too.
        at_least: promised ratio of its time to the first contender's; None if nothing is promised.
    """

    name: str
    radii: Radii
    inputs: int
    at_least: float | None = None


@dataclass(frozen=True)
class Race:
    """Contenders on the same inputs; the others are compared with the first."""

    name: str
    inputs: Float[Tensor, "n ..."]
    contenders: tuple[Contender, ...]


def race(course: Race, rounds: int) -> list[dict[str, Any]]:
    """Run a race; return a row per contender: seconds per radius, ratios to the first, means of the common radii."""
    seconds: dict[str, list[float]] = {runner.name: [] for runner in course.contenders}
    radii = {runner.name: runner.radii(course.inputs[:1]) for runner in course.contenders}  # not timed
    for i in range(rounds):
        for runner in course.contenders[:: 1 if i % 2 == 0 else -1]:
            inputs = course.inputs[: runner.inputs]
            start = time.perf_counter()
            radii[runner.name] = runner.radii(inputs)
            seconds[runner.name].append((time.perf_counter() - start) / len(inputs))
    first = course.contenders[0]
    rows = []
    for runner in course.contenders:
        common = min(runner.inputs, first.inputs, len(course.inputs))
        best, middle = (of(seconds[runner.name]) / of(seconds[first.name]) for of in (min, statistics.median))
        rows.append(
            {
                "race": course.name,
                "contender": runner.name,
                "inputs": min(runner.inputs, len(course.inputs)),
                "seconds": seconds[runner.name],
                "per_second": 1 / min(seconds[runner.name]),
                "outrun_best": best,
                "outrun_median": middle,
                "at_least": runner.at_least,
                "mean_radius": float(radii[runner.name][:common].mean()),
                "gain": float(radii[first.name][:common].mean() / radii[runner.name][:common].mean()) - 1,
            }
        )
    return rows


def ours(classifier: Classifier, **spec: Any) -> Radii:
    """Prepare our certifier once; all inputs are one batch, and each call forgets the results of earlier calls."""
    certifier = certbench.build({"search": {"name": "secant", "relative": RELATIVE}, **spec})
    state = certifier.prepare(classifier, THREAT)

    def radii(x: Tensor) -> Tensor:
        if isinstance(state, NetworkState):
            state.network.shared.clear()
        return certbench.certify(certifier, classifier, x.double(), THREAT, state=state, batch_size=len(x)).radius

    return radii


def one_by_one(classifier: Classifier, *, optimised: bool = False) -> Radii:
    """Run auto-LiRPA in the usual loop: one image at a time, bisection of [0, 1/2], in float32.

    The loop is that of VeriGauge (Li et al., 2023, `calc_radius`): verify at 0, then halve [low, high]. It ends when
    the bracket is `RELATIVE` of its upper end; VeriGauge's ends at an absolute width. `optimised` is CROWN-Optimized
    with its 20 iterations, on all layers. Version 0.3 then mistakes the sparse slopes of one radius for those of the
    next. So a convolutional network gets a graph per radius (20 ms), and a fully connected one gets slopes that are not
    sparse, which cost the same there.
    """
    library = auto_lirpa()
    from auto_LiRPA.perturbations import PerturbationLpNorm

    example = torch.zeros(1, *classifier.input_shape)
    convolutions = any(isinstance(layer, torch.nn.Conv2d) for layer in classifier.module.modules())
    options: dict[str, Any] = {"conv_mode": "patches" if convolutions else "matrix", "verbosity": 0}
    if optimised:
        options["optimize_bound_args"] = {"fix_intermediate_layer_bounds": False}
    full = {**options, "sparse_features_alpha": False, "sparse_spec_alpha": False}

    def graph(options: Mapping[str, Any]) -> Any:
        made = library.BoundedModule(classifier.module, example, bound_opts=dict(options))
        made.eval()
        return made

    once = graph(full if optimised else options)

    def verified(x: Tensor, rows: Tensor, eps: float) -> bool:
        ball = PerturbationLpNorm(norm=math.inf, eps=eps, x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
        question = {"x": (library.BoundedTensor(x, ball),), "C": rows, "bound_upper": False}
        if not optimised:
            with torch.no_grad():
                return bool((once.compute_bounds(**question, method="backward")[0] > 0).all())
        for bounded in (graph(options), once) if convolutions else (once,):
            try:
                return bool((bounded.compute_bounds(**question, method="CROWN-Optimized")[0] > 0).all())
            except RuntimeError as error:
                if bounded is once:
                    raise
                assert "shape mismatch" in str(error)
        raise AssertionError

    def radius(x: Tensor) -> float:
        rows = margin_rows(classifier(x).argmax(dim=1), classifier.num_classes).to(x)
        low, high = 0.0, 0.5
        if not verified(x, rows, low):
            return 0.0
        while high - low > RELATIVE * high:
            middle = (low + high) / 2
            low, high = (middle, high) if verified(x, rows, middle) else (low, middle)
        return low

    return lambda x: torch.tensor([radius(row) for row in torch.split(x.float(), 1)], dtype=torch.float64)


def courses(inputs: int, few: int) -> Iterator[Race]:
    """Yield the races: CROWN and alpha-CROWN on fully connected and on convolutional networks."""
    bisection = {"name": "bisection", "relative": RELATIVE}
    for classifier, x in networks(inputs):
        alpha = {"name": "alpha-crown", "layers": 3, "iterations": 10}
        yield Race(
            f"CROWN, {classifier.name}",
            x,
            (
                Contender("certbench", ours(classifier, name="crown"), inputs),
                Contender("batched bisection", ours(classifier, name="crown", search=bisection), inputs, 2.5),
                Contender("auto-LiRPA, one by one", one_by_one(classifier), inputs, 8.0),
            ),
        )
        yield Race(
            f"alpha-CROWN, {classifier.name}",
            x,
            (
                Contender("certbench", ours(classifier, **alpha), inputs),
                Contender("auto-LiRPA, one by one", one_by_one(classifier, optimised=True), few, 20.0),
            ),
        )


def networks(inputs: int) -> Iterator[tuple[Classifier, Float[Tensor, "n ..."]]]:
    """Yield networks with inputs that they classify correctly: published ones for MNIST, else the zoo's for digits."""
    if BUNDLE.exists():
        spec = importlib.util.spec_from_file_location("bundle", BUNDLE)
        assert spec is not None and spec.loader is not None
        bundle: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(bundle)
        x, labels = (part[: 2 * inputs + 20] for part in bundle.dataset("mnist-test"))
        classifiers = [Classifier(bundle.network(name)[0], tuple(x.shape[1:]), 10, name) for name in PUBLISHED]
    else:
        print(f"{BUNDLE} is missing: models of the zoo instead of published networks")
        digits = data.load("digits")
        x, labels = digits.inputs[: 2 * inputs + 20], digits.labels[: 2 * inputs + 20]
        classifiers = [zoo.load(name) for name in ZOO]
    for classifier in classifiers:
        yield classifier, x[classifier(x).argmax(dim=1) == labels][:inputs]


def text(rows: list[dict[str, Any]]) -> str:
    """Write the rows of a race as lines."""
    lines = [f"\n{rows[0]['race']}, {rows[0]['threads']} thread(s)"]
    lines.append(f"  {'':24}{'radii/s':>10}{'outrun':>9}{'median':>9}{'promised':>10}{'mean radius':>13}{'ours':>9}")
    for row in rows:
        promise = "" if row["at_least"] is None else f"{row['at_least']:.1f}"
        lines.append(
            f"  {row['contender']:24}{row['per_second']:10.3g}{row['outrun_best']:9.2f}{row['outrun_median']:9.2f}"
            f"{promise:>10}{row['mean_radius']:13.5f}{row['gain']:+9.2%}  ({row['inputs']} inputs)"
        )
    return "\n".join(lines)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Run the races, print them, and write every round's times as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.radii", description=__doc__)
    parser.add_argument("--only", default="", help="run races whose name contains this, for example 'alpha' or '6_100'")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds per race")
    parser.add_argument("--inputs", type=int, default=20, help="number of inputs per race")
    parser.add_argument("--few", type=int, default=3, help="number of inputs for a slow contender")
    parser.add_argument("--out", type=Path, default=Path("reports/runs/radii.json"), help="JSON file for the times")
    options = parser.parse_args()
    rows = []
    for course in courses(options.inputs, options.few):
        for count in options.threads if options.only in course.name else ():
            with threads(count):
                result = [{**row, "threads": count} for row in race(course, options.rounds)]
            print(text(result), flush=True)
            rows += result
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
