"""Tables of torch's operators, which write each as affine maps, elementwise functions, products and sums.

A new operator is one entry of `REARRANGING`, if it only moves entries; of `LINEAR`, if it is linear; of `FUNCTIONS` in
`functions`, if it applies a function to each entry; else of the `RULES` of one of the files. A rule gets the builder,
the operator's arguments, in which a value that depends on the input is a `Moving`, its options, and the shape of its
result, and returns what the operator returns.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from certbench.errors import UnsupportedError
from certbench.networks.operators import arithmetic, functions, normalisation, pooling
from certbench.networks.operators.builder import Builder, Moving, Rule, aten, check_finite, packet, rearranged
from certbench.networks.operators.functions import FUNCTIONS
from certbench.networks.operators.pooling import CHANNELWISE, linear

RULES: Mapping[Any, Rule] = {**arithmetic.RULES, **functions.RULES, **normalisation.RULES, **pooling.RULES}
"""Rules of operators, by their name in torch."""


REARRANGING = frozenset({
    aten.permute, aten.permute_copy, aten.transpose, aten.transpose_copy, aten.t, aten.t_copy,
    aten.expand, aten.expand_copy, aten.slice, aten.slice_copy, aten.select, aten.select_copy,
    aten.cat, aten.stack, aten.split, aten.split_copy, aten.split_with_sizes, aten.split_with_sizes_copy,
    aten.unsafe_split, aten.unsafe_split_with_sizes, aten.chunk, aten.unsafe_chunk, aten.unbind, aten.unbind_copy,
    aten.flip, aten.roll, aten.index_select, aten.index, aten.gather, aten.repeat, aten.tile,
    aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
    aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.native_channel_shuffle,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d,
    aten.unfold, aten.unfold_copy, aten.im2col, aten.diagonal, aten.diagonal_copy, aten.tril, aten.triu,
    aten.as_strided, aten.as_strided_copy, aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter,
    aten.index_put, aten.movedim, aten._unsafe_index,
})  # fmt: skip
"""Operators that only move entries, and put constants between them."""


LINEAR = CHANNELWISE | {aten.cumsum, aten.col2im}
"""Operators that are linear in their first argument, and not common enough for a rule; they become sparse matrices."""


JUMPING = frozenset({
    aten.sign, aten.sgn, aten.round, aten.floor, aten.ceil, aten.trunc, aten.frac, aten.heaviside, aten.hardshrink,
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.argmax, aten.argmin, aten.topk, aten.sort, aten.argsort,
    aten.bernoulli, aten.fmod, aten.remainder,
})  # fmt: skip
"""Operators that jump, or choose by comparing what depends on the input; no linear bound follows them."""


SHAPES = frozenset({
    aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full,
    aten.new_empty,
})  # fmt: skip
"""Operators that look at the shape of their first argument alone, and make a constant."""


EXACT = REARRANGING | SHAPES | {
    aten.zeros, aten.ones, aten.full, aten.arange, aten.scalar_tensor, aten.empty, aten.eye,
    *(name for name, rule in RULES.items() if rule in arithmetic.KEEPING),
}  # fmt: skip
"""Operators that make no rounding errors."""


EMPTY = frozenset({aten.empty, aten.empty_like, aten.new_empty})
"""Operators that make a tensor whose numbers are filled in later; until then they may be anything."""


def evaluate(target: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run an operator on constants; numbers that it leaves open are 0."""
    found = target(*args, **options)
    return torch.zeros_like(found) if packet(target) in EMPTY else found


def known(target: Any) -> bool:
    """Say whether the tables know an operator."""
    name = packet(target)
    return any(name in table for table in (RULES, FUNCTIONS, REARRANGING, LINEAR, JUMPING, SHAPES))


def write(build: Builder, target: Any, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Write an operator as nodes, and return its result.

    Raises:
        UnsupportedError: no table knows it, or its rule does not know its options.
    """
    name = packet(target)
    if RULES.get(name) not in MASKING and name not in REARRANGING:
        check_finite(args, options)
    if name in RULES:
        return RULES[name](build, args, options, shape)
    if name in FUNCTIONS:
        return build.apply(FUNCTIONS[name](*args[1:], **options), args[0])
    if name in REARRANGING:
        return rearranged(build, target, args, options, shape)
    if name in LINEAR:
        return linear(build, target, args, options, shape)
    if name in SHAPES:
        zeros = torch.zeros(args[0].shape, dtype=torch.float64, device=build.device)
        return evaluate(target, (zeros, *args[1:]), options)
    if name in JUMPING:
        raise UnsupportedError(
            f"{name} jumps, or compares what depends on the input; smoothing can certify such modules"
        )
    raise UnsupportedError(f"{name} is not known here; smoothing can certify such modules")


MASKING = (*arithmetic.MASKING, normalisation.RULES[aten._softmax], normalisation.RULES[aten._log_softmax])
"""Rules that know what to do with entries that are minus infinity."""


UNCHANGED = frozenset({
    aten.clone, aten.detach_copy, aten.detach, aten.alias, aten.alias_copy,
    aten.view, aten.view_copy, aten._unsafe_view, aten.reshape,
})  # fmt: skip
"""Operators that, where they keep the order of the logits, keep the logits: no function is left out with them."""


def keeps_order(target: Any, args: tuple[Any, ...], values: Mapping[Any, Any]) -> bool:
    """Say whether an operator on logits (1, classes) is a softmax over the classes, or an increasing function of each.

    A function that is constant somewhere (ReLU, a clamp) is none: it makes ties.
    """
    value, rest, name = values.get(args[0]), args[1:], packet(target)
    if not isinstance(value, Moving) or len(value.shape) != 2 or value.masked is not None:
        return False
    if name in (aten._softmax, aten._log_softmax, aten._safe_softmax):
        return rest[0] in (1, -1)
    if name in (aten.mul, aten.div):
        return isinstance(rest[0], int | float) and 0 < rest[0] < math.inf
    if name in (aten.add, aten.sub):
        return isinstance(rest[0], int | float) and math.isfinite(rest[0]) and len(rest) == 1
    if name in (aten.view, aten.view_copy, aten._unsafe_view, aten.reshape):  # of the logits to themselves
        return list(rest[0]) in ([1, -1], [1, value.shape[1]], [-1, value.shape[1]])
    if name in UNCHANGED:
        return True
    return name in (aten.sigmoid, aten.tanh, aten.atan, aten.exp, aten.erf)  # softplus falls a little at its threshold
