"""alpha-CROWN as auto-LiRPA optimises it (Xu et al., 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.verifiers.linear.lirpa.graph import Lirpa, LirpaState, backward, first_bounds, layer_bounds

OPTIMISED = ("BoundRelu", "BoundTanh", "BoundSigmoid")
"""Nodes whose slopes are optimised in every release."""


@dataclass(frozen=True)
class Optimised(Lirpa):
    """alpha-CROWN: lower slopes below ReLU, tanh and sigmoid are optimised for the margins; other lines stay.

    Attributes:
        layers: whether the slopes below hidden layers are optimised too; else their bounds stay CROWN's.
    """

    layers: bool = False

    @staticmethod
    def of(iterations: int, learning_rate: float, layers: bool) -> "Optimised":
        """Return options that switch off early stopping and sparse slopes.

        Early stopping would look at the whole batch, and an input's radius must not depend on the others. With sparse
        slopes and given first-layer bounds, 0.3 loses track of the neurons that the slopes belong to.
        """
        options = {
            "sparse_features_alpha": False,
            "sparse_spec_alpha": False,
            "optimize_bound_args": {
                "iteration": iterations,
                "lr_alpha": learning_rate,
                "fix_intermediate_layer_bounds": not layers,
                "fix_interm_bounds": not layers,  # the same, after 0.3
                "early_stop_patience": iterations + 1,
            },
        }
        return Optimised(linear=False, sharpened=True, options=options, layers=layers)

    def bound(
        self,
        state: LirpaState,
        inside: Any,
        rows: Float[Tensor, "n k outputs"],
        known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Return the best bound that the optimisation meets: every slope in [0, 1] is sound, converged or not.

        CROWN fixes the intermediate bounds; then a fresh graph is optimised, because 0.3 keeps slopes of the last
        batch's shape in a used one.
        """
        crown = super().bound(state, inside, rows, known)
        inner = layer_bounds(state)
        fresh = replace(state, bounded=self.graph(state.module, state.classifier, state.mode))
        if not any(type(node).__name__ in OPTIMISED for node in fresh.bounded._modules.values()):
            return crown
        if self.layers:
            first = first_bounds(state, inside) if known is None else known
            return torch.maximum(crown, backward(fresh, inside, rows, "CROWN-Optimized", first))
        if hasattr(fresh.bounded, "init_slope"):  # 0.3 would bound every layer anew to find a start
            fresh.bounded.init_slope((inside,), c=rows, bound_upper=False, intermediate_layer_bounds=inner)
            fresh.bounded.set_bound_opts({"optimize_bound_args": {"init_alpha": False}})
        return torch.maximum(crown, backward(fresh, inside, rows, "CROWN-Optimized", inner))
