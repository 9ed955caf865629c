"""Threads that share a producer: each waits as long as it said, whatever holds the others up."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, short_directory
from tests.impostor import Impostor, answered_by
from wald.client.driver import Driver
from wald.client.link import Link
from wald.core import body as bodies
from wald.core.events import Ack, Append, Goodbye, OpenStream, StreamOpened

SOON_S = 0.2
LARGE = bytes((1 << 20) - 100)  # more than a socket takes


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    with short_directory() as directory:
        made = Impostor(directory)
        yield made
        made.listening.close()


class Caller:
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.came: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.came = self._call()
        except wald.WaldError as error:
            self.came = error

    def result(self) -> Any:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.came


def within_its_time(call: Callable[[], object], error: type[Exception]) -> None:
    began = time.monotonic()
    with pytest.raises(error):
        call()
    assert time.monotonic() - began < DEADLINE_S / 4  # and not as long as the other thread


def opened(impostor: Impostor, connection: socket.socket) -> None:
    asked = impostor.read(connection)
    assert isinstance(asked, OpenStream)
    connection.sendall(StreamOpened(asked.request, 7).encode())


def test_a_greeting_that_does_not_come_holds_up_only_who_asked_for_it(impostor: Impostor):
    producer = wald.connect(impostor.path, timeout=DEADLINE_S)
    first = Caller(lambda: producer.append("s", b"1"))
    connection, _ = impostor.listening.accept()  # and no word from it
    within_its_time(lambda: producer.append("s", b"2", timeout=SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.submit("s", b"3", timeout=SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.ping(SOON_S), wald.Unavailable)
    producer.flush(SOON_S)  # nothing is on its way
    connection.close()

    def answer() -> None:
        with impostor.accept() as again:
            opened(impostor, again)
            assert isinstance(impostor.read(again), Append)
            again.sendall(Ack(1, 1, 1, 1).encode())
            assert isinstance(impostor.read(again), Goodbye)

    script = answered_by(answer)
    assert first.result() == wald.Receipt("s", 1, "durable", 1)
    producer.close()
    script.join(DEADLINE_S)


def test_a_close_does_not_wait_for_who_connects(impostor: Impostor):
    producer = wald.connect(impostor.path, timeout=DEADLINE_S)
    first = Caller(lambda: producer.append("s", b"1"))
    connection, _ = impostor.listening.accept()
    assert connection.recv(1 << 16)  # the greeting, and no answer to it
    began = time.monotonic()
    producer.close(DEADLINE_S)
    assert isinstance(first.result(), wald.Closed)
    assert time.monotonic() - began < DEADLINE_S / 4
    assert connection.recv(1) == b""
    connection.close()


class Slow:
    """A daemon that has read nothing yet of a request that is too large for the socket."""

    def __init__(self, impostor: Impostor) -> None:
        self.producer = wald.connect(impostor.path, timeout=DEADLINE_S)
        greeted = answered_by(lambda: setattr(self, "connection", impostor.accept()))
        opening = Caller(lambda: self.producer.submit("s", b"0"))
        greeted.join(DEADLINE_S)
        self.connection: socket.socket
        opened(impostor, self.connection)
        self.pending = opening.result()
        assert isinstance(impostor.read(self.connection), Append)
        self.large = Caller(lambda: self.producer.append("s", LARGE))
        assert self.connection.recv(1, socket.MSG_PEEK)  # it began, and cannot end


def test_a_request_that_does_not_go_out_holds_up_no_other_thread(impostor: Impostor):
    slow = Slow(impostor)
    producer = slow.producer
    within_its_time(lambda: producer.append("s", b"2", timeout=SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.submit("s", b"3", timeout=SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.append_many("s", [b"4"], timeout=SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.ping(SOON_S), wald.Unavailable)
    within_its_time(lambda: producer.flush(SOON_S), wald.WaitTimeout)
    within_its_time(lambda: slow.pending.result(SOON_S), wald.OutcomeUnknown)
    assert not slow.pending.done()
    values: list[bytes] = []

    def answer() -> None:
        slow.connection.sendall(Ack(1, 1, 1, 1).encode())
        for event in impostor.reader(slow.connection):
            if isinstance(event, Append):
                values.extend(bodies.decode(event.body).values)
                at = event.sequence
                slow.connection.sendall(Ack(at, at, at, at).encode())

    script = answered_by(answer)
    assert slow.large.result().lsn == 2
    assert producer.append("s", b"5").lsn == 3
    assert slow.pending.result().lsn == 1
    producer.close()
    script.join(DEADLINE_S)
    slow.connection.close()
    assert values == [LARGE, b"5"]  # whole, and in order


def test_a_connection_that_ends_meanwhile_is_made_anew(impostor: Impostor):
    slow = Slow(impostor)
    waiting = Caller(slow.pending.result)
    slow.connection.close()

    def answer() -> None:
        with impostor.accept() as again:
            for event in impostor.reader(again):
                if isinstance(event, Append):
                    at = event.sequence
                    again.sendall(Ack(at, at, at, at).encode())

    script = answered_by(answer)
    assert slow.large.result().lsn == 2
    assert waiting.result().lsn == 1
    slow.producer.close()
    script.join(DEADLINE_S)


class Interrupted:
    """A lock of a thread that Ctrl-C meets once, in or right behind a call of it.

    Python runs a handler when a call returns, and where it waits for a lock.
    """

    def __init__(self, lock: Any, call: str, *, before: bool) -> None:
        self._lock, self._call, self._before = lock, call, before
        self._is_owned = lock._is_owned

    def _meet(self, call: str) -> None:
        before, action = self._before, getattr(self._lock, call)
        if call != self._call:
            action()
            return
        self._call = ""
        if not before:
            action()
        raise KeyboardInterrupt

    def release(self) -> None:
        self._meet("release")

    def acquire(self) -> None:
        self._meet("acquire")

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize(
    ("call", "before"),
    [("release", True), ("release", False), ("acquire", True), ("acquire", False)],
    ids=["before it lets go", "behind it", "as it comes back", "behind that"],
)
@pytest.mark.parametrize("reads", [False, True], ids=["connecting", "reading"])
def test_a_producer_is_of_use_after_an_interrupt_wherever_it_came(
    call: str, *, before: bool, reads: bool
):
    driver = Driver("unused", "", patient=False, chance=Random(1))
    lock = driver._lock
    driver._lock = Interrupted(lock, call, before=before)  # type: ignore[assignment]
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    def wait() -> None:
        with driver._turn():
            if reads:
                driver._read(Link(ours), DEADLINE_S)
            else:
                driver._let_go(lambda: None)

    with ours, theirs:
        theirs.sendall(b"something to read")
        with pytest.raises(KeyboardInterrupt):
            wait()
    driver._lock = lock
    assert (driver._reading, driver._busy) == (0, 0)
    assert Caller(lambda: lock.acquire(blocking=False)).result()  # nobody has it
