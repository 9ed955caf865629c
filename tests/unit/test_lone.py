"""A lone request: what is one, and that it is stored and answered as a run of one."""

import pytest

from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.commit import RunBuilder
from wald.core.events import APPEND_KIND, HEADER, pack_ack
from wald.core.frame import Section, join_sections
from wald.core.lone import LoneSections, take_lone
from wald.core.plain import PLAIN_MAX_BYTES
from wald.core.state import LogState, session_issued, stream_opened

STREAM, SESSION, SEQUENCE = 7, 5, 400
PLAIN = bodies.encode(Body(1, [b"v" * 128]))


def sent(
    body: bytes = PLAIN,
    *,
    kind: int = APPEND_KIND,
    stream: int = STREAM,
    lag: int = 1,
    sequence: int = SEQUENCE,
) -> bytes:
    return HEADER.pack(len(body), kind, stream, lag, sequence) + body


def taken(data: bytes, *, stale: bytes = b"", sequence: int = SEQUENCE) -> object:
    received = memoryview(bytearray(data + stale + bytes(64)))
    return take_lone(received, len(data), STREAM, SESSION, sequence)


@pytest.mark.parametrize(
    ("lag", "answered"),
    [(1, SEQUENCE - 1), (2, SEQUENCE - 2), (limits.WINDOW_REQUESTS, SEQUENCE - 256)],
)
def test_a_plain_request_that_is_the_next_is_taken_alone(lag: int, answered: int):
    lone = taken(sent(lag=lag), stale=b"of the read before")
    assert lone == (STREAM, SESSION, SEQUENCE, answered, PLAIN)


NOT_ALONE = {
    "nothing": b"",
    "a cut header": sent()[:23],
    "a cut body": sent()[:-1],
    "one and a byte": sent() + b"\0",
    "two": sent() + sent(sequence=SEQUENCE + 1, lag=2),
    "a gap": sent(sequence=SEQUENCE + 1),
    "a repeat": sent(sequence=SEQUENCE - 1),
    "another stream": sent(stream=STREAM + 1),
    "another type": sent(kind=APPEND_KIND + 1),
    "flags": sent(kind=APPEND_KIND | 1 << 8),
    "another codec": sent(kind=1 | 2 << 16),
    "no lag": sent(lag=0),
    "a lag beyond the window": sent(lag=limits.WINDOW_REQUESTS + 1),
    "an empty body": sent(b""),
    "two records": sent(bodies.encode(Body(0, [b"a", b"b"]))),
    "a key": sent(bodies.encode(Body(0, [b"a"], ["k"]))),
    "headers": sent(bodies.encode(Body(0, [b"a"], None, [{"h": "x"}]))),
    "a dedup id": sent(bodies.encode(Body(0, [b"a"], None, None, ["d"]))),
    "an unknown content code": sent(PLAIN.replace(b"\x95\x01", b"\x95\x03")),
    "a wrong end": sent(PLAIN[:-1] + b"\xc1"),
    "a length that is not the shortest": sent(b"\x95\x00\x91\xc5\x00\x01a\xc0\xc0\xc0"),
    "a long body": sent(bodies.encode(Body(0, [bytes(PLAIN_MAX_BYTES)]))),
}


@pytest.mark.parametrize("data", NOT_ALONE.values(), ids=NOT_ALONE.keys())
def test_whatever_is_not_exactly_that_is_left_to_the_run(data: bytes):
    assert taken(data, stale=sent()[len(data) :]) is None


def test_a_lag_beyond_the_first_sequence_is_left_to_the_run():
    assert taken(sent(sequence=3, lag=3), sequence=3) is not None
    assert taken(sent(sequence=3, lag=4), sequence=3) is None


def run_of(sequence: int, body: bytes, lag: int) -> Section:
    run = RunBuilder(STREAM, sequence)
    run.take(sent(body, sequence=sequence, lag=lag), 0)
    return run.section(SESSION)


@pytest.mark.parametrize("size", [0, 1, 247, 248, 255, 256, PLAIN_MAX_BYTES - 9])
def test_its_section_and_its_answer_are_those_of_a_run(size: int):
    body = bodies.encode(Body(2, [bytes(size)]))
    lone = LoneSections([(STREAM, SESSION, SEQUENCE, SEQUENCE - 3, body)])
    section = run_of(SEQUENCE, body, 3)
    assert b"".join(lone.parts()) == join_sections([section])
    assert lone.tables() == [section.requests]
    assert lone.acks(8, 9) == [pack_ack(SEQUENCE, SEQUENCE, 8, 9)]


REFUSED = bodies.encode(Body(9, [b"x"]))  # an unknown content code
BEFORE = {
    "a waiting client": [(1, PLAIN, 1), (2, PLAIN, 1)],
    "a client with a window": [(1, PLAIN, 1), (2, PLAIN, 2), (3, PLAIN, 3)],
    "a client that answers late": [(n, PLAIN, min(n, 200)) for n in range(1, 300)],
    "after a refusal": [(1, REFUSED, 1), (2, REFUSED, 2)],
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_the_state_takes_it_in_as_a_run(before: list[tuple[int, bytes, int]], lag: int):
    states = LogState(), LogState()
    sequence = len(before) + 1
    for state in states:
        state.apply(stream_opened(STREAM, "s"), 1, 1)
        state.apply(session_issued(SESSION, "p"), 1, 1)
        for number, body, its_lag in before:
            state.apply(run_of(number, body, its_lag), number, number)
    alone, run = states
    alone.apply_lone(LoneSections([(STREAM, SESSION, sequence, sequence - lag, PLAIN)]), 900, 77)
    run.apply(run_of(sequence, PLAIN, lag), 900, 77)
    assert list(alone.snapshot()) == list(run.snapshot())
    assert alone.sessions[SESSION] == run.sessions[SESSION]
    assert alone.sessions[SESSION].active_ns == 77


def test_a_request_of_a_session_that_is_gone_counts_for_its_stream():
    state = LogState()
    state.apply(stream_opened(STREAM, "s"), 1, 1)
    state.apply_lone(LoneSections([(STREAM, SESSION, SEQUENCE, SEQUENCE - 1, PLAIN)]), 3, 1)
    stream = state.streams[STREAM]
    assert (stream.records, stream.bytes, stream.last_lsn) == (1, len(PLAIN), 3)
    assert state.sessions == {}
