"""A test of smoothed certificates: more refutations than their alpha explains."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from scipy.stats import binom
from torch import Tensor

from certbench.core.claims import ABSTAIN
from certbench.core.smoothed import SmoothedClassifier


@dataclass(frozen=True)
class Test:
    """What the test of certificates came to.

    Attributes:
        tried: inputs for which a certificate was asked. Each may have got a wrong one with probability alpha; of those
            that got one, perhaps because it is wrong, nothing of the kind is known.
        tested: certificates that were attacked and judged.
        refuted: PREDICT answers with another class inside the radius.
        abstained: it cannot tell.
        alpha: probability that a certificate is wrong, as claimed.
        level: alpha', that PREDICT names a wrong class.
        p_value: so many refutations or more happen with this probability at most, if the certificates hold.
        shared: whether the certificates rest on the same draws, so that they fail together: then the p-value is
            Markov's bound, and no binomial's.
        inputs: those that were tried.
        hits: those of them where a certificate was refuted.
    """

    tried: int
    tested: int
    refuted: int
    abstained: int
    alpha: float
    level: float
    p_value: float
    shared: bool
    inputs: frozenset[int] = frozenset()
    hits: frozenset[int] = frozenset()

    __test__ = False

    @property
    def expected(self) -> float:
        """Refutations by chance, at most, on average."""
        return self.tried * self.alpha + self.tested * self.level


def chance(tried: int, refuted: int, rate: float, shared: bool) -> float:
    """Probability of so many refutations or more at so many inputs, at most, if all is as claimed.

    Each is refuted with probability `rate` at most. Independent ones: the binomial's tail. Others: Markov's bound.
    """
    if refuted == 0:
        return 1.0
    if shared:
        return min(1.0, tried * rate / refuted)
    return float(binom.sf(refuted - 1, tried, min(1.0, rate)))


def pooled(tests: Sequence[Test]) -> float:
    """Probability that so many inputs or more have a refutation in any of several tests, at most, if all is as claimed.

    Certificates of one input may fail together: classifiers, norms and radii meet the same noise there. Those of two
    inputs do not, unless draws are shared. So inputs are counted, each of which is refuted anywhere with the sum of the
    probabilities at most. Tests of either kind have half of the say.
    """
    value = 1.0
    for shared in (False, True):
        part = [test for test in tests if test.shared == shared]
        inputs = frozenset[int]().union(*(test.inputs for test in part))
        hits = frozenset[int]().union(*(test.hits for test in part))
        rate = sum(test.alpha + test.level for test in part)
        value = min(value, 2 * chance(len(inputs), len(hits), rate, shared))
    return value


def conclude(
    smoothed: SmoothedClassifier, tried: int, label: Int[Tensor, " n"], answer: Int[Tensor, " n"], *, level: float
) -> Test:
    """The test of n certificates for `label`, at points inside their radii where PREDICT gave these answers."""
    abstained = answer == ABSTAIN
    refuted = int(((answer != label) & ~abstained).sum())
    value = chance(tried, refuted, smoothed.alpha + level, smoothed.shared)
    return Test(tried, len(label), refuted, int(abstained.sum()), smoothed.alpha, level, value, smoothed.shared)
