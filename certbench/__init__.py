"""How tight is each robustness certificate on my model, what does it cost, and is it right?"""

import importlib
from typing import TYPE_CHECKING, Any

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.threat import L0, L1, L2, Linf, ThreatModel
from certbench.errors import (
    CertbenchError,
    CertificationError,
    ConfigError,
    ContradictionError,
    CrashError,
    MissingBackendError,
    NumericalError,
    SolverError,
    StoreError,
    TimeLimitError,
    UnsupportedError,
)
from certbench.version import __version__

if TYPE_CHECKING:
    from certbench.attacks.certified import certify
    from certbench.auditing.audit import audit
    from certbench.checker import check
    from certbench.comparison.baseline import read_baseline
    from certbench.comparison.compare import compare
    from certbench.comparison.update import update_baseline
    from certbench.core.certificate import Certificate
    from certbench.core.certification import prepare
    from certbench.core.certifier import Certifier, MarginCertifier
    from certbench.core.classifier import Classifier, Regressor
    from certbench.core.margins import Bounds, MarginState
    from certbench.core.memory import limits
    from certbench.core.options import build, describe
    from certbench.core.outputs import margins, output_bounds, output_radius
    from certbench.core.search import Bisection, Ladder, RadiusSearch, Secant
    from certbench.core.smoothed import SmoothedClassifier
    from certbench.export.exporter import export_certificates
    from certbench.external.audit_log import audit_log
    from certbench.external.recertify import recertify_file
    from certbench.formats import black_box
    from certbench.runs.models import load
    from certbench.verifiers.smoothing import patches, regression
    from certbench.verifiers.smoothing.recertification import recertify

_LAZY = {  # names that are imported when they are first used: most need torch, which the command line does not
    "audit": "certbench.auditing.audit",
    "audit_log": "certbench.external.audit_log",
    "check": "certbench.checker",
    "compare": "certbench.comparison.compare",
    "export_certificates": "certbench.export.exporter",
    "read_baseline": "certbench.comparison.baseline",
    "recertify_file": "certbench.external.recertify",
    "update_baseline": "certbench.comparison.update",
    "Certificate": "certbench.core.certificate",
    "certify": "certbench.attacks.certified",
    "Bounds": "certbench.core.margins",
    "Certifier": "certbench.core.certifier",
    "MarginCertifier": "certbench.core.certifier",
    "MarginState": "certbench.core.margins",
    "limits": "certbench.core.memory",
    "Classifier": "certbench.core.classifier",
    "Regressor": "certbench.core.classifier",
    "load": "certbench.runs.models",
    "margins": "certbench.core.outputs",
    "output_bounds": "certbench.core.outputs",
    "output_radius": "certbench.core.outputs",
    "recertify": "certbench.verifiers.smoothing.recertification",
    "prepare": "certbench.core.certification",
    "build": "certbench.core.options",
    "describe": "certbench.core.options",
    "Bisection": "certbench.core.search",
    "Ladder": "certbench.core.search",
    "RadiusSearch": "certbench.core.search",
    "Secant": "certbench.core.search",
    "SmoothedClassifier": "certbench.core.smoothed",
}

_MODULES = {  # modules that are attributes of the face: black boxes, smoothing against patches, smoothing of regressors
    "black_box": "certbench.formats.black_box",
    "patches": "certbench.verifiers.smoothing.patches",
    "regression": "certbench.verifiers.smoothing.regression",
}


def __getattr__(name: str) -> Any:
    """Import a name of `_LAZY` or `_MODULES` when it is first used."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _LAZY:
        raise AttributeError(f"module 'certbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "__version__",
    "ABSTAIN",
    "Bisection",
    "Bounds",
    "CertbenchError",
    "Certificate",
    "CertificationError",
    "Certifier",
    "Classifier",
    "ConfigError",
    "ContradictionError",
    "CrashError",
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
    "SmoothedClassifier",
    "SolverError",
    "StoreError",
    "Subject",
    "ThreatModel",
    "TimeLimitError",
    "UnsupportedError",
    "audit",
    "audit_log",
    "black_box",
    "build",
    "certify",
    "check",
    "compare",
    "describe",
    "export_certificates",
    "limits",
    "load",
    "margins",
    "output_bounds",
    "output_radius",
    "patches",
    "prepare",
    "read_baseline",
    "recertify",
    "recertify_file",
    "regression",
    "update_baseline",
]
