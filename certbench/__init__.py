"""How tight is each robustness certificate on my model, what does it cost, and is it right?"""

import importlib
from typing import TYPE_CHECKING, Any

from certbench.errors import (
    CertbenchError,
    CertificationError,
    ConfigError,
    MissingBackendError,
    NumericalError,
    SolverError,
    StoreError,
    TimeLimitError,
    UnsupportedError,
)
from certbench.terms import ABSTAIN, Guarantee, Outcome, Subject
from certbench.threat import L0, L1, L2, Linf, ThreatModel

if TYPE_CHECKING:
    from certbench.certificate import Certificate
    from certbench.certification import certify
    from certbench.certifier import Bounds, Certifier, MarginCertifier, MarginState
    from certbench.classifier import Classifier, Regressor
    from certbench.options import build, describe
    from certbench.outputs import margins, output_bounds, output_radius
    from certbench.recertification import recertify
    from certbench.search import Bisection, Ladder, RadiusSearch, Secant

__version__ = "0.1.0"

_LAZY = {  # these import torch, which the command line and the reports do not need
    "Certificate": "certbench.certificate",
    "certify": "certbench.certification",
    "Bounds": "certbench.certifier",
    "Certifier": "certbench.certifier",
    "MarginCertifier": "certbench.certifier",
    "MarginState": "certbench.certifier",
    "Classifier": "certbench.classifier",
    "Regressor": "certbench.classifier",
    "margins": "certbench.outputs",
    "output_bounds": "certbench.outputs",
    "output_radius": "certbench.outputs",
    "recertify": "certbench.recertification",
    "build": "certbench.options",
    "describe": "certbench.options",
    "Bisection": "certbench.search",
    "Ladder": "certbench.search",
    "RadiusSearch": "certbench.search",
    "Secant": "certbench.search",
}


def __getattr__(name: str) -> Any:
    """Import the names that need torch when they are first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'certbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "ABSTAIN",
    "Bisection",
    "Bounds",
    "CertbenchError",
    "Certificate",
    "CertificationError",
    "Certifier",
    "Classifier",
    "ConfigError",
    "Guarantee",
    "L0",
    "L1",
    "L2",
    "Ladder",
    "Linf",
    "MarginCertifier",
    "MarginState",
    "MissingBackendError",
    "NumericalError",
    "Outcome",
    "RadiusSearch",
    "Regressor",
    "Secant",
    "SolverError",
    "StoreError",
    "Subject",
    "ThreatModel",
    "TimeLimitError",
    "UnsupportedError",
    "build",
    "certify",
    "describe",
    "margins",
    "output_bounds",
    "output_radius",
    "recertify",
]
