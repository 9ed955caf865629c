"""Ack level ``received``: answered before the flush, lost by a kill, and what a client skips."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, Peer, short_directory
from tests.impostor import Impostor, answered_by
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    Ack,
    Append,
    AppendFlag,
    Capability,
    ErrorFlag,
    Failed,
    FrameType,
    Goodbye,
    Hello,
    OpenStream,
    Received,
    RefusedRecords,
    Skip,
    StreamOpened,
    Welcome,
)
from wald.errors import InputError

RECEIVED = Capability.RECEIVED


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def door(directory: Path) -> Iterator[Door]:
    with Door(directory) as opened:
        yield opened


def greeted(peer: Peer, session: int = 0) -> Welcome:
    peer.send(Hello(1, "", session, RECEIVED).encode())
    welcome = peer.next()
    assert isinstance(welcome, Welcome), welcome
    assert welcome.capabilities == RECEIVED
    return welcome


def request(stream: int, sequence: int, *values: object, received: bool = True) -> bytes:
    body = bodies.encode(Body(0, list(values)))  # type: ignore[arg-type]
    flags = AppendFlag.RECEIVED if received else 0
    return Append(stream, sequence, 1, body, flags).encode()


def test_a_request_is_answered_as_received_and_again_once_it_is_durable(door: Door):
    with door.peer() as peer:
        greeted(peer)
        stream = peer.open()
        peer.send(request(stream, 1, b"a"), request(stream, 2, b"b"))
        assert peer.next() == Received(2)
        ack = peer.next()
        assert isinstance(ack, Ack)
        assert (ack.first, ack.through) == (1, 2)


def test_what_is_refused_is_told_before_received(door: Door):
    with door.peer() as peer:
        greeted(peer)
        stream = peer.open()
        peer.send(request(stream, 1, b"a", "no bytes", b"c"))
        refused, received, ack = peer.next(), peer.next(), peer.next()
        assert isinstance(refused, RefusedRecords)
        assert [each.record for each in refused.refusals] == [1]
        assert received == Received(1)
        assert isinstance(ack, Ack)
        peer.send(request(stream, 2, b"d", received=False))
        after = peer.next()
        assert isinstance(after, Ack)
        assert after.first_lsn == ack.first_lsn + 2


def test_levels_may_be_mixed_in_one_read_and_share_an_ack(door: Door):
    with door.peer() as peer:
        greeted(peer)
        stream = peer.open()
        levels = (True, True, False, False, True)
        sent = [request(stream, at, b"x", received=level) for at, level in enumerate(levels, 1)]
        peer.send(*sent)
        assert peer.next() == Received(5)
        ack = peer.next()
        assert isinstance(ack, Ack)
        assert (ack.first, ack.through) == (1, 5)


def test_who_leaves_in_the_same_breath_gets_its_ack_and_the_end(door: Door):
    with door.peer() as peer:
        greeted(peer)
        stream = peer.open()
        peer.send(request(stream, 1, b"a", 7, b"b"), Goodbye().encode())
        refused, ack, goodbye = peer.rest()
        assert isinstance(refused, RefusedRecords)
        assert isinstance(ack, Ack)
        assert goodbye == Goodbye()


def test_a_client_that_lost_what_was_received_skips_it_and_goes_on(door: Door):
    with door.peer() as peer:
        session = greeted(peer).session
        stream = peer.open()
        peer.send(request(stream, 1, b"a"))
        assert peer.next() == Received(1)
        assert isinstance(peer.next(), Ack)
    with door.peer() as peer:
        assert greeted(peer, session).last_sequence == 1  # 2 to 4 were received, and are lost
        peer.send(Skip(4).encode(), request(stream, 5, b"e"))
        assert peer.next() == Received(5)
        ack = peer.next()
        assert isinstance(ack, Ack)
        assert (ack.first, ack.through) == (5, 5)
        peer.send(Skip(4).encode(), request(stream, 3, b"c"), request(stream, 6, b"f"))
        unknown = peer.next()
        assert isinstance(unknown, Failed)
        assert (unknown.code, unknown.request) == ("outcome-unknown", 3)
        assert peer.next() == Received(6)
    door.stop()
    door.start()
    with door.peer() as peer:
        assert greeted(peer, session).last_sequence == 6
        peer.send(request(stream, 4, b"d"))
        unknown = peer.next()
        assert isinstance(unknown, Failed)
        assert (unknown.code, unknown.request) == ("outcome-unknown", 4)


def test_what_was_skipped_is_unknown_also_before_anything_followed(door: Door):
    with door.peer() as peer:
        greeted(peer)
        stream = peer.open()
        peer.send(Skip(2).encode(), request(stream, 1, b"a"), request(stream, 3, b"c"))
        unknown = peer.next()
        assert isinstance(unknown, Failed)
        assert (unknown.code, unknown.request) == ("outcome-unknown", 1)
        assert peer.next() == Received(3)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (Skip(257).encode(), "frame.malformed"),
        (Skip((1 << 64) - 1).encode(), "frame.malformed"),
    ],
)
def test_a_skip_beyond_the_window_closes_the_connection(door: Door, sent: bytes, code: str):
    with door.peer() as peer:
        greeted(peer)
        peer.send(sent)
        (failed,) = peer.rest()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == (code, True)


@pytest.mark.parametrize("level", ["received", "skip"])
def test_who_did_not_ask_for_the_level_is_closed(door: Door, level: str):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(request(stream, 1, b"a") if level == "received" else Skip(1).encode())
        (failed,) = peer.rest()
        assert isinstance(failed, Failed)
        assert failed.closing
        assert failed.code == ("protocol-mismatch" if level == "received" else "frame.unexpected")


# --- the producers ------------------------------------------------------------------------------


def test_a_producer_goes_on_as_soon_as_the_daemon_has_the_record(door: Door):
    with wald.connect(door.path) as producer:
        early = [producer.append("s", b"%d" % at, ack="received") for at in range(300)]
        assert {(each.level, each.lsn) for each in early} <= {("received", 0)} | {
            ("durable", each.lsn) for each in early
        }
        assert early[0].level == "received"
        last = producer.append("s", b"durable")
        assert last.lsn == 301  # all before it are stored, in order
        with pytest.raises(wald.RecordRefused):
            producer.append("s", object(), ack="received")
        with pytest.raises(InputError):
            producer.append_many("s", [1], ack="received")  # type: ignore[arg-type]


def test_what_was_received_is_sent_again_to_a_daemon_that_begins_anew(door: Door):
    with wald.connect(door.path) as producer:
        producer.append("s", b"first")
        producer.append("s", b"early", ack="received")
        door.stop()
        door.start()
        assert producer.append("s", b"last").lsn == 3


def resumed(impostor: Impostor, resent: list[Append]) -> None:
    """Say of a record that it is received, go, and hear what is sent to the next daemon."""
    with impostor.accept() as connection:
        for event in impostor.reader(connection):
            if isinstance(event, OpenStream):
                connection.sendall(StreamOpened(event.request, 1).encode())
            if isinstance(event, Append):
                connection.sendall(Received(event.sequence).encode())
                break
    with impostor.accept() as connection:
        for event in impostor.reader(connection):
            if isinstance(event, Append):
                resent.append(event)
                connection.sendall(Ack(event.sequence, event.sequence, 1, 1).encode())


@pytest.mark.parametrize("in_tasks", [False, True], ids=["blocking", "asynchronous"])
def test_a_close_waits_until_what_was_received_is_durable(directory: Path, *, in_tasks: bool):
    impostor, resent = Impostor(directory), list[Append]()
    thread = answered_by(lambda: resumed(impostor, resent))

    def append() -> None:
        with wald.connect(impostor.path) as producer:
            assert producer.append("s", b"early", ack="received").level == "received"

    async def append_in_a_task() -> None:
        async with wald.connect_async(impostor.path) as producer:
            assert (await producer.append("s", b"early", ack="received")).level == "received"

    asyncio.run(append_in_a_task()) if in_tasks else append()
    assert [event.sequence for event in resent] == [1]
    thread.join(DEADLINE_S)
    impostor.listening.close()


def test_what_was_received_and_found_no_room_is_told(directory: Path):
    impostor, gone_on = Impostor(directory), threading.Event()

    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    full = Failed(
                        "disk-full", "full", "", 1000, ErrorFlag.NOT_STORED, FrameType.APPEND, 1
                    )
                    connection.sendall(Received(event.sequence).encode())
                    gone_on.wait(DEADLINE_S)
                    connection.sendall(full.encode())

    thread = answered_by(script)
    with wald.connect(impostor.path) as producer:
        assert producer.append("s", b"early", ack="received").level == "received"
        gone_on.set()
        producer.flush()
        assert producer.session.lost_records == 1
    thread.join(DEADLINE_S)
    impostor.listening.close()


@pytest.mark.parametrize("in_tasks", [False, True], ids=["blocking", "asynchronous"])
def test_what_was_not_even_received_in_time_can_be_settled(directory: Path, *, in_tasks: bool):
    impostor, given_up = Impostor(directory), threading.Event()

    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    assert event.sequence == 1 or given_up.wait(DEADLINE_S)
                    connection.sendall(Received(event.sequence).encode())
                    connection.sendall(Ack(event.sequence, event.sequence, 7, 7).encode())

    def append() -> object:
        with wald.connect(impostor.path) as producer:
            producer.append("s", b"first")
            with pytest.raises(wald.OutcomeUnknown) as unknown:
                producer.append("s", b"early", ack="received", timeout=0.05)
            given_up.set()
            return producer.settle(unknown.value)

    async def append_in_a_task() -> object:
        async with wald.connect_async(impostor.path) as producer:
            await producer.append("s", b"first")
            with pytest.raises(wald.OutcomeUnknown) as unknown:
                await producer.append("s", b"early", ack="received", timeout=0.05)
            given_up.set()
            return await producer.settle(unknown.value)

    thread = answered_by(script)
    receipt = asyncio.run(append_in_a_task()) if in_tasks else append()
    assert receipt == wald.Receipt("s", 7, "durable", 7)
    thread.join(DEADLINE_S)
    impostor.listening.close()


def test_the_asynchronous_twin_goes_on_as_soon(door: Door):
    async def main() -> None:
        async with wald.connect_async(door.path) as producer:
            early = await producer.append("s", b"a", ack="received")
            assert early.level == "received"
            assert (await producer.append("s", b"b")).lsn == 2
            with pytest.raises(wald.RecordRefused):
                await producer.append("s", object(), ack="received")

    asyncio.run(main())
