"""The command line. Commands import what they need when they run, so that help and lists are quick."""

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from certbench.cli import referee
from certbench.core import registry
from certbench.errors import CertbenchError, ConfigError, StoreError
from certbench.models.cards import cards
from certbench.runs.shipped import suites
from certbench.version import __version__

if TYPE_CHECKING:
    from certbench.results.known_issues import KnownIssues
    from certbench.results.rows import Estimate, Row

OK, USAGE, UNSOUND, INCOMPLETE, STORE, INTERRUPTED = 0, 2, 3, 5, 6, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="How tight is each robustness certificate on my model, what does it cost, and is it right?",
    epilog="Exit codes: 0 fine; 1 a policy is violated; 2 something was asked for that cannot be run; 3 a certificate "
    "is refuted, or not proved by its file; 4 runs cannot be compared; 5 rows failed, timed out, ran out of memory or "
    "were not reached; 6 results cannot be written or read; 130 interrupted.",
)
app.add_typer(referee.app)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

Known = Annotated[
    Path | None,
    typer.Option("--known", help="File of known issues, which do not decide the exit code.", show_default=False),
]


def main() -> None:
    """Run the command line; errors that certbench raises on purpose become one message and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        silent = end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt)
        if silent:  # typer makes an exit of an interruption
            err.print("interrupted")
        raise
    except CertbenchError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(STORE if isinstance(error, StoreError) else USAGE)


def _version(wanted: bool) -> bool:
    if wanted:
        out.print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A shipped suite (see `certbench list`), or the path of a .yaml file.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. [default: reports/runs/NAME]", show_default=False)
    ] = None,
    rerun: Annotated[
        str, typer.Option(help="Stored outcomes to compute again: errors, timeouts, unsupported, all or none.")
    ] = "errors",
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    known: Known = None,
) -> None:
    """Run a suite, or what is left of it: rows that are stored already are not computed again."""
    from certbench.runs import run as benchmark
    from certbench.runs.suite import load

    if rerun not in benchmark.RERUN:
        raise ConfigError(registry.unknown("choice of --rerun", rerun, benchmark.RERUN))
    loaded, issues = load(suite), _known(known)
    folder = folder or Path("reports/runs") / loaded.settings.name
    with _Watcher() as watcher:
        try:
            finished = benchmark.run(loaded, folder, watcher, rerun=rerun, threads=threads)
        except KeyboardInterrupt:
            watcher.stop()
            err.print(f"interrupted; what was computed is stored. To go on: {_again()}", markup=False, soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except StoreError:
            watcher.stop()
            err.print(f"To go on when that is mended: {_again()}", markup=False, soft_wrap=True)
            raise
    radii = _radii(finished.manifest)
    path = _report(folder, finished.manifest, finished.rows, finished.estimates)
    _print_table(finished.rows, radii, finished.estimates)
    out.print(
        f"{len(finished.rows)} rows, {finished.computed} computed now. Report: {escape(str(path))}", soft_wrap=True
    )
    verdict = _verdict(finished.rows, issues)
    if finished.unaudited:
        err.print(f"the attacks failed on {finished.unaudited} inputs; their certificates are not audited")
    raise typer.Exit(INCOMPLETE if finished.unaudited and verdict == OK else verdict)


@app.command("list")
def list_() -> None:
    """List certifiers, models and suites."""
    table = Table("certifier", "method", box=None, pad_edge=False)
    for name in sorted(registry.table()):
        table.add_row(name, escape(registry.summary(name)))
    out.print(table)
    table = Table("model", "architecture", "recipe", "accuracy", box=None, pad_edge=False)
    for name, path in cards().items():
        card = json.loads(path.read_text(encoding="utf-8"))
        table.add_row(name, str(card["architecture"]), str(card["recipe"]), f"{100 * card['accuracy']['test']:.1f} %")
    out.print(table)
    table = Table("suite", "description", box=None, pad_edge=False)
    for name, path in suites().items():
        table.add_row(name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))
    out.print(table)


@app.command()
def show(
    thing: Annotated[str, typer.Argument(help="A certifier, a model or a suite by its name; or the folder of a run.")],
    known: Known = None,
) -> None:
    """Show a certifier's options, a model's card, a suite's text, or a run's table."""
    if (Path(thing) / "results.db").exists():
        manifest, rows, estimates = _stored(Path(thing))
        _print_table(rows, _radii(manifest), estimates)
        raise typer.Exit(_verdict(rows, _known(known)))
    if thing in registry.table():
        _show_certifier(thing)
    elif thing in cards():
        out.print(cards()[thing].read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    elif thing in suites():
        out.print(suites()[thing].read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    else:
        names = [*registry.table(), *cards(), *suites()]
        raise ConfigError(registry.unknown("name or run", thing, names))


@app.command()
def validate(suite: Annotated[str, typer.Argument(help="A shipped suite, or the path of a .yaml file.")]) -> None:
    """Check a suite, its models and its data, without running it."""
    from certbench.runs.plan import plan
    from certbench.runs.suite import load

    loaded = load(suite)
    pairs = plan(loaded)
    valid = f"{loaded.source} is valid: {pairs} pairs of {loaded.settings.inputs} inputs"
    out.print(valid, markup=False, soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown too.")] = False,
    known: Known = None,
) -> None:
    """Write a run's HTML report again from what is stored."""
    from certbench.report import tables
    from certbench.results import metrics

    manifest, rows, estimates = _stored(folder)
    path = _report(folder, manifest, rows, estimates)
    if markdown:
        guesses = metrics.summarise_estimates(estimates)
        out.print(tables.markdown(metrics.summarise(rows, _radii(manifest)), guesses), markup=False, soft_wrap=True)
    out.print(f"Report: {path}", markup=False, soft_wrap=True)
    raise typer.Exit(_verdict(rows, _known(known)))


@app.command()
def recertify(
    file: Annotated[
        Path, typer.Argument(help="Counts per input: text, .npz, .json or .jsonl; or the folder of a run.")
    ],
    sigma: Annotated[float | None, typer.Option(help="Standard deviation of the noise. [default: the file's]")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Probability of error per input. [default: the file's, or 0.001]")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="one-vs-rest, two-class or top-k; may be given several times.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Of top-k.", min=1)] = 1,
    norm: Annotated[float, typer.Option(help="1, 2 or inf.")] = 2.0,
    dimension: Annotated[
        int | None, typer.Option(help="Of the inputs; for Linf and noises other than gaussian.", min=1)
    ] = None,
    noise: Annotated[str | None, typer.Option(help="Its family. [default: the file's, or gaussian]")] = None,
    labels: Annotated[str, typer.Option(help="Where text without a header has them: none, first, last.")] = "auto",
    selected: Annotated[
        str | None, typer.Option(help="How the class was chosen: reused, independent (literature) or label.")
    ] = None,
    radius: Annotated[list[float] | None, typer.Option(help="Where accuracy is shown; may be given again.")] = None,
    into: Annotated[Path | None, typer.Option("--out", help="A .csv or .json file for every input.")] = None,
) -> None:
    """Certify from counts of sampled classes alone: another alpha, rule or norm, without a forward pass."""
    from certbench.external import recertify as recertification

    recertification.run(
        *(file, out),
        sigma=sigma,
        alpha=alpha,
        rules=rule or (),
        k=k,
        norm=norm,
        d=dimension,
        noise=noise,
        labels=labels,
        selected=selected,
        radii=radius or (0.25, 0.5, 0.75, 1.0),
        out=into,
    )


@app.command()
def doctor() -> None:
    """Say which parts work here and, for each that does not, the command that mends it."""
    from certbench.doctor import examine

    checks = examine()
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]broken[/]"
        out.print(f"{mark}  {escape(check.name)} {check.version}  {escape(check.detail)}", soft_wrap=True)
        if not check.ok:
            out.print(f"        mend it by: {escape(check.mend)}", soft_wrap=True)
    raise typer.Exit(OK if all(check.ok for check in checks) else INCOMPLETE)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model of the zoo; see `certbench list`.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the weights and their card are written.")] = Path(
        "trained"
    ),
) -> None:
    """Train a model of the zoo from scratch and compare it with the shipped one."""
    from certbench.models import zoo

    start = time.perf_counter()
    try:
        card = zoo.train(model, folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error}") from error
    seconds = time.perf_counter() - start
    new = card["accuracy"]["test"]
    out.print(
        f"{escape(str(folder / model))}.safetensors: test accuracy {100 * new:.1f} %, {seconds:.0f} s", soft_wrap=True
    )
    if model in cards():
        old = json.loads(cards()[model].read_text(encoding="utf-8"))["accuracy"]["test"]
        out.print(
            f"shipped weights: {100 * old:.1f} %, a difference of {100 * (new - old):+.1f} points", soft_wrap=True
        )


class _Watcher:
    """Progress: a bar on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=err,
            transient=True,
        )
        self.task: TaskID | None = None
        self.done = self.total = 0
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "_Watcher":
        if err.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if err.is_terminal:
            self.bar.stop()

    def begin(self, total: int, done: int) -> None:
        """Start the bar."""
        self.total, self.done = total, done
        err.print(f"{total} rows, attacks and estimates, {done} of them stored already")
        if err.is_terminal:
            self.task = self.bar.add_task("", total=total, completed=done, counts="")

    def now(self, text: str) -> None:
        """Name what is being computed."""
        if self.task is not None:
            self.bar.update(self.task, description=escape(text))
        else:
            err.print(f"[{self.done}/{self.total}] {text}", markup=False, soft_wrap=True)

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """Move the bar."""
        self.counts.update(outcomes)
        self.done += sum(outcomes.values())
        if self.task is not None:
            counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
            self.bar.update(self.task, completed=self.done, counts=counts)

    def note(self, text: str) -> None:
        """Print what went wrong above the bar."""
        err.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)


def _show_certifier(name: str) -> None:
    import inspect

    from certbench.core.options import describe_options

    found = registry.find(name)
    norms = ", ".join(f"L{p:g}" for p in sorted(found.norms))
    out.print(f"{name}: {found.guarantee.value}, certifies the {found.subject.value} classifier, {norms}", markup=False)
    out.print(inspect.getdoc(found) or "", markup=False, soft_wrap=True)
    table = Table("option", "value", "default", box=None, pad_edge=False)
    for row in describe_options(found):
        table.add_row(*map(escape, row))
    out.print(table)


def _stored(folder: Path) -> tuple[dict[str, Any], "list[Row]", "list[Estimate]"]:
    from certbench.results.store import Store

    if not (folder / "results.db").exists():
        raise ConfigError(f"{folder} is not the folder of a run: there is no results.db in it")
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        _radii(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"cannot read {folder / 'manifest.json'}: {type(error).__name__}: {error}") from error
    store = Store(folder / "results.db", create=False)
    try:
        rows, estimates, missing = store.rows(), store.estimates(), store.missing()
    finally:
        store.close()
    if missing:
        err.print(f"[yellow]note:[/] {missing} rows of this run have not been computed yet")
    return manifest, rows, estimates


def _radii(manifest: Mapping[str, Any]) -> dict[float, list[float]]:
    return {float(p): [float(eps) for eps in radii] for p, radii in manifest["suite"]["radii"].items()}


def _report(folder: Path, manifest: Mapping[str, Any], rows: "list[Row]", estimates: "list[Estimate]") -> Path:
    from certbench.report import html

    path = folder / "report.html"
    html.write(path, f"certbench: {manifest['suite']['name']}", manifest, rows, _radii(manifest), estimates)
    return path


def _print_table(rows: "list[Row]", radii: Mapping[float, list[float]], estimates: "list[Estimate]") -> None:
    from certbench.report import tables
    from certbench.results import metrics

    tables.render(metrics.summarise(rows, radii), out, metrics.summarise_estimates(estimates))


def _known(path: Path | None) -> "KnownIssues":
    from certbench.results import known_issues

    return known_issues.KnownIssues() if path is None else known_issues.load(path)


def _verdict(rows: "list[Row]", issues: "KnownIssues") -> int:
    """Say what is wrong with a run, and its exit code, to which known issues do not add."""
    from certbench.results import known_issues

    problems = [(row, kind) for row in rows if (kind := known_issues.problem(row)) is not None]
    fresh, known = issues.split(problems)
    for row, entry in known[:10]:
        place = f"{row.certifier} on {row.model}, norm {row.norm:g}, input {row.input}"
        err.print(f"known: {place}: {entry.kind}: {entry.reason}", markup=False, soft_wrap=True)
    if known:
        err.print(f"{len(known)} problems are known issues", soft_wrap=True)
    for entry in issues.stale(rows, problems):
        err.print(f"stale: nothing is wrong any more with this known issue: {entry}", markup=False, soft_wrap=True)
    refuted = [row for row, kind in fresh if kind == "unsound"]
    for row in refuted[:10]:
        err.print(
            f"[bold red]UNSOUND:[/] {escape(row.certifier)} on {escape(row.model)}, norm {row.norm:g}, "
            f"input {row.input}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}",
            soft_wrap=True,
        )
    if refuted:
        err.print(f"[bold red]{len(refuted)} certificates are refuted by counterexamples[/]")
        return UNSOUND
    if fresh:
        err.print(
            f"{len(fresh)} rows have no answer; the reasons stand below the tables and in the report", soft_wrap=True
        )
        return INCOMPLETE
    return OK


def _again() -> str:
    return shlex.join(["certbench", *sys.argv[1:]])
