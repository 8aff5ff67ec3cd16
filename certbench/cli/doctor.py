"""The command `certbench doctor`."""

import typer

from certbench.cli.console import out, tell
from certbench.exit_codes import ExitCode


def doctor() -> None:
    """Say which parts work on this machine and, for each that does not, which command repairs it."""
    from certbench.doctor import examine

    checks = examine()
    for check in checks:
        mark, style = ("ok", "green") if check.ok else ("broken", "bold red")
        tell(mark, style, f" {check.name} {check.version}  {check.detail}", out)
        if not check.ok:
            out.print(f"        repair it by: {check.mend}", soft_wrap=True)
    raise typer.Exit(ExitCode.OK if all(check.ok for check in checks) else ExitCode.INCOMPLETE)
