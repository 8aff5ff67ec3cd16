"""Recording of what a module does to one input, as a graph of aten operators.

`make_fx` of torch runs the module on one input without numbers (a fake tensor) and records the operators. We take it
and not `torch.export`, which finds the same graph: it is some fifty times as fast (10 ms for a small network), it runs
scripted modules, hooks and parametrizations too, and it can name the line of the user's code. `torch.fx.symbolic_trace`
sees Python's calls alone, knows no shapes, and stops at `x.view(x.size(0), -1)`. `functionalize` makes writing in place
explicit.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError

INSIDE = str(Path(torch.__file__).parent)
"""Folder of torch: lines of code in it are not the user's."""

WRITTEN = "non-functional tensor"
"""Words of torch's message when something is written into a constant."""

FORMATS = str(Path(__file__).parents[1] / "formats")
"""Folder of the formats of files, whose modules run what a file says."""


@torch.no_grad()
def record(classifier: Classifier, known: Callable[[Any], bool], places: bool = False) -> fx.GraphModule:
    """Record the operators that a classifier's module applies to a batch of one input.

    Args:
        classifier: the classifier.
        known: says whether the reader has a rule for an operator; others are written as simpler ones where torch can.
        places: whether the nodes say which layer and which line they come from (`place` tells); takes longer.

    Raises:
        UnsupportedError: the module's code depends on the values of its input, or cannot be recorded.
    """
    for part in classifier.module.modules():
        if isinstance(getattr(part, "opaque", None), str):
            raise UnsupportedError(f"{classifier.name} {part.opaque}")
    try:
        graph = _recorded(unwrapped(classifier.module), classifier, known, places)
    except UnsupportedError:
        raise
    except Exception as error:  # a forward may raise anything when its input has no numbers
        raise UnsupportedError(f"{classifier.name} cannot be recorded: {_why(error)}") from error
    for node in graph.graph.nodes:
        if _writes(node):
            raise UnsupportedError(f"{classifier.name} writes into its own buffers when it runs: {node.target}")
    graph.graph.eliminate_dead_code()
    return graph


def _recorded(module: nn.Module, classifier: Classifier, known: Callable[[Any], bool], places: bool) -> fx.GraphModule:
    """Record a module on one input that has no numbers, so that none of them can decide what is recorded."""
    x = torch.zeros(1, *classifier.input_shape, dtype=classifier.dtype, device=classifier.device)
    simpler = {op: rule for op, rule in _decompositions().items() if not known(op)}

    def made(run: Callable[..., Any], *constants: Any) -> fx.GraphModule:
        functional = torch.func.functionalize(run, remove="mutations_and_views")
        found: fx.GraphModule = make_fx(
            lambda z: functional(z, *constants),
            decomposition_table=simpler,
            tracing_mode="fake",
            _allow_non_fake_inputs=True,
            record_stack_traces=places,
        )(x)
        return found

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if places:
            stack.enter_context(traceback.preserve_node_meta())
            stack.enter_context(_layers(module))
        stack.enter_context(_NoNumbers())

        def run(z: Tensor, *tensors: dict[str, Tensor]) -> Any:
            return torch.func.functional_call(module, tensors, (z.clone(),)) if tensors else module(z.clone())

        def twice(*tensors: dict[str, Tensor]) -> fx.GraphModule:
            graph = made(run, *tensors)  # the module may write into its input
            if any(_writes(node) for node in graph.graph.nodes):  # of operators written as several, as an LSTM
                graph = made(fx.Interpreter(graph).run)
            return graph

        try:
            return twice()
        except RuntimeError as error:
            if WRITTEN not in str(error):
                raise
        # The code writes into what it computes from its own tensors; then torch has to know these.
        return twice({**dict(module.named_parameters()), **dict(module.named_buffers())})


def _why(error: Exception) -> str:
    """Say in which line of the user's code an error arose, and what it was unless it is torch's own."""
    own = [frame for frame in extract_tb(error.__traceback__) if _is_own(frame.filename)]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}: " if own else ""
    text = str(error).partition("\n")[0]
    if WRITTEN in text:
        return f"{where}its code writes what depends on the input into a constant"
    if type(error).__module__.startswith("torch") or "tracing" in text:
        return (
            f"{where}its code asks for the values of its input, which differ from one input to the next, or for "
            "numbers that it computes from its buffers"
        )
    return f"{where}{type(error).__name__}: {text}"


@cache
def _decompositions() -> dict[Any, Any]:
    """Return how torch writes operators as simpler ones."""
    table: Any = core_aten_decompositions()
    return dict(table.items())


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a compiled one."""
    inner = getattr(module, "_orig_mod", None) if type(module).__name__ == "OptimizedModule" else None
    return inner if isinstance(inner, nn.Module) else module


def place(node: fx.Node) -> str:
    """Say where a recorded node comes from: the layer, and the last line that is not torch's own."""
    layer = (node.meta.get("custom") or {}).get("layer")
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    found = ""
    for at, line in enumerate(lines):
        if line.startswith("File ") and _is_own(line.split('"')[1]):
            file, number = line.split('"')[1], line.split("line ")[1].split(",")[0]
            code = lines[at + 1] if at + 1 < len(lines) and not lines[at + 1].startswith("File ") else ""
            found = f"{Path(file).name}:{number}: {code}"
    return ", ".join(part for part in (layer, found) if part)


def _is_own(file: str) -> bool:
    """Say whether a file is a user's: neither torch's, nor ours, nor one that checks the types of arguments."""
    return not any(part in file for part in (INSIDE, __file__, FORMATS, "jaxtyping", "beartype"))


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def layers(node: fx.Node) -> tuple[str, ...]:
    """Return the names of the layers that a recorded node is inside of, from the whole module on."""
    return inside_of(node.meta.get("custom"))


def inside_of(note: Any) -> tuple[str, ...]:
    """Return the names of layers in a note of `_layers`."""
    return tuple((note or {}).get("inside", ()))


@contextmanager
def _layers(module: nn.Module) -> Iterator[None]:
    """Note in each recorded node the layer that runs, and the names of all layers that it is inside of."""
    names = {id(part): name for name, part in module.named_modules()}
    before: list[Any] = []

    def enter(part: nn.Module, args: Any) -> None:
        before.append(traceback.current_meta.get("custom"))
        own = names.get(id(part), "")
        inside = (*inside_of(before[-1]), own)
        traceback.current_meta["custom"] = {"layer": f"{own} ({type(part).__name__})".strip(), "inside": inside}

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        traceback.current_meta["custom"] = before.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _NoNumbers(TorchFunctionMode):
    """Refuses to turn tensors into numbers of other libraries, which no graph shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("numpy", "__array__", "tolist", "data_ptr", "__dlpack__"):
            raise UnsupportedError(f"the module calls {func.__name__}() when it runs, which no graph shows")
        return func(*args, **(kwargs or {}))
