"""Instances of VNN-COMP: how files name them, and which one a name means. Imports nothing heavy."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Instance = tuple[str, str, str]
"""Instance: category (empty if the file does not say), path of the network, path of the property, see `plain`."""

YEAR = re.compile(r"^[0-9]{4}_")
"""Year of a competition, which it writes before a category in names of folders."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of a benchmark.

    Attributes:
        path: path of the list.
        limits: seconds that an instance may take, by the paths of network and property.
        category: category of all of them: the folder's name; empty if it is not known.
        repeated: lines that repeat an instance.
    """

    path: Path
    limits: dict[tuple[str, str], float]
    category: str = ""
    repeated: tuple[int, ...] = ()


def is_folder_of(name: str, category: str) -> bool:
    """Say whether a folder has the name of a category; a year before it, as in `2023_acasxu`, does not matter."""
    return name == category or YEAR.sub("", name) == category


def identify(names: Iterable[Instance], lists: Sequence[Instances] = ()) -> dict[Instance, tuple[Instance, ...]]:
    """Return the instances that each name may mean: one, or several, between which nobody should guess.

    A file may write more or fewer folders than instances.csv, or another file, does. So a name means each instance of
    its category in whose paths its own paths end, or the other way round. A name that equals an instance means that
    one, unless it has no folder. A name that is in no list means the longest names that it is the end of.

    Args:
        names: names as files of answers have them.
        lists: the instances that there are; none may be known.
    """
    listed, meant = _in_lists(names, lists), {}
    groups: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for name, found in listed.items():
        groups[last(name[1:])] += [one for one in found or (name,) if one not in groups[last(name[1:])]]
    for name, found in listed.items():
        if len(found) > 1:
            meant[name] = found
            continue
        start = found[0] if found else name
        longer = [one for one in groups[last(name[1:])] if one != start and _ends(start, one)]
        if found:
            longer = [one for one in longer if one[1:] == start[1:]]
        top = [one for one in longer if not any(one != other and _ends(one, other) for other in longer)]
        meant[name] = tuple(top) or (start,)
    return meant


def _in_lists(names: Iterable[Instance], lists: Sequence[Instances]) -> dict[Instance, tuple[Instance, ...]]:
    """Return the listed instances that each name may mean, with its own category where the list has none."""
    known: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for wanted in sorted(lists, key=lambda wanted: not wanted.category):
        for paths in wanted.limits:
            here = known[last(paths)]
            if not any(one[1:] == paths and one[0] in ("", wanted.category or one[0]) for one in here):
                here.append((wanted.category, *paths))
    found = {}
    for name in dict.fromkeys(names):
        fitting = [one for one in known[last(name[1:])] if _fits(name, one)]
        if len(fitting) > 1 and any("/" in path for path in name[1:]):
            fitting = [one for one in fitting if one[1:] == name[1:]] or fitting
        found[name] = tuple((one[0] or name[0], *one[1:]) for one in fitting)
    return found


def last(paths: Sequence[str]) -> tuple[str, str]:
    """Return the names of a network and a property without their folders."""
    network, prop = (path.rpartition("/")[2] for path in paths)
    return network, prop


def _ends(short: Instance, long: Instance) -> bool:
    """Say whether a name may stand for another one that says more."""
    paths = zip(short[1:], long[1:], strict=True)
    return short[0] in ("", long[0]) and all(a == b or b.endswith(f"/{a}") for a, b in paths)


def _fits(name: Instance, one: Instance) -> bool:
    paths = zip(name[1:], one[1:], strict=True)
    same = name[0] == one[0] or not name[0] or not one[0]
    return same and all(a == b or b.endswith(f"/{a}") or a.endswith(f"/{b}") for a, b in paths)
