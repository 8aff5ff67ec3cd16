"""The command `certbench recertify`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from certbench.cli.console import out, show
from certbench.core.claims import ABSTAIN
from certbench.core.evidence import RecertifiedEvidence

if TYPE_CHECKING:
    from certbench.core.certificate import Certificate
    from certbench.external.recertify import RecertifiedTable


def recertify(
    file: Annotated[
        Path, typer.Argument(help="Counts per input: text, .npz, .json or .jsonl; or the folder of a run.")
    ],
    sigma: Annotated[float | None, typer.Option(help="Standard deviation of the noise. [default: the file's]")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Probability of error per input. [default: the file's, or 0.001]")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule: one-vs-rest, two-class or top-k; may be given several times. Or exact, for all votes of "
            "deterministic splitting (with --norm 1 and --grid)."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Number of classes of the rule top-k.", min=1)] = 1,
    norm: Annotated[float, typer.Option(help="Norm of the radii: 1, 2 or inf.")] = 2.0,
    dimension: Annotated[
        int | None,
        typer.Option(help="Dimension of the inputs; needed for Linf and for noises other than gaussian.", min=1),
    ] = None,
    noise: Annotated[str | None, typer.Option(help="Family of the noise. [default: the file's, or gaussian]")] = None,
    labels: Annotated[
        str, typer.Option(help="Column of the labels in text without a header: none, first or last.")
    ] = "auto",
    selected: Annotated[
        str | None, typer.Option(help="How the class was chosen: reused, independent (literature) or label.")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(help="Steps of the data between 0 and 1, for the rule exact: 255 for images.", min=1)
    ] = None,
    radius: Annotated[
        list[float] | None, typer.Option(help="Radius at which accuracy is shown; may be given several times.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--out", help="A .csv or .json file for the radius of every input.")
    ] = None,
) -> None:
    """Certify from counts of sampled classes alone: another alpha, rule or norm, without a forward pass."""
    from certbench.external.recertify import recertify_file, written_as
    from certbench.files.writing import write

    text_of = None if into is None else written_as(into)
    tables = recertify_file(
        file,
        sigma=sigma,
        alpha=alpha,
        rules=rule or (),
        k=k,
        norm=norm,
        d=dimension,
        noise=noise,
        labels=labels,
        selected=selected,
        grid=grid,
    )
    for one in tables:
        show(told(one, radius or (0.25, 0.5, 0.75, 1.0)))
    if into is not None and text_of is not None:
        write(into, text_of(tables))
        count = sum(len(certificate) for one in tables for certificate in one.certificates.values())
        out.print(f"{count} certificates: {into}", soft_wrap=True)


def told(one: "RecertifiedTable", radii: Sequence[float]) -> Iterator[Table | str]:
    """Yield the certificates made from a table of counts, as a table and lines.

    Args:
        one: certificates, by rule, and the table that they come from.
        radii: radii at which certified accuracy is shown.
    """
    how = f"noise, sigma {one.sigma:g}, alpha {one.alpha:g}" if one.grid is None else f"on the grid of 1/{one.grid}"
    yield f"{one.counted.name}: L{one.norm:g}, {one.noise_name} {how}"
    labelled = one.counted.labels is not None
    heads = (f"{'right' if labelled else 'certified'} %", *(f"@{eps:g}" for eps in radii))
    table = Table(box=None, pad_edge=False)
    table.add_column("rule")
    for head in ("inputs", "abstained", *heads, "ACR" if labelled else "mean radius"):
        table.add_column(head, justify="right")
    for rule, certificate in one.certificates.items():
        n, right = len(certificate), one.right(certificate)
        abstained = int((certificate.prediction == ABSTAIN).sum())
        shares = [len(right), *(sum(radius >= eps for radius in right) for eps in radii)]
        cells = (f"{100 * share / max(n, 1):.1f}" for share in shares)
        table.add_row(rule, str(n), str(abstained), *cells, f"{math.fsum(radius / n for radius in right):.4f}")
    yield table
    yield EXACT_NOTE if one.grid is not None else _note(certificate, one.alpha)


EXACT_NOTE = (
    "The claims are exact, if every shift of the cuts voted once. They are about perturbed inputs on the grid alone."
)
"""Remark on certificates from exact counts."""


def _note(certificate: "Certificate", alpha: float) -> str:
    expected = f"Expected number of wrong certificates, per rule: {alpha * len(certificate):.3g} at most."
    how = RecertifiedEvidence.from_json(certificate.evidence[0]).selected if len(certificate) else ""
    notes = {
        "reused": "The counts that bound the class also chose it, which costs confidence: one-vs-rest and top-k use "
        "alpha / 2, two-class alpha / 3 for each of three events.",
        "independent": "The most frequent class is certified at the full alpha, as in the literature; that holds if "
        "draws of its own chose that class, and only then.",
        "label": "The true label is the certified class.",
    }
    return f"{expected} {notes.get(how, 'The class was chosen by draws of its own.')}"
