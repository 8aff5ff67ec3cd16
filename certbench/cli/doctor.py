"""The command `certbench doctor`."""

import typer

from certbench.cli.console import out, tell
from certbench.exit_codes import ExitCode


def doctor() -> None:
    """Say which parts work on this machine and, for each that does not, which command repairs it."""
    from certbench.doctor import examine

    checks = examine()
    for check in checks:
        mark, style = (
            ("ok", "green") if check.ok else ("missing", "yellow") if check.missing else ("broken", "bold red")
        )
        tell(mark, style, f" {check.name} {check.version}  {check.detail}", out)
        if not check.ok:
            verb = "to install it" if check.missing else "repair it by"
            out.print(f"        {verb}: {check.mend}", soft_wrap=True)
    raise typer.Exit(ExitCode.OK if all(check.ok or check.missing for check in checks) else ExitCode.INCOMPLETE)
