"""The asynchronous producer when something fails: a daemon that hangs, ends, or is not there."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, short_directory
from wald.core.events import (
    Ack,
    Append,
    Event,
    Failed,
    FrameType,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    StreamOpened,
    Throttle,
    Welcome,
)
from wald.core.wire import FrameReader, Side

SOON_S = 0.1


@pytest.fixture
def path() -> Iterator[str]:
    with short_directory() as directory:
        yield str(directory / "i")


class Peer:
    """One connection to a daemon made of frames, in the event loop of its client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(Side.DAEMON)

    async def next(self) -> Event | None:
        """The next event; None at the end."""
        while (event := self._frames.next_event()) is None:
            try:
                data = await self._reader.read(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._frames.receive_data(data)
        return event

    def say(self, *answers: Any) -> None:
        """Send some frames."""
        self._writer.write(b"".join(each.encode() for each in answers))

    def hang_up(self) -> None:
        """End it."""
        self._writer.close()

    async def greet(self, last: int = 0) -> None:
        """Answer a HELLO, if one comes."""
        hello = await self.next()
        if hello is None:
            return
        assert isinstance(hello, Hello)
        self.say(Welcome(hello.request, 5, last, bytes(16)))


Script = Callable[[Peer], Coroutine[Any, Any, None]]


@asynccontextmanager
async def daemon(path: str, *scripts: Script) -> AsyncIterator[None]:
    """Play one script for each connection; those that came have ended when this does."""
    left = list(scripts)
    playing: list[asyncio.Future[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        playing.append(asyncio.ensure_future(left.pop(0)(peer)))
        try:
            await asyncio.wait(playing[-1:])
        finally:
            peer.hang_up()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
        await asyncio.gather(*playing)
    finally:
        server.close()
        await server.wait_closed()


async def answering(peer: Peer) -> None:
    """Answer all, and store all."""
    await peer.greet()
    await going_on(peer)


async def going_on(peer: Peer) -> None:
    while (event := await peer.next()) is not None:
        match event:
            case OpenStream():
                peer.say(StreamOpened(event.request, 7))
            case Append():
                peer.say(Ack(event.sequence, event.sequence, event.sequence, event.sequence))
            case Ping():
                peer.say(Pong(event.request))
            case Goodbye():
                return
            case _:
                pytest.fail(f"unexpected: {event}")


async def silent(peer: Peer) -> None:
    """Greet, and answer nothing at all."""
    await peer.greet()
    while await peer.next() is not None:
        pass


async def mute(peer: Peer) -> None:
    """Do not even greet."""
    while await peer.next() is not None:
        pass


def played(main: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await main

    asyncio.run(within())


# --- the daemon hangs ---------------------------------------------------------------------------


def test_each_call_ends_within_its_time_when_the_daemon_hangs(path: str):
    async def main() -> None:
        async with daemon(path, silent):
            producer = wald.connect_async(path, timeout=SOON_S)
            assert (await producer.session()).last_sequence == 0
            for call in (producer.ping(), producer.append("s", b"1"), producer.submit("s", b"1")):
                with pytest.raises(wald.Unavailable, match="did not answer within"):
                    await call
            with pytest.raises(wald.Unavailable):
                await producer.append_many("s", [b"1"])
            await producer.close()

    played(main())


def test_what_was_sent_and_not_answered_is_told_as_such(path: str, caplog: Any):
    async def opening(peer: Peer) -> None:
        await peer.greet()
        asked = await peer.next()
        assert isinstance(asked, OpenStream)
        peer.say(StreamOpened(asked.request, 7))
        while await peer.next() is not None:
            pass

    async def main() -> None:
        async with daemon(path, opening):
            producer = wald.connect_async(path, timeout=SOON_S)
            pending = await producer.submit("s", b"0", timeout=DEADLINE_S)
            with pytest.raises(wald.OutcomeUnknown):
                await pending
            with pytest.raises(wald.OutcomeUnknown) as unknown:
                await producer.append("s", b"1")
            with pytest.raises(wald.OutcomeUnknown):
                await producer.settle(unknown.value)
            with pytest.raises(wald.OutcomeUnknown):
                await producer.append_many("s", [b"2", b"3"])
            with pytest.raises(wald.WaitTimeout, match="4 records are unanswered"):
                await producer.flush()
            with caplog.at_level(logging.WARNING, "wald"):
                await producer.close(SOON_S)
            assert "closed with 4 submitted records unanswered" in caplog.text
            with pytest.raises(wald.OutcomeUnknown):
                await pending

    played(main())


def test_a_connection_that_is_not_greeted_is_given_up_when_the_producer_is_closed(path: str):
    async def main() -> None:
        greeted = asyncio.Event()

        async def hung(peer: Peer) -> None:
            assert isinstance(await peer.next(), Hello)
            greeted.set()
            assert await peer.next() is None  # it ends, though nobody answers it

        async with daemon(path, hung):
            producer = wald.connect_async(path, timeout=DEADLINE_S)
            waiting = asyncio.ensure_future(producer.append("s", b"1"))
            await greeted.wait()
            await producer.close(SOON_S)
            with pytest.raises(wald.Closed):
                await waiting

    played(main())


def test_a_welcome_that_comes_as_the_producer_is_closed_leaves_no_connection(path: str):
    async def main() -> None:
        greeted = asyncio.Event()

        async def late(peer: Peer) -> None:
            hello = await peer.next()
            assert isinstance(hello, Hello)
            peer.say(Welcome(hello.request, 5, 0, bytes(16)))
            greeted.set()
            assert await peer.next() is None

        async with daemon(path, late):
            producer = wald.connect_async(path, timeout=DEADLINE_S)
            waiting = asyncio.ensure_future(producer.append("s", b"1"))
            await greeted.wait()
            await producer.close(0)
            with pytest.raises(wald.Closed):
                await waiting

    played(main())


# --- the daemon ends ----------------------------------------------------------------------------


def test_a_daemon_that_dies_at_each_step_costs_time_and_nothing_else(path: str):
    async def dies_before_a_welcome(peer: Peer) -> None:
        await peer.next()

    async def dies_before_the_stream(peer: Peer) -> None:
        await peer.greet()
        assert isinstance(await peer.next(), OpenStream)

    async def dies_before_the_answer(peer: Peer) -> None:
        await peer.greet()
        while isinstance(event := await peer.next(), OpenStream):
            peer.say(StreamOpened(event.request, 7))
        assert isinstance(event, Append)

    async def main() -> None:
        scripts = (
            dies_before_a_welcome, dies_before_the_stream, dies_before_the_answer, answering,
        )  # fmt: skip
        async with daemon(path, *scripts), wald.connect_async(path) as producer:
            tasks = [asyncio.ensure_future(producer.append("s", b"%d" % n)) for n in range(50)]
            assert {each.lsn for each in await asyncio.gather(*tasks)} <= set(range(1, 51))

    played(main())


def test_a_stream_that_is_gone_after_a_restart_refuses_what_was_gathered(path: str):
    async def full(peer: Peer) -> None:
        hello = await peer.next()
        assert isinstance(hello, Hello)
        peer.say(Welcome(hello.request, 5, 0, bytes(16), window=1))
        asked = await peer.next()
        assert isinstance(asked, OpenStream)
        peer.say(StreamOpened(asked.request, 7))
        assert isinstance(await peer.next(), Append)  # which leaves no room for the next

    async def forgetful(peer: Peer) -> None:
        hello = await peer.next()
        assert isinstance(hello, Hello)
        peer.say(Welcome(hello.request, 5, 0, b"another log's id"))
        while (event := await peer.next()) is not None:
            if isinstance(event, Append):
                peer.say(Ack(1, 1, 1, 1))
            if isinstance(event, OpenStream):
                opening, number = FrameType.OPEN_STREAM, event.request
                peer.say(Failed("unknown-stream", "gone", answers=opening, request=number))

    async def main() -> None:
        async with daemon(path, full, forgetful), wald.connect_async(path) as producer:
            pendings = [await producer.submit("s", b"%d" % n) for n in range(150)]
            assert [each.was_sent for each in pendings] == [True] * 128 + [False] * 22
            assert (await pendings[0]).lsn == 1
            for each in pendings[128:]:
                with pytest.raises(wald.UnknownStream, match="gone"):
                    await each

    played(main())


def test_no_daemon_and_a_path_that_is_none(path: str):
    async def main() -> None:
        for wrong, said in ((path, "no daemon answers"), ("/" + "x" * 120, "at most 107 bytes")):
            producer = wald.connect_async(wrong)
            for call in (producer.append("s", b"1"), producer.submit("s", b"1"), producer.ping()):
                with pytest.raises(wald.Unavailable, match=said):
                    await call
            with pytest.raises(wald.Unavailable):
                await producer.status(1)
            await producer.close()

    played(main())


def test_however_many_wait_for_a_daemon_one_of_them_tries(
    path: str, monkeypatch: pytest.MonkeyPatch
):
    tries: list[float] = []

    def move(*, back: bool = False) -> None:
        here, aside = Path(path), Path(path + "-")
        (aside if back else here).rename(here if back else aside)

    async def again(peer: Peer) -> None:
        await peer.greet(last=1)
        await going_on(peer)

    async def main() -> None:
        async with daemon(path, answering, again):
            producer = wald.connect_async(path)
            await producer.append("s", b"1")
            loop = asyncio.get_running_loop()
            producer._session._link.end()  # type: ignore[union-attr]
            move()
            connect = loop.create_unix_connection

            async def counted(*given: Any, **options: Any) -> Any:
                tries.append(loop.time())
                if len(tries) == 8:
                    move(back=True)
                return await connect(*given, **options)

            monkeypatch.setattr(loop, "create_unix_connection", counted)
            many = [asyncio.ensure_future(producer.append("s", b"m")) for _ in range(500)]
            late = asyncio.ensure_future(producer.append("s", b"late", timeout=SOON_S))
            with pytest.raises(wald.Unavailable, match="No such file"):
                await late
            await asyncio.gather(*many)
            await producer.close()

    played(main())
    assert len(tries) == 8
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses[-1] > 0.2  # they grow, as for one


# --- tasks are cancelled ------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(12))
def test_who_is_cancelled_at_any_step_leaves_the_others_in_step(path: str, turns: int):
    async def main() -> None:
        connections = 0

        async def counted(peer: Peer) -> None:
            nonlocal connections
            connections += 1
            await answering(peer)

        async with daemon(path, counted, counted), wald.connect_async(path) as producer:
            first = asyncio.ensure_future(producer.append("s", b"1"))
            others = [asyncio.ensure_future(producer.append("s", b"o")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            receipts = await asyncio.gather(*others, first, return_exceptions=True)
            assert all(isinstance(each, wald.Receipt) for each in receipts[:3])
            assert isinstance(receipts[3], wald.Receipt | asyncio.CancelledError)
            assert (await producer.append("s", b"2")).lsn >= 2
        assert 1 <= connections <= 2

    played(main())


# --- room ---------------------------------------------------------------------------------------


def test_a_pause_that_the_daemon_asks_for_is_taken_and_told(path: str):
    async def asks_for_a_pause(peer: Peer) -> None:
        await peer.greet()
        asked = await peer.next()
        assert isinstance(asked, OpenStream)
        peer.say(StreamOpened(asked.request, 7))
        for pause_ms in (20, 60_000):
            event = await peer.next()
            assert isinstance(event, Append)
            at = event.sequence
            peer.say(Throttle(7, pause_ms, 900), Ack(at, at, at, at))
        await going_on(peer)

    async def main() -> None:
        told: list[tuple[str, float]] = []
        async with daemon(path, asks_for_a_pause):
            producer = wald.connect_async(
                path, on_throttle=lambda stream, pause_s: told.append((stream, pause_s))
            )
            await producer.append("s", b"1")
            await producer.append("s", b"2")  # behind a pause of 20 ms
            assert [stream for stream, _ in told] == ["s"]
            assert 0 < told[0][1] <= 0.02
            for call in (
                producer.append("s", b"3", timeout=SOON_S),
                producer.submit("s", b"3", timeout=SOON_S),
                producer.append_many("s", [b"3"], timeout=SOON_S),
                producer.append("s", b"3", timeout=SOON_S, ack="received"),
            ):
                with pytest.raises(wald.Backpressure) as refused:
                    await call
                assert refused.value.retry_after_s > 50
            assert (await producer.append("s", b"urgent", urgent=True)).lsn == 3
            await producer.close()

    played(main())


# --- where a record is --------------------------------------------------------------------------


@asynccontextmanager
async def control(path: str, answer: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[None]:
    """A control socket that does as it is told with each question."""
    serving: list[asyncio.Future[None]] = []

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            answer(writer)
        writer.close()
        await writer.wait_closed()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(answered(reader, writer)))

    server = await asyncio.start_unix_server(serve, path + ".ctl")
    yield
    await asyncio.gather(*serving)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("waits", [False, True], ids=["status", "wait"])
def test_a_close_ends_a_question_and_asks_it_no_more(path: str, *, waits: bool):
    async def main() -> None:
        asked = asyncio.Event()
        questions = 0

        def count(_: asyncio.StreamWriter) -> None:
            nonlocal questions
            questions += 1
            asked.set()

        async with control(path, count):
            producer = wald.connect_async(path)
            receipt = wald.Receipt("s", 1, "durable", 1)
            task = asyncio.ensure_future(producer.wait(receipt) if waits else producer.status(1))
            await asked.wait()
            await producer.close()
            with pytest.raises(wald.Closed):
                await task
        assert questions == 1

    played(main())


def test_who_is_cancelled_over_a_question_leaves_no_answer_to_the_next(path: str):
    async def main() -> None:
        asked = asyncio.Event()
        waiting: list[asyncio.StreamWriter] = []

        def late(writer: asyncio.StreamWriter) -> None:
            said = {"ok": True, "lsn": len(waiting), "stream": "s", "durable_ns": 1, "trace": ""}
            waiting.append(writer)
            if len(waiting) > 1:
                writer.write(json.dumps({**said, "routes": {}}).encode() + b"\n")
            asked.set()

        async with control(path, late), wald.connect_async(path) as producer:
            task = asyncio.ensure_future(producer.status(7))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await producer.status(1)).lsn == 1
            assert waiting[0] is not waiting[1]  # over a connection of its own

    played(main())
