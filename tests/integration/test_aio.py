"""The asynchronous producer: tasks, cancelling, restarts, fork. What it shares with the blocking
one is in test_producers.py."""

import asyncio
import contextlib
import inspect
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import wald
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from tests.impostor import Impostor, answered_by
from wald import limits
from wald.client import aio_session
from wald.core.events import Ack, Append, ErrorFlag, Failed, OpenStream, StreamOpened
from wald.errors import BadFrame

ROOT = Path(__file__).parents[2]


@pytest.fixture
def door() -> Iterator[Door]:
    with short_directory() as directory, Door(directory) as opened:
        yield opened


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    with short_directory() as directory:
        made = Impostor(directory)
        yield made
        made.listening.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_thousand_tasks_append_and_share_requests(door: Door, loop):
    async def main() -> None:
        async with wald.connect_async(door.path) as producer:
            await producer.append("s", b"first")
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(producer.append("s", b"%d" % n, key=str(n % 7)))
                    for n in range(1_000)
                ]
            assert [each.result().lsn for each in tasks] == list(range(2, 1_002))
            assert (await producer.session()).last_sequence < 30

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert door.stored_values() == [b"first", *(b"%d" % n for n in range(1_000))]


def test_what_was_submitted_goes_out_though_nobody_asks(door: Door):
    async def main() -> None:
        producer = wald.connect_async(door.path)
        pendings = [await producer.submit("s", b"%d" % n) for n in range(10)]
        await asyncio.sleep(0)  # the turn ends
        with wald.connect(door.path) as other:
            assert other.append("other", b"x").durable_lsn == 11
        assert not any(each.done() for each in pendings)
        assert min([(await each).lsn for each in pendings]) in (1, 2)
        assert all(each.done() for each in pendings)
        await producer.close()

    asyncio.run(main())


def test_cancelled_tasks_leave_everything_in_step(door: Door):
    chance = random.Random(5)
    kept: dict[bytes, int] = {}

    async def one(producer: wald.AsyncProducer, value: bytes) -> None:
        kept[value] = (await producer.append("s", value)).lsn

    async def main() -> None:
        async with wald.connect_async(door.path) as producer:
            for round_no in range(40):
                tasks = [
                    asyncio.get_running_loop().create_task(one(producer, b"%d-%d" % (round_no, n)))
                    for n in range(20)
                ]
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                for task in tasks:
                    if chance.random() < 0.5:
                        task.cancel()
                await asyncio.wait(tasks)
            await producer.append("s", b"last")

    asyncio.run(main())
    values = door.stored_values()
    assert len(values) == len(set(values))
    assert {value: values[lsn - 1] for value, lsn in kept.items()} == {v: v for v in kept}
    assert len(kept) > 100
    assert values[-1] == b"last"


def test_a_connection_that_is_cancelled_half_way_is_made_anew(impostor: Impostor):
    met = threading.Event()
    go = threading.Event()

    def script() -> None:
        connection, _ = impostor.listening.accept()
        with connection:
            impostor.read(connection)  # its HELLO: not answered
            met.set()
            go.wait(DEADLINE_S)
            assert impostor.read(connection) is None
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    connection.sendall(Ack(event.sequence, event.sequence, 1, 1).encode())

    thread = answered_by(script)

    async def main() -> None:
        async with wald.connect_async(impostor.path) as producer:
            task = asyncio.get_running_loop().create_task(producer.append("s", b"x"))
            await asyncio.to_thread(met.wait, DEADLINE_S)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            go.set()
            assert (await producer.append("s", b"y")).lsn == 1

    asyncio.run(main())
    thread.join(DEADLINE_S)


def test_restarts_while_tasks_append_are_invisible(door: Door):
    async def produce(producer: wald.AsyncProducer, done: asyncio.Event) -> list[int]:
        lsns: list[int] = []
        while not done.is_set():
            lsns.append((await producer.append("s", b"x")).lsn)
        return lsns

    async def main() -> list[int]:
        done = asyncio.Event()
        async with wald.connect_async(door.path) as producer, asyncio.TaskGroup() as group:
            tasks = [group.create_task(produce(producer, done)) for _ in range(8)]
            for _ in range(4):
                await asyncio.to_thread(door.stop)
                await asyncio.to_thread(door.start)
            done.set()
        return [lsn for each in tasks for lsn in each.result()]

    lsns = asyncio.run(main())
    assert sorted(lsns) == list(range(1, len(lsns) + 1))
    assert len(door.stored_values()) == len(lsns)


def test_what_breaks_the_protocol_fails_all_that_wait_at_once(impostor: Impostor):
    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                elif isinstance(event, Append) and event.sequence == 1:
                    connection.sendall(Ack(1, 1, 1, 1).encode())
                elif isinstance(event, Append):
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return

    thread = answered_by(script)

    async def main() -> None:
        producer = wald.connect_async(impostor.path)
        await producer.append("s", b"first")
        found = await asyncio.wait_for(
            asyncio.gather(
                *(producer.append("s", b"x") for _ in range(20)), return_exceptions=True
            ),
            DEADLINE_S,
        )
        assert {type(each) for each in found} == {BadFrame}
        await producer.close(timeout=0.05)

    asyncio.run(main())
    thread.join(DEADLINE_S)


def test_answers_that_come_too_late_are_not_kept(door: Door):
    async def main() -> None:
        async with wald.connect_async(door.path) as producer:
            await producer.append("s", b"first")
            for _ in range(20):
                ping = asyncio.ensure_future(producer.ping())
                await asyncio.sleep(0)
                ping.cancel()
            await producer.ping()
            assert not producer._session._dialogue._answers
            assert not producer._session._dialogue._asked

    asyncio.run(main())


def test_who_is_fenced_is_told_at_once_in_all_tasks(impostor: Impostor):
    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                elif isinstance(event, Append):
                    fenced = Failed("fenced", "taken", flags=ErrorFlag.CLOSING)
                    connection.sendall(fenced.encode())
                    break
            # the client hangs up: one that meets the end as it writes reads no last words
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 16):
                    pass

    thread = answered_by(script)

    async def main() -> None:
        producer = wald.connect_async(impostor.path, timeout=DEADLINE_S)
        tasks = (producer.append(name, b"x") for name in ("s", "s", "other"))
        found = await asyncio.wait_for(
            asyncio.gather(*tasks, return_exceptions=True), DEADLINE_S / 2
        )
        assert {type(each) for each in found} == {wald.Fenced}
        await producer.close(timeout=0.05)

    asyncio.run(main())
    thread.join(DEADLINE_S)


def test_tasks_wait_for_room_and_none_is_forgotten(door: Door):
    async def main() -> None:
        async with wald.connect_async(door.path) as producer:
            large = bytes(limits.RECORD_MAX_BYTES // 2)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(producer.append("s", large)) for _ in range(60)]
                await asyncio.sleep(0)
                for task in tasks[::3]:
                    task.cancel()
            assert all(task.cancelled() or task.result().lsn for task in tasks)

    asyncio.run(main())


def test_who_is_cancelled_as_room_comes_gives_its_place_to_the_next(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(aio_session, "_WOKEN", 1)
    answer = threading.Event()

    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    answer.wait(DEADLINE_S)
                    connection.sendall(Ack(event.sequence, event.sequence, 1, 1).encode())

    thread = answered_by(script)

    async def main() -> None:
        async with wald.connect_async(impostor.path) as producer:
            session = producer._session
            session.outbox._window = 1
            first = await producer.submit("s", b"1")
            await asyncio.sleep(0)
            session.outbox._window = 1  # WELCOME has said another one
            loop = asyncio.get_running_loop()
            waits = [loop.create_task(producer.append_many("s", [b"x"])) for _ in range(3)]
            await asyncio.sleep(0)
            assert len(session._for_room) == 3
            session._wake_for_room = wake = CancelsOnce(session._wake_for_room, waits[0])  # type: ignore[method-assign]
            answer.set()
            assert (await first).lsn == 1
            done, _ = await asyncio.wait(waits, timeout=DEADLINE_S)
            assert len(done) == 3
            assert wake.cancelled
            assert [task.cancelled() for task in waits] == [True, False, False]
            assert [len(task.result().accepted) for task in waits[1:]] == [1, 1]

    asyncio.run(main())
    thread.join(DEADLINE_S)


class CancelsOnce:
    """Wakes, and cancels a task in the same turn, once."""

    def __init__(self, wake: Callable[[], None], task: "asyncio.Task[Any]") -> None:
        self._wake = wake
        self._task = task
        self.cancelled = False

    def __call__(self) -> None:
        self._wake()
        if not self.cancelled:
            self.cancelled = self._task.cancel()


def test_a_producer_belongs_to_one_loop(door: Door):
    producer = wald.connect_async(door.path)

    async def use() -> None:
        await producer.append("s", b"x")

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        with pytest.raises(wald.WaldError, match="event loop"):
            second.run(use())
        first.run(producer.close())


_FORKS = """
import asyncio, os, sys, wald

async def child(producer, pendings):
    ok = all(each.done() for each in pendings)
    try:
        await pendings[-1]
        ok = False
    except wald.NotOurs:
        pass
    await producer.append("s", b"child")
    await producer.close()
    return ok

def sockets():
    # the open ones, by inode
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    return {each for each in found if each.startswith("socket:")}

async def main():
    before = sockets()
    producer = wald.connect_async(sys.argv[1])
    await producer.append("s", b"parent")
    ours = sockets() - before
    assert len(ours) == 1
    pendings = [await producer.submit("s", b"%d" % n) for n in range(9)]
    pid = os.fork()
    if pid == 0:
        if ours & sockets():
            os._exit(7)  # the parent's connection would outlive it
        asyncio._set_running_loop(None)
        os._exit(0 if asyncio.new_event_loop().run_until_complete(child(producer, pendings)) else 1)
    _, status = os.waitpid(pid, 0)
    assert [(await each).stream for each in pendings] == ["s"] * 9
    await producer.close()
    return os.waitstatus_to_exitcode(status)

sys.exit(asyncio.run(main()))
"""


def test_a_fork_leaves_loop_and_records_to_the_parent(door: Door):
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, door.path],
        cwd=ROOT,
        timeout=DEADLINE_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(door.stored_values()) == sorted(
        [b"child", b"parent", *(b"%d" % n for n in range(9))]
    )


def test_both_colours_have_the_same_names_and_parameters():
    for twin, one in (
        (wald.AsyncProducer, wald.Producer),
        (wald.AsyncPending, wald.Pending),
        (wald.AsyncStream, wald.Stream),
    ):
        names = {name for name in dir(one) if not name.startswith("_")}
        assert names - {"append_request"} == {n for n in dir(twin) if not n.startswith("_")}
        for name in names - {"append_request"}:
            ours, theirs = getattr(twin, name), getattr(one, name)
            if inspect.isfunction(theirs):
                assert parameters(ours) == parameters(theirs), name
    assert parameters(wald.connect_async) == parameters(wald.connect)


def parameters(function: object) -> list[tuple[str, object, object]]:
    said = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(each.name, each.kind, each.default) for each in said]
