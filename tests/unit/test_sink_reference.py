"""The reference of each sink: every setting of the code, no other one, and its default."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
LEAST: dict[str, dict[str, Any]] = {  # what must be said
    "dynamodb": {"partition_key": "id"},
    "files": {"path": "/x"},
    "http": {"url": "https://example.com/in"},
    "postgres": {"url": "postgresql://wald@db/app"},
    "redis": {"url": "redis://db:6379/0"},
    "sqlite": {"path": "/x.db"},
}
MODES = {"progress_table": {"mode": "transaction"}}  # a setting that another one calls for
READERS = {"http": "wald.sinks.http.settings"}
IN_ITS_OWN_TABLE = {"mode"}  # of DynamoDB: the table of the modes says the default
OF_EACH_COLUMN = {"types"}


def rows(kind: str) -> list[tuple[list[str], list[str]]]:
    """The names of each row of the table of settings, and its defaults where they are literal."""
    text = (REFERENCE / f"{kind}.md").read_text()
    found = re.search(r"^\| setting \| default \| .*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, kind
    table = [line.strip("|").split("|") for line in found[1].splitlines()]
    literal = re.compile(r"^`[^`]+`(, `[^`]+`)*(?=[ ;]|$)")
    defaults = [literal.match(cells[1].strip()) for cells in table]
    return [
        (re.findall(r"`([^`]+)`", cells[0]), re.findall(r"`([^`]+)`", said[0] if said else ""))
        for cells, said in zip(table, defaults, strict=True)
    ]


def reader(kind: str) -> Any:
    return importlib.import_module(READERS.get(kind, f"wald.sinks.{kind}.options"))


def known(kind: str) -> set[str]:
    module = reader(kind)
    if kind != "http":
        return set(module.KEYS)
    inside = {f"idempotency.{key}" for key in module.TABLES["idempotency"]}
    return {*module.SETTINGS, *inside} - {"idempotency"}


@pytest.mark.parametrize("kind", sorted(LEAST))
def test_the_reference_has_every_setting_and_no_other(kind: str) -> None:
    named = {name for names, _ in rows(kind) for name in names}
    assert named | (IN_ITS_OWN_TABLE & known(kind)) == known(kind)


LITERALS = [
    pytest.param(kind, name, literal, id=f"{kind}-{name}")
    for kind in sorted(LEAST)
    for names, literals in rows(kind)
    if len(names) == len(literals) and not OF_EACH_COLUMN & set(names)
    for name, literal in zip(names, literals, strict=True)
]


@pytest.mark.parametrize(("kind", "name", "literal"), LITERALS)
def test_saying_the_default_of_the_reference_changes_nothing(
    kind: str, name: str, literal: str
) -> None:
    least = LEAST[kind] | MODES.get(name, {})
    said = tomllib.loads(f"{name} = {literal}")
    read = reader(kind).read_options
    assert read("r", "s", least | said) == read("r", "s", least)


def test_most_defaults_are_compared() -> None:
    assert len(LITERALS) > 35
