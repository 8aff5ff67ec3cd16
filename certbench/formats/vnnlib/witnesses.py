"""Counterexamples, as the competition writes them: `sat`, and then `((X_0 0.1) ... (Y_0 0.2) ...)`."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from certbench.errors import ConfigError
from certbench.files.numbers import decimal
from certbench.files.reading import plain
from certbench.formats.vnnlib.reading import text_of

PAIR = re.compile(r"\(\s*([XY])_([0-9]+)\s+([^\s()]+)\s*\)")

SUFFIX = ".counterexample"
"""Suffix of a file with a counterexample."""


@dataclass(frozen=True)
class Witness:
    """A counterexample that a tool wrote.

    Attributes:
        inputs: values of the inputs by their index.
        outputs: values of the outputs by their index; a file may leave them out.
        path: file that it stands in.
    """

    inputs: dict[int, float]
    outputs: dict[int, float]
    path: Path


def name_of(onnx: str, vnnlib: str) -> str:
    """Return the name of the file for an instance: NETWORK_PROPERTY.counterexample, both without suffix."""
    names = [Path(part).name.removesuffix(".gz") for part in (onnx, vnnlib)]
    return f"{names[0].removesuffix('.onnx')}_{names[1].removesuffix('.vnnlib')}{SUFFIX}"


def names_of(instances: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the name of the file for each network and property of a benchmark.

    It is the competition's; where that fits several instances, it is that of `whole_name_of`.
    """
    pairs = dict.fromkeys(instances)
    counts = Counter(name_of(*pair) for pair in pairs)
    return {pair: name_of(*pair) if counts[name_of(*pair)] == 1 else whole_name_of(*pair) for pair in pairs}


def whole_name_of(onnx: str, vnnlib: str) -> str:
    """Return a name of the file for an instance that no other one has: it holds both paths, with `%2F` for `/`."""
    return f"{quote(plain(onnx), safe='')}_{quote(plain(vnnlib), safe='')}{SUFFIX}"


def text(inputs: Iterable[float], outputs: Iterable[float]) -> str:
    """Return the content of a file."""
    pairs = [f"(X_{i} {value!r})" for i, value in enumerate(inputs)]
    pairs += [f"(Y_{i} {value!r})" for i, value in enumerate(outputs)]
    return "sat\n(" + "\n ".join(pairs) + ")\n"


def beside(folder: Path) -> dict[str, Path]:
    """Return the counterexamples in a folder, by their names without `.gz`; not those in folders inside it."""
    paths = [path for path in folder.glob(f"*{SUFFIX}*") if path.name.removesuffix(".gz").endswith(SUFFIX)]
    paths.sort(key=lambda path: path.suffix != ".gz")  # of a pair, the one that is not compressed
    return {path.name.removesuffix(".gz"): path for path in paths}


def read(path: Path) -> Witness:
    """Read a counterexample.

    Raises:
        ConfigError: the file has something else in it, or a variable twice.
    """
    content = text_of(path)
    rest = PAIR.sub("", content).replace("(", "").replace(")", "").split()
    if any(word.lower() not in ("sat", "violated") for word in rest):
        strange = next(word for word in rest if word.lower() not in ("sat", "violated"))
        raise ConfigError(f"{path}: {strange!r} is no part of a counterexample, ((X_0 0.1) ... (Y_0 0.2))")
    values: dict[str, dict[int, float]] = {"X": {}, "Y": {}}
    for kind, index, number in PAIR.findall(content):
        try:
            value = decimal(number)
        except ValueError as error:
            raise ConfigError(f"{path}: {kind}_{index}: {error}") from None
        if int(index) in values[kind]:
            raise ConfigError(f"{path}: {kind}_{index} stands there twice")
        values[kind][int(index)] = value
    return Witness(values["X"], values["Y"], path)
