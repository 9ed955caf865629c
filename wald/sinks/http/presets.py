"""Presets: what is known of a kind of server, as values of the general settings.

A preset is a row of this table. A setting that the user states wins over the preset's; tables
(``results``, ``idempotency``, ``query``, ``headers``) are merged key by key. What stands beside the
settings says what no user should have to: codes in a header, where an answer names a row.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from wald.sinks.http.statuses import Meaning


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a kind of server.

    Attributes:
        settings: as a user would write them.
        place: settings of its own: names of what the records go into, with their defaults; None
            for the name of the stream.
        path: what follows the user's url, with ``{place}`` quoted for an address.
        statement: what follows it as parameter ``query``, with ``{place}`` quoted as identifiers.
        code_header: the header of an answer that holds the server's own number of an error.
        codes: what such a number means; one that is not here counts by its status.
        named_row: finds in an answer which record is refused, counted from 1.
        objects: whether every record must be a map of fields.
        grants: statements that let a user ``wald`` write there, with ``{place}`` quoted as
            identifiers, or as JSON has it where there is no statement.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    place: Mapping[str, str | None] = field(default_factory=dict)
    path: str = ""
    statement: str = ""
    code_header: str = ""
    codes: Mapping[int, Meaning] = field(default_factory=dict)
    named_row: re.Pattern[str] | None = None
    objects: bool = False
    grants: tuple[str, ...] = ()


def _coded(**codes: str) -> dict[int, Meaning]:
    return {
        int(code): Meaning[meaning.upper()]
        for meaning, text in codes.items()
        for code in text.split()
    }


_ELASTICSEARCH_ROLE = (
    'PUT /_security/role/wald {{"indices": [{{"names": [{index}], '
    '"privileges": ["create_doc", "auto_configure", "view_index_metadata"]}}]}}'
)
PRESETS: Mapping[str, Preset] = {
    "none": Preset(),
    "webhook": Preset(settings={"records": "envelopes"}),
    "powerbi": Preset(
        settings={
            "wrap": "rows",
            "idempotency": {"header": "none"},
            "records_per_request": 10_000,
            "rate_requests": "120/min",  # 120/h once the table has 250,000 rows: state it
            "rate_records": "1000000/h",
        },
        objects=True,
    ),
    "elasticsearch": Preset(
        settings={
            "format": "bulk",
            "idempotency": {"header": "none"},
            "conflict": "taken",
            "results": {
                "path": "items",
                "status": "create.status",
                "message": "create.error.reason",
            },
            "records_per_request": 10_000,
            "bytes_per_request": "10MiB",
        },
        place={"index": None},
        path="/{index}/_bulk",
        objects=True,
        grants=(_ELASTICSEARCH_ROLE,),
    ),
    "clickhouse": Preset(
        settings={
            "format": "ndjson",
            "answer": "empty",
            "idempotency": {"header": "none", "parameter": "insert_deduplication_token"},
            "query": {"async_insert": "0", "insert_deduplicate": "1", "wait_end_of_query": "1"},
            "token_header": "X-ClickHouse-Key",
            "token_scheme": "none",
            "records_per_request": 65_536,
            "bytes_per_request": "10MiB",  # larger ones may become several blocks
        },
        place={"database": "default", "table": None},
        path="/",
        statement="INSERT INTO {database}.{table} FORMAT JSONEachRow",
        code_header="X-ClickHouse-Exception-Code",
        codes=_coded(
            refused="6 26 27 38 41 53 69 70 72 117 349",
            busy="159 202 203 209 210 241 242 252 285 425 473 999",
            unreachable="225",
            full="243 755",
            authentication="192 193 194 497 516",
            configuration="16 36 47 60 62 80 81 115 164 170",
            unknown="319",
        ),
        named_row=re.compile(r"\(at row (\d+)\)"),
        objects=True,
        grants=(
            "GRANT INSERT, SHOW TABLES ON {database}.{table} TO wald;",
            "GRANT SELECT ON system.merge_tree_settings TO wald;",
        ),
    ),
}


def address(preset: Preset, url: str, places: Mapping[str, str]) -> str:
    """Return the user's url with the preset's path behind its own."""
    quoted = {name: quote(place, safe="") for name, place in places.items()}
    return url.rstrip("/") + preset.path.format_map(quoted) if preset.path else url


def statement(preset: Preset, places: Mapping[str, str]) -> str:
    """Return the preset's statement, its places as quoted identifiers; empty if it has none."""
    return preset.statement.format_map({name: identifier(each) for name, each in places.items()})


def grants(preset: Preset, places: Mapping[str, str]) -> list[str]:
    """Return what lets a user ``wald`` do what the preset needs, as far as it knows."""
    quote_place = identifier if preset.statement else json.dumps
    named = {name: quote_place(each) for name, each in places.items()}
    return [each.format_map(named) for each in preset.grants]


def identifier(name: str) -> str:
    """Return a name as an identifier of SQL, whatever is in it."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(text: str) -> str:
    """Return a text as a literal of SQL, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
