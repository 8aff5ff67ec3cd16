"""The commands that judge: audits, logs of others, comparison, baselines, certificates as files."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()
out, err = Console(highlight=False), Console(stderr=True, highlight=False)
INTERRUPTED = 130


@app.command("audit-log")
def audit_log(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Logs of randomized smoothing (tab-separated), VNN-COMP results, known verdicts, instances.csv; or "
            "folders of them."
        ),
    ],
    sigma: Annotated[
        float | None, typer.Option(help="Noise of the certificates. [default: what the path states, or the radii fit]")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Draws per certificate, as claimed.", min=1)] = None,
    alpha: Annotated[float | None, typer.Option(help="Probability of error per certificate, as claimed.")] = None,
    classes: Annotated[int | None, typer.Option(help="How many there are, to check labels.", min=1)] = None,
    radius: Annotated[list[float] | None, typer.Option(help="Where accuracy is shown; may be given again.")] = None,
    published: Annotated[Path | None, typer.Option(help="CSV of published accuracies to compare with.")] = None,
    into: Annotated[Path | None, typer.Option("--json", help="Write everything found here.")] = None,
) -> None:
    """Recompute and check what somebody else's certification logs claim."""
    from certbench.external import audit_log as foreign_logs

    raise typer.Exit(
        foreign_logs.run(
            files,
            out,
            sigma=sigma,
            n=n,
            alpha=alpha,
            classes=classes,
            radii=radius or (),
            published=published,
            json_file=into,
        )
    )


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    inputs: Annotated[int | None, typer.Option(help="The first so many inputs. [default: all]", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Of each attack.", min=1)] = 200,
    seed: Annotated[
        int, typer.Option(help="Of the attacks' starts, and of the draws that judge smoothing.", min=0)
    ] = 1,
    only: Annotated[str | None, typer.Option(help="One certifier, by its name or its label in tables.")] = None,
    seconds: Annotated[
        float, typer.Option(help="Budget of bounds and attacks; what they do not reach is listed.", min=0)
    ] = 600.0,
    floats: Annotated[
        bool, typer.Option("--floats", help="Also bound margins in float32, one by one, and with two threads.")
    ] = False,
) -> None:
    """Attack every certificate of a run, bound it again, hold it against the others; what is found is stored."""
    from certbench.auditing import audit as auditing

    try:
        code = auditing.run(
            folder, out, inputs=inputs, steps=steps, seed=seed, only=only, seconds=seconds, floats=floats
        )
    except KeyboardInterrupt:
        again = shlex.join(["certbench", *sys.argv[1:]])
        text = f"interrupted; the counterexamples that were found are stored. To go on: {again}"
        err.print(text, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


@app.command("export-certificates")
def export_certificates(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    into: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    certifier: Annotated[str | None, typer.Option(help="Only of this one, by its name or its label in tables.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this one.")] = None,
    norm: Annotated[float | None, typer.Option(help="Only in this one: 1, 2 or inf.")] = None,
    inputs: Annotated[
        list[int] | None, typer.Option("--input", help="Only of this input; may be given several times.")
    ] = None,
) -> None:
    """Write each certificate of a run as a file, with the evidence that `certbench check` verifies."""
    from certbench.export import exporter

    raise typer.Exit(
        exporter.run(folder, into, out, certifier=certifier, model=model, norm=norm, inputs=inputs or None)
    )


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Files of `certbench export-certificates`, or folders of them.")],
) -> None:
    """Re-verify certificates with the independent checker; 3: one does not prove its claim."""
    for name in ("OPENBLAS", "MKL", "OMP"):  # matrices are small: threads would wait for one another
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
    from certbench import checker

    raise typer.Exit(checker.run(files, _Plain()))


class _Plain:
    """Prints text as it is."""

    def print(self, text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)


@app.command()
def compare(
    old: Annotated[
        Path, typer.Argument(help="What it was: the folder of a run, a baseline, or JSON of pytest-benchmark.")
    ],
    new: Annotated[Path, typer.Argument(help="What it is: likewise.")],
    policy: Annotated[
        Path | None,
        typer.Option(help="A .yaml file: which differences fail. [default: see docs/ci.md]", show_default=False),
    ] = None,
    known: Annotated[Path | None, typer.Option(help="A .yaml file of known issues, which do not fail.")] = None,
    shape: Annotated[str, typer.Option("--format", help="text, markdown, json or junit.")] = "text",
    into: Annotated[Path | None, typer.Option("--out", help="A file for it; the text is printed then.")] = None,
) -> None:
    """Say row by row what was lost, gained, became looser, tighter or wrong; the exit code follows the policy."""
    from certbench.comparison import output

    raise typer.Exit(output.run(old, new, out, policy=policy, known=known, shape=shape, out=into))


baselines = typer.Typer(help="Baselines: what a run found, as a file to commit.", no_args_is_help=True)
app.add_typer(baselines, name="baseline")


@baselines.command()
def update(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    reason: Annotated[str, typer.Option(help="Why the baseline changes; kept in the file.")],
    file: Annotated[
        Path | None, typer.Option(help="The baseline. [default: reports/NAME/baseline.json]", show_default=False)
    ] = None,
) -> None:
    """Make a run the baseline; refused if a radius in it is refuted or rows are missing."""
    from certbench.comparison import baseline

    raise typer.Exit(baseline.update(folder, reason, out, file))


@baselines.command()
def show(file: Annotated[Path, typer.Argument(help="A baseline.")]) -> None:
    """Print what a baseline holds, and why it changed."""
    from certbench.comparison import baseline

    raise typer.Exit(baseline.show(file, out))
