from pathlib import Path
from typing import Any

import pytest
import yaml

from certbench.core import registry
from certbench.runs.schema import schema
from certbench.runs.shipped import suites


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return schema()


@pytest.mark.parametrize("name", suites())
def test_shipped_suites_have_known_keys_alone(found: dict[str, Any], name: str) -> None:
    written = yaml.safe_load(Path(suites()[name]).read_text(encoding="utf-8"))
    assert set(found["required"]) <= set(written) <= set(found["properties"])
    names, *entries = found["properties"]["certifiers"]["items"]["anyOf"]
    options = {entry["properties"]["name"]["const"]: entry["properties"] for entry in entries}
    for certifier in written["certifiers"]:
        given = {"name": certifier} if isinstance(certifier, str) else certifier
        assert given["name"] in names["enum"] and set(given) <= set(options[given["name"]])


def test_every_certifier_is_there_with_its_options(found: dict[str, Any]) -> None:
    names, *entries = found["properties"]["certifiers"]["items"]["anyOf"]
    assert names["enum"] == sorted(registry.table()) and len(entries) == len(names["enum"])
    crown = next(entry for entry in entries if entry["properties"]["name"]["const"] == "crown")
    assert "auto" in crown["properties"]["engine"]["description"]
    assert not crown["additionalProperties"]
