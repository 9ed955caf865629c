"""The settings of the SQLite sink, checked; names become quoted identifiers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wald.sinks.fields import FIELD_SETTINGS, FieldRules, read_fields
from wald.sinks.reading import OptionReader

PROGRESS_TABLE = "wald_progress"
BUSY_TIMEOUT_MAX_S = 600.0
KEYS = ("path", "mode", "table", *FIELD_SETTINGS, "conflict", "busy_timeout")
LOG_ID_COLUMN, LSN_COLUMN = "wald_log_id", "wald_lsn"
MODES = ("document", "columns", "upsert")


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told. ``fields`` without columns: every column of the table.

    ``conflict`` names the columns that tell one row from another in mode ``upsert``.
    """

    path: str
    table: str
    mode: str = "document"
    fields: FieldRules = field(default_factory=FieldRules)
    conflict: tuple[str, ...] = ()
    busy_timeout_s: float = 5.0


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader("sqlite", route, settings, KEYS)
    mode = options.choice("mode", MODES, "document")
    path = options.text("path", such_as='"/var/lib/app/events.db"')
    if path == ":memory:":
        options.refuse("path", "a file: a database in memory does not outlive us")
    fields = read_fields(options)
    if mode == "document" and fields != FieldRules():
        why = "columns are of the modes 'columns' and 'upsert', and the mode is 'document'"
        options.contradict(why, 'set mode = "columns", or leave columns out')
    conflict = options.names("conflict")
    if bool(conflict) != (mode == "upsert"):
        why = "'conflict' names the columns of a unique index, for the mode 'upsert' and no other"
        options.contradict(why, 'mode = "upsert", conflict = ["booking_id"]')
    if {LOG_ID_COLUMN, LSN_COLUMN} & fields.columns.keys():
        options.contradict(f"{LOG_ID_COLUMN} and {LSN_COLUMN} are filled by wald", "leave them out")
    strange = [name for name in conflict if fields.columns and name not in fields.columns]
    if strange:
        options.contradict(f"column {strange[0]!r} of 'conflict' is not in 'columns'")
    return Options(
        path=path,
        table=_table(options, stream),
        mode=mode,
        fields=fields,
        conflict=conflict,
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
