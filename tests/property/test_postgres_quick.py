"""The quick way to a row of PostgreSQL makes what the careful way makes, or nothing."""

from datetime import UTC, datetime

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wald.model import Content, Record
from wald.sinks.fields import ByField, FieldRules
from wald.sinks.values import BAD_VALUE, RefusedValue

pytest.importorskip("psycopg")
from wald.sinks.quick import QuickRows

NAMES = st.sampled_from(["a", "b", "c", "d", "ä", 'q"', "wald_lsn"])
MOMENTS = st.datetimes(
    min_value=datetime.fromisoformat("1970-01-01"),
    max_value=datetime.fromisoformat("2100-01-01"),
    timezones=st.just(UTC),
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | MOMENTS
    | st.builds(msgpack.ExtType, st.integers(0, 5), st.binary(max_size=16))
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)
MAPS = st.dictionaries(NAMES | st.integers(0, 3), VALUES, max_size=8) | VALUES
RULES = st.builds(
    FieldRules,
    st.dictionaries(st.sampled_from("xyz"), NAMES, min_size=1, max_size=3),
    st.sampled_from(["null", "default", "reject"]),
    st.sampled_from(["ignore", "reject"]),
)


def comparable(value: object) -> object:
    """Timestamps are told by two types; a list or a map may hold them."""
    if isinstance(value, msgpack.Timestamp):
        return value.to_datetime()
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return value


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine under load
@given(RULES, st.lists(st.tuples(MAPS, st.booleans()), max_size=12))
def test_quick_rows_are_careful_rows(rules: FieldRules, values: list[tuple[object, bool]]) -> None:
    records = [
        Record(
            lsn, 1, int(Content.MSGPACK), msgpack.packb(value, datetime=True)[: -1 if cut else None]
        )
        for lsn, (value, cut) in enumerate(values, 1)
    ]
    careful = ByField(rules, lambda value: value)
    found = list(QuickRows(rules).rows(records))
    assert [index for index, _, _ in found] == list(range(len(records)))
    for record, (_, row, extra) in zip(records, found, strict=True):
        if row is None:
            continue
        try:
            expected, counted = careful.row(record)
        except RefusedValue:
            raise
        except BAD_VALUE:
            assert extra > 0  # of a field that no column takes: it is not looked at
        else:
            assert comparable(row) == comparable(expected)
            assert extra == counted


@given(RULES, st.lists(st.dictionaries(NAMES, PLAIN, max_size=6), min_size=1, max_size=6))
def test_what_is_refused_is_never_made_quickly(
    rules: FieldRules, values: list[dict[str, object]]
) -> None:
    records = [
        Record(lsn, 1, int(Content.MSGPACK), msgpack.packb(value, datetime=True))
        for lsn, value in enumerate(values, 1)
    ]
    careful = ByField(rules, lambda value: value)
    for record, (_, row, _) in zip(records, QuickRows(rules).rows(records), strict=True):
        try:
            careful.row(record)
        except RefusedValue:
            assert row is None
        except BAD_VALUE:
            assert row is None or rules.on_extra == "ignore"
