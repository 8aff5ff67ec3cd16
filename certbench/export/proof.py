"""The proof of a relaxation, derived again for its file."""

from typing import Any

import numpy as np
import torch

from certbench.checker.network import Network
from certbench.checker.reading import Claim, written
from certbench.checker.relaxation import CutBall, Prover
from certbench.errors import NumericalError
from certbench.verifiers.bounds.proof import RelaxationProof


@np.errstate(all="ignore")
def relaxation(network: Network, claim: Claim, witness: RelaxationProof, region: float) -> tuple[float, dict[str, Any]]:
    """Return what a witness over the ball of radius `region` proves: a radius, at most the claim's, and the evidence.

    Raises:
        NumericalError: the witness has tighter bounds than its slopes prove.
    """
    prover = Prover(network, CutBall.of(claim, region))
    inner = None if witness.inner is None else [_numbers(s)[None] for s in witness.inner]
    layers = []
    for i, at in enumerate(network.relus):
        prover.advance()
        source = network.nodes[at].inputs[0]
        ends = [_numbers(side[i][0]) for side in (witness.bounds.lower, witness.bounds.upper)]
        given = ends[0], -ends[1]
        every = np.arange(len(ends[0]))
        proved = [prover.least(source, every, sign, None) for sign in (1.0, -1.0)]
        # If intervals prove the sign of a neuron, its exact bounds do not matter, and intervals are enough.
        open_ = (proved[0] < 0) & (proved[1] < 0)
        scale = max(float(np.abs(end).max(initial=0.0)) for end in (*ends, *proved))
        chosen = []
        for side, sign in enumerate((1.0, -1.0)):
            chosen.append(np.flatnonzero(open_ & (given[side] > proved[side])) if inner is not None else every[:0])
            if inner is not None:
                found = prover.least(source, chosen[side], sign, inner[:i])
                proved[side][chosen[side]] = np.maximum(proved[side][chosen[side]], found)
            if not (given[side] <= proved[side] + DIFFERENCE * scale)[open_].all():
                raise NumericalError("the certifier claims tighter bounds of a layer than its slopes prove")
        kept = [np.where(open_, np.minimum(given[side], proved[side]), proved[side]) for side in range(2)]
        low, high = (side - WIDER * scale for side in kept)
        high = -high
        prover.bounds[at] = low, high
        backward = None
        if any(len(side) for side in chosen) and inner is not None:
            backward = {
                "lower": chosen[0].tolist(),
                "upper": chosen[1].tolist(),
                "slopes": [written(s) for s in inner[:i]],
            }
        layers.append({"node": at, "lower": written(low), "upper": written(high), "backward": backward})
    prover.advance()
    others = [j for j in range(network.outputs) if j != claim.prediction]
    rows = np.eye(network.outputs)
    rows = rows[[claim.prediction]] - rows[others]
    slopes = None if witness.slopes is None else [_numbers(s) for s in witness.slopes]
    a, constants = prover.below(len(network.nodes) - 1, rows, slopes)
    constants = constants - WIDER * (np.abs(constants) + np.abs(a) @ prover.sizes[0])
    radius = _largest(claim, a, constants, min(region, claim.radius))
    lower = CutBall.of(claim, radius).minimum(a, constants)
    margins: dict[str, Any] = {"rivals": others, "lower": written(lower - WIDER * np.abs(lower))}
    if slopes is not None:
        margins |= {
            "slopes": [written(s) for s in slopes],
            "coefficients": written(a),
            "constants": written(constants),
        }
    kind = "interval" if slopes is None else "relaxation"
    return radius, {"kind": kind, "region": region, "layers": layers, "margins": margins}


def _largest(claim: Claim, a: np.ndarray, constants: np.ndarray, radius: float) -> float:
    """Return the largest radius up to `radius` at which the functions are positive; 0 if it is below 0.99 * `LEAST`."""

    def holds(eps: float) -> bool:
        return bool((CutBall.of(claim, eps).minimum(a, constants) > 0).all())

    if holds(radius):
        return radius
    low, high = LEAST * radius * 0.99, radius
    if not holds(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


LEAST = 0.999
"""Smallest fraction of a stored radius that is exported."""


WIDER = 1e-11
"""Relative distance of claimed bounds from the bounds proved here: other machines round differently."""


DIFFERENCE = 1e-6
"""Relative amount by which a certifier's bounds may exceed the ones proved here; more is an error of the certifier."""
