"""Operators of classical learners (`ai.onnx.ml`), as exporters of scikit-learn write them."""

from typing import Any

import torch

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator


def scaler(x: Any, *, offset: Any, scale: Any) -> Any:
    """Subtract an offset, and multiply by a scale, feature by feature."""
    shift, factor = (torch.tensor(part, dtype=torch.float32).to(x) for part in (offset, scale))
    return (x - shift) * factor


def normalizer(x: Any, *, norm: str = "MAX") -> Any:
    """Divide each input by its norm, or by its largest entry, unless that is 0."""
    if norm not in ("L1", "L2", "MAX"):
        raise UnsupportedError(f"the norm {norm!r} is not known here")
    if norm == "MAX":
        length = x.amax(-1, keepdim=True)
    else:
        length = torch.linalg.vector_norm(x, {"L1": 1, "L2": 2}[norm], -1, keepdim=True)
    return x / torch.where(length == 0, torch.ones_like(length), length)


def _scores(x: Any, coefficients: Any, intercepts: Any, rows: int) -> Any:
    weight = torch.tensor(coefficients, dtype=torch.float32).to(x).reshape(rows, -1)
    shift = None if not intercepts else torch.tensor(intercepts, dtype=torch.float32).to(x)
    return torch.nn.functional.linear(x, weight, shift)


def linear_classifier(
    x: Any, *, coefficients: Any, intercepts: Any = None, post_transform: str = "NONE", multi_class: int = 0
) -> Any:
    """Return no labels, and scores of at least three classes, after a softmax or a sigmoid where the file says so."""
    del multi_class
    rows = len(intercepts) if intercepts else len(coefficients) // x.shape[-1]
    if post_transform not in ("NONE", "SOFTMAX", "LOGISTIC") or rows < 2:
        raise UnsupportedError(f"{rows} rows with {post_transform!r} behind them are not known here")
    scores = _scores(x, coefficients, intercepts, rows)
    if post_transform == "LOGISTIC":
        scores = scores.sigmoid()
    return None, scores.softmax(-1) if post_transform == "SOFTMAX" else scores


def linear_regressor(
    x: Any, *, coefficients: Any, intercepts: Any = None, post_transform: str = "NONE", targets: int = 1
) -> Any:
    """Return the values of linear functions."""
    if post_transform != "NONE":
        raise UnsupportedError(f"{post_transform!r} behind a linear function is not known here")
    return _scores(x, coefficients, intercepts, targets)


TABLE: dict[tuple[str, str], Operator] = {
    ("ml", "Scaler"): Operator(scaler),
    ("ml", "Normalizer"): Operator(normalizer),
    ("ml", "LinearClassifier"): Operator(linear_classifier, ignored=("classlabels_ints", "classlabels_strings")),
    ("ml", "LinearRegressor"): Operator(linear_regressor),
}
"""Operators of this file, by their domain and name; `ml` stands for `ai.onnx.ml`."""
