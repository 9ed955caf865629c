"""Bad input at the socket, one row each: code, log unchanged in meaning, neighbour unharmed."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack
import pytest

import wald
from tests.doorkeeper import Door, Peer, short_directory
from wald import limits
from wald.config import ClientLimits, Settings
from wald.core import events
from wald.core.events import (
    APPEND_KIND,
    HEADER,
    HEADER_BYTES,
    HELLO_LAYOUT,
    WHOLE_REQUEST,
    Ack,
    Append,
    Capability,
    Failed,
    FrameType,
    FrontierMoved,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    RefusedRecords,
    Skip,
    Welcome,
    pack_frame,
)
from wald.errors import REFUSAL_HINTS
from wald.ingest.committer import Committer
from wald.ingest.connection import Connection
from wald.ingest.house import House
from wald.storage.log import Log
from wald.system import PosixFileSystem, SystemClock

NEIGHBOUR_APPENDS = 1_000


class Row(NamedTuple):
    """What is sent, the code of the answer, and whether the connection ends."""

    data: bytes
    code: str
    closes: bool = True
    greets: bool = True


def body(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def hello(version: int = 1, bits: int = 0, magic: bytes = b"wald") -> bytes:
    return pack_frame(FrameType.HELLO, HELLO_LAYOUT.pack(magic, version, 0, bits, 0), sequence=1)


def request(data: bytes, sequence: int = 1) -> bytes:
    """An append to stream 1, which the neighbour has opened."""
    return Append(1, sequence, 1, data).encode()


GOOD = body([0, [b"x"], None, None, None])
EMPTY_MAPS = b"\x95\x00\xdd" + (4_000_000).to_bytes(4, "big") + b"\x80" * 4_000_000 + b"\xc0" * 3

ROWS = {
    "an unknown frame": Row(pack_frame(99), "frame.unknown"),
    "a frame of the daemon": Row(Ack(1, 1, 1, 1).encode(), "frame.unknown"),
    "HTTP": Row(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "frame.unknown", greets=False),
    "zeros": Row(bytes(64), "frame.unknown", greets=False),
    "a length above the bound": Row(
        HEADER.pack(limits.REQUEST_MAX_BYTES + 1, APPEND_KIND, 1, 1, 1), "frame.too-large"
    ),
    "a length of 4 GiB": Row(HEADER.pack(0xFFFFFFFF, APPEND_KIND, 1, 1, 1), "frame.too-large"),
    "a hello of a megabyte": Row(
        HEADER.pack(1 << 20, FrameType.HELLO, 0, 0, 1), "frame.too-large", greets=False
    ),
    "another magic": Row(hello(magic=b"WALD"), "protocol-mismatch", greets=False),
    "a wrong version": Row(hello(version=2), "protocol-mismatch", greets=False),
    "an unknown capability": Row(hello(bits=1 << 62), "protocol-mismatch", greets=False),
    "an unknown codec": Row(
        pack_frame(FrameType.APPEND | 2 << 16, GOOD, stream=1, lag=1, sequence=1),
        "protocol-mismatch",
    ),
    "flags on an append": Row(
        pack_frame(APPEND_KIND, GOOD, flags=1, stream=1, lag=1, sequence=1), "protocol-mismatch"
    ),
    "flags on a ping": Row(pack_frame(FrameType.PING, flags=1), "protocol-mismatch"),
    "a ping with a stream": Row(pack_frame(FrameType.PING, stream=1), "frame.malformed"),
    "an append before hello": Row(request(GOOD), "frame.unexpected", greets=False),
    "a ping before hello": Row(Ping(1).encode(), "frame.unexpected", greets=False),
    "a second hello": Row(Hello(2).encode(), "frame.unexpected"),
    "an append by a subscriber": Row(
        Hello(1, capabilities=1).encode() + request(GOOD), "frame.unexpected", greets=False
    ),
    "a stream opened by a subscriber": Row(
        Hello(1, capabilities=1).encode() + OpenStream(2, "s").encode(),
        "frame.unexpected",
        greets=False,
    ),
    "a stream that was never opened": Row(Append(77, 1, 1, GOOD).encode(), "frame.stream"),
    "a name with control characters": Row(
        Hello(1, "a\x1b[2J").encode(), "frame.malformed", greets=False
    ),
    "a stream named ../x": Row(OpenStream(3, "../x").encode(), "unknown-stream", closes=False),
    "a stream name with an escape": Row(
        OpenStream(3, "a\x1b[31m").encode(), "unknown-stream", closes=False
    ),
    "a stream name that is not UTF-8": Row(
        pack_frame(FrameType.OPEN_STREAM, b"\xff\xfe", sequence=3), "frame.malformed"
    ),
    "a long stream name": Row(OpenStream(3, "a" * 1_000).encode(), "unknown-stream", closes=False),
    "deep msgpack": Row(request(b"\x91" * 1_000_000), "request.malformed", closes=False),
    "millions of empty maps": Row(request(EMPTY_MAPS), "request.malformed", closes=False),
    "an array of 4 G": Row(
        request(b"\x95\x00\xdd\xff\xff\xff\xff"), "request.malformed", closes=False
    ),
    "an empty body": Row(request(b""), "request.malformed", closes=False),
    "a body of another shape": Row(request(body({"a": 1})), "request.malformed", closes=False),
    "a column of another length": Row(
        request(body([0, [b"x"], [None, None], None, None])), "request.malformed", closes=False
    ),
    "more records than the bound": Row(
        request(body([0, [b""] * (limits.REQUEST_MAX_RECORDS + 1), None, None, None])),
        "request.malformed",
        closes=False,
    ),
    "an unknown content code for all": Row(
        request(body([9, [b"x"], None, None, None])), "record.content", closes=False
    ),
    "text for a value": Row(
        request(body([0, ["text"], None, None, None])), "record.value", closes=False
    ),
    "a key of two kibibytes": Row(
        request(body([0, [b"x"], ["k" * 2_048], None, None])), "record.key", closes=False
    ),
    "a record of more than a mebibyte": Row(
        request(body([0, [b"x" * (limits.RECORD_MAX_BYTES + 1)], None, None, None])),
        "record.too-large",
        closes=False,
    ),
    "an unknown content code of one record": Row(
        request(body([b"\7", [b"x"], None, None, None])), "record.content", closes=False
    ),
    "a key of text that is not UTF-8": Row(
        request(b"\x95\x00\x91\xc4\x01x\x91\xa2\xff\xfe\xc0\xc0"),
        "request.malformed",
        closes=False,
    ),
    "a header whose name is not UTF-8": Row(
        request(b"\x95\x00\x91\xc4\x01x\xc0\x91\x81\xa1\xff\xa1x\xc0"),
        "request.malformed",
        closes=False,
    ),
    "a number for a dedup id": Row(
        request(body([0, [b"x"], None, None, [7]])), "record.dedup-id", closes=False
    ),
    "a skip that was not asked for": Row(Skip(3).encode(), "frame.unexpected"),
    "an epoch that was not asked for": Row(
        pack_frame(FrameType.HELLO, hello()[HEADER_BYTES:], lag=1, sequence=1),
        "frame.malformed",
        greets=False,
    ),
    "a gap": Row(request(GOOD, sequence=7), "sequence-gap", closes=False),
    "sequence 0": Row(request(GOOD, sequence=0), "outcome-unknown", closes=False),
}


# these store a record before they go wrong
BEHIND_A_RECORD = {
    "a sequence once more, with another body": Row(
        request(GOOD) + request(body([0, [b"y"], None, None, None])),
        "sequence-conflict",
        closes=False,
    ),
    "a sequence that goes back behind what was answered": Row(
        request(GOOD) + request(GOOD, sequence=2) + request(GOOD),
        "outcome-unknown",
        closes=False,
    ),
    "a gap behind what was stored": Row(
        request(GOOD) + request(GOOD, sequence=3), "sequence-gap", closes=False
    ),
}


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with short_directory() as directory, Door(directory) as opened:
        yield opened


@pytest.fixture(scope="module")
def neighbour(door: Door) -> Iterator[wald.Producer]:
    with wald.connect(door.path, name="neighbour") as producer:
        producer.append("s", b"first")
        yield producer


def code_of(peer: Peer) -> str:
    """The code of the answer to what was sent; it has a message and a hint."""
    while True:
        event = peer.next()
        match event:
            case Failed():
                assert event.message
                assert event.hint
                return event.code
            case RefusedRecords():
                (refusal,) = event.refusals
                assert refusal.message
                assert REFUSAL_HINTS[refusal.code]
                assert isinstance(peer.next(), Ack)
                return refusal.code
            case None:
                return "closed"
            case _:
                pass


@pytest.mark.parametrize("what", [*ROWS, *BEHIND_A_RECORD])
def test_bad_input_is_told_by_code_and_harms_nobody(
    door: Door, neighbour: wald.Producer, what: str
):
    row = {**ROWS, **BEHIND_A_RECORD}[what]
    session = neighbour.session
    with door.peer() as peer:
        if row.greets:
            peer.hello()
        peer.send(row.data)
        for _ in range(NEIGHBOUR_APPENDS // len(ROWS) + 1):
            neighbour.append("s", what.encode())
        assert code_of(peer) == row.code
        if row.closes:
            assert peer.rest() == []
        else:  # the connection lives
            peer.send(Ping(9, b"alive").encode())
            answers = iter(peer.next, events.Pong(9, b"alive"))
            assert all(isinstance(each, Ack) for each in answers)  # of what was right before
    after = neighbour.session
    assert after.session_id == session.session_id
    assert after.last_sequence == session.last_sequence + NEIGHBOUR_APPENDS // len(ROWS) + 1


@pytest.mark.parametrize("cut_at", [1, 23, 24, 30])
def test_a_truncated_frame_leaves_nothing(door: Door, neighbour: wald.Producer, cut_at: int):
    before = neighbour.append("s", b"before").lsn
    with door.peer() as peer:
        peer.hello()
        peer.send(request(GOOD)[:cut_at])
    assert neighbour.append("s", b"behind").lsn == before + 1


def test_two_clients_of_one_name_harm_nobody_else(door: Door, neighbour: wald.Producer):
    neighbour.append("s", b"before")  # stream 1
    epoch = Capability.EPOCH
    with door.peer() as older, door.peer() as newer, door.peer() as back:
        older.send(Hello(1, "one id", 0, epoch).encode())
        first = older.next()
        assert isinstance(first, Welcome)
        newer.send(Hello(1, "one id", 0, epoch).encode())
        assert isinstance(newer.next(), Welcome)
        assert code_of(older) == "fenced"
        assert older.rest() == []
        back.send(Hello(1, "one id", first.session, epoch, epoch=first.epoch).encode())
        assert code_of(back) == "fenced"
        assert back.rest() == []
        newer.send(request(GOOD))
        assert isinstance(newer.next(), Ack)
        neighbour.append("s", b"behind")


def test_what_the_log_holds_is_what_the_neighbour_appended():
    with short_directory() as directory, Door(directory) as door:
        with wald.connect(door.path) as producer:
            receipts = [producer.append("s", b"first")]
            for row in ROWS.values():
                with door.peer() as peer:
                    if row.greets:
                        peer.hello()
                    peer.send(row.data, Goodbye().encode())
                    peer.rest()
                receipts.append(producer.append("s", b"x"))
            receipts += producer.append_many("s", [b"y"] * 900).accepted
        door.stop()
        log = Log.open(PosixFileSystem(), door.data_dir, SystemClock(), random.Random(1))
        try:
            assert log.recovery.clean
            assert log.state.streams_by_name["s"].records == len(receipts)
            assert [each.lsn for each in receipts] == list(range(1, len(receipts) + 1))
            assert set(log.state.streams_by_name) == {"s"}
        finally:
            log.close()


def test_a_request_refused_whole_is_named_so(door: Door, neighbour: wald.Producer):
    neighbour.ping()
    with door.peer() as peer:
        peer.hello()
        peer.send(request(b"\xc1"))
        refused = peer.next()
        assert isinstance(refused, RefusedRecords)
        assert refused.refusals[0].record == WHOLE_REQUEST


@pytest.mark.parametrize(
    ("data", "records"),
    [
        (body([0, [], None, None, None]), 0),
        (body([b"", [], [], [], []]), 0),
        (b"\xdd\0\0\0\x05\xd1\0\0\xdc\0\x01\xc6\0\0\0\x01x\xc0\xc0\xc0", 1),
    ],
    ids=["no records", "no records in every column", "longer msgpack than needed"],
)
def test_an_unusual_request_is_taken(
    door: Door, neighbour: wald.Producer, data: bytes, records: int
):
    before = neighbour.append("s", b"before").lsn
    with door.peer() as peer:
        peer.hello()
        peer.send(request(data))
        ack = peer.next()
        assert isinstance(ack, Ack)
        assert (ack.first, ack.through) == (1, 1)
    assert neighbour.append("s", b"behind").lsn == before + records + 1


@contextmanager
def door_that_allows(**clients: float) -> Iterator[Door]:
    """A door with bounds of its own for connections."""
    with short_directory() as directory:
        door = Door(directory)
        door.settings = replace(door.settings, clients=ClientLimits(**cast("Any", clients)))
        with door:
            yield door


def test_a_client_that_never_reads_is_closed_and_stalls_nobody():
    with (
        door_that_allows(frame_timeout_s=1.0) as door,
        wald.connect(door.path) as neighbour,
        door.peer() as peer,
    ):
        peer.hello()
        ping = Ping(1, bytes(64)).encode() * 500
        peer.socket.settimeout(0)

        def send_for_ever() -> None:
            while True:
                neighbour.append("s", b"x")
                with contextlib.suppress(BlockingIOError):
                    peer.socket.send(ping)

        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_for_ever()


def test_answers_that_nobody_reads_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SEND_BUFFERS_MAX_BYTES", limits.MIB)
    with door_that_allows() as door, wald.connect(door.path) as neighbour, door.peer() as peer:
        neighbour.append("s", b"x")
        peer.hello()
        data = body([9, [b""] * 1_000, None, None, None])  # each record is refused, with words
        requests = [
            HEADER.pack(len(data), APPEND_KIND, 1, 1, number) + data for number in range(1, 201)
        ]

        def send_all() -> None:
            peer.send(*requests)
            while peer.socket.recv(1 << 20):  # what it was sent before the end
                neighbour.append("s", b"x")
            raise BrokenPipeError

        with pytest.raises(OSError, match=r"Broken pipe|reset|^$"):
            send_all()


def test_a_producer_beyond_the_bound_is_told_and_a_subscriber_gets_in():
    with door_that_allows(connections=2) as door, wald.connect(door.path) as neighbour:
        neighbour.ping()
        with door.peer() as second, door.peer() as peer, door.peer() as drainer:
            second.hello()
            peer.send(Hello(1).encode())
            (failed,) = peer.rest()
            assert isinstance(failed, Failed)
            assert (failed.code, failed.closing) == ("backpressure", True)
            assert failed.retry_after_ms > 0
            drainer.send(Hello(1, capabilities=Capability.FRONTIER).encode())
            assert isinstance(drainer.next(), Welcome)
            assert isinstance(drainer.next(), FrontierMoved)
        neighbour.ping()
        with wald.connect(door.path) as producer:  # the second has left: there is room for another
            producer.ping()


def test_subscribers_have_a_bound_of_their_own(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SUBSCRIBERS_MAX", 1)
    hello = Hello(1, capabilities=Capability.FRONTIER).encode()
    with door.peer() as first, door.peer() as second:
        first.send(hello)
        assert isinstance(first.next(), Welcome)
        second.send(hello)
        (failed,) = second.rest()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == ("backpressure", True)


def test_beyond_the_bound_of_connections_a_client_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(limits, "CONNECTIONS_SPARE_COUNT", 0)
    with door_that_allows(connections=1) as door, wald.connect(door.path) as neighbour:
        neighbour.ping()
        with door.peer() as peer:
            (failed,) = peer.rest()
            assert isinstance(failed, Failed)
            assert (failed.code, failed.closing) == ("backpressure", True)
            assert failed.retry_after_ms > 0
        neighbour.ping()


def test_beyond_the_budget_an_unfinished_frame_is_refused(
    door: Door, neighbour: wald.Producer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "LARGE_FRAMES_MAX_BYTES", limits.MIB)
    with door.peer() as peer, door.peer() as other:
        peer.hello()
        other.hello()
        head = HEADER.pack(900 * limits.KIB, APPEND_KIND, 1, 1, 1)
        peer.send(head)
        peer.send(Ping(1).encode()[:0])
        neighbour.append("s", b"x")  # the first is read by now
        other.send(head)
        failed = other.next()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == ("backpressure", True)
    with door.peer() as again:  # what the first had is given back
        again.hello()
        neighbour.append("s", b"x")
        again.send(head, bytes(900 * limits.KIB))
        assert isinstance(again.next(), RefusedRecords)


@pytest.mark.parametrize(("sent", "bound"), [(b"", "hello_timeout_s"), (b"\0", "frame_timeout_s")])
def test_a_slow_client_is_closed(sent: bytes, bound: str):
    with door_that_allows(**{bound: 0.5}) as door, door.peer() as peer:
        if sent:
            peer.hello()
            peer.send(sent)
        (failed,) = peer.rest()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == ("frame.slow", True)


def test_a_client_that_says_nothing_is_sent_home_and_comes_back_unharmed():
    with door_that_allows(idle_s=1.0, frame_timeout_s=0.5) as door, door.peer() as peer:
        peer.hello()
        with wald.connect(door.path) as producer:
            before = producer.append("s", b"x")
            session = producer.session
            assert peer.rest() == [Goodbye()]
            assert producer.append("s", b"y").lsn == before.lsn + 1
            assert producer.session.session_id == session.session_id


def test_a_frame_is_timed_from_its_own_first_byte_and_not_from_the_frame_before():
    with short_directory() as directory:
        log = Log.open(PosixFileSystem(), str(directory / "d"), SystemClock(), random.Random(1))
        try:
            asyncio.run(begin_a_frame_after_a_long_silence(log))
        finally:
            log.close()


async def begin_a_frame_after_a_long_silence(log: Log) -> None:
    loop = asyncio.get_running_loop()
    committer: Committer[Connection] = Committer(loop, log, lambda: None, lambda _: None)
    settings = Settings("", "", sinks={})
    house = House(log, settings, committer, SystemClock(), random.Random(1), lambda: None)

    async def greeted() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        await loop.connect_accepted_socket(lambda: Connection(house), theirs)
        await loop.sock_sendall(ours, Hello(1).encode())
        assert len(await loop.sock_recv(ours, 1_000)) == HEADER_BYTES + 72
        return ours

    with await greeted() as peer:
        for _ in range(100):
            house.tick()
        ping = Ping(1, b"late").encode()
        await loop.sock_sendall(peer, ping[:1])
        (await greeted()).close()  # the loop has turned: the byte was read
        for _ in range(int(limits.FRAME_TIMEOUT_S)):
            house.tick()
        await loop.sock_sendall(peer, ping[1:])
        assert await loop.sock_recv(peer, 1_000) == events.Pong(1, b"late").encode()
        await loop.sock_sendall(peer, ping[:1])
        (await greeted()).close()
        for _ in range(int(limits.FRAME_TIMEOUT_S) + 1):
            house.tick()
        assert b"frame.slow" in await loop.sock_recv(peer, 1_000)
        assert await loop.sock_recv(peer, 1_000) == b""


def test_the_log_of_the_daemon_shows_no_control_characters(
    door: Door, caplog: pytest.LogCaptureFixture
):
    with door.peer() as peer:
        peer.hello()
        peer.send(OpenStream(3, "a\x1b[31m\n").encode(), Hello(2, "b\x07").encode())
        peer.rest()
    assert "\x1b" not in caplog.text
    assert "\x07" not in caplog.text


def test_the_directory_of_the_log_is_private(door: Door):
    assert Path(door.data_dir).stat().st_mode & 0o077 == 0
