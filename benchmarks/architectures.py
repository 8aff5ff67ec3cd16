"""Write the table of architectures and certifiers: `python -m benchmarks.architectures > docs/architectures.md`."""

import sys
import warnings
from collections.abc import Sequence

import torch

from certbench import Classifier, Linf, limits
from certbench.core import heads, registry
from certbench.core.support import supports
from certbench.errors import CertbenchError
from tests.support.users import architectures

MEMORY = "16 GB"
"""Memory that a certifier may use; times are limited to an hour for one input."""


def main(arguments: Sequence[str]) -> None:
    """Print the table; the first argument is the number of pixels along an image, 32 if there is none."""
    side = int(arguments[0]) if arguments else 32
    names = sorted(registry.table())
    answers: dict[str, dict[str, str | None]] = {}
    for name, (make, shape, outputs) in architectures(side).items():
        torch.manual_seed(0)
        try:
            module = make()
            if not heads.is_exported(module):
                module.eval()
            classifier = Classifier(module, shape, outputs, name)
        except CertbenchError as error:
            answers[name] = dict.fromkeys(names, str(error))
            continue
        with limits(memory=MEMORY):
            answers[name] = {found.certifier: _short(found.reason) for found in supports(classifier, Linf)}
        print(name, file=sys.stderr, flush=True)
    print(page(answers, names, side))


def _short(reason: str | None) -> str | None:
    """Leave the numbers out of a refusal by size: they differ between networks, and times between machines."""
    if reason is None or " for one input, where " not in reason:
        return reason
    return f"One input would need more than {MEMORY} of memory, or more than an hour."


def page(answers: dict[str, dict[str, str | None]], names: Sequence[str], side: int) -> str:
    """Write the page."""
    reasons: list[str] = []

    def cell(reason: str | None) -> str:
        if reason is None:
            return "yes"
        if reason not in reasons:
            reasons.append(reason)
        return f"{reasons.index(reason) + 1}"

    kept = [name for name in names if any(row[name] is None for row in answers.values())]
    lines = [
        "# Which certifiers bound which architectures",
        "",
        f"`python -m benchmarks.architectures` wrote this page. Images have {side} x {side} pixels, weights are",
        "random, the norm is Linf, certifiers have their default options. A number stands for the reason of a refusal.",
        f"One input may take {MEMORY} of memory and an hour, as predicted before a certifier starts. `yes`: the",
        "network is taken. Nothing is certified for this page, and a radius may be 0, as ResNet-18's of ibp.",
        "",
        "| architecture | " + " | ".join(kept) + " |",
        "| --- |" + " --- |" * len(kept),
    ]
    lines += [f"| {name} | " + " | ".join(cell(row[kind]) for kind in kept) + " |" for name, row in answers.items()]
    counts = [str(sum(row[kind] is None for row in answers.values())) for kind in kept]
    lines.append(f"| bounded, of {len(answers)} | " + " | ".join(counts) + " |")
    lines += ["", *(f"{i}. {reason.partition(chr(10))[0]}" for i, reason in enumerate(reasons, 1))]
    refusing = [name for name in names if name not in kept]
    if refusing:
        lines += ["", f"Not in the table, as they do not offer Linf or need options: {', '.join(refusing)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(sys.argv[1:])
