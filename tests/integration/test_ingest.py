"""Ingest over real sockets and a real log: acks, refusals, duplicates, frontier, clean stop."""

import contextlib
import errno
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, Peer, short_directory
from wald import limits
from wald.config import RouteSettings, Settings, SinkSettings
from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Append,
    Capability,
    Event,
    Failed,
    FrontierMoved,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    RefusedRecords,
    Welcome,
)
from wald.errors import ConfigError, LogFailed
from wald.ports import File
from wald.storage.log import Log
from wald.storage.progress import TwoSlotPage
from wald.system import PosixFileSystem, SystemClock


def packed(*values: object) -> bytes:
    body: bytes = msgpack.packb([0, list(values), None, None, None])
    return body


def append(stream: int, sequence: int, *values: object, lag: int = 1) -> bytes:
    return Append(stream, sequence, lag, packed(*values)).encode()


@pytest.fixture
def directory():
    with short_directory() as path:
        yield path


@pytest.fixture
def door(directory: Path):
    with Door(directory) as opened:
        yield opened


def answers_through(peer: Peer, sequence: int) -> list[Event]:
    got: list[Event] = []
    while not (got and isinstance(got[-1], Ack) and got[-1].through >= sequence):
        event = peer.next()
        assert event is not None, got
        got.append(event)
    return got


def test_an_acknowledged_record_is_in_the_log(door: Door):
    with door.peer() as peer:
        welcome = peer.hello()
        assert (welcome.last_sequence, welcome.window) == (0, limits.WINDOW_REQUESTS)
        stream = peer.open()
        peer.send(append(stream, 1, b"a", b"b"), append(stream, 2, b"c", lag=2))
        acks = answers_through(peer, 2)
        assert sum(1 for each in acks if isinstance(each, Ack)) in (1, 2)
        assert isinstance(acks[0], Ack)
        assert acks[0].first_lsn == 1
        last = acks[-1]
        assert isinstance(last, Ack)
        assert last.durable_lsn == 3
    door.stop()
    log = Log.open(PosixFileSystem(), door.data_dir, SystemClock(), random.Random(2))
    try:
        assert log.recovery.clean
        assert log.state.streams_by_name["s"].records == 3
        assert log.frontier.lsn == 3
    finally:
        log.close()


def test_a_bad_47th_of_50_is_refused_alone(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        values: list[object] = [b"v"] * 50
        values[46] = "text"
        peer.send(append(stream, 1, *values), append(stream, 2, b"behind", lag=2))
        refused, *acks = answers_through(peer, 2)
        assert isinstance(refused, RefusedRecords)
        assert [(each.record, each.code) for each in refused.refusals] == [(46, "record.value")]
        last = acks[-1]
        assert isinstance(last, Ack)
        assert last.durable_lsn == 50  # 49 of the first, one of the second


def test_a_malformed_request_uses_its_sequence_and_harms_no_other(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(append(stream, 1, b"a"), Append(stream, 2, 2, b"\xff\xff").encode())
        peer.send(append(stream, 3, b"b", lag=3))
        got = answers_through(peer, 3)
        (refused,) = [each for each in got if isinstance(each, RefusedRecords)]
        assert refused.sequence == 2
        assert refused.refusals[0][:2] == (WHOLE_REQUEST, "request.malformed")


def test_two_streams_in_one_read_keep_their_order_and_their_lsns(door: Door):
    with door.peer() as peer:
        peer.hello()
        one, two = peer.open("one"), peer.open("two")
        frames = [append((one, two)[n % 2], n, b"x", lag=n) for n in range(1, 9)]
        peer.send(*frames)
        acks = [each for each in answers_through(peer, 8) if isinstance(each, Ack)]
        assert acks[0].first_lsn == 1
        assert acks[-1].durable_lsn == 8


DUPLICATES = {
    "repeat": (2, (b"two",), Ack),
    "conflict": (2, (b"other",), "sequence-conflict"),
    "answered": (1, (b"one",), "outcome-unknown"),
    "gap": (9, (b"nine",), "sequence-gap"),
}


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("row", DUPLICATES)
def test_duplicates_are_answered_by_the_table(door: Door, row: str, *, restart: bool):
    sequence, values, answer = DUPLICATES[row]
    with door.peer() as peer:
        session = peer.hello().session
        stream = peer.open()
        peer.send(append(stream, 1, b"one"))
        answers_through(peer, 1)
        peer.send(append(stream, 2, b"two"), append(stream, 3, b"three", lag=2))
        first = answers_through(peer, 3)
        assert isinstance(first[0], Ack)
    if restart:
        door.stop()
        door.start()
    with door.peer() as peer:
        assert peer.hello(session=session).last_sequence == 3
        peer.send(append(stream, sequence, *values))
        event = peer.next()
        if isinstance(answer, str):
            assert isinstance(event, Failed)
            assert (event.code, event.request, event.closing) == (answer, sequence, False)
        else:
            assert isinstance(event, Ack)
            assert (event.first, event.through, event.first_lsn) == (2, 2, 2)
        # and the session goes on
        peer.send(append(stream, 4, b"four"))
        assert isinstance(answers_through(peer, 4)[-1], Ack)


def test_a_repeat_of_what_is_in_flight_waits_until_it_is_durable(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(
            append(stream, 1, b"x") + append(stream, 1, b"x") + append(stream, 2, b"y", lag=2)
        )
        acks = [peer.next() for _ in range(3)]
        assert [each.first_lsn for each in acks if isinstance(each, Ack)] == [1, 1, 2]


def test_an_unknown_session_is_told_so_and_may_greet_again(door: Door):
    with door.peer() as peer:
        peer.send(Hello(1, "", 12345).encode())
        failed = peer.next()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.answers, failed.closing) == ("outcome-unknown", 2, False)
        assert peer.hello().last_sequence == 0


def test_a_hello_for_a_name_fences_the_older_connection(door: Door):
    with door.peer() as older, door.peer() as newer:
        session = older.hello("ann").session
        stream = older.open()
        older.send(append(stream, 1, b"x"))
        answers_through(older, 1)
        welcome = newer.hello("ann")
        assert (welcome.session, welcome.last_sequence) == (session, 1)
        (fenced,) = older.rest()
        assert isinstance(fenced, Failed)
        assert (fenced.code, fenced.closing) == ("fenced", True)
        newer.send(append(stream, 2, b"y"))
        assert isinstance(answers_through(newer, 2)[-1], Ack)


def test_a_takeover_while_requests_are_accepted_and_not_durable_loses_none(door: Door):
    with door.peer() as older:
        session = older.hello("ann").session
        stream = older.open()
        # the hello of the newer is handled in the loop while the older's appends are in no group
        sent = [append(stream, n, b"%d" % n, lag=n) for n in range(1, 201)]
        with door.peer() as newer:
            older.send(*sent)
            newer.send(Hello(1, "ann").encode())
            welcome = newer.next()
            assert isinstance(welcome, Welcome)
            assert welcome.session == session
            last = welcome.last_sequence
            told: list[Event | None] = []
            with contextlib.suppress(ConnectionResetError):  # not all of its appends were read
                while told[-1:] != [None]:
                    told.append(older.next())
            told = [each for each in told if each is not None]
            assert max((e.through for e in told if isinstance(e, Ack)), default=0) == last
            assert isinstance(told[-1], Failed)
            assert told[-1].code == "fenced"
            # nothing old is answered to the newer: its first ACK begins with what it sent
            newer.send(append(stream, last + 1, b"new"), append(stream, last + 2, b"new", lag=2))
            first = newer.next()
            assert isinstance(first, Ack)
            assert (first.first, first.first_lsn) == (last + 1, last + 1)


def test_after_a_reconnect_each_resend_has_an_ack_of_its_own_and_a_group_only_the_new(door: Door):
    with door.peer() as peer:
        session = peer.hello().session
        stream = peer.open()
        peer.send(*(append(stream, n, b"a", b"b", lag=n) for n in range(1, 5)))
        answers_through(peer, 4)
    door.stop()
    door.start()
    with door.peer() as peer:
        assert peer.hello(session=session).last_sequence == 4
        # resent from 3 on, with another lag, and 5 for the first time; no stream is opened again
        peer.send(*(append(stream, n, b"a", b"b", lag=n - 2) for n in range(3, 6)))
        acks = [each for each in answers_through(peer, 5) if isinstance(each, Ack)]
        assert [(each.first, each.through, each.first_lsn) for each in acks[:2]] == [
            (3, 3, 5),
            (4, 4, 7),
        ]
        assert (acks[2].first, acks[2].through) == (5, 5)


@pytest.mark.parametrize("in_flight", [False, True], ids=["durable", "in flight"])
def test_a_resend_to_another_stream_is_a_conflict_and_stores_nothing(
    door: Door, *, in_flight: bool
):
    with door.peer() as peer:
        peer.hello()
        one, two = peer.open("one"), peer.open("two")
        peer.send(append(one, 1, b"x"))
        if not in_flight:
            answers_through(peer, 1)
        peer.send(append(two, 1, b"x"), append(two, 2, b"y", lag=2))
        got = answers_through(peer, 2)
        (failed,) = [each for each in got if isinstance(each, Failed)]
        assert (failed.code, failed.request) == ("sequence-conflict", 1)
        assert isinstance(got[-1], Ack)
        assert got[-1].durable_lsn == 2


def test_each_request_behind_a_gap_is_told_and_none_uses_its_sequence(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(append(stream, 2, b"two"), append(stream, 3, b"three"))
        for sequence in (2, 3):
            failed = peer.next()
            assert isinstance(failed, Failed)
            assert (failed.code, failed.request) == ("sequence-gap", sequence)
        peer.send(*(append(stream, n, b"x", lag=n) for n in (1, 2, 3)))
        assert isinstance(answers_through(peer, 3)[-1], Ack)


def test_a_closing_error_answers_what_came_before_and_uses_no_sequence(door: Door):
    with door.peer() as peer:
        session = peer.hello().session
        stream = peer.open()
        bad = Append(99, 3, 3, packed(b"x")).encode()
        behind = append(stream, 4, b"behind", lag=4)
        # in one read: what comes behind the close would reset the connection
        peer.send(append(stream, 1, b"x"), append(stream, 2, b"y", lag=2), bad, behind)
        *acks, failed = peer.rest()
        assert isinstance(acks[-1], Ack)
        assert acks[-1].through == 2
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing, failed.answers, failed.request) == (
            "frame.stream",
            True,
            0,
            0,
        )
    with door.peer() as peer:
        assert peer.hello(session=session).last_sequence == 2


def test_two_new_clients_of_one_name_end_with_one_session(door: Door):
    with door.peer() as one, door.peer() as two:
        one.send(Hello(1, "bob").encode())
        two.send(Hello(1, "bob").encode())
        first, second = one.next(), two.next()
        welcomed = [each for each in (first, second) if isinstance(each, Welcome)]
        assert welcomed
        assert isinstance(second, Welcome) or isinstance(first, Welcome)


def test_the_frontier_comes_at_once_and_after_each_group(door: Door):
    with door.peer() as watcher, door.peer() as peer:
        watcher.send(Hello(7, capabilities=Capability.FRONTIER).encode())
        welcome, first = watcher.next(), watcher.next()
        assert isinstance(welcome, Welcome)
        assert (welcome.session, welcome.capabilities) == (0, 1)
        assert isinstance(first, FrontierMoved)
        assert first.frontier.lsn == 0
        peer.hello()
        peer.send(append(peer.open(), 1, b"x", b"y"))
        answers_through(peer, 1)
        moved = first
        while moved.frontier.lsn < 2:
            event = watcher.next()
            assert isinstance(event, FrontierMoved)
            assert event.frontier >= moved.frontier
            moved = event
        watcher.send(Ping(3, b"p").encode())
        assert watcher.next() == Pong(3, b"p")


def test_a_clean_stop_answers_everything_that_was_accepted(door: Door):
    peers = [door.peer() for _ in range(4)]
    for peer in peers:
        peer.hello()
        stream = peer.open()
        peer.send(*(append(stream, n, b"x", lag=n) for n in range(1, 101)))
    for peer in peers:
        answers_through(peer, 1)
    door.stop()
    assert (door.code, door.error) == (0, None)
    accepted = 0
    for peer in peers:
        got = peer.rest()
        assert got[-1] == Goodbye()
        accepted += max((each.through for each in got if isinstance(each, Ack)), default=0)
        peer.socket.close()
    log = Log.open(PosixFileSystem(), door.data_dir, SystemClock(), random.Random(2))
    try:
        assert log.recovery.clean
        assert log.state.streams_by_name["s"].records >= accepted
    finally:
        log.close()


def test_a_goodbye_is_answered_behind_the_acks_and_forgets_the_session(door: Door):
    with door.peer() as peer:
        session = peer.hello().session
        peer.send(append(peer.open(), 1, b"x"), Goodbye().encode())
        got = peer.rest()
        assert isinstance(got[0], Ack)
        assert got[-1] == Goodbye()
    with door.peer() as peer:
        peer.send(Hello(1, "", session).encode())
        failed = peer.next()
        assert isinstance(failed, Failed)
        assert failed.code == "outcome-unknown"


def test_a_half_closed_connection_still_gets_its_answers(door: Door):
    with door.peer() as peer:
        peer.hello()
        peer.send(append(peer.open(), 1, b"x"))
        peer.socket.shutdown(1)
        assert [type(each) for each in peer.rest()] == [Ack]


def test_a_frame_larger_than_the_shared_buffer_is_taken(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        big = [bytes(limits.RECORD_MAX_BYTES - 100)] * 3
        peer.send(append(stream, 1, *big), append(stream, 2, b"small", lag=2))
        last = answers_through(peer, 2)[-1]
        assert isinstance(last, Ack)
        assert last.durable_lsn == 4


def test_more_than_a_group_is_committed_in_parts(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        value = bytes(limits.RECORD_MAX_BYTES - 100)
        for sequence in range(1, 7):
            peer.send(append(stream, sequence, *[value] * 3, lag=sequence))
        last = answers_through(peer, 6)[-1]
        assert isinstance(last, Ack)
        assert last.durable_lsn == 18


def test_at_the_bound_of_sessions_a_hello_is_told_to_come_back(
    door: Door, monkeypatch: pytest.MonkeyPatch
):
    with door.peer() as peer, door.peer() as late:
        peer.hello()
        monkeypatch.setattr(limits, "SESSIONS_MAX", 1)
        late.send(Hello(1).encode())
        failed = late.next()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.answers, failed.closing) == ("backpressure", 2, False)
        assert failed.retry_after_ms > 0
        peer.send(Goodbye().encode())
        assert peer.rest() == [Goodbye()]
        assert late.hello().last_sequence == 0  # the one who left made room


def test_a_stream_beyond_the_bound_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open("first")
        monkeypatch.setattr(limits, "STREAMS_MAX", 1)
        peer.send(OpenStream(2, "second").encode())
        failed = peer.next()
        assert isinstance(failed, Failed)
        assert failed.code == "unknown-stream"
        assert peer.open("first") == stream


def test_the_figures_say_what_was_accepted_and_what_refused(door: Door):
    with door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(append(stream, 1, b"a", "text", b"b"))
        answers_through(peer, 1)
    door.stop()
    fs = PosixFileSystem()
    path, offset = f"{door.data_dir}/ingest.page", limits.FIGURES_OFFSET_BYTES
    slot_bytes = limits.FIGURES_SLOT_BYTES
    page = TwoSlotPage.open(fs, path, offset=offset, slot_bytes=slot_bytes, write=False)
    said = page.read()
    page.close()
    assert said is not None
    assert said["refused"] == {"record.value": 1}
    streams, routes = said["streams"], said["routes"]
    assert isinstance(streams, list)
    assert isinstance(routes, list)
    assert [row[:3] + row[4:] for row in streams] == [[stream, "s", 2, 2]]
    assert [row[1:] for row in routes] == [["s", stream, "to", 0, 0]]


# --- a full disk, a failed log ------------------------------------------------------------------


class FailingFile:
    """A file whose writes and syncs fail when the test says so."""

    def __init__(self, file: File, failing: "FailingFileSystem") -> None:
        self._file = file
        self._failing = failing

    def __getattr__(self, name: str) -> object:
        if self._failing.code and name in {"pwritev", "sync", "allocate"}:
            raise OSError(self._failing.code, "told to fail")
        return getattr(self._file, name)


class FailingFileSystem(PosixFileSystem):
    """The real file system, until ``code`` is set, or there is no room for another file."""

    code = 0
    full = False

    def open(self, path: str, *, write: bool = False) -> File:
        return FailingFile(super().open(path, write=write), self)  # type: ignore[return-value]

    def create(self, path: str, *, mode: int = 0o600) -> File:
        if self.full:
            raise OSError(errno.ENOSPC, "told to be full")
        return FailingFile(super().create(path, mode=mode), self)  # type: ignore[return-value]


def test_on_a_full_disk_no_sequence_is_used_and_it_goes_on_when_there_is_room(directory: Path):
    fs = FailingFileSystem()
    values = [bytes(limits.RECORD_MAX_BYTES - 100)] * 3
    with Door(directory, fs=fs) as door, door.peer() as peer:
        peer.hello()
        stream = peer.open()
        fs.full = True
        sequence, failed = 0, None
        while failed is None:
            sequence += 1
            assert sequence < 30, "two segments of 16 MiB are full long before"
            peer.send(append(stream, sequence, *values))
            event = peer.next()
            failed = event if isinstance(event, Failed) else None
        assert (failed.code, failed.request, failed.not_stored) == ("disk-full", sequence, True)
        assert failed.retry_after_ms > 0
        # what is in flight behind it gets no answer; a new stream finds no room either
        peer.send(append(stream, sequence + 1, b"behind"), append(stream, sequence + 2, b"behind"))
        peer.send(Ping(1).encode())
        assert peer.next() == Pong(1)
        with wald.connect(door.path, timeout=2.0) as producer:
            assert producer is not None
        fs.full = False
        lsn = 3 * (sequence - 1)
        last: Event | None = None
        deadline = time.monotonic() + DEADLINE_S
        while not isinstance(last, Ack):  # a roll is tried again by the next group
            assert time.monotonic() < deadline
            peer.send(append(stream, sequence, b"small"))
            last = peer.next()
        assert (last.first, last.through, last.first_lsn) == (sequence, sequence, lsn + 1)
        peer.send(append(stream, sequence + 1, b"on"))
        assert isinstance(answers_through(peer, sequence + 1)[-1], Ack)


def test_a_repeat_of_what_finds_no_room_gets_no_answer_of_its_own(directory: Path):
    fs = FailingFileSystem()
    with Door(directory, fs=fs) as door, door.peer() as peer:
        peer.hello()
        stream = peer.open()
        fs.full = True
        sequence = 0
        values: list[bytes] = []
        for size in (3_000 * limits.KIB, 100 * limits.KIB):  # first coarsely, then what is left
            values = [bytes(100 * limits.KIB)] * (size // (100 * limits.KIB))
            failed: Event | None = None
            while not isinstance(failed, Failed):
                sequence += 1
                assert sequence < 80, "two segments of 16 MiB are full long before"
                peer.send(append(stream, sequence, *values))
                failed = peer.next()
            sequence -= 1
        # in one read: what finds no room, and what is behind it three times
        one, two = append(stream, sequence + 1, *values), append(stream, sequence + 2, b"y", lag=2)
        peer.send(one + two + two + two + Ping(2).encode())
        failed = peer.next()
        assert isinstance(failed, Failed)
        assert (failed.request, failed.not_stored) == (sequence + 1, True)
        assert peer.next() == Pong(2)


def test_a_producer_is_told_of_a_full_disk_and_may_come_back(directory: Path):
    fs = FailingFileSystem()
    values = [bytes(limits.RECORD_MAX_BYTES - 100)] * 12
    with Door(directory, fs=fs) as door, wald.connect(door.path) as producer:
        producer.append("s", b"x")
        fs.full = True

        def fill() -> None:
            for _ in range(10):
                results = producer.append_many("s", values, timeout=0.5)
                if results.refused:
                    assert {each.code for each in results.refused} == {"disk-full"}
                    results.raise_for_refused()

        with pytest.raises((wald.DiskFull, wald.RecordRefused)):
            fill()
        with pytest.raises(wald.DiskFull) as caught:
            producer.append_many("s", values[:1] * 3, timeout=0.5)
        assert caught.value.retry_after_s > 0
        fs.full = False
        before = producer.session.last_sequence
        assert producer.append("s", b"y").lsn > 1
        assert producer.session.last_sequence == before + 1


def test_a_producer_waits_while_the_disk_is_full(directory: Path):
    fs = FailingFileSystem()
    heard: list[tuple[str, float]] = []

    def make_room(stream: str, pause_s: float) -> None:
        heard.append((stream, pause_s))
        fs.full = len(heard) < 2

    values = [bytes(limits.RECORD_MAX_BYTES - 100)] * 20
    with Door(directory, fs=fs) as door, wald.connect(door.path, on_throttle=make_room) as producer:
        fs.full = True
        lsns = [each.lsn for _ in range(3) for each in producer.append_many("s", values).accepted]
    assert lsns == list(range(1, 61))
    assert heard == [("s", limits.DISK_FULL_RETRY_S)] * 2


def test_after_a_failed_log_nobody_is_answered_and_the_process_ends(directory: Path):
    fs = FailingFileSystem()
    with Door(directory, fs=fs) as door, door.peer() as peer:
        peer.hello()
        stream = peer.open()
        peer.send(append(stream, 1, b"x"))
        answers_through(peer, 1)
        fs.code = errno.EIO
        peer.send(append(stream, 2, b"y"))
        assert peer.rest() == []
        door.join()
        assert isinstance(door.error, LogFailed)


# --- streams and routes -------------------------------------------------------------------------


def settings_with(directory: Path, *routes: RouteSettings, path: str = "a.db") -> Settings:
    return Settings(
        str(directory / "data"),
        str(directory / "s"),
        sinks={"to": SinkSettings("to", "sqlite", {"path": path})},
        routes={route.name: route for route in routes},
        segment_bytes=16 << 20,
    )


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "A", "", "a" * 65, "a\x1b[2J", "é", "a b", ".hidden", "nobody-takes-it"]
)
def test_a_stream_that_may_not_be_is_refused_and_the_connection_lives(directory: Path, name: str):
    settings = settings_with(directory, RouteSettings("r", "taken", "to"))
    with Door(directory, settings=settings) as door, door.peer() as peer:
        peer.hello()
        peer.send(OpenStream(9, name).encode())
        failed = peer.next()
        assert isinstance(failed, Failed)
        assert (failed.code, failed.request, failed.closing) == ("unknown-stream", 9, False)
        assert failed.hint
        peer.send(append(peer.open("taken"), 1, b"x"))
        assert isinstance(answers_through(peer, 1)[-1], Ack)


def test_a_route_with_another_target_is_another_route_and_wants_a_start(directory: Path):
    route = RouteSettings("r", "s", "to")
    with Door(directory, settings=settings_with(directory, route)) as door:
        with door.peer() as peer:
            peer.hello()
            peer.send(append(peer.open(), 1, b"x", b"y"))
            answers_through(peer, 1)
        door.stop()
        door.settings = settings_with(directory, route, path="b.db")
        with pytest.raises(ConfigError) as caught:
            door.start()
        assert "start" in caught.value.hint
        for start, born in (("oldest", (0, 0)), ("now", (2, 2))):
            changed = RouteSettings("r", "s", "to", start=start, abandon=2)
            door.settings = settings_with(directory, changed, path=f"{start}.db")
            door.start()
            door.stop()
            log = Log.open(PosixFileSystem(), door.data_dir, SystemClock(), random.Random(2))
            (only,) = log.state.routes.values()
            assert (only.birth_lsn, only.birth_records) == born
            log.close()
        door.start()


# --- kill -9 ------------------------------------------------------------------------------------

_KILLED = """
import pathlib, sys
from tests.doorkeeper import Door
with Door(pathlib.Path(sys.argv[1])) as door:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_after_kill_9_a_resend_is_no_duplicate(directory: Path):
    def start() -> "subprocess.Popen[bytes]":
        (directory / "s").unlink(missing_ok=True)
        command = [sys.executable, "-c", _KILLED, str(directory)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def end(process: "subprocess.Popen[bytes]") -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)

    process = start()
    with Peer(str(directory / "s")) as peer:
        session = peer.hello().session
        stream = peer.open()
        peer.send(append(stream, 1, b"a"), append(stream, 2, b"b", lag=2))
        told = answers_through(peer, 2)
        assert isinstance(told[0], Ack)
    end(process)
    process = start()
    try:
        with Peer(str(directory / "s")) as peer:
            assert peer.hello(session=session).last_sequence == 2
            peer.send(append(stream, 1, b"a"), append(stream, 2, b"b", lag=2))
            again = [peer.next(), peer.next()]
            assert [each.first_lsn for each in again if isinstance(each, Ack)] == [1, 2]
            peer.send(append(stream, 3, b"c"))
            last = answers_through(peer, 3)[-1]
            assert isinstance(last, Ack)
            assert last.first_lsn > limits.LSN_JUMP_UNCLEAN  # it was not a clean stop
    finally:
        end(process)
