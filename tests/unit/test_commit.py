"""Group commit: what a run takes, what is refused, whom to answer what."""

from struct import iter_unpack

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.core import body as bodies
from wald.core import commit
from wald.core.body import Body
from wald.core.commit import Contribution, Group, RunBuilder
from wald.core.events import WHOLE_REQUEST, Ack, Append, Ping, Refusal, RefusedRecords
from wald.core.examine import EMPTY_BODY, examine
from wald.core.frame import SectionKind, crc32c, section_bytes
from wald.core.plain import PLAIN_MAX_BYTES, take_alike
from wald.core.state import session_issued
from wald.core.wire import FrameReader, Side

STREAM, SESSION = 7, 5


def packed(*values: object, content: int | bytes = 0, keys: list[object] | None = None) -> bytes:
    data: bytes = msgpack.packb([content, list(values), keys, None, None])
    return data


def append(sequence: int, body: bytes, *, stream: int = STREAM, lag: int = 1) -> bytes:
    return Append(stream, sequence, lag, body).encode()


def taken(data: bytes, *, first: int = 1) -> tuple[RunBuilder, int]:
    run = RunBuilder(STREAM, first)
    return run, run.take(data, 0)


def rows(run: RunBuilder) -> list[tuple[int, int, int, int]]:
    return list(iter_unpack("<IIII", run.section(SESSION).requests))


def test_consecutive_appends_become_one_section():
    sent = [packed(b"a"), packed(b"bb", b"c"), packed(b"d", keys=["k"])]
    data = b"".join(append(4 + at, body, lag=at + 1) for at, body in enumerate(sent))
    run, end = taken(data, first=4)
    assert end == len(data)
    section = run.section(SESSION)
    assert section.kind is SectionKind.APPEND
    assert (section.stream, section.session, section.codec) == (STREAM, SESSION, 1)
    assert (section.first_sequence, section.last_sequence, section.answered_through) == (4, 6, 3)
    assert section.records == 4
    assert section.bodies == b"".join(sent)
    assert rows(run) == [
        (1, 1, len(sent[0]), crc32c(sent[0])),
        (2, 2, len(sent[1]), crc32c(sent[1])),
        (1, 1, len(sent[2]), crc32c(sent[2])),
    ]
    assert run.size_bytes == section_bytes(section)


PLAIN = append(1, packed(b"a"))


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        Ping(1).encode(),
        append(2, packed(b"b"), stream=8),
        append(3, packed(b"b")),
        append(1, packed(b"b")),
        append(2, packed(b"b"))[:-1],
        append(2, packed(b"b"))[:10],
    ],
    ids=["nothing", "ping", "stream", "gap", "repeat", "cut body", "cut header"],
)
def test_a_run_ends_before_what_is_not_its_own(behind):
    run, end = taken(PLAIN + behind)
    assert end == len(PLAIN)
    assert run.next_sequence == 2
    # and takes nothing at all, when it begins with that
    nothing, at = taken(behind)
    assert at == 0 or behind == append(1, packed(b"b"))
    assert nothing.next_sequence == (2 if at else 1)


def test_a_run_goes_on_over_several_reads():
    run = RunBuilder(STREAM, 1)
    for sequence in (1, 2, 3):
        data = append(sequence, packed(b"x"), lag=sequence)
        assert run.take(data, 0) == len(data)
    section = run.section(SESSION)
    assert (section.records, section.request_count, section.answered_through) == (3, 3, 0)
    assert run.size_bytes == section_bytes(section)


def test_a_run_ends_behind_a_request_with_a_refusal():
    bad = packed(b"a", "text", b"c")
    data = append(1, packed(b"x")) + append(2, bad) + append(3, packed(b"y"))
    run, end = taken(data)
    assert end == len(data) - len(append(3, packed(b"y")))
    assert run.take(data, end) == len(data)
    section = run.section(SESSION)
    assert section.records == 4
    assert [(each.request, each.record, each.code) for each in section.refusals] == [
        (1, 1, "record.value")
    ]
    kept = bodies.decode(packed(b"a", b"c"))
    assert section.bodies == packed(b"x") + bodies.encode(kept) + packed(b"y")
    # the CRC is of the body as it came: it decides what is a duplicate
    assert rows(run)[1] == (3, 2, len(bodies.encode(kept)), crc32c(bad))
    assert run.size_bytes == section_bytes(section)
    assert run.refused[0].sequence == 2


@pytest.mark.parametrize(
    ("lag", "sequence", "answered"),
    [
        (0, 9, 8),
        (1, 9, 8),
        (5, 9, 4),
        (9, 9, 0),
        (10, 9, 0),
        (4_000_000_000, 9, 0),
        (300, 400, 144),
    ],
)
def test_a_lag_outside_the_window_is_taken_as_the_nearest(lag, sequence, answered):
    run, _ = taken(append(sequence, packed(b"x"), lag=lag), first=sequence)
    assert run.section(SESSION).answered_through == answered


def test_a_large_request_is_taken_too():
    body = packed(*[bytes(1_000)] * 100)
    assert len(body) > 64 * limits.KIB
    run, end = taken(append(1, body))
    assert end == len(append(1, body))
    assert run.section(SESSION).records == 100


DEEP = b"\x91" * 100_000
BODIES = {
    "empty": b"",
    "nil": b"\xc0",
    "not an array": msgpack.packb({"a": 1}),
    "four columns": msgpack.packb([0, [], None, None]),
    "six columns": msgpack.packb([0, [], None, None, None, None]),
    "values are a map": msgpack.packb([0, {"a": b"x"}, None, None, None]),
    "values are bytes": msgpack.packb([0, b"a", None, None, None]),
    "values are text": msgpack.packb([0, "a", None, None, None]),
    "values are nil": msgpack.packb([0, None, None, None, None]),
    "content is true": msgpack.packb([True, [b"a"], None, None, None]),
    "content is an array": msgpack.packb([[0], [b"a"], None, None, None]),
    "content codes do not match": msgpack.packb([b"\0\0", [b"a"], None, None, None]),
    "keys do not match": msgpack.packb([0, [b"a"], [], None, None]),
    "keys are a map": msgpack.packb([0, [b"a"], {"a": 1}, None, None]),
    "cut short": packed(b"abc")[:-1],
    "bytes behind": packed(b"abc") + b"\xc0",
    "bad UTF-8": b"\x95\x00\x91\xc4\x01a\x91\xa1\xff\xc0\xc0",
    "an integer as a map's key": b"\x95\x00\x91\x81\x01\x02\xc0\xc0\xc0",
    "deep": DEEP,
    "array of 4 G": b"\x95\x00\xdd\xff\xff\xff\xff",
    "bin of 4 G": b"\x95\x00\x91\xc6\xff\xff\xff\xff",
    "a bad timestamp": b"\x95\x00\x91\xc7\x03\xff\0\0\0\xc0\xc0\xc0",
    "a million empty maps": b"\x95\x00\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000 + b"\xc0" * 3,
    "arrays in arrays": b"\x95\x00\xdc\x00\x20" + (b"\xdc\xff\xff" + b"\x80" * 65_535) * 32,
    "maps in maps": b"\x95\x00\xdc\x10\x00" + b"\x81\xa1a\x81\xa1b\xd9\x20" + bytes(200_000),
    "too many records": packed(*[b""] * (limits.REQUEST_MAX_RECORDS + 1)),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_malformed_body_is_refused_whole_and_uses_its_sequence(what):
    body = BODIES[what]
    data = append(1, packed(b"before")) + append(2, body) + append(3, packed(b"behind"))
    run, end = taken(data)
    assert run.take(data, end) == len(data)
    assert run.next_sequence == 4
    section = run.section(SESSION)
    assert section.records == 2
    assert section.bodies == packed(b"before") + EMPTY_BODY + packed(b"behind")
    assert rows(run)[1] == (0, 0, len(EMPTY_BODY), crc32c(body))
    assert [each.code for each in section.refusals] == ["request.malformed"]
    assert section.refusals[0].record == WHOLE_REQUEST
    assert run.size_bytes == section_bytes(section)


def test_too_many_refusals_refuse_the_request_whole():
    values: list[object] = ["text"] * (limits.REFUSALS_KEPT_PER_REQUEST + 1)
    found = examine(packed(b"good", *values))
    assert (found.records, found.stored, found.body) == (1_026, 0, EMPTY_BODY)
    assert [(each.record, each.code) for each in found.refusals] == [
        (WHOLE_REQUEST, "request.refusals")
    ]
    one_less = examine(packed(b"good", *values[1:]))
    assert (one_less.records, one_less.stored, len(one_less.refusals)) == (1_025, 1, 1_024)


def test_a_request_of_which_every_record_is_refused_is_stored_without_records():
    found = examine(packed("a", "b"))
    assert (found.records, found.stored) == (2, 0)
    assert bodies.decode(found.body) == Body(0, [])


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.builds(packed, st.binary(max_size=20)),
            st.builds(lambda values: packed(*values), st.lists(st.binary(max_size=4), max_size=4)),
            st.builds(
                lambda content, value, key: packed(value, content=content, keys=[key]),
                st.sampled_from([0, 1, 2, 3, -1, b"\0", b"\7", b""]),
                st.one_of(
                    st.binary(max_size=4), st.text(max_size=4), st.none(), st.integers(-5, 5)
                ),
                st.one_of(
                    st.binary(max_size=4), st.text(max_size=4), st.none(), st.integers(-5, 5)
                ),
            ),
        ),
        max_size=8,
    )
)
def test_the_hot_loop_stores_what_the_careful_way_stores(sent):
    data = b"".join(append(1 + at, body) for at, body in enumerate(sent))
    run, end = taken(data)
    while end < len(data):
        before, end = end, run.take(data, end)
        assert end > before
    if not sent:
        return
    found = [examine(body) for body in sent]
    section = run.section(SESSION)
    assert section.bodies == b"".join(each.body for each in found)
    assert [row[:3] for row in rows(run)] == [
        (each.records, each.stored, len(each.body)) for each in found
    ]
    assert section.records == sum(each.stored for each in found)
    assert len(section.refusals) == sum(len(each.refusals) for each in found)


# --- groups -------------------------------------------------------------------------------------


def contribution(name: str, first: int, *counts: int, refused: int = 0) -> Contribution[str]:
    sections = []
    sequence = first
    for count in counts:
        run = RunBuilder(STREAM, sequence)
        run.take(append(sequence, packed(*[b"x"] * count)), 0)
        sections.append(run.section(SESSION))
        sequence += 1
    told = [RefusedRecords(refused, (Refusal(0, "record.key", "no"),))] if refused else []
    return Contribution(name, sections, told, first, sequence - 1)


def events_of(data: bytes) -> list[object]:
    reader = FrameReader(Side.CLIENT)
    reader.receive_data(data)
    return list(iter(reader.next_event, None))


def test_a_group_answers_each_connection_once_and_counts_lsns_over_all():
    control = session_issued(9, "")
    ann, bob, eve = (
        contribution("ann", 1, 3),
        contribution("bob", 20, 2, 5, refused=21),
        contribution("eve", 7, 0),
    )
    group = Group([control], [ann, bob, eve])
    assert group.sections() == [control, *ann.sections, *bob.sections, *eve.sections]
    answers = dict(group.answers(101, 110))
    assert events_of(answers["ann"]) == [Ack(1, 1, 101, 110)]
    refused, ack = events_of(answers["bob"])
    assert isinstance(refused, RefusedRecords)  # refusals precede the ack
    assert ack == Ack(20, 21, 104, 110)
    assert events_of(answers["eve"]) == [Ack(7, 7, 111, 110)]


def test_what_a_read_adds_to_a_group_beside_its_own_bytes_is_bounded():
    values: list[object] = [None] * limits.REFUSALS_KEPT_PER_REQUEST
    data = append(1, packed(*values))
    run, _ = taken(data)
    assert run.size_bytes <= len(data) + commit.READ_SLACK_BYTES


# --- frames alike -------------------------------------------------------------------------------


def burst(count: int, *, first: int = 1, size: int = 128, content: int = 1) -> bytes:
    bodies_of = [packed(bytes([at]) * size, content=content) for at in range(count)]
    return b"".join(append(first + at, body, lag=at + 1) for at, body in enumerate(bodies_of))


@pytest.mark.parametrize("size", [0, 1, 247, 248, 255, 256, PLAIN_MAX_BYTES - 9])
@pytest.mark.parametrize("count", [limits.ALIKE_MIN_COUNT, 15, 16, 17, 32, 45])
def test_frames_alike_are_taken_at_once_and_are_the_same_run(count: int, size: int):
    data = burst(count, size=size)
    step = len(data) // count
    cut = b"".join([b"before", data, data[: step - 1]])
    at = len(b"before")
    assert take_alike(cut, at, STREAM, 1) == [
        data[24 + i * step : (i + 1) * step] for i in range(count)
    ]
    at_once, one_by_one = RunBuilder(STREAM, 1), RunBuilder(STREAM, 1)
    assert at_once.take(cut, at) == at + len(data)
    for i in range(count):
        assert one_by_one.take(data[: (i + 1) * step], i * step) == (i + 1) * step
    assert at_once.section(SESSION) == one_by_one.section(SESSION)
    assert at_once.size_bytes == one_by_one.size_bytes == section_bytes(at_once.section(SESSION))
    assert at_once.next_sequence == one_by_one.next_sequence == count + 1


def test_a_run_goes_on_before_and_behind_frames_alike():
    data = append(1, packed(b"x", b"y")) + append(2, packed(b"z"))
    run, end = taken(data + burst(20, first=3) + append(23, packed(b"q", keys=["k"])))
    section = run.section(SESSION)
    assert (section.request_count, section.records, section.answered_through) == (23, 24, 22)
    assert [row[0] for row in rows(run)] == [2, *[1] * 22]
    assert end == len(data) + len(burst(20)) + len(append(23, packed(b"q", keys=["k"])))


def test_every_byte_that_must_be_as_in_the_first_frame_is_looked_at():
    count, size = 9, 3
    data = burst(count, first=0x1234, size=size)
    step = len(data) // count
    free = {*range(12, 16), *range(24 + 5, step - 3)}  # the lag, and the value
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x01
        found = take_alike(bytes(changed), 0, STREAM, 0x1234)
        if at % step in free:
            assert len(found) == count
        else:
            # a content code that is the same in all is one; here one frame differs
            assert found == [], at


@pytest.mark.parametrize("first", [0xFF, 0x100, 0xFFFF - 20, 0xFFFF - 10, 0xFFFF, 0x10000, 1 << 40])
def test_frames_alike_across_the_bytes_of_their_sequences(first: int):
    data = burst(20, first=first)
    run, end = taken(data, first=first)
    assert end == len(data)
    assert run.next_sequence == first + 20
    assert take_alike(data, 0, STREAM, first + 1) == []
    assert take_alike(data, 0, STREAM, first + (1 << 16)) == []
    assert take_alike(data, 0, STREAM, first + (1 << 32)) == []
