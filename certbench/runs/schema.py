"""The JSON schema of suites, for editors that complete and check YAML."""

from typing import Any

from certbench.core import registry
from certbench.core.options import describe_options
from certbench.errors import CertbenchError
from certbench.runs.suite import SuiteFile


def schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12). What it accepts may still be refused by `certbench validate`."""
    found = SuiteFile.model_json_schema()
    entries: list[dict[str, Any]] = [{"enum": sorted(registry.table())}]
    entries += [_certifier(name) for name in sorted(registry.table())]
    found["properties"]["certifiers"]["items"] = {"anyOf": entries}
    del found["$defs"]["ModelSpec"]["required"]  # a file that has no name gets its own
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _certifier(name: str) -> dict[str, Any]:
    """Return the schema of a certifier with options; of one whose package is missing, any options."""
    try:
        options = [option for option in describe_options(registry.find(name)) if not option[0].startswith(" ")]
    except CertbenchError:
        return {"type": "object", "properties": {"name": {"const": name}}, "required": ["name"]}
    described = {option: {"description": f"{values}; default {default}"} for option, values, default in options}
    sweep = {
        "type": "object",
        "description": "list of values for each option",
        "additionalProperties": {"type": "array"},
    }
    return {
        "type": "object",
        "description": registry.summary(name),
        "properties": {"name": {"const": name}, "matrix": sweep, **described},
        "required": ["name"],
        "additionalProperties": False,
    }
