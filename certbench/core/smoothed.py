"""A smoothed classifier as an audit uses it: sampled and attacked, its code unknown."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.classifier import Classifier

Likelihood = Callable[[Float[Tensor, "n ..."], Int[Tensor, " n"]], Float[Tensor, " n"]]
"""A function `likelihood(x, label)`: logarithm of the labels' likelihood, up to constants. An attack makes it small."""


class SmoothedClassifier(ABC):
    """A smoothed classifier that `Certifier.smoothed` returns.

    Attributes:
        base: the classifier that votes. The attack uses its device and precision.
        alpha: probability that an input's certificate is wrong.
        shared: whether certificates of several inputs rest on the same draws, so that they fail together.
    """

    base: Classifier
    alpha: float
    shared: bool

    @abstractmethod
    def predict(self, x: Float[Tensor, "n ..."], *, level: float, draws: int, seed: int) -> Int[Tensor, " n"]:
        """Return the smoothed classifier's class at each point, or `ABSTAIN`.

        Args:
            x: the points.
            level: largest probability that a class is wrong, at any point.
            draws: number of draws of each point's own, independent of those of the certificates.
            seed: seed of the draws.
        """

    def likelihood(self, n: int, draws: int, seed: int) -> Likelihood:
        """Return a function of points that is small where another class wins, differentiable as the classifier is.

        It only guides the attack; `predict` judges. Here, it is the base classifier's own likelihood, without noise.

        Args:
            n: number of points.
            draws: number of draws of the noise, at each point.
            seed: seed of the noise, which stays the same.
        """
        del n, draws, seed

        def found(x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            own: Tensor = self.base.module(x).log_softmax(dim=1)[torch.arange(len(x)), label]
            return own

        return found

    def moved(self, x: Float[Tensor, "n ..."], change: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return the points x + change, moved to points that the certificates are about; here, unmoved."""
        return x + change
