"""Records that are gathered are the request that append_many would have made of them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.client.requests import Columns, columns_of_one, entry_of, outgoing
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
from wald.core.gathering import Entry, Gathered, outcome_of
from wald.core.outbox import Outbox, Request
from wald.errors import REFUSAL_HINTS
from wald.model import Refused

texts = st.none() | st.text(max_size=5) | st.binary(max_size=5)
headers = st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
records = st.tuples(st.binary(max_size=9) | st.integers(0, 9), texts, headers, texts)


def gathered(given_records: list[Any]) -> Gathered:
    made = Gathered("s")
    for at, (value, key, of_it, dedup_id) in enumerate(given_records):
        entry = entry_of(value, columns_of_one(key, of_it, dedup_id), urgent=False)
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
