"""The command `certbench doctor`."""

import typer
from rich.markup import escape

from certbench.cli.console import out
from certbench.exit_codes import ExitCode


def doctor() -> None:
    """Say which parts work on this machine and, for each that does not, which command repairs it."""
    from certbench.doctor import examine

    checks = examine()
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]broken[/]"
        out.print(f"{mark}  {escape(check.name)} {check.version}  {escape(check.detail)}", soft_wrap=True)
        if not check.ok:
            out.print(f"        repair it by: {escape(check.mend)}", soft_wrap=True)
    raise typer.Exit(ExitCode.OK if all(check.ok for check in checks) else ExitCode.INCOMPLETE)
