"""The cost of rigorous Lipschitz constants: `python -m benchmarks.lipschitz`.

Measured are the zonotope against CROWN, in turns, as ratios of time and of mean radius; operator norms beside a plain
singular value decomposition; and LipSDP beside Clarabel on a small network. Times are processor times of the best of
several rounds.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import certbench
from certbench import L2, Classifier
from certbench.models import data, zoo
from certbench.networks.image_maps import Convolution
from certbench.verifiers.lipschitz.folding import convolution, linear
from certbench.verifiers.lipschitz.lipsdp import LipSDP
from certbench.verifiers.lipschitz.operator_norms import spectral_norm

MODELS = ("mlp-plain", "mlp-small", "mlp-pgd", "mlp-gaussian", "mlp-ibp", "mlp-lipschitz", "cnn-plain", "cnn-ibp")
ZONOTOPES: tuple[dict[str, Any], ...] = (
    {"name": "jacobian-zonotope"},
    {"name": "jacobian-zonotope", "refine": True},
)


def best(work: Callable[[], Any], rounds: int) -> float:
    """Return the processor time of the best round in seconds, after one round that is not timed."""
    work()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def radii(inputs: int, rounds: int) -> None:
    """Compare the zonotope with CROWN, in L2 without a domain and within [0, 1]."""
    print(f"L2, {inputs} inputs a model, one thread: time and mean radius, in units of CROWN's")
    x = data.load("digits").inputs[:inputs]
    for threat in (L2, L2.within(0, 1)):
        for name in MODELS:
            classifier = zoo.load(name)
            times: dict[str, list[float]] = {}
            means = {}
            for _ in range(rounds + 1):  # in turns, so that other work of the machine slows all alike
                for spec in ({"name": "crown"}, *ZONOTOPES):
                    certifier = certbench.build(spec)
                    state = certifier.prepare(classifier, threat)
                    state.network.shared.clear()
                    start = time.process_time()
                    radius = certbench.certify(certifier, classifier, x, threat, state=state).radius
                    label = certbench.core.options.label(certifier)
                    times.setdefault(label, []).append(time.process_time() - start)
                    means[label] = float(radius.mean())
            crown = min(times["crown"][1:])
            cells = [
                f"{label} {min(times[label][1:]) / crown:.2f} x time, {means[label] / means['crown']:.3f} x radius"
                for label in list(means)[1:]
            ]
            print(f"  {threat!s:14} {name:14} {'; '.join(cells)}  (crown {1e3 * crown / inputs:.2f} ms an input)")


def operator_norms(rounds: int) -> None:
    """Time norms of the two shapes with promised speed, beside a singular value decomposition, which proves nothing."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(1024, 784, generator=generator, dtype=torch.float64)
    kernel = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float64)
    proved = best(lambda: spectral_norm(linear(dense)), rounds)
    plain = best(lambda: torch.linalg.matrix_norm(dense, 2), rounds)
    print(f"norm of 1024 x 784: {proved:.3f} s, proved; singular values {plain:.3f} s, not proved")
    layer = lambda: spectral_norm(convolution(Convolution(kernel, (64, 16, 16), (64, 16, 16), padding=(1, 1))))  # noqa: E731
    print(f"norm of a 3 x 3 convolution of 64 channels on 16 x 16: {best(layer, rounds):.3f} s")


def semidefinite(clarabel: bool) -> None:
    """Time LipSDP per pair and shared on the zoo's MLP, and against Clarabel on 64-30-30-2."""
    for spec in ({"multipliers": "shared"}, {"solver": "gradient"}, {}):
        certifier = certbench.build({"name": "lipsdp", **spec})
        assert isinstance(certifier, LipSDP)
        start = time.perf_counter(), time.process_time()
        constants = certifier.prepare(zoo.load("mlp-plain"), L2).constants[:-1, :-1]
        wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
        mean = float(constants[~torch.eye(10, dtype=torch.bool)].mean())
        print(f"lipsdp {spec or 'per pair'} on 64-100-100-10: mean constant {mean:.3f}, {wall:.1f} s ({processor:.1f})")
    if not clarabel:
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
    small = Classifier(net.eval(), (64,), 2, "64-30-30-2")  # one pair

    def constant(solver: str) -> Tensor:
        return certbench.build({"name": "lipsdp", "solver": solver}).prepare(small, L2).constants[0, 1]

    ours = best(lambda: constant("newton"), 2)
    start_at = time.process_time()
    theirs = float(constant("clarabel"))
    seconds = time.process_time() - start_at
    print(f"one pair of 64-30-30-2: newton {float(constant('newton')):.5f} in {ours:.2f} s, "
          f"clarabel {theirs:.5f} in {seconds:.1f} s: {seconds / ours:.0f} times")  # fmt: skip


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lipschitz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100, help="number of inputs per model")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--clarabel", action="store_true", help="compare with cvxpy's Clarabel, which takes a minute")
    options = parser.parse_args()
    torch.set_num_threads(1)
    operator_norms(options.rounds)
    radii(options.inputs, options.rounds)
    semidefinite(options.clarabel)


if __name__ == "__main__":
    main()
