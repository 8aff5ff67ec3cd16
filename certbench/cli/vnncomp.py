"""The command `certbench vnncomp`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import again, err, out
from certbench.exit_codes import ExitCode


def vnncomp(
    root: Annotated[Path, typer.Argument(help="Folder of a benchmark: instances.csv, its networks and properties.")],
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results. [default: reports/vnncomp/NAME]", show_default=False),
    ] = None,
    scale: Annotated[float, typer.Option(help="Factor of the time limits in instances.csv.")] = 1.0,
    only: Annotated[str, typer.Option(help="Text that the line of an instance must contain.")] = "",
    rerun: Annotated[
        str,
        typer.Option(
            help="Stored answers to compute again: errors, open (timeouts and unknown, too), all, none. Timeouts and "
            "unknown are computed again anyway if there is more time now, unless none."
        ),
    ] = "errors",
    threads: Annotated[int, typer.Option(help="Number of torch's threads.", min=1)] = 1,
) -> None:
    """Answer the instances of a benchmark of VNN-COMP: unsat, sat with a counterexample, unknown or timeout.

    `unsat` is about the network in real arithmetic; counterexamples are replayed in onnxruntime.
    """
    import torch

    from certbench.external.competition import answer, remarks

    torch.set_num_threads(threads)
    folder = folder or Path("reports/vnncomp") / root.resolve().name
    counts: Counter[str] = Counter()
    for remark in remarks(root, folder):
        err.print(remark, soft_wrap=True)
    try:
        for row in answer(root, folder, scale=scale, only=only, rerun=rerun):
            counts[row.result] += 1
            how = ", ".join(part for part in (row.method if row.result in ("sat", "unsat") else "", row.reason) if part)
            names = f"{Path(row.onnx).name} {Path(row.vnnlib).name}"
            line = f"{names}: {row.result} in {row.seconds:.1f} s" + (f" ({how})" if how else "")
            out.print(line, soft_wrap=True)
    except KeyboardInterrupt:
        err.print(f"interrupted; answers are stored. To go on: {again()}", soft_wrap=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    shown = ", ".join(f"{counts[word]} {word}" for word in ("unsat", "sat", "unknown", "timeout", "error"))
    out.print(f"{shown}: {folder / 'results.csv'}", soft_wrap=True)
    raise typer.Exit(ExitCode.INCOMPLETE if counts["timeout"] or counts["error"] else ExitCode.OK)
