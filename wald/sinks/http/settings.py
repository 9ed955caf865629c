"""The settings of the HTTP sink, checked; a preset's stand behind what the user states."""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from wald import limits
from wald.model import Secret
from wald.sinks.http.options import (
    NONE,
    Idempotency,
    Options,
    Results,
    Shape,
    is_header_value,
)
from wald.sinks.http.presets import PRESETS, Preset, address, statement
from wald.sinks.http.statuses import CONFLICTS
from wald.sinks.reading import OptionReader

TABLES: Final = {
    "idempotency": ("header", "parameter", "quoted", "window", "window_batches"),
    "results": ("path", "lists", "match", "field", "record_field", "status", "message", "taken"),
}
SETTINGS: Final = (
    *("url", "preset", "method", "format", "records", "wrap", "fields", "compression"),
    *("headers", "query", "token", "token_header", "token_scheme", "idempotency", "conflict"),
    *("answer", "results", "records_per_request", "bytes_per_request"),
    *("rate_requests", "rate_records", "connect_timeout", "ca_file", "client_cert", "client_key"),
    "proxy",
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RATE = re.compile(r"([1-9]\d{0,11})/(s|min|h|d)")
_RATE_S = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_OURS = re.compile(
    r"content-(length|type|encoding|digest)|transfer-encoding|host|connection|accept-encoding"
    r"|traceparent|x-wald-.*",
    re.IGNORECASE,
)


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    name = settings.get("preset", NONE)
    preset = PRESETS[name] if isinstance(name, str) and name in PRESETS else PRESETS[NONE]
    reader = OptionReader("http", route, _merged(preset, settings), (*SETTINGS, *preset.place))
    name = reader.choice("preset", tuple(PRESETS), NONE)
    places = {key: reader.text(key, said or stream) for key, said in preset.place.items()}
    url, parts = _url(reader)
    query = _texts(reader, "query")
    said = statement(preset, places)
    if said:
        query = {"query": said, **query}
    idempotency = _idempotency(reader)
    token = reader.secret("token")
    return Options(
        url=address(preset, url, places),
        shown_url=_shown(url, parts),
        secrets=_secrets(url, parts),
        preset=name,
        places=places,
        method=reader.choice("method", ("POST", "PUT", "PATCH"), "POST"),
        shape=_shape(reader, preset),
        headers=_headers(reader),
        query=query,
        token=token,
        token_header=_header_name(reader, "token_header", "Authorization"),
        token_scheme=_or_none(reader, "token_scheme", "Bearer"),
        idempotency=idempotency,
        conflict=reader.choice(
            "conflict", tuple(CONFLICTS), "running" if idempotency.is_sent else "refused"
        ),
        answer=reader.choice("answer", ("any", "json", "empty"), "any"),
        results=_results(reader),
        records_per_request=reader.count(
            "records_per_request",
            limits.HTTP_RECORDS_PER_REQUEST_MAX,
            low=1,
            high=limits.REQUEST_MAX_RECORDS,
        ),
        bytes_per_request=reader.size_bytes(
            "bytes_per_request",
            f"{limits.HTTP_BYTES_PER_REQUEST}B",
            low=limits.KIB,
            high=limits.HTTP_BYTES_PER_REQUEST_MAX,
        ),
        requests_per_s=_rate(reader, "rate_requests"),
        records_per_s=_rate(reader, "rate_records"),
        connect_timeout_s=reader.duration_s(
            "connect_timeout", f"{limits.HTTP_CONNECT_TIMEOUT_S:g}s", low_s=0.01, high_s=600.0
        ),
        **_transport(reader, parts),
    )


def _merged(preset: Preset, settings: Mapping[str, object]) -> Mapping[str, object]:
    merged = {**preset.settings, **settings}
    for name in (*TABLES, "headers", "query"):
        ours, said = preset.settings.get(name), settings.get(name)
        if isinstance(ours, Mapping) and isinstance(said, Mapping):
            merged[name] = {**ours, **said}
    return merged


# --- where to -----------------------------------------------------------------------------------


def _url(reader: OptionReader) -> tuple[str, SplitResult]:
    such_as = '"https://api.example.com/events", or { file = "/run/credentials/url" }'
    url = reader.text("url", such_as=such_as)
    try:
        parts = urlsplit(str(url))
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        reader.refuse("url", f"an address such as {such_as}")
    if not is_one or re.search(r"[\x00-\x20\x7f-\U0010ffff]", url):
        reader.refuse("url", f"an address such as {such_as}")
    if parts.username is not None or parts.password is not None:
        hint = 'token = { file = "..." }, with token_scheme = "Basic" for user and password'
        msg = "the url holds a user or a password, which messages and proxies would show"
        reader.contradict(msg, hint)
    if parts.fragment:
        reader.refuse("url", "an address without a part behind #")
    return url, parts


def _shown(url: str, parts: SplitResult) -> str:
    """Return the address as messages show it: of one that is a secret only the host."""
    shown = f"{parts.scheme}://{parts.netloc}"
    return shown if isinstance(url, Secret) else shown + parts.path


def _secrets(url: str, parts: SplitResult) -> tuple[str, ...]:
    hidden = [parts.query, parts.path] if isinstance(url, Secret) else [parts.query]
    return tuple(each for each in hidden if len(each) > 1)


def _transport(reader: OptionReader, parts: SplitResult) -> dict[str, str]:
    found = {name: reader.text(name) for name in _FILES if name in reader}
    if found and parts.scheme != "https":
        reader.contradict(f"{min(found)} is of https, and the url is {parts.scheme}")
    if "client_key" in found and "client_cert" not in found:
        reader.lack("client_cert", '"/etc/wald/client.pem"')
    proxy = reader.text("proxy", NONE)
    if proxy not in {NONE, "environment"} and not proxy.startswith(("http://", "https://")):
        reader.refuse("proxy", '"none", "environment", or such as "http://proxy:3128"')
    return {**found, "proxy": proxy}


_FILES = ("ca_file", "client_cert", "client_key")

# --- what ---------------------------------------------------------------------------------------


def _shape(reader: OptionReader, preset: Preset) -> Shape:
    shape = Shape(
        format=reader.choice("format", ("array", "object", "ndjson", "bulk"), "array"),
        records=reader.choice("records", ("values", "envelopes"), "values"),
        wrap=_or_none(reader, "wrap", NONE),
        fields=reader.names("fields"),
        compression=reader.choice("compression", (NONE, "gzip", "zstd"), NONE),
        objects=preset.objects or bool(reader.names("fields")),
    )
    if "records_per_request" in reader and shape.format == "object":
        reader.contradict("the format 'object' sends one record a request")
    if shape.wrap and shape.format != "array":
        reader.contradict(f"wrap puts an array into a field, and the format is {shape.format!r}")
    if shape.records == "envelopes" and shape.format == "bulk":
        reader.contradict("the format 'bulk' sends the values, with an id of its own for each")
    return shape


def _idempotency(reader: OptionReader) -> Idempotency:
    table = reader.table("idempotency", TABLES["idempotency"])
    found = Idempotency(
        header=_header_name(table, "header", "Idempotency-Key"),
        parameter=_or_none(table, "parameter", NONE),
        quoted=table.switch("quoted", default=True),
        window_s=table.duration_s("window", "1d", low_s=1.0, high_s=limits.HTTP_WINDOW_MAX_S)
        if "window" in table
        else None,
        window_batches=table.count("window_batches", 1, low=1, high=1 << 40)
        if "window_batches" in table
        else None,
    )
    if not found.is_sent and (found.window_s or found.window_batches):
        reader.contradict("a window is stated, and no id is sent that the server could remember")
    return found


def _results(reader: OptionReader) -> Results:
    table = reader.table("results", TABLES["results"])
    if "path" not in table:
        if "results" in reader:
            table.lack("path", '"items"')
        return Results()
    lists = table.choice("lists", ("all", "failed"), "all")
    match = table.choice("match", ("index", "id"), "index")
    record_field = table.text("record_field") if "record_field" in table else ""
    if (
        match == "id"
        and not record_field
        and reader.choice("records", ("values", "envelopes"), "values") != "envelopes"
    ):
        hint = 'records = "envelopes", or results.record_field = the field of the value that is it'
        reader.contradict('results.match is "id", and what is sent has none', hint)
    by_field = match == "id" or lists == "failed"
    return Results(
        path=_path(table, "path", ""),
        lists=lists,
        match=match,
        field=_path(table, "field", "id" if match == "id" else "index") if by_field else (),
        record_field=record_field,
        status=_path(table, "status", "status") if lists == "all" or "status" in table else (),
        message=_path(table, "message", "error"),
        taken=frozenset(table.names("taken", ("ok", "success", "created", "updated"))),
    )


def _path(table: OptionReader, name: str, default: str) -> tuple[str, ...]:
    """Return a dotted path; "." is the answer itself."""
    text = table.text(name, default or None)
    return () if text == "." else tuple(text.split("."))


# --- headers, rates -----------------------------------------------------------------------------


def _headers(reader: OptionReader) -> dict[str, str]:
    found = _texts(reader, "headers")
    for name, value in found.items():
        if not _HEADER_NAME.fullmatch(name) or not is_header_value(value):
            reader.refuse("headers", "a table of header = text, each of one line")
        if _OURS.fullmatch(name) and name.lower() != "content-type":
            reader.contradict(f"the header {name} is set by the sink itself")
    return found


def _header_name(reader: OptionReader, name: str, default: str) -> str:
    found = _or_none(reader, name, default)
    if found and (not _HEADER_NAME.fullmatch(found) or _OURS.fullmatch(found)):
        reader.refuse(name, f'the name of a header such as "{default}"')
    return found


def _or_none(reader: OptionReader, name: str, default: str) -> str:
    found = reader.text(name, default)
    return "" if found == NONE else found


def _texts(reader: OptionReader, name: str) -> dict[str, str]:
    return reader.mapping(name, f"a table of {name.removesuffix('s')} = text")


def _rate(reader: OptionReader, name: str) -> float | None:
    """Return how many a second; None where it was not said."""
    if name not in reader:
        return None
    found = _RATE.fullmatch(reader.text(name))
    if found is None:
        reader.refuse(name, 'a rate such as "120/min" or "1000000/h"')
    return int(found[1]) / _RATE_S[found[2]]
