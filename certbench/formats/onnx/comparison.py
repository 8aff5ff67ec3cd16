"""Comparison of a module that was read from an ONNX file with onnxruntime, and of its batches with single inputs."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certbench.errors import ConfigError
from certbench.formats.onnx.files import content, packages, run, session
from certbench.formats.onnx.module import OnnxModule

CLOSE = 1e-5
"""Largest difference from onnxruntime, as a share of the outputs' size, with which a module is taken."""

AMBIGUOUS = 1e-3
"""Largest such share where float32 is the reason: our own results in float32 are as far from float64."""

SMALL = 1e-3
"""Least size of an input's outputs, as a share of the largest: rounding of what cancels is no difference."""

SCALES = (0.0, 0.1, 1.0, 10.0, 100.0)
"""Sizes of the random inputs: what happens far from 0 counts, too, as where pixels are bytes. Half of those of each
size are not negative, as pixels are."""

SPREAD = (5, 6, 9)
"""Places of three of them, of different sizes."""


def examples(module: OnnxModule) -> Tensor:
    """Return random inputs of several sizes."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for scale in SCALES:
        x = torch.randn(2, *module.input_shape, generator=generator, dtype=torch.float64)
        found += [x[:1] * scale, x[1:].abs() * scale]
    return torch.cat(found)


@torch.no_grad()
def runs_in_batches(many: OnnxModule, one: OnnxModule | None) -> str | None:
    """Say why inputs cannot be run in batches; None if batches of 1, 2 and 3 give what single inputs give."""
    many_double = _double(many)
    x = examples(many)[[*SPREAD]]
    blind = x.clone()
    blind[1] = torch.nan  # it reaches all that this input has a part in, wherever numbers are small or large
    try:
        singles = _double(one)(x) if one is not None else torch.cat([many_double(x[i : i + 1]) for i in range(len(x))])
        for n in (1, 2, 3):
            found = many_double(x[:n])
            if found.shape != singles[:n].shape:
                return f"a batch of {n} gives outputs of shape {tuple(found.shape)}"
            if not torch.allclose(found, singles[:n], rtol=1e-9, atol=1e-9 * _size(singles), equal_nan=True):
                return f"an input's outputs depend on the others in a batch of {n}"
        found = many_double(blind)[::2]
        if not torch.allclose(found, singles[::2], rtol=1e-9, atol=1e-9 * _size(singles), equal_nan=True):
            return "an input's outputs depend on the others in a batch of 3 where one of them is NaN"
    except Exception as error:  # operators may fail on sizes that the file does not foresee
        return f"a batch of another size fails: {str(error).partition(chr(10))[0]}"
    return None


@torch.no_grad()
def compare(module: OnnxModule, path: Path, entry: str, output: str, declared: int | None, dtype: torch.dtype) -> None:
    """Compare a module with onnxruntime.

    Args:
        module: the module.
        path: the file from which it was read.
        entry: name of the file's input.
        output: name of the tensor that the module returns.
        declared: number of inputs for which the file is written; None: any; 0: it has no batch axis.
        dtype: precision of the file's input; constants may have another one.

    Raises:
        ConfigError: outputs differ by more than `CLOSE`, and rounding in float32 does not explain it; or onnxruntime
            cannot run the file.
    """
    x = examples(module).to(dtype)
    theirs = torch.cat([*_theirs(module, path, entry, output, declared, x)]).double()
    same = module if all(p.dtype == dtype for p in module.parameters()) else copy.deepcopy(module).to(dtype)
    ours = same(x).double()
    if ours.shape != theirs.shape:
        raise ConfigError(f"{path}: onnxruntime gives outputs of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    least = max(_size(theirs) * SMALL, torch.finfo(torch.float32).tiny)
    for i in range(len(x)):
        size = max(_size(theirs[i]), least)
        apart = _apart(ours[i], theirs[i]) / size
        if apart <= CLOSE:
            continue
        exact = _double(module)(x[i : i + 1].double())[0]
        rounding = _apart(ours[i], exact) / size
        if apart > AMBIGUOUS or min(apart, _apart(exact, theirs[i]) / size) > 10 * rounding:
            raise ConfigError(
                f"{path}, as it is read here, gives other outputs than onnxruntime: they differ by {apart:.1e} of "
                f"their size on random inputs (our own rounding is {rounding:.1e}); please report it with the file"
            )


def _theirs(
    module: OnnxModule, path: Path, entry: str, output: str, declared: int | None, x: Tensor
) -> Iterator[Tensor]:
    """Yield onnxruntime's outputs, input by input or in batches of the size that the file wants."""
    opened = _opened(path, output)
    shape = module.input_shape if declared == 0 else (declared or 1, *module.input_shape)
    for row in x:
        given = row.expand(declared or 1, *row.shape).reshape(shape).numpy()
        found = run(opened, path, output, {entry: given})
        yield torch.from_numpy(found).reshape(declared or 1, -1)[:1]


def _opened(path: Path, output: str) -> Any:
    """Open a file in onnxruntime, so that a tensor inside it is an output."""
    onnx, _ = packages()
    raw = content(path)
    model = onnx.load_model_from_string(raw)
    source: Any = str(path) if path.suffix != ".gz" else raw
    if output not in {part.name for part in model.graph.output}:
        onnx.load_external_data_for_model(model, str(path.parent))
        model.graph.output.append(onnx.ValueInfoProto(name=output))
        source = model.SerializeToString()
    return session(path, source)


def _double(module: OnnxModule) -> OnnxModule:
    return copy.deepcopy(module).double()


def _size(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _apart(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
    return float(gap.max()) if gap.numel() else 0.0
