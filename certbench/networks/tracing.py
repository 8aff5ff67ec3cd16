"""Tools for torch.fx traces: which nodes matter, and which of them change what others read."""

import operator
from collections import Counter
from collections.abc import Set
from typing import Any

from jaxtyping import Float
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError


def trace(classifier: Classifier) -> fx.GraphModule:
    """Trace the module and return its graph.

    Raises:
        UnsupportedError: the module has hooks or the like, which a trace does not show, or code that depends on values.
    """
    hidden = classifier.hidden_code()
    if hidden is not None:
        raise UnsupportedError(f"{hidden}, which a trace does not show")
    tracer = _Tracer()
    try:
        graph = tracer.trace(classifier.module)
        return fx.GraphModule(tracer.root, graph)
    except Exception as error:  # a forward may raise anything when it meets a proxy
        raise UnsupportedError(f"torch.fx cannot trace {classifier.name}: {error}") from error


class _Proxy(fx.Proxy):
    """A proxy on which `a += b` works in place, as on a tensor; fx's own proxy turns it into `a = a + b`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def refuse_hidden_writes(classifier: Classifier, graph: fx.GraphModule, x: Float[Tensor, "n ..."]) -> None:
    """Run a module and its graph, and refuse operations that work in place in only one of them.

    Raises:
        UnsupportedError: there is such an operation; the message names it.
    """
    with _Writes() as writes:
        classifier.module(x.clone())
    with _Writes() as shown:
        graph(x.clone())
    hidden = {*(writes.found - shown.found), *(shown.found - writes.found)}
    if hidden:
        raise UnsupportedError(f"{hidden.pop()} works in place, which a trace does not show; write a = a + b")


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations that work in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def asks_shape(n: fx.Node) -> bool:
    """Say whether a node depends only on a value's shape, precision or device."""
    if n.op == "call_method":
        return n.target in ("size", "dim", "numel")
    return n.target is getattr and n.args[1] in ("shape", "ndim", "dtype", "device")


def overwrites(n: fx.Node, aliases: Set[fx.Node]) -> bool:
    """Say whether a node that works in place changes a value that another node reads, too.

    `aliases` are the nodes whose value shares its memory with that of their first argument.
    """
    source = n.args[0]
    while isinstance(source, fx.Node):
        if sum(not asks_shape(user) for user in source.users) > 1:
            return True
        source = source.args[0] if source in aliases else None
    return False
