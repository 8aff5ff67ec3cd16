"""Networks behind an embedding: tokens have no norm balls around them, but the vectors that stand for them have."""

import copy

import torch
from jaxtyping import Int
from torch import Tensor, nn

from certbench.errors import UnsupportedError


@torch.no_grad()
def embedded(module: nn.Module, layer: str, tokens: Int[Tensor, "n ..."]) -> tuple[nn.Embedding, nn.Module]:
    """Split a module of tokens into its embedding and what it computes of the vectors.

    A certificate of the second part is about changes of the vectors:

        embedding, rest = embedded(module, "embed", tokens)
        x = embedding(tokens)
        certbench.certify("crown", Classifier(rest, x.shape[1:], classes), x, L2)

    Args:
        module: the module, in eval mode.
        layer: name of its `nn.Embedding` in `named_modules`.
        tokens: some inputs, on which both parts together are compared with the module.

    Returns:
        A copy of the embedding, and a copy of the module that takes vectors in place of tokens.

    Raises:
        UnsupportedError: there is no such layer, or the rest depends on the tokens otherwise than through it, as by a
            mask of the padding.
    """
    found = dict(module.named_modules()).get(layer)
    if type(found) is not nn.Embedding:
        known = [name for name, part in module.named_modules() if type(part) is nn.Embedding]
        raise UnsupportedError(f"{layer!r} is no nn.Embedding of the module; known: {', '.join(known) or 'none'}")
    if layer == "":
        return copy.deepcopy(found), nn.Identity().eval()
    embedding, rest = copy.deepcopy(found), copy.deepcopy(module)
    rest.set_submodule(layer, nn.Identity().eval())
    why = f"the module depends on its tokens otherwise than through {layer!r}"
    wanted = module(tokens.clone())
    try:
        given = rest(embedding(tokens))
    except Exception as error:  # the code is the user's own
        raise UnsupportedError(f"{why} ({type(error).__name__}: {error})") from error
    same = isinstance(given, Tensor) and isinstance(wanted, Tensor) and given.shape == wanted.shape
    if not same or not torch.allclose(given, wanted, rtol=1e-4, atol=1e-6):
        raise UnsupportedError(f"{why}, as by a mask of the padding; certify a module that takes the vectors")
    return embedding, rest
