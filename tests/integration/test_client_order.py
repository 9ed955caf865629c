"""Requests of one caller keep their order when one of them finds no room, or is interrupted."""

import contextlib
import fcntl
import random
import signal
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import wald
from tests.daemon import wait_until
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from wald.cli.records import Entry, Parsed
from wald.cli.sending import Sender
from wald.client.link import Deadline, Link
from wald.client.session import Session
from wald.core import body as bodies
from wald.core import frame
from wald.core.events import (
    Ack,
    Append,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    Hello,
    OpenStream,
    StreamOpened,
    Welcome,
)
from wald.core.frame import Section
from wald.core.wire import FrameReader, Side
from wald.model import Content
from wald.ports import File
from wald.storage.log import Log
from wald.storage.tail import TailReader
from wald.system import PosixFileSystem, SystemClock


class FullOnce:
    """A daemon made of frames that has no room for the appends that it takes at some turns."""

    retry_after_ms = 1

    def __init__(self, path: str, *, window: int, refuse_turns: frozenset[int]) -> None:
        self.path = path
        self.values: list[bytes] = []
        self._window = window
        self._refuse_turns = refuse_turns
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen(1)
        self._listening.settimeout(DEADLINE_S)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        self._listening.close()

    def _serve(self) -> None:
        self._expected, self._turn, self._refusing = 1, 0, False
        reader = FrameReader(Side.DAEMON)
        connection, _ = self._listening.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            while data := connection.recv(1 << 16):
                reader.receive_data(data)
                while (event := reader.next_event()) is not None:
                    with contextlib.suppress(BrokenPipeError):
                        connection.sendall(self._answer(event))

    def _answer(self, event: Event) -> bytes:
        match event:
            case Hello():
                return Welcome(event.request, 5, 0, bytes(16), window=self._window).encode()
            case OpenStream():
                return StreamOpened(event.request, 1).encode()
            case Append() if self._refusing and event.sequence > self._expected:
                return b""
            case Append():
                assert event.sequence == self._expected
                return self._store(event)
            case _:
                return b""

    def _store(self, event: Append) -> bytes:
        self._turn += 1
        self._refusing = self._turn in self._refuse_turns
        if self._refusing:
            flags = ErrorFlag.NOT_STORED
            answers = FrameType.APPEND
            retry_ms = self.retry_after_ms
            return Failed(
                "disk-full", "full", "", retry_ms, flags, answers, event.sequence
            ).encode()
        self._expected += 1
        self.values += bodies.decode(event.body).values
        return Ack(event.sequence, event.sequence, len(self.values), len(self.values)).encode()


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


# what is refused: the first, one in the middle while a later one waits for room, twice in a row
@pytest.mark.parametrize("turns", [{1}, {3}, {3, 4}, {1, 2, 6}, {16, 17, 20}, {40}])
@pytest.mark.parametrize("window", [1, 2, 5, 256])
def test_a_file_is_stored_in_order_and_once_after_a_moment_without_room(
    directory: Path, window: int, turns: set[int]
):
    entries: list[Entry] = [Parsed(Content.BYTES, b"%04d" % at) for at in range(500 * 20)]
    clock = SystemClock()
    with FullOnce(str(directory / "f"), window=window, refuse_turns=frozenset(turns)) as daemon:
        session = Session(daemon.path, "once:job", patient=False, chance=random.Random(1))
        try:
            sender = Sender(session, "s", clock, DEADLINE_S, lambda _: None)
            report = sender.send_all(entries)
        finally:
            session.close(Deadline(clock, DEADLINE_S))
    assert daemon.values == [entry.value for entry in entries if isinstance(entry, Parsed)]
    assert (report.records, report.accepted) == (len(entries), len(entries))


@pytest.mark.parametrize("window", [1, 2, 3, 256])
@pytest.mark.parametrize("turn", [2, 3, 5])
def test_of_many_values_those_behind_one_without_room_are_not_stored(
    directory: Path, window: int, turn: int
):
    values = [b"%04d" % at + bytes(600_000) for at in range(8)]  # one request each
    with (
        FullOnce(str(directory / "f"), window=window, refuse_turns=frozenset({turn})) as daemon,
        wald.connect(daemon.path, timeout=DEADLINE_S) as producer,
    ):
        daemon.retry_after_ms = 1_000 * int(2 * DEADLINE_S)  # longer than anybody waits
        results = producer.append_many("s", values)
        accepted = [at for at, each in enumerate(results) if isinstance(each, wald.Receipt)]
        assert accepted == list(range(turn - 1))
        assert {each.code for each in results.refused} == {"disk-full"}
        producer.append("s", b"next")
    assert [value[:4] for value in daemon.values] == [
        *(b"%04d" % at for at in range(turn - 1)),
        b"next",
    ]


@pytest.mark.parametrize("window", [1, 3, 256])
@pytest.mark.parametrize("turns", [{1}, {2}, {3, 4}, {2, 5, 8}])
def test_many_values_wait_for_room_and_stay_in_order(directory: Path, window: int, turns: set[int]):
    values = [b"%04d" % at + bytes(600_000) for at in range(8)]
    with (
        FullOnce(str(directory / "f"), window=window, refuse_turns=frozenset(turns)) as daemon,
        wald.connect(daemon.path, timeout=DEADLINE_S) as producer,
    ):
        results = producer.append_many("s", values)
        assert [each.lsn for each in results.accepted] == list(range(1, 9))
    assert daemon.values == values


# --- interrupted --------------------------------------------------------------------------------


class GatedFile:
    """A file whose syncs wait while the gate is closed."""

    def __init__(self, file: File, gate: threading.Event, stopped: threading.Event) -> None:
        self._file = file
        self._gate = gate
        self._stopped = stopped

    def sync(self) -> None:
        if not self._gate.is_set():
            self._stopped.set()  # somebody stands before it
        self._gate.wait(DEADLINE_S)
        self._file.sync()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class GatedFileSystem(PosixFileSystem):
    """The real file system, with a disk that stands still while the gate is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.stopped = threading.Event()

    def open(self, path: str, *, write: bool = False) -> File:
        return GatedFile(super().open(path, write=write), self.gate, self.stopped)  # type: ignore[return-value]

    def create(self, path: str, *, mode: int = 0o600) -> File:
        return GatedFile(super().create(path, mode=mode), self.gate, self.stopped)  # type: ignore[return-value]


class TimeLimitError(BaseException):
    """What a signal handler of the application raises."""


def unsent_bytes(producer: Any) -> int:
    link = producer._session._link
    found = fcntl.ioctl(link._socket, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", found)[0])


def taken_in(producer: Any) -> bool:
    """Whether a request was sent, and nothing of it is left in the socket."""
    return len(producer._session.outbox) == 1 and unsent_bytes(producer) == 0


def stored_values(door: Door) -> list[bytes]:
    door.stop()
    fs = PosixFileSystem()
    log = Log.open(fs, door.data_dir, SystemClock(), random.Random(3))
    log_id, frontier = log.log_id, log.frontier
    log.close()
    reader = TailReader(fs, door.data_dir, log_id, after=0)
    values: list[bytes] = []
    for item in reader.read(frontier):
        for _, section in item.sections:  # type: ignore[union-attr]
            values += values_of(section)
    reader.close()
    return values


def values_of(section: Section) -> Iterator[bytes]:
    at = 0
    for entry in frame.request_entries(section):
        yield from bodies.decode(section.bodies[at : at + entry.body_length]).values
        at += entry.body_length


def test_a_send_that_a_signal_interrupts_invents_no_record(directory: Path):
    fs = GatedFileSystem()
    main = threading.main_thread().ident
    assert main is not None
    big = b"A" * 900_000  # more than a socket holds

    def limit(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with Door(directory, fs=fs) as door, wald.connect(door.path) as producer:
            producer.append("s", b"first")
            other = wald.connect(door.path)
            other.append("s", b"other 1")
            fs.gate.clear()
            blocked = threading.Thread(target=other.append, args=("s", b"other 2"))
            blocked.start()
            assert fs.stopped.wait(DEADLINE_S)
            wait_until(lambda: taken_in(other), "ingest has it, and stands before the disk")

            def interrupt() -> None:
                wait_until(lambda: unsent_bytes(producer) > 100_000, "a part of the frame is out")
                signal.pthread_kill(main, signal.SIGUSR1)

            interrupter = threading.Thread(target=interrupt)
            interrupter.start()
            with pytest.raises(TimeLimitError):
                producer.append("s", big)
            interrupter.join(DEADLINE_S)
            fs.gate.set()
            blocked.join(DEADLINE_S)
            producer.append("s", b"B" * 200_000)
            producer.flush()
            other.close()
            values = stored_values(door)
    finally:
        fs.gate.set()
        signal.signal(signal.SIGUSR1, before)
    assert set(values) <= {b"first", b"other 1", b"other 2", big, b"B" * 200_000}
    assert values.count(big) <= 1
    assert values[-1] == b"B" * 200_000


def test_a_signal_right_behind_a_whole_frame_does_not_look_like_another_client(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    with Door(directory) as door, wald.connect(door.path, name="ann") as producer:
        producer.append("s", b"first")
        with monkeypatch.context() as patched:
            send = Link.send

            def interrupted(link: Link, data: bytes) -> None:
                send(link, data)
                raise TimeLimitError

            patched.setattr(Link, "send", interrupted)
            with pytest.raises(TimeLimitError):
                producer.append("s", b"interrupted")
        producer.append("s", b"next")
        assert stored_values(door) == [b"first", b"interrupted", b"next"]
