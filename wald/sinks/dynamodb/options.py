"""The settings of the DynamoDB sink, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import urlsplit

from wald.model import Secret
from wald.sinks.fields import FIELD_SETTINGS, FieldRules, read_fields
from wald.sinks.reading import OptionReader

KIND: Final = "dynamodb"
KEYS: Final = (
    "table", "mode", "partition_key", "sort_key", "key_from", "progress_table", "region",
    "endpoint_url", "profile", "access_key_id", "secret_access_key", "session_token",
    "connect_timeout", *FIELD_SETTINGS,
)  # fmt: skip
MODES: Final = ("put", "put-if-newer", "transaction")
PROGRESS_TABLE: Final = "wald_progress"
CONNECT_TIMEOUT: Final = "5s"
CONNECT_TIMEOUT_MAX_S: Final = 600.0

Mode = Literal["put", "put-if-newer", "transaction"]
KeyFrom = Literal["field", "record-key", "record-id"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told.

    Attributes:
        table: the table.
        mode: how records are written.
        partition_key, sort_key: the names of the table's key attributes.
        key_from: what fills the partition key: the field of its name, the record's key, or the
            log id with the LSN.
        fields: which attributes there are besides; without columns every field is one.
        progress_table: mode ``transaction``: the table of the progress items.
        region, endpoint_url, profile, ...: of the service; None for what the driver finds.
    """

    table: str
    mode: Mode
    partition_key: str
    sort_key: str | None
    key_from: KeyFrom
    fields: FieldRules
    progress_table: str
    region: str | None
    endpoint_url: str | None
    profile: str | None
    access_key_id: str | None
    secret_access_key: Secret | None
    session_token: Secret | None
    connect_timeout_s: float

    @property
    def place(self) -> str:
        """Which service it is, for messages."""
        return self.endpoint_url or (f"dynamodb {self.region}" if self.region else "dynamodb")

    @property
    def tables(self) -> str:
        """The tables that must be there, for messages."""
        both = self.mode == "transaction"
        return f"{self.table} and {self.progress_table}" if both else self.table


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader(KIND, route, settings, KEYS)
    mode = options.choice("mode", MODES, "put-if-newer")
    key_from = options.choice("key_from", ("field", "record-key", "record-id"), "field")
    if mode != "transaction" and "progress_table" in options:
        options.contradict("progress_table is of mode 'transaction'", 'mode = "transaction"')
    secret, access_key = options.secret("secret_access_key"), _optional(options, "access_key_id")
    if (secret is None) != (access_key is None):
        options.contradict("access_key_id and secret_access_key go together")
    return Options(
        table=options.text("table", stream),
        mode=cast("Mode", mode),
        partition_key=options.text("partition_key", such_as='"booking_id"'),
        sort_key=_optional(options, "sort_key"),
        key_from=cast("KeyFrom", key_from),
        fields=read_fields(options),
        progress_table=options.text("progress_table", PROGRESS_TABLE),
        region=_optional(options, "region"),
        endpoint_url=_endpoint(options),
        profile=_optional(options, "profile"),
        access_key_id=access_key,
        secret_access_key=secret,
        session_token=options.secret("session_token"),
        connect_timeout_s=options.duration_s(
            "connect_timeout", CONNECT_TIMEOUT, low_s=0.01, high_s=CONNECT_TIMEOUT_MAX_S
        ),
    )


def _optional(options: OptionReader, name: str) -> str | None:
    return options.text(name) if name in options else None


def _endpoint(options: OptionReader) -> str | None:
    if "endpoint_url" not in options:
        return None
    url = options.text("endpoint_url")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid or "@" in url:
        options.contradict("endpoint_url is no URL", 'endpoint_url = "http://127.0.0.1:8000"')
    return url
