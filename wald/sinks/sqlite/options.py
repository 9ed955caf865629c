"""The settings of the SQLite sink, checked; names become quoted identifiers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wald.sinks.fields import FIELD_SETTINGS, FieldRules, read_fields
from wald.sinks.reading import OptionReader

PROGRESS_TABLE = "wald_progress"
BUSY_TIMEOUT_MAX_S = 600.0
KEYS = ("path", "mode", "table", *FIELD_SETTINGS, "busy_timeout")


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told. ``fields`` without columns: every column of the table."""

    path: str
    table: str
    mode: str = "document"
    fields: FieldRules = field(default_factory=FieldRules)
    busy_timeout_s: float = 5.0


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader("sqlite", route, settings, KEYS)
    mode = options.choice("mode", ("document", "columns"), "document")
    path = options.text("path", such_as='"/var/lib/app/events.db"')
    if path == ":memory:":
        options.refuse("path", "a file: a database in memory does not outlive us")
    fields = read_fields(options)
    if mode == "document" and fields != FieldRules():
        why = "columns are of mode 'columns', and the mode is 'document'"
        options.contradict(why, 'set mode = "columns", or leave columns out')
    return Options(
        path=path,
        table=_table(options, stream),
        mode=mode,
        fields=fields,
        busy_timeout_s=options.duration_s("busy_timeout", "5s", high_s=BUSY_TIMEOUT_MAX_S),
    )


def quote(name: str) -> str:
    """Return a name as an identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _table(options: OptionReader, stream: str) -> str:
    name = options.text("table", stream)
    if name.lower() == PROGRESS_TABLE or name.lower().startswith("sqlite_"):
        options.refuse("table", "a name that is not reserved; say another 'table'")
    return name
