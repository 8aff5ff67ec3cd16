"""The command `certbench schema`."""

import json

from certbench.cli.console import out


def schema() -> None:
    """Print the JSON schema of suites: editors complete and check them with it."""
    from certbench.runs.schema import schema as of_suites

    out.document(json.dumps(of_suites(), indent=2))
