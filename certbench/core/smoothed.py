"""A smoothed classifier as an audit meets it: sampled and attacked, never seen."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.classifier import Classifier

Likelihood = Callable[[Float[Tensor, "n ..."], Int[Tensor, " n"]], Float[Tensor, " n"]]
"""`likelihood(x, label)`: how likely the labels are, the logarithm, up to constants. An attack makes it small."""


class SmoothedClassifier(ABC):
    """What `Certifier.smoothed` returns.

    Attributes:
        base: what votes. The attack uses its device and precision.
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
            level: probability that a class is wrong, at most, whatever the point.
            draws: of each point's own, independent of those of the certificates.
            seed: of the draws.
        """

    def likelihood(self, n: int, draws: int, seed: int) -> Likelihood:
        """A function of n points, differentiable where the classifier is, that is small where another class wins.

        It only guides the attack; `predict` judges. Here, it is the base classifier's own likelihood, without noise.

        Args:
            n: number of points.
            draws: of the noise, at each point.
            seed: of the noise, which stays the same.
        """
        del n, draws, seed

        def found(x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
            own: Tensor = self.base.module(x).log_softmax(dim=1)[torch.arange(len(x)), label]
            return own

        return found

    def moved(self, x: Float[Tensor, "n ..."], change: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return the points x + change, shortened to such as the certificates speak of; here, to any."""
        return x + change
