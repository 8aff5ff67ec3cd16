"""The one door for models: of the zoo, of a file, of a function, of a library."""

from collections.abc import Sequence
from pathlib import Path

from certbench.core.classifier import Classifier
from certbench.core.registry import unknown
from certbench.errors import ConfigError
from certbench.formats import CURES, WHOLE, is_whole, suffix_of
from certbench.formats.factory import load_external
from certbench.formats.opening import open_model
from certbench.models import zoo
from certbench.models.cards import cards


def load(
    given: str | Path,
    weights: str | Path | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    name: str | None = None,
    output: int | str | None = None,
    threshold: float | None = None,
    trust: bool = False,
    download: bool = False,
) -> Classifier:
    """Load a model as a classifier.

    Args:
        given: name of a model of the zoo; path of a file of a whole model (`.onnx`, `.onnx.gz`, `.pt2`, TorchScript);
            `module:function`, which makes the network; `timm:NAME` or `hf:NAME`.
        weights: file with the parameters of what a function or a library makes.
        input_shape: shape of one input, if neither a card nor the file says it.
        num_classes: number of logits, 1 for a classifier of two classes with one logit; None: as many as there are.
        name: name in tables; None: that of the zoo, of the file or of the function.
        output: which output has the logits, if there are several: its place or its name.
        threshold: threshold of a single logit; see `Classifier`.
        trust: whether a file that runs code when it is opened, as a pickled module does, may do so.
        download: whether a library may download weights.

    Raises:
        ConfigError: there is no such model, or it does not fit; the message says what to write.
        MissingBackendError: a package that the format needs is not installed.
    """
    text = str(given)
    if text in cards():
        return zoo.load(text)
    if is_whole(text) and (":" not in text or Path(text).exists()):
        if weights is not None:
            raise ConfigError(
                f"{text} is a whole model; leave weights out, or give the function that makes the network"
            )
        return open_model(
            text,
            input_shape=input_shape,
            num_classes=num_classes,
            name=name,
            output=output,
            threshold=threshold,
            trust=trust,
        )
    if ":" not in text:
        kind = suffix_of(Path(text))
        if Path(text).exists() or kind in CURES or kind == ".safetensors":
            cure = CURES.get(kind, "it has weights alone: give module:function, which makes the network, and weights")
            raise ConfigError(f"{text} is no file of a whole model ({', '.join(WHOLE)}); {cure}")
        raise ConfigError(unknown("model", text, cards()) + "; or give a file, or module:function")
    if input_shape is None:
        raise ConfigError(f"give the shape of one input of {text}, for example 3,32,32")
    return load_external(
        text,
        weights,
        input_shape=(*input_shape,),
        num_classes=num_classes,
        name=name,
        output=output,
        threshold=threshold,
        download=download,
    )
