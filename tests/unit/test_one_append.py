"""What is written anew for the append of one record is the same as what many records take."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.client.requests import NO_COLUMNS, Columns, body_of_one, outgoing
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import ACK_FRAME, Ack, Event, FrameType, Pong, read_ack
from wald.core.wire import Side, next_frame
from wald.errors import BadFrame
from wald.model import Content

# --- the body -----------------------------------------------------------------------------------

LENGTHS = [0, 1, 31, 32, 255, 256, 65_535, 65_536, limits.RECORD_MAX_BYTES]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("content", Content)
def test_a_body_of_one_value_is_packed_as_a_body_of_many_is(content: Content, length: int):
    value = b"v" * length
    assert bodies.encode_one(content, value) == bodies.encode(Body(int(content), [value]))


@given(st.sampled_from(Content), st.binary(max_size=600))
def test_any_value_alone_is_packed_as_among_many(content: Content, value: bytes):
    packed = bodies.encode_one(content, value)
    assert packed == bodies.encode(Body(int(content), [value]))
    assert bodies.decode(packed) == Body(content, [value])


VALUES: dict[str, object] = {
    "bytes": b"raw",
    "no bytes": b"",
    "bytearray": bytearray(b"raw"),
    "memoryview": memoryview(b"raw"),
    "dict": {"a": 1},
    "UUID": UUID(int=7),
    "at the limit": bytes(limits.RECORD_MAX_BYTES),
    "above the limit": bytes(limits.RECORD_MAX_BYTES + 1),
    "text above the limit": "x" * limits.RECORD_MAX_BYTES,
    "a set": {1},
    "a lone surrogate": "\ud800",
    "an int beyond 64 bits": 1 << 64,
}
COLUMNS: dict[str, Columns] = {
    "no columns": NO_COLUMNS,
    "a key": Columns(["k"]),
    "all columns": Columns([b"k"], [{"h": "v"}], ["id"]),
    "a key that is none": Columns([7]),  # type: ignore[list-item]
    "a key too large": Columns(["k" * (limits.REQUEST_MAX_BYTES + 1)]),
    "a header that is none": Columns(None, [{"h": object()}]),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("value", VALUES)
def test_one_value_goes_out_or_is_refused_as_one_of_many(value: str, columns: str):
    ready, refused = outgoing([VALUES[value]], COLUMNS[columns])
    one = body_of_one(VALUES[value], COLUMNS[columns])
    if isinstance(one, bytes):
        assert ([one], []) == ([each.body for each in ready], refused)
    else:
        assert ([one], []) == (refused, ready)


# --- the answer ---------------------------------------------------------------------------------

SOME_ACK = Ack(3, 5, 1_004, 1_009)


def read_by_the_rules(data: bytes) -> Event | None:
    """The event, if the bytes are one whole frame."""
    found = next_frame(data, 0, Side.CLIENT)
    return found[0] if found is not None and found[1] == len(data) else None


def test_an_ack_alone_is_read_at_once():
    assert read_ack(SOME_ACK.encode()) == SOME_ACK == read_by_the_rules(SOME_ACK.encode())


def test_an_ack_that_is_cut_or_followed_is_left_to_the_rules():
    data = SOME_ACK.encode()
    for end in range(len(data)):
        assert read_ack(data[:end]) is None
    assert read_ack(data + data) is None
    assert read_ack(data + b"\0") is None


def test_another_frame_of_the_same_size_is_no_ack():
    pong = Pong(5, bytes(24)).encode()
    assert len(pong) == ACK_FRAME.size
    assert read_ack(pong) is None


@pytest.mark.parametrize("bit", range(8 * ACK_FRAME.size))
def test_an_ack_with_a_flipped_bit_is_what_the_rules_say(bit: int):
    data = bytearray(SOME_ACK.encode())
    data[bit // 8] ^= 1 << bit % 8
    assert read_ack(bytes(data)) == an_ack_by_the_rules(bytes(data))


words = st.sampled_from([0, 1, 24, FrameType.ACK, 1 << 8, 1 << 16, (1 << 32) - 1])
longs = st.sampled_from([0, 1, 2, (1 << 63) - 1, (1 << 64) - 1])


@given(st.tuples(words, words, words, words, longs, longs, longs, longs))
def test_whatever_has_the_size_of_an_ack_is_what_the_rules_say(fields: Any):
    data = ACK_FRAME.pack(*fields)
    assert read_ack(data) == an_ack_by_the_rules(data)


def an_ack_by_the_rules(data: bytes) -> Event | None:
    try:
        event = read_by_the_rules(data)
    except BadFrame:
        return None
    return event if isinstance(event, Ack) else None
