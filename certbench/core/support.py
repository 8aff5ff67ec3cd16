"""Find out which certifiers can bound a classifier, and why the others cannot."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from certbench.core import registry
from certbench.core.classifier import Classifier
from certbench.core.options import build
from certbench.core.threat import ThreatModel
from certbench.errors import CertbenchError


@dataclass(frozen=True)
class Support:
    """What one certifier, with its default options, says of a classifier.

    Attributes:
        certifier: its name.
        reason: why it refuses; None if it does not.
        seconds: time that its preparation took.
    """

    certifier: str
    reason: str | None
    seconds: float


def supports(classifier: Classifier, threat: ThreatModel) -> Iterator[Support]:
    """Prepare every certifier that needs no options for a classifier, one by one, by name."""
    for name in sorted(registry.table()):
        start = time.perf_counter()
        try:
            certifier = build(name)
            reason = certifier.unsupported(classifier, threat)
            if reason is None:
                certifier.prepare(classifier, threat)
        except CertbenchError as error:
            reason = str(error)
        yield Support(name, reason, time.perf_counter() - start)
