"""The command `certbench schema`."""

import json

from certbench.cli.console import out


def schema() -> None:
    """Print the JSON schema of suites: editors complete and check them with it."""
    from certbench.runs.schema import schema as of_suites

    out.print(json.dumps(of_suites(), indent=2), markup=False, soft_wrap=True)
