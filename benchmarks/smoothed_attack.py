"""Smoothed classifiers attacked inside and beyond their certified radius: `python -m benchmarks.smoothed_attack`.

The figure of Cohen, Rosenfeld and Kolter (2019): how often a perturbation as long as a multiple of the certified radius
changes the smoothed classifier's answer. Algorithm PREDICT judges what the attack finds, on draws of its own. Inside
the radius a change needs a certificate or a prediction that is wrong, each with probability alpha at most; what is
printed as explained by alpha is exceeded with probability 1e-4 at most.
"""

import argparse
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

import certbench
from certbench import ABSTAIN, L2, Classifier
from certbench.auditing.smoothed_classifiers import perturb
from certbench.models import data, zoo
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.smoothing import Smoothing

MODELS = ("mlp-gaussian", "cnn-gaussian")
FACTORS = (1.0, 1.5, 2.0, 3.0)
FRESH = 1
"""Seed of the draws that judge; those of the certificates have seed 0."""


@dataclass(frozen=True)
class Result:
    """What an attack at one multiple of the radius achieved.

    Attributes:
        factor: the multiple.
        attacked: inputs with a finite, positive certified radius.
        changed: at the attack's point, PREDICT answers with another class than the certified one.
        abstained: it cannot tell.
        explained: so many changes inside the radius are exceeded with probability 1e-4 at most, where each input has
            noise of its own.
    """

    factor: float
    attacked: int
    changed: int
    abstained: int
    explained: int


def attack(
    smoothing: Smoothing,
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    factors: tuple[float, ...] = FACTORS,
    *,
    judge: int = 10_000,
    steps: int = 20,
    draws: int = 64,
) -> list[Result]:
    """Certify, and attack what is certified at each multiple of its radius; PREDICT judges on so many draws."""
    certificate = certbench.certify(smoothing, classifier, x, L2, seed=0)
    chosen = (certificate.radius > 0) & certificate.radius.isfinite()
    points, label, radius = x[chosen], certificate.prediction[chosen], certificate.radius[chosen]
    predictor = replace(smoothing, n=judge)
    explained = int(binom.isf(1e-4, len(points), 2 * smoothing.alpha)) if len(points) else 0
    results = []
    for factor in factors:
        eps = factor * radius
        found = perturb(smoothing, classifier, points, label, eps, steps=steps, draws=draws)
        answer = predictor.predict(classifier, found, seed=FRESH)
        abstained = answer == ABSTAIN
        changed = (answer != label) & ~abstained
        results.append(Result(factor, len(points), int(changed.sum()), int(abstained.sum()), explained))
    return results


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--n", type=int, default=10_000, help="draws of each certificate, and of each prediction")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=64, help="of the attack")
    given = parser.parse_args()
    torch.set_num_threads(1)
    x = data.load("digits").inputs[: given.inputs]
    smoothing = Smoothing(Gaussian(given.sigma), n=given.n, alpha=given.alpha)
    for name in given.models:
        results = attack(smoothing, zoo.load(name), x, judge=given.n, steps=given.steps, draws=given.draws)
        print(f"{name}: {results[0].attacked} of {len(x)} inputs certified, sigma {given.sigma:g}, n {given.n}")
        print("  radius x   changed  abstained   held   explained by alpha")
        for result in results:
            total = max(1, result.attacked)
            held = result.attacked - result.changed - result.abstained
            shares = (100 * count / total for count in (result.changed, result.abstained, held))
            cells = "   ".join(f"{share:5.1f} %" for share in shares)
            print(f"  {result.factor:8g}   {cells}   {f'{result.explained} inputs' if result.factor <= 1 else '-'}")


if __name__ == "__main__":
    main()
