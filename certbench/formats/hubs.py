"""Networks of other libraries by their names: `timm:NAME` and `hf:NAME`."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from certbench.errors import ConfigError, MissingBackendError


def _timm(name: str, download: bool) -> nn.Module:
    """Make a network of timm, with random weights unless they are downloaded."""
    try:
        import timm
    except ImportError as error:
        raise MissingBackendError(f"timm:{name} needs the package timm; install it: pip install timm") from error
    made: nn.Module = timm.create_model(name, pretrained=download)
    return made


def _hugging_face(name: str, download: bool) -> nn.Module:
    """Make a classifier of images of transformers; a folder of settings without weights makes a random one."""
    try:
        import transformers
    except ImportError as error:
        raise MissingBackendError(
            f"hf:{name} needs the package transformers; install it: pip install transformers"
        ) from error
    folder = Path(name)
    kind = transformers.AutoModelForImageClassification
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        made: nn.Module = kind.from_config(transformers.AutoConfig.from_pretrained(name, local_files_only=True))
        return made
    found: nn.Module = kind.from_pretrained(name, local_files_only=not download)
    return found


HUBS: dict[str, tuple[Callable[[str, bool], nn.Module], str | None]] = {
    "timm": (_timm, None),
    "hf": (_hugging_face, "logits"),
}
"""Libraries by the prefix: the function that makes a network, and the output that has the logits."""


def split(factory: str) -> tuple[str, str] | None:
    """Return the library and the name, if a factory is a network of a library."""
    prefix, _, name = factory.partition(":")
    return (prefix, name) if prefix in HUBS and name else None


def make(prefix: str, name: str, download: bool) -> nn.Module:
    """Make a network of a library, with weights from this machine unless `download` is said.

    Raises:
        ConfigError: the library has no such network, or its weights are not on this machine.
        MissingBackendError: the library is not installed.
    """
    try:
        return HUBS[prefix][0](name, download)
    except MissingBackendError:
        raise
    except Exception as error:  # of the library, whatever it is
        said = str(error).partition("\n")[0]
        hint = "" if download else "; weights are taken from this machine alone unless download: true"
        raise ConfigError(f"{prefix}:{name} cannot be made: {type(error).__name__}: {said}{hint}") from error
