"""The settings of the files sink, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wald.sinks.fields import FIELD_SETTINGS, FieldRules, read_fields
from wald.sinks.files.partitions import CLOCK_PARTS, FIELD_PREFIX, KEY_PART
from wald.sinks.reading import OptionReader

FORMATS = ("ndjson", "csv", "parquet")
MODES = ("document", "columns")
TYPES = ("text", "integer", "number", "boolean", "timestamp", "date", "bytes")
KEYS = (
    "path",
    "format",
    "mode",
    "compression",
    "partitions",
    *FIELD_SETTINGS,
    "types",
)
PARTITIONS_MAX = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told.

    Attributes:
        path: the directory.
        stream: what file names begin with.
        format, mode, compression: one of their words.
        partitions: what the directories of a file are named by, outermost first.
        fields: what fields fill which columns; without columns a value goes as it is.
        types: of columns of Parquet; "text" for those that are not named.
    """

    path: str
    stream: str
    format: str = "ndjson"
    mode: str = "document"
    compression: str = "none"
    partitions: tuple[str, ...] = ()
    fields: FieldRules = field(default_factory=FieldRules)
    types: Mapping[str, str] = field(default_factory=dict)


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader("files", route, settings, KEYS)
    form = options.choice("format", FORMATS, "ndjson")
    mode = options.choice("mode", MODES, "document")
    fields = read_fields(options)
    types = options.mapping("types", "a table of column = type")
    _fit(options, form, mode, fields)
    _types_fit(options, form, fields, types)
    default = "zstd" if form == "parquet" else "none"
    return Options(
        path=options.text("path", such_as='"/srv/events"'),
        stream=stream,
        format=form,
        mode=mode,
        compression=options.choice("compression", ("none", "zstd"), default),
        partitions=_partitions(options),
        fields=fields,
        types=types,
    )


def _fit(options: OptionReader, form: str, mode: str, fields: FieldRules) -> None:
    if mode == "document" and fields != FieldRules():
        why = "columns are of mode 'columns', and the mode is 'document'"
        options.contradict(why, 'set mode = "columns", or leave columns out')
    if mode == "columns" and form != "ndjson" and not fields.columns:
        options.contradict(f"a {form} file needs its columns", 'columns = { user = "user" }')
    if fields.on_missing == "default":
        options.refuse("on_missing_field", "'null' or 'reject': a file has no defaults")


def _types_fit(
    options: OptionReader, form: str, fields: FieldRules, types: Mapping[str, str]
) -> None:
    if types and form != "parquet":
        options.contradict("types are of the format 'parquet'", "leave them out")
    for column, name in types.items():
        if column not in fields.columns:
            options.contradict(f"types names {column!r}, which is not in columns")
        if name not in TYPES:
            options.refuse("types", f"a table of column = {' or '.join(map(repr, TYPES))}")


def _partitions(options: OptionReader) -> tuple[str, ...]:
    parts = options.names("partitions")
    words = (*CLOCK_PARTS, KEY_PART)
    fit = all(each in words or each.startswith(FIELD_PREFIX) for each in parts)
    if not fit or len(parts) > PARTITIONS_MAX:
        known = ", ".join(map(repr, words))
        options.refuse("partitions", f'a list of up to {PARTITIONS_MAX} of {known}, "field:NAME"')
    return parts
