"""Reading of ONNX files, and running them in onnxruntime."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def session(path: Path, source: bytes | str) -> Any:
    """Open a model in onnxruntime, on one thread.

    Args:
        path: the file, for messages.
        source: content of the model, or the path of an uncompressed file.

    Raises:
        ConfigError: onnxruntime refuses it.
        MissingBackendError: a package is not installed.
    """
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors, which derive from Exception alone
        raise ConfigError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from error


def run(opened: Any, path: Path, output: str, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Run a session on inputs by name, and return one output.

    Raises:
        ConfigError: onnxruntime cannot run it; the message says what to do.
    """
    try:
        return np.asarray(opened.run([output], dict(given))[0])
    except Exception as error:  # onnxruntime's own errors, which derive from Exception alone
        shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise ConfigError(
            f"{path}: onnxruntime cannot run it on {shapes}: {_first_line(error)}; try it in onnxruntime alone, and "
            "export the network anew if it fails there, too"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
