"""The tables that documents print of the code, for the tests that compare the two."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRINTED = (
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs" / "explanation").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
)


def _labelled_rows(text: str, heading: str) -> list[tuple[str, ...]]:
    """The rows that begin with a label in backticks, between a heading and the next one."""
    found = re.search(
        rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL
    )
    lines = found[1].splitlines() if found else []
    rows = [line for line in lines if line.startswith("| `")]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]


def printed_table(heading: str) -> list[tuple[str, ...]]:
    """The one table with labelled rows that the documents print under a heading, by cells."""
    tables = [rows for path in PRINTED if (rows := _labelled_rows(path.read_text(), heading))]
    assert len(tables) == 1, f"{heading}: {len(tables)} documents print such a table"
    return tables[0]
