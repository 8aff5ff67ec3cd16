"""Margin bounds against auto-LiRPA's on networks of every kind of layer: `python -m benchmarks.relaxations`.

alpha-CROWN is ours as it is by default: slopes below the margins alone are optimised; theirs optimises all slopes. Each
network is trained on the digits for some seconds. Both engines bound the same margins over the same balls, all
inputs in one batch, in turns. `looser` says by how much our mean bound lies further below the margin at the input than
theirs does, as a share of theirs; a minus means tighter. `outrun` is their time in units of ours. auto-LiRPA gets the
user's module, in float32 as usual, or in our float64 (`--double`); put a later release than 0.3 first on PYTHONPATH to
measure against it.
"""

import argparse
import copy
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import certbench
from certbench import Classifier, Linf, MarginCertifier
from certbench.core.margins import clean_margin, margin_rows
from certbench.models import data
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
"""Our names of the methods, and theirs."""

ITERATIONS = 20
"""Number of steps of both optimisers."""

Margins = Callable[[], Float[Tensor, "n others"]]


class Attention(nn.Module):
    """Two heads of attention over the rows of an image, with a skip connection, then ReLU."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.enter, self.mixed, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm: nn.Module = nn.LayerNorm(16) if normed else nn.Identity()
        self.wide, self.last = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = self.enter(x.reshape(-1, 8, 8))
        q, k, v = (part.reshape(-1, 8, 2, 8).transpose(1, 2) for part in self.mixed(self.norm(h)).split(16, dim=2))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(8), dim=3)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(-1, 8, 16))
        return self.last(torch.relu(self.wide(h)).mean(dim=1))


def mlp(*between: Callable[[], nn.Module]) -> nn.Module:
    """Make three layers with the same functions after each but the last."""
    steps = [make() for make in between], [make() for make in between]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *steps[0], nn.Linear(64, 64), *steps[1], nn.Linear(64, 10))


def pooled() -> nn.Module:
    """Make convolutions with maximum pooling between."""
    first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*first, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "ReLU": (lambda: mlp(nn.ReLU), 0.02),
    "LeakyReLU": (lambda: mlp(nn.LeakyReLU), 0.02),
    "sigmoid": (lambda: mlp(nn.Sigmoid), 0.02),
    "tanh": (lambda: mlp(nn.Tanh), 0.02),
    "GELU": (lambda: mlp(nn.GELU), 0.02),
    "SiLU": (lambda: mlp(nn.SiLU), 0.02),
    "ELU": (lambda: mlp(nn.ELU), 0.02),
    "MaxPool": (pooled, 0.02),
    "LayerNorm": (lambda: mlp(lambda: nn.LayerNorm(64), nn.ReLU), 0.005),
    "attention": (lambda: Attention(False), 0.002),
    "attention, LayerNorm": (lambda: Attention(True), 0.002),
}
"""Networks and the radius at which each is bounded."""


def trained(make: Callable[[], nn.Module], name: str, steps: int = 150) -> Classifier:
    """Train a network on the digits."""
    digits = data.load("digits")
    torch.manual_seed(0)
    module = make()
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            loss = nn.functional.cross_entropy(module(digits.inputs[200:]), digits.labels[200:])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return Classifier(module.eval(), (1, 8, 8), 10, name)


def ours(method: str, classifier: Classifier, x: Tensor, label: Int[Tensor, " n"], radius: float) -> Margins:
    """Prepare our certifier once."""
    options = {"iterations": ITERATIONS} if method == "alpha-crown" else {}
    certifier = certbench.build({"name": method, "engine": "own", **options})
    assert isinstance(certifier, MarginCertifier)
    state, eps = certifier.prepare(classifier, Linf), torch.full((len(x),), radius, dtype=torch.float64)

    def margins() -> Tensor:
        assert isinstance(state, NetworkState)
        state.network.shared.clear()
        return certifier.margins(state, x.double(), label, eps).lower

    return margins


def theirs(
    method: str, classifier: Classifier, x: Tensor, label: Int[Tensor, " n"], radius: float, dtype: torch.dtype
) -> Margins:
    """Make auto-LiRPA's graph once."""
    library = auto_lirpa()
    from auto_LiRPA.perturbations import PerturbationLpNorm

    options = {"verbosity": 0, "optimize_bound_args": {"iteration": ITERATIONS, "fix_intermediate_layer_bounds": False}}
    module, x = copy.deepcopy(classifier.module).to(dtype), x.to(dtype)
    graph = library.BoundedModule(module, x[:1].expand(len(x), -1, -1, -1), bound_opts=options)
    graph.eval()
    rows = margin_rows(label, classifier.num_classes).to(dtype)

    def margins() -> Tensor:
        ball = PerturbationLpNorm(norm=math.inf, eps=radius)
        question = {"x": (library.BoundedTensor(x, ball),), "C": rows, "bound_upper": False}
        with torch.set_grad_enabled(method == "alpha-crown"):
            return graph.compute_bounds(**question, method=METHODS[method])[0].detach().double()  # type: ignore[no-any-return]

    return margins


def compare(name: str, inputs: int, rounds: int, methods: list[str], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Bound a network by each method, ours and theirs in turns."""
    make, radius = NETWORKS[name]
    classifier, digits = trained(make, name), data.load("digits")
    x = digits.inputs[:200][(classifier(digits.inputs[:200]).argmax(dim=1) == digits.labels[:200])][:inputs]
    double = classifier.double()(x.double())
    label = double.argmax(dim=1)
    clean = clean_margin(double, label)
    for method in methods:
        row: dict[str, Any] = {"network": name, "method": method, "radius": radius}
        runners: dict[str, Margins] = {"ours": ours(method, classifier, x, label, radius)}
        try:
            runners["theirs"] = theirs(method, classifier, x, label, radius, dtype)
            runners["theirs"]()
        except Exception as error:  # it refuses networks by exceptions of all kinds
            runners.pop("theirs", None)
            row["refused"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:90]
        lost: dict[str, float] = {}
        seconds: dict[str, list[float]] = {who: [] for who in runners}
        for i in range(rounds):
            for who in list(runners)[:: 1 if i % 2 == 0 else -1]:
                start = time.perf_counter()
                bound = runners[who]()
                seconds[who].append(time.perf_counter() - start)
                lost[who] = float((clean - bound.amin(dim=1)).mean())
        row |= {"ours": lost["ours"], "seconds": min(seconds["ours"])}
        if "theirs" in runners:
            row |= {"theirs": lost["theirs"], "looser": lost["ours"] / lost["theirs"] - 1}
            row["outrun"] = min(seconds["theirs"]) / min(seconds["ours"])
            row["median"] = statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"])
        yield row


def main() -> None:
    """Print a row for each network and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relaxations", description=__doc__)
    parser.add_argument("--only", default="", help="bound networks whose name contains this")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--inputs", type=int, default=20, help="number of inputs")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--double", action="store_true", help="let auto-LiRPA compute in float64, as we do")
    options = parser.parse_args()
    dtype = torch.float64 if options.double else torch.float32
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    logging.disable()  # auto-LiRPA's, of operators that it does not know
    torch.set_num_threads(1)
    print(f"auto-LiRPA {auto_lirpa().__version__}, {dtype}, {options.inputs} inputs, Linf, one thread\n")
    print("| network | radius | method | looser | outrun | median | our seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in NETWORKS:
        if options.only.lower() in name.lower():
            for row in compare(name, options.inputs, options.rounds, options.methods, dtype):
                apart = f"{row['looser']:+.2%} | {row['outrun']:.2f} | {row['median']:.2f}" if "looser" in row else ""
                apart = apart or f"auto-LiRPA: {row['refused']} | |"
                print(f"| {name} | {row['radius']:g} | {row['method']} | {apart} | {row['seconds']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
