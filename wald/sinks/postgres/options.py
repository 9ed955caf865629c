"""The settings of the PostgreSQL sink, checked; names become quoted identifiers.

Checked without the driver: whoever only checks settings does not load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from wald.model import Secret
from wald.sinks.fields import FIELD_SETTINGS, FieldRules, read_fields
from wald.sinks.reading import OptionReader, is_name

PROGRESS_TABLE = "wald_progress"
BATCH_TABLE = "wald_batch"  # of mode upsert: temporary, for one transaction
LOG_ID_COLUMN, LSN_COLUMN = "wald_log_id", "wald_lsn"
SCHEMES = frozenset({"postgres", "postgresql"})
TIMEOUT_MAX_S = 3_600.0
KEYS = (
    "url",
    "password",
    "progress_schema",
    "mode",
    "table",
    *FIELD_SETTINGS,
    "conflict",
    "connect_timeout",
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
)  # fmt: skip
_SECRET_PARAMETERS = frozenset({"password", "sslpassword", "scram_client_key"})


@dataclass(frozen=True, slots=True)
class Name:
    """A table's name as it is quoted, and without quotes and schema, as its errors have it."""

    quoted: str
    bare: str


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told.

    ``fields`` without columns: every column of the table that is not made by the table itself.
    ``conflict`` names the columns that tell one row from another in mode ``upsert``.
    """

    url: str
    table: Name
    password: Secret | None = None
    progress_schema: str = "wald"
    mode: str = "document"
    fields: FieldRules = field(default_factory=FieldRules)
    conflict: tuple[str, ...] = ()
    connect_timeout_s: float = 10.0
    lock_timeout_s: float = 2.0
    statement_timeout_s: float = 30.0
    transaction_timeout_s: float = 60.0

    @property
    def progress(self) -> Name:
        """The progress table."""
        return Name(f"{self.quoted_schema}.{quote(PROGRESS_TABLE)}", PROGRESS_TABLE)

    @property
    def quoted_schema(self) -> str:
        """The schema of the progress table."""
        return quote(self.progress_schema)

    @property
    def user(self) -> str:
        """The role of the URL; empty if it names none."""
        return unquote(urlsplit(self.url).netloc.rpartition("@")[0])

    @property
    def hosts(self) -> int:
        """How many servers the URL names, of which one is to be found."""
        return self._named_hosts.count(",") + 1

    @property
    def _named_hosts(self) -> str:
        parts = urlsplit(self.url)
        return parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "")

    @property
    def place(self) -> str:
        """Which database it is, for messages."""
        return f"{self._named_hosts}{urlsplit(self.url).path}" or "postgresql"


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader("postgres", route, settings, KEYS)
    mode = options.choice("mode", ("document", "columns", "upsert"), "document")
    fields, conflict = read_fields(options), options.names("conflict")
    if mode == "document" and fields != FieldRules():
        why = "columns are of the modes 'columns' and 'upsert', and the mode is 'document'"
        options.contradict(why, 'set mode = "columns", or leave columns out')
    if bool(conflict) != (mode == "upsert"):
        why = "'conflict' names the columns of a unique index, for the mode 'upsert' and no other"
        options.contradict(why, 'mode = "upsert", conflict = ["booking_id"]')
    if fields.columns and not set(conflict) <= set(fields.columns):
        options.contradict("'conflict' names a column that no field fills", "add it to 'columns'")
    return Options(
        url=_url(options),
        table=_table(options, stream),
        password=options.secret("password"),
        progress_schema=options.text("progress_schema", "wald"),
        mode=mode,
        fields=fields,
        conflict=conflict,
        connect_timeout_s=_timeout_s(options, "connect_timeout", "10s"),
        lock_timeout_s=_timeout_s(options, "lock_timeout", "2s"),
        statement_timeout_s=_timeout_s(options, "statement_timeout", "30s"),
        transaction_timeout_s=_timeout_s(options, "transaction_timeout", "60s"),
    )


def quote(name: str) -> str:
    """Return a name as an identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _timeout_s(options: OptionReader, name: str, default: str) -> float:
    return options.duration_s(name, default, low_s=0.01, high_s=TIMEOUT_MAX_S)


def _url(options: OptionReader) -> str:
    """Return the URL, which holds no secret: it is shown in messages."""
    url = options.text("url", such_as='"postgresql://wald@db.example/app"')
    try:
        parts = urlsplit(url)
        parameters = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    except ValueError:
        options.contradict("'url' is not a URL", 'url = "postgresql://wald@db.example/app"')
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        options.contradict(
            "'url' does not begin with postgresql://", 'url = "postgresql://wald@db.example/app"'
        )
    if ":" in parts.netloc.rpartition("@")[0] or parameters & _SECRET_PARAMETERS:
        why = "a password does not belong into the 'url'"
        hint = 'password = { file = "..." }, { env = "..." } or { credential = "..." }'
        options.contradict(why, hint)
    return str(url)


def _table(options: OptionReader, stream: str) -> Name:
    """Return the table's name: of a schema, or found by the role's search path."""
    text = options.text("table", stream) if "table" in options else stream.replace(".", "_")
    parts = text.split(".") if "table" in options else [text]
    if len(parts) > 2 or not all(map(is_name, parts)):
        options.refuse("table", "the name of a table, or schema.table")
    if parts[-1] in {PROGRESS_TABLE, BATCH_TABLE}:
        options.refuse("table", "a name that is not reserved; say another 'table'")
    return Name(".".join(map(quote, parts)), parts[-1])
