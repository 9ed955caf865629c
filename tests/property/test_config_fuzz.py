"""Whatever a configuration says: settings, or a ConfigError that says where; nothing else."""

import contextlib
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wald.config import Loaded, Places, Settings, load_text, schema
from wald.config.parse import parse
from wald.config.people import access_of, socket_manner
from wald.core import units
from wald.errors import ConfigError

PLACES = Places("/var/lib/wald", "/run/wald/wald.sock")
SHIPPED = (Path(__file__).parents[2] / "config" / "wald.toml").read_text()
TABLES: tuple[Any, ...] = tuple(
    value
    for value in vars(schema).values()
    if isinstance(value, dict) and value and isinstance(next(iter(value)), str)
)
KEYS = sorted(
    {
        *(key for table in TABLES for key in table),
        *("daemon", "access", "trace", "streams", "sinks", "routes"),
        *("retain", "repack", "clients", "type", "path", "url", "signups", "a", "A b", ""),
    }
)
WORDS = (
    *("1s", "0s", "-1s", "1e9s", "9" * 400 + "s", "5min", "1.5h", "NaNs", "infs", "٣s", " 1s"),
    *("1B", "1MiB", "64KiB", "-1GiB", "9" * 400 + "TiB", "1.5MiB", "0.0000001B", "MiB"),
    *("50%", "-1%", "1e400%", "nan%", "0660", "888", "signups", "a", "@web", "x$y", "22:00-06:00"),
    *("oldest", "now", "last", "halt", "m:f", "sqlite", "\x00", "\ud7ff", "a" * 10_000),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 1 << 63, 10**400]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=20),
    st.datetimes(),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), inner, max_size=5),
    ),
    max_leaves=12,
)
GOOD_ROUTE = {"stream": "signups", "sink": "a"}


def nested(inner: st.SearchStrategy[Any], *keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """A table that mostly has the keys it should, with any values."""
    known = st.sampled_from(keys)
    return st.dictionaries(st.one_of(known, st.sampled_from(KEYS)), inner, max_size=6)


ROUTES = st.dictionaries(
    st.sampled_from(["a", "signups"]),
    st.one_of(VALUES, nested(VALUES, *schema.ROUTE).map(lambda one: {**one, **GOOD_ROUTE})),
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "daemon": st.one_of(VALUES, nested(VALUES, *schema.DAEMON, "retain", "repack", "clients")),
        "access": st.one_of(VALUES, nested(VALUES, *schema.ACCESS, "streams")),
        "streams": st.dictionaries(
            st.sampled_from(["signups", "b", "A"]), nested(VALUES, *schema.STREAM)
        ),
        "sinks": st.one_of(VALUES, st.just({"a": {"type": "sqlite", "path": "/x"}})),
        "routes": st.one_of(VALUES, ROUTES),
        "trace": VALUES,
        "nonsense": VALUES,
    },
)


def judged(found: Settings) -> None:
    """What was accepted is settings: it survives the pipe, and people are looked up or refused."""
    assert Settings.from_json(found.to_json()) == found
    try:
        access_of(found, 500)
        socket_manner(found)
    except ConfigError as error:
        assert_told(error)


def assert_told(error: ConfigError) -> None:
    assert error.message
    assert error.exit_code == 78
    assert len(error.message) < 2_000


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS)
def test_any_document_is_accepted_or_refused(document: dict[str, Any]) -> None:
    try:
        judged(parse(document, PLACES, lambda path: "wald.toml:" + ".".join(path)))
    except ConfigError as error:
        assert_told(error)


def loaded(text: str) -> Loaded | None:
    try:
        return load_text([("wald.toml", text)], PLACES, {})
    except ConfigError as error:
        assert_told(error)
        return None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_slip_in_a_real_file_is_accepted_or_refused(data: st.DataObject) -> None:
    text = SHIPPED.replace("\n#", "\n") if data.draw(st.booleans()) else SHIPPED
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.text(max_size=6)) + text[at + gone :]
    loaded(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    loaded(text)


@given(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)))
def test_any_duration_or_size_is_read_or_refused(text: str) -> None:
    for read in (units.parse_duration_s, units.parse_size_bytes):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0


def test_the_fuzzer_reaches_what_is_accepted() -> None:
    document = tomllib.loads(SHIPPED)
    judged(parse(document, PLACES, lambda _: ""))
