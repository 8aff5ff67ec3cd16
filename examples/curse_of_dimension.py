"""The curse of dimension in smoothing for p > 2: the same pictures, each pixel repeated k x k times, d = 64 k^2.

    python examples/curse_of_dimension.py [images] [draws]

Radii of noise with independent coordinates fall as d^(1/p - 1/2) for p > 2 (Blum et al., 2020; Kumar et al., 2020;
Yang et al., 2020). At a fixed sigma the certified L2 radius keeps the value that the draws allow, and the Linf radius
halves each time the side doubles. The classifier averages the repeated pixels, so it sees noise of sigma / k. If the
noise grows with the side, a classifier that can use the redundancy keeps its Linf radius.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn

import certbench
from certbench import L1, L2, Classifier, Linf
from certbench.models import data, zoo

NOISES = ("gaussian", "laplace", "uniform")


def enlarged(side: int) -> Classifier:
    """Put mlp-gaussian behind an average over side x side equal pixels."""
    model = zoo.load("mlp-gaussian")
    module = nn.Sequential(nn.AvgPool2d(side), model.module).eval()
    return Classifier(module, (1, 8 * side, 8 * side), model.num_classes, f"{model.name}, {8 * side} x {8 * side}")


def main(
    images: int = 20, draws: int = 10_000, sides: tuple[int, ...] = (1, 2, 4), say: Callable[[str], None] = print
) -> None:
    """Print mean certified radii by noise, dimension, sigma and norm."""
    x = data.load("digits").inputs[:images].double()
    say(
        f"{'noise':10}{'d':>6}{'sigma':>7}{'L1':>9}{'L2':>9}{'Linf':>9}   mean radius of {images} images, {draws} draws"
    )
    for noise in NOISES:
        for growing in (False, True):
            for side in sides:
                if growing and side == 1:
                    continue
                sigma = 0.25 * side if growing else 0.25
                large = x.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
                spec = {"name": "smoothing", "n": draws, "noise": {"name": noise, "sigma": sigma}}
                radii = [certbench.certify(spec, enlarged(side), large, norm).radius.mean() for norm in (L1, L2, Linf)]
                numbers = "".join(f"{float(radius):9.4f}" for radius in radii)
                say(f"{noise:10}{64 * side**2:6}{sigma:7.2f}{numbers}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
