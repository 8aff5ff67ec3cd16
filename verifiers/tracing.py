"""What certifiers that follow a torch.fx trace have in common: which nodes matter, which change what others read."""

from collections.abc import Set

from torch import fx

from certbench.classifier import Classifier
from certbench.errors import UnsupportedError


def trace(classifier: Classifier) -> fx.GraphModule:
    """The module's graph.

    Raises:
        UnsupportedError: hooks and the like, which a trace does not show, or code that looks at its input's values.
    """
    hidden = classifier.hidden_code()
    if hidden is not None:
        raise UnsupportedError(f"{hidden}, which a trace does not show")
    try:
        return fx.symbolic_trace(classifier.module)
    except Exception as error:  # whatever a forward raises when it meets a proxy
        raise UnsupportedError(f"torch.fx cannot trace {classifier.name}: {error}") from error


def asks_shape(n: fx.Node) -> bool:
    """Whether a node depends on the shape of a value alone."""
    if n.op == "call_method":
        return n.target in ("size", "dim", "numel")
    return n.target is getattr and n.args[1] in ("shape", "ndim", "dtype", "device")


def overwrites(n: fx.Node, aliases: Set[fx.Node]) -> bool:
    """Whether a node that works in place changes a value that something else reads, too.

    `aliases` are the nodes whose value shares its memory with that of their first argument.
    """
    source = n.args[0]
    while isinstance(source, fx.Node):
        if sum(not asks_shape(user) for user in source.users) > 1:
            return True
        source = source.args[0] if source in aliases else None
    return False
