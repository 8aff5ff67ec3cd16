"""The command line: arguments in, text and an exit code out; one file per command.

Commands import what they need when they run, so that help and lists are quick. Only this room prints.
"""

import errno
import sys
import tempfile
import traceback
from typing import Annotated

import typer

from certbench.cli import (
    audit,
    audit_log,
    baseline,
    certify,
    check,
    compare,
    doctor,
    export,
    merge,
    recertify,
    report,
    run,
    schema,
    show,
    show_network,
    status,
    train,
    validate,
    vnncomp,
)
from certbench.cli import list as listing
from certbench.cli.console import again, err, out, tell
from certbench.errors import CertbenchError, StoreError
from certbench.exit_codes import ExitCode, explained
from certbench.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="How tight is each robustness certificate on my model, what does it cost, and is it right?",
    epilog=explained(),
)
app.command()(run.run)
app.command()(certify.certify)
app.command()(status.status)
app.command()(merge.merge)
app.command("list")(listing.list_)
app.command()(show.show)
app.command("show-network")(show_network.show_network)
app.command()(validate.validate)
app.command()(schema.schema)
app.command()(report.report)
app.command()(recertify.recertify)
app.command()(doctor.doctor)
app.command()(train.train)
app.command()(vnncomp.vnncomp)
app.command("audit-log")(audit_log.audit_log)
app.command()(audit.audit)
app.command("export-certificates")(export.export_certificates)
app.command()(check.check)
app.command()(compare.compare)
app.add_typer(baseline.app, name="baseline")


def main() -> None:
    """Run the command line; errors that certbench raises on purpose become one message and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit as end:
        silent = end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt)
        if silent:  # typer makes an exit of an interruption
            err.print("interrupted")
        raise
    except CertbenchError as error:
        tell("error:", "bold red", str(error))
        sys.exit(ExitCode.STORE if isinstance(error, StoreError) else ExitCode.USAGE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            tell("error:", "bold red", f"a path is too long: {error.filename!s:.100}...")
            sys.exit(ExitCode.USAGE)
        tell("internal error:", "bold red", f"{type(error).__name__}: {error!s:.500}; {_logged()}")
        sys.exit(ExitCode.INTERNAL)


def _logged() -> str:
    """Write the traceback of the present exception to a file, and name the file."""
    try:
        handle, path = tempfile.mkstemp(prefix="certbench-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"certbench {__version__}: {again()}\n{traceback.format_exc()}")
    except OSError as error:
        return f"the traceback cannot be written: {error}"
    return f"please report it with {path}"


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
