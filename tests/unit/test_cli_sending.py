"""Requests of a file: where the cuts are depends on the input alone."""

from itertools import chain

import pytest

from wald import limits
from wald.cli.records import Entry, Parsed, Unparsed
from wald.cli.sending import (
    ENTRIES_PER_REQUEST,
    REFUSED_LISTED_MAX,
    REQUEST_BYTES,
    Report,
    as_rerun_hint,
    chunks,
    session_name,
)
from wald.core import body as bodies
from wald.errors import InputError, OutcomeUnknown, RecordRefused, Unavailable
from wald.model import Content

BAD = Unparsed("json.syntax", "line 1")


def record(size: int = 1, key: str | None = None) -> Parsed:
    return Parsed(Content.JSON, b"1" * size, key)


def test_a_request_holds_500_entries_refused_ones_included() -> None:
    entries: list[Entry] = [BAD if index % 3 == 0 else record() for index in range(1_201)]
    cut = list(chunks(entries))
    assert [len(one.indexes) + len(one.refused) for one in cut] == [500, 500, 201]
    for one in cut:
        values = bodies.decode(one.body).values
        assert len(values) == len(one.indexes)
        assert all(index % 3 for index in one.indexes)
    indexes = chain.from_iterable([*one.indexes, *(i for i, _ in one.refused)] for one in cut)
    assert sorted(indexes) == list(range(1_201))


def test_a_request_of_large_records_stays_below_its_bound() -> None:
    cut = list(chunks([record(limits.RECORD_MAX_BYTES, "k" * 1024) for _ in range(4)]))
    assert [len(one.indexes) for one in cut] == [1, 1, 1, 1]
    cut = list(chunks([record(REQUEST_BYTES // 4) for _ in range(9)]))
    assert [len(one.indexes) for one in cut] == [4, 4, 1]
    assert all(len(one.body) <= limits.REQUEST_MAX_BYTES for one in cut)


def test_a_request_of_refused_entries_alone_has_no_body() -> None:
    (one,) = chunks([BAD] * ENTRIES_PER_REQUEST)
    assert (one.body, one.indexes, len(one.refused)) == (b"", [], 500)


def test_no_entries_make_no_request() -> None:
    assert list(chunks([])) == []


def test_keys_are_a_column_only_where_there_are_some() -> None:
    (plain,) = chunks([record(), record()])
    assert bodies.decode(plain.body).keys is None
    (keyed,) = chunks([record(key="a"), record()])
    assert bodies.decode(keyed.body).keys == ["a", None]


def test_refusals_are_counted_beyond_those_that_are_listed() -> None:
    report = Report()
    for index in range(REFUSED_LISTED_MAX + 5, 0, -1):
        report.refuse(index, "code", "message")
    said = report.as_dict()
    assert (len(said["refused"]), said["refused_count"]) == (
        REFUSED_LISTED_MAX,
        REFUSED_LISTED_MAX + 5,
    )
    indexes = [one["index"] for one in said["refused"]]
    assert indexes == sorted(indexes)


@pytest.mark.parametrize("once", ["", "a\nb", "x" * 124])
def test_what_is_no_name_for_once(once: str) -> None:
    with pytest.raises(InputError, match="printable text"):
        session_name(once)


def test_the_name_of_a_session() -> None:
    assert session_name(None) == ""
    assert session_name("import") == "once:import"


def test_what_a_rerun_can_mend_says_so() -> None:
    assert "again" in as_rerun_hint(Unavailable("gone"), "name").hint
    assert "again" not in as_rerun_hint(Unavailable("gone"), None).hint
    assert "again" in as_rerun_hint(OutcomeUnknown("not answered within 60 s"), "name").hint
    lost = OutcomeUnknown("the session is lost", hint="look")
    assert as_rerun_hint(lost, "name").hint == "look"
    refused = RecordRefused("no", reason="r", index=0)
    assert as_rerun_hint(refused, "name").hint == ""
