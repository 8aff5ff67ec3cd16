"""Attacks on smoothed classifiers inside and beyond their certified radius: `python -m benchmarks.smoothed_attack`.

As in the figure of Cohen, Rosenfeld and Kolter (2019), it counts how often a perturbation as long as a multiple of the
certified radius changes the smoothed classifier's answer. Algorithm PREDICT judges the points, on its own draws.
Inside the radius, a change means that the certificate or the prediction is wrong, each with probability at most alpha.
The number printed as explained by alpha is exceeded with probability at most 1e-4.
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
"""Seed of the judging draws; the certificates' draws have seed 0."""


@dataclass(frozen=True)
class Result:
    """Result of an attack at one multiple of the radius.

    Attributes:
        factor: the multiple.
        attacked: number of inputs with a finite, positive certified radius.
        changed: number of points for which PREDICT answers with another class than the certified one.
        abstained: number of points for which PREDICT abstains.
        explained: number of changes inside the radius that is exceeded with probability at most 1e-4, if each input
            has its own noise.
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
    """Certify inputs and attack them at each multiple of their radius; PREDICT judges on `judge` draws."""
    certificate = certbench.certify(smoothing, classifier, x, L2, seed=0)
    chosen = (certificate.radius > 0) & certificate.radius.isfinite()
    points, label, radius = x[chosen], certificate.prediction[chosen], certificate.radius[chosen]
    predictor = replace(smoothing, n=judge)
    explained = int(binom.isf(1e-4, len(points), 2 * smoothing.alpha)) if len(points) else 0
    results = []
    for factor in factors:
        eps = factor * radius
        found = perturb(smoothing.smoothed(classifier, L2), points, label, eps, steps=steps, draws=draws)
        answer = predictor.predict(classifier, found, seed=FRESH)
        abstained = answer == ABSTAIN
        changed = (answer != label) & ~abstained
        results.append(Result(factor, len(points), int(changed.sum()), int(abstained.sum()), explained))
    return results


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="networks of the zoo")
    parser.add_argument("--inputs", type=int, default=100, help="number of inputs")
    parser.add_argument("--sigma", type=float, default=0.25, help="standard deviation of the noise")
    parser.add_argument("--alpha", type=float, default=0.001, help="probability of a wrong certificate")
    parser.add_argument("--n", type=int, default=10_000, help="draws per certificate and per prediction")
    parser.add_argument("--steps", type=int, default=20, help="steps of the attack")
    parser.add_argument("--draws", type=int, default=64, help="draws of the noise in the attack")
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
