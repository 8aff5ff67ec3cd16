"""Weights in files of `torch.save`, as they are published: a state dict, alone or inside other things."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certbench.errors import ConfigError

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""What wrappers put before every key: parallel training, `torch.compile`, and modules that hold the network."""

FEW = 5
"""Number of keys that a message names."""

IDLE = "num_batches_tracked"
"""End of the names of counters that old files do not have, and that change nothing in eval mode."""

State = Mapping[str, Tensor]


def fill(module: nn.Module, path: Path, entry: str | None = None) -> None:
    """Load every parameter and buffer from the state dict in a file of `torch.save`.

    The state dict may stand under a key of a checkpoint or in a list, and its keys may have a common prefix.

    Args:
        module: the module that is filled.
        path: the file.
        entry: which state dict is meant, as messages name it, if several fit: `ema`, or `state_dict.0`.

    Raises:
        ConfigError: the file is damaged, is no checkpoint, or holds the parameters of another module.
    """
    found = dict(states(read(path, trust=False)))
    if not found:
        raise ConfigError(f"{path} holds no state dict, a mapping from names to tensors")
    if entry is not None and entry not in found:
        raise ConfigError(f"{path} has no state dict {entry!r}; it has {', '.join(found)}")
    wanted = found if entry is None else {entry: found[entry]}
    own = module.state_dict()
    fitting = {name: fit for name, state in wanted.items() if (fit := _fitted(state, own)) is not None}
    if len(fitting) > 1:
        names = ", ".join(fitting)
        raise ConfigError(
            f"{path} holds {len(fitting)} state dicts that fit: {names}; write {path.name}#{next(iter(fitting))}"
        )
    if not fitting:
        raise ConfigError(f"{path} holds the parameters of another module: {_difference(wanted, own)}")
    (state,) = fitting.values()
    put(module, state, path)


def put(module: nn.Module, state: State, path: Path) -> None:
    """Load tensors whose names are the module's own, and refuse to round one.

    Raises:
        ConfigError: a tensor has another shape, or would be rounded; or the module shares a parameter under two names,
            under which the file has two.
    """
    own = module.state_dict()
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(own[key].shape)} in the module"
            raise ConfigError(f"{path} holds the parameters of another module: {key} has shape {shapes}")
        refuse_rounding(key, tensor, own[key], path)
    module.load_state_dict(state, strict=False)
    for key, tensor in module.state_dict().items():
        if key in state and not torch.equal(tensor.nan_to_num(), state[key].to(tensor).nan_to_num()):
            raise ConfigError(
                f"{path} has another {key} than the module after loading: {key} is one parameter under two "
                "names, which have two values in the file; let the factory make two, as the file has"
            )


def refuse_rounding(key: str, stored: Tensor, own: Tensor, path: Path) -> None:
    """Refuse a tensor whose numbers the module's precision cannot hold, or that is no dense tensor.

    Raises:
        ConfigError: it would be rounded, or its numbers cannot be read as they are.
    """
    if stored.layout != torch.strided or stored.is_quantized or stored.is_meta:
        raise ConfigError(
            f"{path}: {key} is no dense tensor of numbers; store key: tensor.to_dense(), or dequantize it"
        )
    if torch.promote_types(stored.dtype, own.dtype) != own.dtype or _rounded(stored, own.dtype):
        raise ConfigError(
            f"{path}: {key} is {stored.dtype} and would be rounded to {own.dtype}; "
            "let the factory make the module in the precision of its weights, for example model.double()"
        )


def _rounded(stored: Tensor, dtype: torch.dtype) -> bool:
    """Say whether whole numbers change in a precision; one beside the largest of their kind counts as changed."""
    if stored.is_floating_point() or stored.dtype == torch.bool or not dtype.is_floating_point:
        return False
    there = stored.to(dtype)
    beyond = there.double().abs() >= float(torch.iinfo(stored.dtype).max)  # no machine agrees how to convert it back
    return bool(beyond.any()) or not torch.equal(there.to(stored.dtype), stored)


def read(path: Path, trust: bool) -> Any:
    """Read a file of `torch.save`: tensors, numbers, text and containers; with `trust`, anything, which runs its code.

    Raises:
        ConfigError: the file is damaged, or is another kind of file, or needs trust.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if is_script(path):
        raise ConfigError(
            f"{path} is a TorchScript file, a whole model: write path: {path}, without factory and weights"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error):
            raise ConfigError(f"{path} cannot be read, or is no file of torch.save: {error}") from error
        raise ConfigError(
            f"{path} holds more than tensors, perhaps a whole module, and opening it would run its code. If you trust "
            "it, write trust: true with path; or convert it once: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # a damaged file may end in any exception of pickle, zip or torch
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} cannot be read, or is no file of torch.save: {type(error).__name__}: {said}"
        ) from error


def is_script(path: Path) -> bool:
    """Say whether a file is one of `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("constants.pkl") for name in file.namelist())


def states(given: Any, where: str = "", around: frozenset[int] = frozenset()) -> Iterator[tuple[str, State]]:
    """Yield the state dicts inside an object, each with the keys that lead to it, joined by dots.

    Args:
        given: the object.
        where: keys that lead to it.
        around: identities of the containers around it.

    Raises:
        ConfigError: a container holds itself.
    """
    if id(given) in around:
        raise ConfigError("the file has a list or a mapping that holds itself; store the state dict alone")
    around |= {id(given)}
    if isinstance(given, Mapping):
        tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(given) and all(isinstance(key, str) for key in given):
            yield where or "state_dict", tensors
        else:
            for key, value in given.items():
                if isinstance(key, str) and key != "optimizer":
                    yield from states(value, f"{where}.{key}".lstrip("."), around)
    elif isinstance(given, list | tuple):
        for at, value in enumerate(given):
            yield from states(value, f"{where}.{at}".lstrip("."), around)
    elif isinstance(given, nn.Module):
        yield where or type(given).__name__, given.state_dict()


def _fitted(state: State, own: State) -> State | None:
    """Return a state dict under the module's names, if its keys are these but for a prefix."""
    for renamed in _renamings(state, own):
        idle = {key for key in own.keys() - renamed.keys() if key.endswith(IDLE)}
        if renamed.keys() | idle == own.keys():
            return renamed
    return None


def _renamings(state: State, own: State) -> Iterator[State]:
    """Yield a state dict with prefixes taken away, one after the other, and with one that all of the module's have."""
    yield state
    shared = {key.partition(".")[0] + "." for key in own}
    if len(shared) == 1:
        yield {f"{next(iter(shared))}{key}": value for key, value in state.items()}
    shorter, found = dict(state), True
    while found:
        found = False
        for prefix in PREFIXES:
            if shorter and all(key.startswith(prefix) for key in shorter):
                shorter, found = {key.removeprefix(prefix): value for key, value in shorter.items()}, True
                yield shorter


def _difference(found: Mapping[str, State], own: State) -> str:
    """Say which keys of the nearest state dict are missing and unexpected, and what may help."""
    name, state = max(found.items(), key=lambda pair: len(pair[1].keys() & own.keys()))
    best = max(_renamings(state, own), key=lambda renamed: len(renamed.keys() & own.keys()))
    missing, unexpected = [*(key for key in own if key not in best)], [*(key for key in best if key not in own)]
    said = [
        f"{what}: {', '.join(keys[:FEW])}{f' and {len(keys) - FEW} more' if len(keys) > FEW else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    text = f"in its entry {name}, " * (len(found) > 1 or name != "state_dict") + "; ".join(said)
    if [tuple(value.shape) for value in best.values()] == [tuple(value.shape) for value in own.values()]:
        pairs = ", ".join(f"{a} -> {b}" for a, b in zip(best, own, strict=True) if a != b)
        return f"{text}. All shapes agree in their order: if these are the same layers, rename them ({pairs[:300]})"
    if missing and not unexpected:
        return f"{text}. Buffers that the factory sets itself are registered with persistent=False"
    return f"{text}. Let the factory name its layers as the file does"
