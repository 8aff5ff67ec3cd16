"""Reading of ONNX files."""

import gzip
import zlib
from pathlib import Path
from typing import Any

from certbench.errors import ConfigError, MissingBackendError

INSTALL = 'pip install "certbench[onnx]"'
"""Command that installs what ONNX files need."""


def packages() -> tuple[Any, Any]:
    """Import onnx and onnxruntime.

    Raises:
        MissingBackendError: one of them is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(
            f"ONNX files need the packages onnx and onnxruntime ({error}); install them: {INSTALL}"
        ) from error
    return onnx, onnxruntime


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in `.gz`.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read, or is truncated: {error}") from error


def read(path: Path) -> Any:
    """Read a model, and write the functions that it defines itself into its graph.

    Raises:
        ConfigError: the file is damaged, or no ONNX file, or its tensors lie in another file that is missing.
        MissingBackendError: a package is not installed.
    """
    onnx, _ = packages()
    raw = content(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception as error:  # protobuf's own errors, which differ between its releases
        raise ConfigError(f"{path} is no ONNX file, or damaged: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise ConfigError(f"{path} is no ONNX file, or damaged: it has no graph of operators")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ConfigError(f"{path} keeps its tensors in other files, which must lie beside it: {error}") from error
    if len(model.functions):
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    return model
