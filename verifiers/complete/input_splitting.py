"""Branch and bound on the input: boxes are bounded by CROWN, and cut in two where a bound fails.

This suits few inputs (Wang et al., 2018, split the inputs of ACAS Xu so), and activations that have no pieces to split.
"""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.threat import Linf
from certbench.networks.layers import Network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.intervals import interval_bounds
from certbench.verifiers.bounds.region import Region

BATCH = 128
"""Number of boxes that are bounded at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Boxes(Region):
    """Boxes around n flat inputs, whose sides may differ; without cuts."""

    half: Float[Tensor, "n d"]

    @staticmethod
    def of(x: Float[Tensor, "n d"], half: Float[Tensor, "n d"]) -> "Boxes":
        """Make boxes from their middles and half their sides."""
        return Boxes(Linf, x, half.amax(dim=1), half=half)

    def __getitem__(self, index: Tensor | slice) -> "Boxes":
        """Select some of the boxes."""
        return replace(self, x=self.x[index], eps=self.eps[index], half=self.half[index])

    def box(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Return the ends."""
        return self.x - self.half, self.x + self.half


@torch.no_grad()
def covered(
    network: Network,
    rows: Float[Tensor, "k outputs"],
    slack: float,
    deadline: float,
    offer: Callable[[Float[Tensor, "n d"]], bool],
) -> bool:
    """Say whether all rows times the outputs exceed `slack` on [-1, 1]^d; False where time or an offer ends the search.

    The box of the least bound is cut first. Its halves overlap by a rounding, so that they cover it.

    Args:
        network: the network.
        rows: linear functions of its outputs.
        slack: allowance for rounding.
        deadline: end of the search, as of `time.perf_counter`.
        offer: function that is given points where a bound is least; if it returns True, the search ends.
    """
    whole = rows.new_ones(network.inputs)
    open_: list[tuple[float, int, Tensor, Tensor]] = [(0.0, 0, torch.zeros_like(whole), whole)]
    count = 1
    while open_:
        if time.perf_counter() > deadline:
            return False
        batch = [heapq.heappop(open_) for _ in range(min(BATCH, len(open_)))]
        region = Boxes.of(torch.stack([box[2] for box in batch]), torch.stack([box[3] for box in batch]))
        bounds = layer_bounds(network, region, known=interval_bounds(network, region))
        linear = backward(network, rows.expand(len(region), -1, -1), len(network.layers) - 1, bounds)
        lower = region.minimum(linear.a, linear.b).nan_to_num(-torch.inf)
        failed = (lower <= slack).any(dim=1)
        if not bool(failed.any()):
            continue
        worst = linear.a[torch.arange(len(region)), lower.argmin(dim=1)][failed].nan_to_num(0.0)
        if offer((region.x[failed] - worst.sign() * region.half[failed]).clamp(-1, 1)):
            return False
        steep = worst.abs() + 1e-12 * worst.abs().amax(dim=1, keepdim=True) + 1e-300
        sides = (steep * region.half[failed]).argmax(dim=1)
        parts = failed.nonzero().flatten().tolist(), sides.tolist(), lower[failed].amin(dim=1).tolist()
        for i, side, least in zip(*parts, strict=True):
            quarter = region.half[i, side] / 2
            half = region.half[i].clone()
            half[side] = quarter * (1 + 2.0**-40) + 2.0**-52
            for way in (-1, 1):
                middle = region.x[i].clone()
                middle[side] += way * quarter
                heapq.heappush(open_, (least, count, middle, half))
                count += 1
    return True
