"""Reading of properties and of lists of instances."""

import csv
from dataclasses import dataclass
from pathlib import Path

from certbench.core.properties import Property
from certbench.errors import ConfigError
from certbench.files.numbers import decimal
from certbench.files.reading import plain
from certbench.formats.onnx.files import content
from certbench.formats.vnnlib import version1, version2
from certbench.formats.vnnlib.formulas import lines_of


def text_of(path: Path) -> str:
    """Return the text of a file, decompressed if its name ends in `.gz`.

    Raises:
        ConfigError: there is no such file, or it is damaged, or no text.
    """
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}") from error


def load(path: str | Path) -> Property:
    """Read a property of VNN-LIB 1.0 or 2.0.

    Sums and products of numbers are exact; what stands in a bound or before an output is then the nearest number in
    float64, as tools have it. The property says which inputs give outputs that
    must not occur.

    Args:
        path: the file, `.vnnlib` or `.vnnlib.gz`.

    Raises:
        ConfigError: the file is damaged, or has something that is not read here; the message names file and line.
        MissingBackendError: the file is of version 2.0, and the package for it is not installed.
    """
    path = Path(path)
    text = text_of(path)
    words = "\n".join(line for _, line in lines_of(text))  # without comments
    parse = version2.parse if "vnnlib-version" in words or "declare-network" in words else version1.parse
    try:
        return parse(text, path.name)
    except ConfigError as error:
        line, colon, rest = str(error).partition(": ")
        raise ConfigError(f"{path}:{line}: {rest}" if colon and line.isdigit() else f"{path}: {error}") from error


@dataclass(frozen=True)
class Instance:
    """One line of `instances.csv`.

    Attributes:
        onnx: path of the network, as the line has it.
        vnnlib: path of the property, likewise.
        limit: time limit in seconds.
        root: folder of the list.
        line: its line in the list.
    """

    onnx: str
    vnnlib: str
    limit: float
    root: Path
    line: int

    @property
    def key(self) -> tuple[str, str]:
        """The paths, which identify it, see `plain`."""
        return plain(self.onnx), plain(self.vnnlib)

    @property
    def network(self) -> Path:
        """The network's file, compressed or not."""
        return _there(self.root / self.onnx)

    @property
    def property(self) -> Path:
        """The property's file, compressed or not."""
        return _there(self.root / self.vnnlib)


def _there(path: Path) -> Path:
    other = path.with_name(path.name.removesuffix(".gz") if path.suffix == ".gz" else f"{path.name}.gz")
    return other if other.is_file() and not path.is_file() else path


def instances(root: str | Path) -> list[Instance]:
    """Read `instances.csv` of a folder: network, property and time limit in seconds, without a header.

    Raises:
        ConfigError: there is none, or it is damaged; the message names file and line.
    """
    path = Path(root) / "instances.csv"
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give the folder of a benchmark")
    found = []
    for number, cells in enumerate(csv.reader(text_of(path).splitlines()), 1):
        row = [cell.strip() for cell in cells]
        if not any(row):
            continue
        try:
            onnx, vnnlib, limit = row
            seconds = decimal(limit)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: an instance is onnx, vnnlib, seconds") from error
        if not seconds > 0:
            raise ConfigError(f"{path}:{number}: a time limit is positive, not {limit}")
        found.append(Instance(onnx, vnnlib, seconds, Path(root), number))
    if not found:
        raise ConfigError(f"{path} has no instances")
    return found
