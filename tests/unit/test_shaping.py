"""What is sent of a batch: coalescing, transforms, and the records at which they fail."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wald
from wald import limits
from wald.core.shaping import (
    Frozen,
    Output,
    WrongOutput,
    coalesced,
    find_failing,
    less,
    pack,
    shaped,
    spread,
    standing_for,
    superseded,
    transformed,
    unpack,
)
from wald.errors import FormatDamaged
from wald.model import Record, RejectedRecord


def record(lsn, key=None, value=b"v"):
    return Record(lsn, 9, 0, value, key)


def records(*keys):
    return [record(lsn, key) for lsn, key in enumerate(keys, 1)]


def lsns(outputs):
    return [(output.record.lsn, output.sources) for output in outputs]


# --- coalescing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("", []),
        ("abc", [1, 2, 3]),
        ("aba", [2, 3]),
        ("aaab", [3, 4]),
        ([None, None, "a", None, "a"], [1, 2, 4, 5]),
        (["a", b"a", "a"], [2, 3]),  # text and bytes are different keys
    ],
)
def test_only_the_newest_of_each_key_is_kept_in_order(keys, kept):
    assert [each.lsn for each in coalesced(records(*keys))] == kept


def test_a_refused_newest_does_not_resurrect_the_older_ones():
    outputs = shaped(records("a", "b", "a"), {3}, coalesce=True, transform=None)
    assert lsns(outputs) == [(2, (2,))]


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=20), st.sets(st.integers(1, 20)))
def test_each_record_is_sent_refused_or_superseded(keys, refused):
    given_records = records(*keys)
    refused = {lsn for lsn in refused if lsn <= len(keys)}
    outputs = shaped(given_records, refused, coalesce=True, transform=None)
    count = superseded(given_records, outputs, refused)
    assert len(outputs) + len(refused) + count == len(given_records)


# --- transforms ---------------------------------------------------------------------------------


def fewer(given_records):
    return [each for each in given_records if each.key != "drop"]


def more(given_records):
    for each in given_records:
        yield each
        yield each._replace(value=each.value + b"!")


def reordered(given_records):
    return reversed(given_records)


def summed(given_records):
    yield given_records, given_records[-1]._replace(value=b"%d" % len(given_records))


@pytest.mark.parametrize(
    ("transform", "made"),
    [
        (fewer, [(1, (1,)), (3, (3,))]),
        (more, [(1, (1,)), (1, (1,)), (2, (2,)), (2, (2,)), (3, (3,)), (3, (3,))]),
        (reordered, [(3, (3,)), (2, (2,)), (1, (1,))]),
        (summed, [(3, (1, 2, 3))]),
        (lambda _: [], []),
    ],
)
def test_what_a_transform_makes_is_mapped_to_what_it_was_given(transform, made):
    assert lsns(transformed(records("a", "drop", "c"), transform)) == made


def test_a_transform_is_called_with_a_list_of_its_own_and_never_for_nothing():
    def greedy(given_records):
        kept = list(given_records)
        given_records.clear()
        assert kept, "never without a record"
        return kept

    batch = records("a", "b")
    assert len(transformed(batch, greedy)) == 2
    assert len(batch) == 2
    assert shaped(batch, {1, 2}, coalesce=False, transform=greedy) == ()


WRONG = [
    (lambda _: [None], "neither a record nor"),
    (lambda given: [given[0].value], "neither a record nor"),
    (lambda given: [(given[0],)], "neither a record nor"),
    (lambda given: [given[0]._replace(lsn=99)], "LSN 99"),
    (lambda given: [((), given[0]._replace(lsn=99))], "LSN 99"),
    (lambda given: [([], given[0])], "was not given"),
    (lambda given: [(7, given[0])], "for the records"),
    (lambda given: [([7], given[0])], "no records"),
    (lambda given: [given[0]._replace(value="text")], "not bytes"),
    (lambda given: [given[0]._replace(value=bytes(limits.RECORD_MAX_BYTES + 1))], "not bytes"),
    (lambda given: [given[0]._replace(content=9)], "content code 9"),
    (lambda given: [given[0]._replace(key=5)], "a key"),
    (lambda given: [given[0]._replace(key="k" * 2_000)], "a key"),
    (lambda given: [given[0]._replace(headers=["x"])], "headers"),
    (lambda given: [given[0]._replace(headers={"x": 1})], "headers"),
]


@pytest.mark.parametrize(("transform", "why"), WRONG)
def test_a_transform_that_makes_something_else_is_told_what(transform, why):
    with pytest.raises(WrongOutput, match=why):
        transformed(records("a"), transform)


def test_a_transform_without_end_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "TRANSFORM_OUTPUT_MAX_RECORDS", 10)

    def endless(given_records):
        while True:
            yield given_records[0]

    with pytest.raises(WrongOutput, match="more than 10"):
        transformed(records("a"), endless)


# --- what the target says of it -----------------------------------------------------------------

OUTPUTS = (
    Output(record(3), (1, 2, 3)),
    Output(record(4), (4,)),
    Output(record(4, value=b"twice"), (4,)),
    Output(record(5), (5,)),
)


def test_what_the_target_refuses_is_said_of_every_record_behind_it():
    refused = spread(OUTPUTS, [RejectedRecord(3, "bad", "no"), RejectedRecord(4, "bad", "no")])
    assert [item.lsn for item in refused] == [1, 2, 3, 4]
    assert {item.message for item in refused} == {"no"}
    assert standing_for(OUTPUTS, {3, 5}) == {1, 2, 3, 5}
    assert lsns(less(OUTPUTS, {2})) == [(4, (4,)), (4, (4,)), (5, (5,))]


# --- records at which it fails ------------------------------------------------------------------


def raising_at(*bad):
    def function(given_records):
        for each in given_records:
            if each.lsn in bad:
                msg = f"cannot {each.lsn}"
                raise ValueError(msg)
        return given_records

    return function


@given(st.integers(1, 60), st.sets(st.integers(1, 60), max_size=5))
def test_the_records_at_which_it_fails_are_found(count, bad):
    bad = {lsn for lsn in bad if lsn <= count}
    found = find_failing(records(*["k"] * count), raising_at(*bad), "code", worked=True)
    assert {item.lsn for item in found.refused} == bad
    assert all(
        item.code == "code" and f"cannot {item.lsn}" in item.message for item in found.refused
    )


def test_a_function_that_never_worked_is_at_fault_and_not_the_records():
    batch = records("a", "b")
    found = find_failing(batch, raising_at(1, 2), "code", worked=False)
    assert found.refused == ()
    assert "cannot" in found.always
    found = find_failing(batch, raising_at(1, 2), "code", worked=True)
    assert [item.lsn for item in found.refused] == [1, 2]


def test_a_record_that_is_alone_is_set_aside():
    found = find_failing(records("a"), raising_at(1), "code", worked=False)
    assert [item.lsn for item in found.refused] == [1]


def test_a_function_that_fails_for_most_of_many_is_at_fault_and_the_search_is_bounded():
    calls = 0
    bad = raising_at(*range(1, 2_000))

    def counted(given_records):
        nonlocal calls
        calls += 1
        return bad(given_records)

    found = find_failing(records(*["k"] * 2_000), counted, "code", worked=True)
    assert found.refused == ()
    assert found.always
    assert calls <= limits.SHAPING_PROBES_MAX + 2


def test_a_function_that_fails_for_more_than_half_of_many_is_at_fault():
    for bad, refused in ((50, 50), (51, 0)):
        found = find_failing(
            records(*["k"] * 100), raising_at(*range(bad)[1:], 100), "c", worked=True
        )
        assert len(found.refused) == refused
        assert bool(found.always) == (not refused)


# --- the document -------------------------------------------------------------------------------

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "transforms.md"


def shown(name):
    """Return a function as the document shows it."""
    for block in re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL):
        if f"def {name}(" in block:
            room: dict[str, Any] = {}
            exec(block, room)
            return room[name]
    raise AssertionError(name)


def stored(lsn, value, key=None, *, as_json):
    """A record as a client stores it, or as JSON."""
    content, data = (2, json.dumps(value).encode()) if as_json else wald.encode_value(value)
    return Record(lsn, 1, content, data, key)


def read(output):
    return wald.decode_value(output.record.content, output.record.value)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_shown_transform_changes_and_filters(as_json):
    batch = [
        stored(1, {"seat": "a7"}, as_json=as_json),
        stored(2, {"seat": "b1", "test": True}, as_json=as_json),
        stored(3, {"seat": "c3"}, as_json=as_json),
    ]
    outputs = transformed(batch, shown("for_database"))
    assert [read(each) for each in outputs] == [{"seat": "A7"}, {"seat": "C3"}]
    assert superseded(batch, outputs, ()) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_the_shown_aggregate_stands_for_all_that_it_adds_up(as_json):
    batch = [
        stored(1, {"seats": 2}, "jaws", as_json=as_json),
        stored(2, {"seats": 1}, "alien", as_json=as_json),
        stored(3, {"seats": 3}, "jaws", as_json=as_json),
    ]
    outputs = transformed(batch, shown("sold_per_film"))
    assert lsns(outputs) == [(3, (1, 3)), (2, (2,))]
    assert read(outputs[0]) == {"seats": 5}


# --- the form in which it is kept ---------------------------------------------------------------


def test_what_is_kept_is_read_again():
    full = Record(7, 99, 1, b"value", b"key", {"h": b"x", "t": "text"}, "id")
    for frozen in (
        Frozen(),
        Frozen((), b""),
        Frozen(None, b"body"),
        Frozen((Output(full, (5, 7)), Output(record(8), (8,))), b"body"),
    ):
        assert unpack(pack(frozen)) == frozen


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x90", b"\x92\x01\xc0", b"\x92\x91\x01\xc0"])
def test_what_was_not_kept_by_us_is_damaged(content):
    with pytest.raises(FormatDamaged):
        unpack(content)
