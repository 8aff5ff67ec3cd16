"""Files of counterexamples: which ones belong to the answers of a tool to a benchmark.

The competition has TOOL/results.csv, or TOOL/CATEGORY/results.csv, and TOOL/CATEGORY/NETWORK_PROPERTY.counterexample.
A year may stand before the category. A counterexample in a folder where results of several tools lie is nobody's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from certbench.external.instances import is_folder_of
from certbench.external.vnncomp import Verdicts, source_of
from certbench.formats.vnnlib import witnesses


@dataclass(frozen=True)
class WitnessFiles:
    """The counterexamples of one file of results.

    Attributes:
        paths: files of counterexamples, by network and property.
        unclear: why a counterexample cannot be told to be that of a network and property.
    """

    paths: Mapping[tuple[str, str], Path]
    unclear: Mapping[tuple[str, str], str]


def witness_files(file: Verdicts, category: str, instances: Iterable[tuple[str, str]]) -> WitnessFiles:
    """Find the counterexamples of a file of results.

    Args:
        file: answers of a tool.
        category: category whose counterexamples are wanted.
        instances: paths of network and property of all instances of the benchmark.
    """
    pairs = list(instances)
    found: dict[str, Path] = {}
    foreign: dict[str, Path] = {}
    for folder, owners in _folders(file, category):
        there = witnesses.beside(folder)
        if owners <= {file.source}:
            found = there | found
        else:
            foreign |= there
    fitting = defaultdict(list)
    for pair in pairs:
        fitting[witnesses.name_of(*pair)].append(pair)
    paths, unclear = {}, {}
    for pair in pairs:
        name, whole = witnesses.name_of(*pair), witnesses.whole_name_of(*pair)
        alone = len(fitting[name]) == 1
        if whole in found or (alone and name in found):
            paths[pair] = found[whole] if whole in found else found[name]
        elif name in found:
            others = " and ".join(" ".join(one) for one in fitting[name])
            unclear[pair] = f"{found[name].name} fits several instances, {others}; name it {whole}"
        elif name in foreign or whole in foreign:
            path = foreign[whole] if whole in foreign else foreign[name]
            unclear[pair] = f"{path} lies beside results of several tools; give each tool a folder, {file.source}/"
    return WitnessFiles(paths, unclear)


def _folders(file: Verdicts, category: str) -> list[tuple[Path, set[str]]]:
    """Return the folders where counterexamples of this category may lie, the likeliest first, and whose they are."""
    folder = file.path.absolute().parent
    found: list[tuple[Path, set[str]]] = []
    for outer in [folder] if file.path.name == "results.csv" else [folder / file.path.stem, folder]:
        if not outer.is_dir():
            continue
        inner = sorted(path for path in outer.iterdir() if path.is_dir() and is_folder_of(path.name, category))
        if len(inner) > 1:
            inner = [path for path in inner if path.name == category]  # else there are several years
        others = {answer.instance[0] for answer in file.answers} - {"", category}
        owners = _tools(outer)
        found += [(path, owners | _tools(path)) for path in inner]
        found += [] if others else [(outer, owners)]
    return found


def _tools(folder: Path) -> set[str]:
    """Return the tools whose results lie in a folder."""
    return {source for path in folder.glob("*.csv") if (source := source_of(path)) is not None}
