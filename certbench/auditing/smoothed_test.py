"""A test whether smoothed certificates have more refutations than their alpha explains."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from scipy.stats import binom
from torch import Tensor

from certbench.core.claims import ABSTAIN
from certbench.core.smoothed import SmoothedClassifier


@dataclass(frozen=True)
class Test:
    """The result of the test of certificates.

    Attributes:
        tried: number of inputs for which a certificate was computed. Each gets a wrong one with probability alpha at
            most. No such bound is known for the inputs that got a certificate, perhaps because it is wrong.
        tested: number of certificates that were attacked and judged.
        refuted: number of certificates where PREDICT names another class inside the radius.
        abstained: number of certificates where PREDICT abstains.
        alpha: probability that a certificate is wrong, as claimed.
        level: alpha', the probability that PREDICT names a wrong class.
        p_value: upper bound on the probability of at least this many refutations, if the certificates hold.
        shared: whether the certificates rest on the same draws, so that they fail together: then the p-value is
            Markov's bound, not a binomial tail.
        inputs: inputs that were tried.
        hits: inputs with a refuted certificate.
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
        """Upper bound on the expected number of refutations by chance."""
        return self.tried * self.alpha + self.tested * self.level


def chance(tried: int, refuted: int, rate: float, shared: bool) -> float:
    """Bound the probability of at least `refuted` refutations at `tried` inputs, if all is as claimed.

    Each input is refuted with probability `rate` at most. The bound is the binomial tail for independent inputs, and
    Markov's bound for inputs that share draws.
    """
    if refuted == 0:
        return 1.0
    if shared:
        return min(1.0, tried * rate / refuted)
    return float(binom.sf(refuted - 1, tried, min(1.0, rate)))


def pooled(tests: Sequence[Test]) -> float:
    """Bound the probability that at least this many inputs have a refutation in any of several tests, if all is right.

    Certificates of one input may fail together: classifiers, norms and radii meet the same noise there. Those of two
    inputs do not, unless draws are shared. So inputs are counted; each has a refutation in some test with at most the
    sum of the probabilities. Tests with and without shared draws each get half of the significance.
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
    """Test n certificates for `label`, at points inside their radii where PREDICT gave these answers."""
    abstained = answer == ABSTAIN
    refuted = int(((answer != label) & ~abstained).sum())
    value = chance(tried, refuted, smoothed.alpha + level, smoothed.shared)
    return Test(tried, len(label), refuted, int(abstained.sum()), smoothed.alpha, level, value, smoothed.shared)
