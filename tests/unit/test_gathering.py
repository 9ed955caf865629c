"""Records that are gathered are the request that append_many would have made of them."""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.client.requests import Columns, entry_of, outgoing
from wald.core import body as bodies
from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Duplicate,
    DuplicateRecords,
    Refusal,
    RefusedRecords,
    Welcome,
)
from wald.core.gathering import Entry, Flood, Gathered, outcome_of
from wald.core.outbox import Outbox, Request
from wald.errors import REFUSAL_HINTS
from wald.model import Record, Refused

texts = st.none() | st.text(max_size=5) | st.binary(max_size=5)
headers = st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
records = st.tuples(st.binary(max_size=9) | st.integers(0, 9), texts, headers, texts)


def gathered(given_records: list[Any]) -> Gathered:
    made = Gathered("s")
    for at, (value, key, of_it, dedup_id) in enumerate(given_records):
        entry = entry_of(value, key, of_it, dedup_id)
        assert isinstance(entry, Entry)
        assert made.add(entry) == at
    return made


def column(entries: list[Any]) -> list[Any] | None:
    return None if all(each is None for each in entries) else entries


@given(st.lists(records, min_size=1, max_size=8))
def test_gathered_one_by_one_they_are_the_body_of_many(given_records: list[Any]):
    values, keys, of_them, ids = map(list, zip(*given_records, strict=True))
    (together,), refused = outgoing(values, Columns(column(keys), column(of_them), column(ids)))
    assert refused == []
    assert gathered(given_records).body() == together.body


@given(st.lists(records, min_size=1, max_size=8), st.data())
def test_what_is_taken_back_is_not_in_it_and_the_others_keep_their_answers(
    given_records: list[Any], data: st.DataObject
):
    taken_back = data.draw(st.sets(st.integers(0, len(given_records) - 1)))
    left = [at for at in range(len(given_records)) if at not in taken_back]
    made = gathered(given_records)
    for at in taken_back:
        made.withdraw(at)
    assert len(made) == len(left)
    assert [made.position(at) for at in left] == list(range(len(left)))
    if left:
        kept = bodies.decode(gathered([given_records[at] for at in left]).body())
        found = bodies.decode(made.body())
        assert found.values == kept.values
        for one, other in zip(found[2:], kept[2:], strict=True):
            assert (one or [None] * len(left)) == (other or [None] * len(left))
        assert made.body() == made.body()


def test_it_is_full_at_its_count_and_at_its_bytes():
    counted = gathered([(b"x", None, None, None)] * limits.SUBMIT_TOGETHER_RECORDS)
    assert counted.is_full
    assert not counted.has_room(Entry(0, b""))
    large = Entry(0, bytes(limits.SUBMIT_TOGETHER_BYTES - 10))
    sized = Gathered("s")
    assert sized.has_room(Entry(0, bytes(limits.RECORD_MAX_BYTES)))  # alone, anything fits
    sized.add(large)
    assert not sized.is_full
    assert not sized.has_room(Entry(0, b"", size=11))
    assert sized.has_room(Entry(0, b"1234"))


class Interrupted(BaseException):
    """What a signal handler raises."""


def interrupted(made: Gathered, entry: Entry, after: int) -> bool:
    """Take a record, and be interrupted before a line of it; whether there was such a line."""
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if "gathering" not in frame.f_code.co_filename or event not in {"call", "line"}:
            return None
        steps += 1
        if steps == after:
            raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        made.add(entry)
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def decoded(made: Gathered) -> list[Record]:
    body = bodies.decode(made.body())
    return bodies.records(0, range(len(body.values)), body)


RECORDS: list[tuple[Any, Any, Any, Any]] = [
    (b"0", None, None, None),
    (1, None, None, None),  # another content
    (b"2", "k", None, None),
    (3, None, {"a": "b"}, "id"),
]


@pytest.mark.parametrize("at", range(len(RECORDS)))
@pytest.mark.parametrize("behind", [0, 4])
def test_a_signal_in_the_middle_of_a_record_does_not_shift_the_others(at: int, behind: int):
    for after in range(1, 100):
        made = gathered(RECORDS[:at])
        entry = entry_of(*RECORDS[at])
        assert isinstance(entry, Entry)
        if not interrupted(made, entry, after):
            assert after > 5  # it was tried at each line
            return
        kept = RECORDS[: len(made)]
        for record in RECORDS[:behind]:
            found = entry_of(*record)
            assert isinstance(found, Entry)
            made.add(found)
            kept.append(record)
        if kept:
            assert decoded(made) == decoded(gathered(kept))
    pytest.fail("a record has no end")


STEP_NS = int(limits.SUBMIT_FLOOD_S * limits.CLOCK_NS_PER_S)
BURST = limits.SUBMIT_AT_ONCE_REQUESTS


def flooded(flood: Flood, now_ns: int, count: int, every_ns: int) -> list[bool]:
    """Return what was said of each of so many records, one after the other."""
    return [flood.count(now_ns + at * every_ns) for at in range(count)]


@pytest.mark.parametrize(
    ("every_ns", "at_once"),
    [
        pytest.param(0, BURST, id="all at one time"),
        pytest.param(STEP_NS // 10, BURST * 10 // 9, id="ten times too fast"),
        pytest.param(STEP_NS, 1_000, id="as fast as may be"),
        pytest.param(STEP_NS * 40, 1_000, id="one in a millisecond"),
    ],
)
def test_a_flood_begins_behind_the_first_of_a_burst(every_ns: int, at_once: int):
    said = flooded(Flood(), 10**12, 1_000, every_ns)
    assert said.count(False) == pytest.approx(at_once, abs=1)
    assert said == sorted(said)


def test_a_pause_of_a_millisecond_ends_a_flood_of_any_length():
    for length in (2 * BURST, 100_000):
        flood, end_ns = Flood(), 10**12 + length * 1_000
        assert flooded(flood, 10**12, length, 1_000)[-1]
        assert flood.is_on(end_ns)
        assert not flood.is_on(end_ns + 1_000_000)
        assert not flood.count(end_ns + 1_000_000)


def answered(count: int, *refusals: Refusal) -> Request:
    outbox = Outbox()
    outbox.welcome(Welcome(1, 5, 0, bytes(16)))
    request = outbox.add(3, b"", count)
    if refusals:
        outbox.take(RefusedRecords(1, refusals))
    outbox.take(Ack(1, 1, 100, 110))
    return request


def test_each_record_of_a_request_has_its_own_answer():
    assert [outcome_of(answered(3), at) for at in range(3)] == [100, 101, 102]
    request = answered(4, Refusal(1, "record.key", "why"), Refusal(2, "record.value"))
    refused = [
        Refused(index, code, message, REFUSAL_HINTS[code])
        for index, code, message in ((1, "record.key", "why"), (2, "record.value", ""))
    ]
    assert [outcome_of(request, at) for at in range(4)] == [100, *refused, 101]
    whole = answered(2, Refusal(WHOLE_REQUEST, "request.malformed", "why"))
    hint = REFUSAL_HINTS["request.malformed"]
    assert outcome_of(whole, 1) == Refused(1, "request.malformed", "why", hint)


def test_a_duplicate_is_told_with_the_lsn_of_the_earlier_record():
    outbox = Outbox()
    outbox.welcome(Welcome(1, 5, 0, bytes(16)))
    request = outbox.add(3, b"", 4)
    outbox.take(RefusedRecords(1, (Refusal(0, "record.key"),)))
    outbox.take(DuplicateRecords(1, (Duplicate(1, 42), Duplicate(3, 43))))
    outbox.take(Ack(1, 1, 100, 110))
    assert [outcome_of(request, at) for at in (1, 2, 3)] == [
        Duplicate(1, 42),
        100,
        Duplicate(3, 43),
    ]


def test_an_answer_ends_what_somebody_gave_up():
    outbox = Outbox()
    outbox.welcome(Welcome(1, 5, 0, bytes(16)))
    request = outbox.add(3, b"", 1)
    request.error = RuntimeError("not answered in time")  # type: ignore[assignment]
    outbox.take(Ack(1, 1, 7, 7))
    assert (request.done, request.error, outcome_of(request, 0)) == (True, None, 7)
