"""Wire protocol 1: golden bytes, every event there and back, every bad byte refused."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.core import events, wire
from wald.core.events import (
    HEADER,
    HEADER_BYTES,
    WHOLE_REQUEST,
    Ack,
    Append,
    AppendFlag,
    Capability,
    Duplicate,
    DuplicateRecords,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    FrontierMoved,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    Received,
    Refusal,
    RefusedRecords,
    Skip,
    StreamOpened,
    Throttle,
    Welcome,
    pack_frame,
)
from wald.core.wire import FrameReader, Side, frame_end, next_frame
from wald.errors import BadFrame
from wald.model import Frontier

GOLDEN = Path(__file__).parents[1] / "golden" / "wire-1" / "frames.json"
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
LOG_ID = bytes(range(16))
TWO_RECORDS = bytes.fromhex("950092c40161c4026263c0c0c0")
PARTLY = bytes.fromhex("950092c40164a165c0c0c0")
WITH_IDS = bytes.fromhex("950092c40161c40162c0c092a178a179")
KEYED = bytes.fromhex("950191c40a81a475736572a3616e6e91a3616e6ec0c0")

FROM_CLIENT: dict[str, tuple[Event, str]] = {
    "hello": (Hello(1), "asks for a new session without a name"),
    "hello-named": (Hello(2, "once:import"), "asks for the session of a name, or a new one"),
    "hello-resume": (Hello(3, "", 0x1122334455667788), "comes back to a session"),
    "hello-frontier": (Hello(4, "", 0, Capability.FRONTIER), "a subscriber of the frontier"),
    "hello-throttle": (Hello(6, "", 0, Capability.THROTTLE), "a client that hears of quotas"),
    "hello-all": (
        Hello(6, "billing", 0, Capability.RECEIVED | Capability.DUPLICATES | Capability.EPOCH),
        "takes the session of a name over; understands all that a producer may",
    ),
    "hello-epoch": (
        Hello(7, "", 0x1122334455667788, Capability.EPOCH, epoch=3),
        "comes back to a session, as the one of its third takeover",
    ),
    "open-stream": (OpenStream(2, "signups"), "asks for a stream's durable id"),
    "append-two": (Append(7, 1, 1, TWO_RECORDS), "sequence 1: two records of bytes, a and bc"),
    "append-keyed": (Append(7, 2, 2, KEYED), "sequence 2: a msgpack record with the key ann"),
    "append-partly": (Append(7, 3, 1, PARTLY), "sequence 3: a record of bytes, d; a text, e"),
    "append-received": (
        Append(7, 4, 1, TWO_RECORDS, AppendFlag.RECEIVED),
        "sequence 4: to be answered before the flush",
    ),
    "append-ids": (Append(7, 5, 1, WITH_IDS), "sequence 5: records a and b with ids x and y"),
    "skip": (Skip(9), "sequences up to 9 never come: they were answered as received, and lost"),
    "ping": (Ping(5, b"are you there"), "asks for a sign of life"),
    "goodbye": (Goodbye(), "nobody comes back for this session"),
}
FROM_DAEMON: dict[str, tuple[Event, str]] = {
    "welcome": (Welcome(1, 0x1122334455667788, 0, LOG_ID), "a new session"),
    "welcome-resumed": (Welcome(3, 0x1122334455667788, 41, LOG_ID), "go on with sequence 42"),
    "welcome-subscriber": (Welcome(4, 0, 0, LOG_ID, Capability.FRONTIER), "no session"),
    "welcome-epoch": (
        Welcome(6, 0x1122334455667788, 41, LOG_ID, Capability.EPOCH, epoch=3),
        "the third takeover of the session",
    ),
    "stream": (StreamOpened(2, 7), "the stream's id is 7"),
    "ack": (Ack(1, 2, 1001, 1003), "requests 1 and 2 are durable; records from LSN 1001"),
    "ack-partly": (Ack(3, 3, 1004, 1004), "request 3 is durable; its stored record has LSN 1004"),
    "pong": (Pong(5, b"are you there"), "the answer to ping"),
    "refused": (
        RefusedRecords(9, (Refusal(46, "record.too-large", "2,000,000 bytes"),)),
        "record 46 of request 9 is not stored; an ACK follows",
    ),
    "refused-value": (
        RefusedRecords(3, (Refusal(1, "record.value", "the encoded value is not a byte string"),)),
        "record 1 of request 3 is not stored; an ACK follows",
    ),
    "refused-whole": (
        RefusedRecords(10, (Refusal(WHOLE_REQUEST, "request.malformed", "not a request body"),)),
        "nothing of request 10 is stored; its sequence is used",
    ),
    "received": (Received(4), "requests up to 4 are taken in, and not durable yet"),
    "duplicates": (
        DuplicateRecords(5, (Duplicate(1, 1001),)),
        "record 1 of request 5 is the one with LSN 1001; an ACK follows",
    ),
    "error-stream": (
        Failed("unknown-stream", "no route takes 'x'", "add a route", 0, 0, 3, 2),
        "the answer to OPEN_STREAM 2",
    ),
    "error-no-room": (
        Failed("disk-full", "no room", "free space", 200, ErrorFlag.NOT_STORED, 1, 12),
        "request 12 and all behind it are not stored; again after 200 ms",
    ),
    "error-not-stored": (
        Failed("disk-full", "no room", "", 1_000, ErrorFlag.NOT_STORED, 1, 4),
        "request 4 and all behind it are not stored; again after 1 s",
    ),
    "error-closing": (
        Failed("fenced", "another connection took it", "", 0, ErrorFlag.CLOSING, 0, 0),
        "the connection ends",
    ),
    "frontier": (FrontierMoved(Frontier(3, 1_228_800, 1003)), "durable up to LSN 1003"),
    "throttle": (Throttle(7, 250, 930), "a pause of 250 ms before the next request to stream 7"),
    "goodbye-daemon": (Goodbye(), "all that was accepted is answered; come back later"),
}


def vectors() -> list[dict[str, str]]:
    return [
        {"name": name, "from": side, "meaning": meaning, "hex": event.encode().hex()}
        for side, table in (("client", FROM_CLIENT), ("daemon", FROM_DAEMON))
        for name, (event, meaning) in table.items()
    ]


def test_the_golden_frames_are_what_is_encoded_today():
    if os.environ.get("WALD_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(vectors(), indent=1) + "\n")
    assert json.loads(GOLDEN.read_text()) == vectors()


@pytest.mark.parametrize("vector", json.loads(GOLDEN.read_text()), ids=lambda each: each["name"])
def test_a_golden_frame_is_read_as_its_event(vector):
    side = Side.DAEMON if vector["from"] == "client" else Side.CLIENT
    event, _ = {**FROM_CLIENT, **FROM_DAEMON}[vector["name"]]
    data = bytes.fromhex(vector["hex"])
    assert next_frame(data, 0, side) == (event, len(data))


def test_the_example_of_the_protocol_page_is_made_of_golden_frames():
    example = PAGE.read_text().split("## Example")[1]
    page = bytes.fromhex("".join(re.findall(r"(?m)^    ([0-9a-f ]+)$", example)))
    named = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in vectors()}
    told = (
        *("hello", "welcome", "open-stream", "stream", "append-two", "append-keyed", "ack"),
        *("append-partly", "refused-value", "ack-partly", "error-not-stored"),
        *("ping", "pong", "goodbye", "goodbye-daemon"),
    )
    assert page == b"".join(named[name] for name in told)


@pytest.mark.parametrize("name", [*FROM_CLIENT, *FROM_DAEMON])
def test_frames_arrive_byte_by_byte_as_well_as_at_once(name):
    event, _ = {**FROM_CLIENT, **FROM_DAEMON}[name]
    reader = FrameReader(Side.DAEMON if name in FROM_CLIENT else Side.CLIENT)
    data = event.encode()
    for at in range(len(data)):
        assert reader.next_event() is None
        reader.receive_data(data[at : at + 1])
    assert reader.next_event() == event
    assert reader.next_event() is None


def test_many_frames_in_one_read_come_out_in_order():
    reader = FrameReader(Side.DAEMON)
    sent = [event for event, _ in FROM_CLIENT.values()]
    reader.receive_data(b"".join(event.encode() for event in sent))
    assert [reader.next_event() for _ in sent] == sent


def raw(kind: int, body: bytes = b"", *, length: int | None = None, **fields: int) -> bytes:
    packed = pack_frame(kind, body, **fields)
    return packed if length is None else length.to_bytes(4, "little") + packed[4:]


def hello_body(
    magic: bytes = b"wald", version: int = 1, length: int | None = None, bits: int = 0, name=b"n"
) -> bytes:
    size = len(name) if length is None else length
    packed: bytes = events.HELLO_LAYOUT.pack(magic, version, size, bits, 0) + name
    return packed


BAD_FOR_THE_DAEMON = {
    "type 0": (raw(0), "frame.unknown"),
    "an unknown type": (raw(99), "frame.unknown"),
    "a frame of the daemon": (raw(FrameType.ACK), "frame.unknown"),
    "an append above its bound": (
        raw(events.APPEND_KIND, length=limits.REQUEST_MAX_BYTES + 1),
        "frame.too-large",
    ),
    "a length of 4 GiB": (raw(events.APPEND_KIND, length=0xFFFFFFFF), "frame.too-large"),
    "a long ping": (raw(FrameType.PING, bytes(65)), "frame.too-large"),
    "a goodbye with a body": (raw(FrameType.GOODBYE, b"x"), "frame.too-large"),
    "an append of codec 0": (raw(FrameType.APPEND), "protocol-mismatch"),
    "an append of codec 2": (raw(FrameType.APPEND | 2 << 16), "protocol-mismatch"),
    "a ping with a codec": (raw(FrameType.PING | 1 << 16), "protocol-mismatch"),
    "an append with an unknown flag": (raw(events.APPEND_KIND, flags=2), "protocol-mismatch"),
    "a skip with a body": (raw(FrameType.SKIP, b"x"), "frame.too-large"),
    "a skip with a lag": (raw(FrameType.SKIP, lag=1), "frame.malformed"),
    "a hello with a stream": (raw(FrameType.HELLO, hello_body(), stream=1), "frame.malformed"),
    "a hello with an epoch, not asked for": (
        raw(FrameType.HELLO, hello_body(), lag=1),
        "frame.malformed",
    ),
    "a ping with a lag": (raw(FrameType.PING, lag=1), "frame.malformed"),
    "a goodbye with a sequence": (raw(FrameType.GOODBYE, sequence=1), "frame.malformed"),
    "a short hello": (raw(FrameType.HELLO, b"wald"), "frame.malformed"),
    "a hello with another magic": (
        raw(FrameType.HELLO, hello_body(magic=b"http")),
        "protocol-mismatch",
    ),
    "a newer version": (raw(FrameType.HELLO, hello_body(version=2)), "protocol-mismatch"),
    "an unknown capability": (raw(FrameType.HELLO, hello_body(bits=32)), "protocol-mismatch"),
    "the highest capability": (raw(FrameType.HELLO, hello_body(bits=1 << 63)), "protocol-mismatch"),
    "a name of another length": (raw(FrameType.HELLO, hello_body(length=5)), "frame.malformed"),
    "a name that is not UTF-8": (raw(FrameType.HELLO, hello_body(name=b"\xff")), "frame.malformed"),
    "a name with an escape": (raw(FrameType.HELLO, hello_body(name=b"\x1b[2J")), "frame.malformed"),
    "a stream name not UTF-8": (raw(FrameType.OPEN_STREAM, b"\xff\xfe"), "frame.malformed"),
}
BAD_FOR_THE_CLIENT = {
    "a frame of the client": (raw(FrameType.HELLO), "frame.unknown"),
    "a short ack": (raw(FrameType.ACK, bytes(23)), "frame.malformed"),
    "an ack that ends before it begins": (
        raw(FrameType.ACK, events.ACK_LAYOUT.pack(5, 1, 1), sequence=4),
        "frame.malformed",
    ),
    "a short welcome": (raw(FrameType.WELCOME, bytes(71)), "frame.malformed"),
    "a cut refusal": (raw(FrameType.REFUSED, bytes(7)), "frame.malformed"),
    "a refusal longer than its frame": (
        raw(FrameType.REFUSED, events.REFUSED_LAYOUT.pack(0, 1, 0, 9) + b"a"),
        "frame.malformed",
    ),
    "duplicates that are cut": (raw(FrameType.DUPLICATES, bytes(13)), "frame.malformed"),
    "an error with bytes behind it": (
        raw(FrameType.ERROR, events.ERROR_LAYOUT.pack(0, 1, 0, 0, 0, 0) + b"ab"),
        "frame.malformed",
    ),
    "an error with an unknown flag": (
        raw(FrameType.ERROR, bytes(12), flags=4),
        "protocol-mismatch",
    ),
    "a frontier with a sequence": (
        raw(FrameType.FRONTIER, bytes(24), sequence=1),
        "frame.malformed",
    ),
}


@pytest.mark.parametrize("what", BAD_FOR_THE_DAEMON)
def test_the_daemon_refuses(what):
    data, reason = BAD_FOR_THE_DAEMON[what]
    with pytest.raises(BadFrame) as caught:
        next_frame(data, 0, Side.DAEMON)
    assert caught.value.reason == reason


@pytest.mark.parametrize("what", BAD_FOR_THE_CLIENT)
def test_the_client_refuses(what):
    data, reason = BAD_FOR_THE_CLIENT[what]
    with pytest.raises(BadFrame) as caught:
        next_frame(data, 0, Side.CLIENT)
    assert caught.value.reason == reason


def test_a_length_meets_its_bound_before_a_byte_of_the_body_arrives():
    header = raw(events.APPEND_KIND, length=limits.REQUEST_MAX_BYTES + 1)[:HEADER_BYTES]
    with pytest.raises(BadFrame):
        frame_end(header, 0, Side.DAEMON)
    assert frame_end(header[:-1], 0, Side.DAEMON) is None


def test_long_messages_are_cut_within_the_bound_of_an_error():
    failed = Failed("disk-full", "ü" * 3_000, "h" * 3_000)
    data = failed.encode()
    assert len(data) - HEADER_BYTES <= limits.ERROR_FRAME_MAX_BYTES
    event, _ = next_frame(data, 0, Side.CLIENT) or (None, 0)
    assert isinstance(event, Failed)
    assert event.message == "ü" * 512


def test_the_most_refusals_fit_a_frame():
    each = Refusal(WHOLE_REQUEST, "record.too-large-12345", "m" * 2_000)
    frame = RefusedRecords(1, (each,) * limits.REFUSALS_KEPT_PER_REQUEST).encode()
    assert next_frame(frame, 0, Side.CLIENT) is not None


@pytest.mark.parametrize(
    ("flags", "closing", "not_stored"),
    [(0, False, False), (1, True, False), (2, False, True), (3, True, True)],
)
def test_the_flags_of_an_error_have_names(flags, closing, not_stored):
    failed = Failed("x", "y", flags=flags)
    assert (failed.closing, failed.not_stored) == (closing, not_stored)


@given(st.binary(max_size=200), st.sampled_from(Side))
def test_any_bytes_are_an_event_or_incomplete_or_refused(data, side):
    reader = FrameReader(side)
    reader.receive_data(data)
    try:
        while reader.next_event() is not None:
            pass
    except BadFrame:
        pass


@given(
    st.sampled_from([int(kind) for kind in FrameType] + [0, 6, 255]),
    st.integers(0, 2),
    st.binary(max_size=100),
    st.sampled_from(Side),
)
def test_any_body_under_a_header_is_an_event_or_refused(kind, flags, body, side):
    data = HEADER.pack(len(body), kind | flags << 8 | (kind == 1) << 16, 0, 0, 0) + body
    try:
        found = next_frame(data, 0, side)
    except BadFrame:
        return
    assert found is not None
    assert found[1] == len(data)


@given(
    st.one_of(
        st.builds(
            Append,
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**32 - 1),
            st.binary(max_size=300),
            st.integers(0, 1),
        ),
        st.builds(
            Hello,
            st.integers(0, 2**64 - 1),
            st.text("abc é", max_size=20),
            st.integers(0, 2**64 - 1),
            st.just(int(Capability.EPOCH)),
            st.just(1),
            epoch=st.integers(0, 2**32 - 1),
        ),
        st.builds(Skip, st.integers(0, 2**64 - 1)),
    )
)
def test_what_a_client_encodes_is_what_the_daemon_reads(event: Event):
    data = event.encode()
    assert next_frame(data, 0, Side.DAEMON) == (event, len(data))


@given(
    st.one_of(
        st.builds(Received, st.integers(0, 2**64 - 1)),
        st.builds(
            DuplicateRecords,
            st.integers(0, 2**64 - 1),
            st.lists(
                st.builds(Duplicate, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
                max_size=20,
            ).map(tuple),
        ),
    )
)
def test_what_the_daemon_encodes_is_what_a_client_reads(event: Event):
    data = event.encode()
    assert next_frame(data, 0, Side.CLIENT) == (event, len(data))


def test_every_type_has_a_bound_and_a_decoder_on_one_side_at_least():
    assert set(wire.FROM_CLIENT) | set(wire.FROM_DAEMON) == set(FrameType)
