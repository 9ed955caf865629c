"""Quotas of streams at a real ingest: pauses, typed refusals, and no stream in another's way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import wait_until
from tests.doorkeeper import Door, Peer, short_directory
from wald import limits
from wald.config import StreamSettings
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Append,
    Capability,
    Event,
    Failed,
    RefusedRecords,
    Throttle,
)
from wald.storage.progress import TwoSlotPage
from wald.supervisor.observe import read_ingest_figures
from wald.system import PosixFileSystem


class Quoted(Door):
    """An ingest with quotas, and what a drainer would say of its routes."""

    def __init__(self, directory: Path, **streams: StreamSettings) -> None:
        super().__init__(directory)
        self.settings = replace(self.settings, streams=streams)
        Path(self.data_dir).mkdir(mode=0o700)
        self._page = TwoSlotPage.open(
            PosixFileSystem(),
            f"{self.data_dir}/drain.page",
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=True,
        )

    def __exit__(self, *left: object) -> None:
        super().__exit__(*left)
        self._page.close()

    def delivered(self, **routes: int) -> None:
        """Say how many records of each route are delivered; all begin with the log."""
        rows = {
            name: {"route_id": self._route_id(name), "delivered": count}
            for name, count in routes.items()
        }
        self._page.write({"routes": rows}, sync=False)

    def deliver_all(self, stream: str) -> None:
        """Say that all of a stream is delivered that ingest tells of, and that is something."""

        def told() -> int:
            rows = {row[1]: row[2] for row in self.figures()["streams"]}
            return int(rows.get(stream, 0))

        wait_until(lambda: told() > 0, "ingest tells of the stream")
        self.delivered(**{stream: told()})

    def heard(self, stream: str) -> None:
        """Wait until ingest has heard that nothing of a stream is pending any more."""
        with wald.connect(self.path) as producer:

            def has_room() -> bool:
                producer.append("tick", b"")
                return bool(self.figures()["quotas"][stream]["used"] == 0)

            wait_until(has_room, "ingest has heard of it")

    def _route_id(self, name: str) -> int:
        found: list[int] = []

        def is_told() -> bool:  # the figures are written a moment later
            found.extend(row[0] for row in self.figures()["routes"] if row[1] == name)
            return bool(found)

        wait_until(is_told, f"ingest tells of the route {name}")
        return found[0]

    def figures(self) -> dict[str, Any]:
        """What ingest says of itself."""
        said = read_ingest_figures(PosixFileSystem(), self.data_dir)
        assert said is not None
        return said

    def hearing(self) -> Peer:
        """A client of frames that understands THROTTLE."""
        peer = self.peer()
        peer.hello(capabilities=Capability.THROTTLE)
        return peer


@contextmanager
def quoted(**streams: StreamSettings) -> Iterator[Quoted]:
    with short_directory() as directory, Quoted(directory, **streams) as door:
        yield door


TEN = StreamSettings("a", quota_records=10)
IN_VAIN_S = 30.0  # less than ``long_pauses``: who is told of one raises at once


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that nobody waits for, so that no test depends on how fast the machine is."""
    monkeypatch.setattr(limits, "QUOTA_PAUSE_MAX_S", 2 * IN_VAIN_S)


def append(stream: int, sequence: int, lag: int = 1, records: int = 1) -> bytes:
    return Append(stream, sequence, lag, bodies.encode(Body(0, [b"v"] * records))).encode()


def answers(peer: Peer, through: int) -> list[Event]:
    """Everything up to the ACK of a request."""
    events: list[Event] = []
    while not (events and isinstance(events[-1], Ack) and events[-1].through >= through):
        event = peer.next()
        assert event is not None, events
        events.append(event)
    return events


def refused(events: list[Event]) -> list[int]:
    """The sequences that were refused as a whole, for want of room."""
    found = []
    for event in events:
        if isinstance(event, RefusedRecords):
            (refusal,) = event.refusals
            assert (refusal.record, refusal.code) == (WHOLE_REQUEST, "backpressure")
            found.append(event.sequence)
    return found


# --- the producer's view ------------------------------------------------------------------------


@pytest.mark.usefixtures("long_pauses")
def test_at_its_quota_a_stream_is_refused_by_type_and_names_who_is_slow():
    with quoted(a=TEN) as door, wald.connect(door.path) as producer:
        for _ in range(10):
            producer.append("a", b"v", timeout=5)
        with pytest.raises(wald.Backpressure) as caught:
            producer.append("a", b"v", timeout=IN_VAIN_S)
        assert caught.value.code == "backpressure"
        assert caught.value.retryable
        assert "wald status" in caught.value.hint
        assert 0 < caught.value.retry_after_s <= limits.QUOTA_PAUSE_MAX_S
        assert producer.append("b", b"v", timeout=5).lsn == 11  # and no other stream is in its way


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("in_tasks", [False, True], ids=["blocking", "asynchronous"])
def test_at_its_quota_a_stream_refuses_what_need_only_be_received_by_the_same_type(
    *, in_tasks: bool
):
    with quoted(a=TEN) as door, wald.connect(door.path) as producer:

        def append() -> None:
            producer.append("a", b"v", ack="received", timeout=IN_VAIN_S)

        async def append_in_a_task() -> None:
            async with wald.connect_async(door.path) as twin:
                await twin.append("a", b"v", ack="received", timeout=IN_VAIN_S)

        producer.append_many("a", [b"v"] * 10)
        with pytest.raises(wald.Backpressure):
            asyncio.run(append_in_a_task()) if in_tasks else append()


@pytest.mark.parametrize("in_tasks", [False, True], ids=["blocking", "asynchronous"])
def test_what_need_only_be_received_waits_for_room_too(*, in_tasks: bool):
    with quoted(a=TEN) as door:

        def deliver(*_: object) -> None:
            door.delivered(a=10)

        async def append_in_a_task() -> wald.Receipt:
            async with wald.connect_async(door.path, on_throttle=deliver) as producer:
                return await producer.append("a", b"v", ack="received")

        with wald.connect(door.path, on_throttle=deliver) as producer:
            producer.append_many("a", [b"v"] * 10)
            if in_tasks:
                receipt = asyncio.run(append_in_a_task())
            else:
                receipt = producer.append("a", b"v", ack="received")
        assert receipt.level == "received"


def test_a_producer_waits_for_room_and_tells_that_it_does():
    heard: list[tuple[str, float]] = []
    with quoted(a=TEN) as door:

        def deliver(stream: str, pause_s: float) -> None:
            heard.append((stream, pause_s))
            if pause_s == limits.QUOTA_PAUSE_MAX_S:
                door.delivered(a=10)

        with wald.connect(door.path, on_throttle=deliver) as producer:
            lsns = [producer.append("a", b"v").lsn for _ in range(12)]
    assert lsns == sorted(lsns)
    assert {stream for stream, _ in heard} == {"a"}
    pauses = [pause_s for _, pause_s in heard]
    assert pauses == sorted(pauses)  # they grow as the reserve shrinks
    assert pauses[0] < limits.QUOTA_PAUSE_MAX_S == pauses[-1]


@pytest.mark.parametrize("early", [False, True], ids=["durable", "received"])
def test_an_urgent_record_does_not_pause_where_ordinary_ones_do(*, early: bool):
    heard: list[float] = []
    with (
        quoted(a=StreamSettings("a", quota_records=20)) as door,
        wald.connect(door.path, on_throttle=lambda _, pause_s: heard.append(pause_s)) as producer,
    ):
        for _ in range(18):
            producer.append("a", b"v")
        paused = len(heard)
        assert paused
        producer.append("a", b"now", urgent=True, ack="received" if early else "durable")
        assert len(heard) == paused


def test_many_values_wait_for_room_in_order():
    values = [bytes([n]) * 200_000 for n in range(60)]  # a dozen requests in flight
    with quoted(a=StreamSettings("a", quota_pending_bytes=3 << 20)) as door:
        with wald.connect(door.path, on_throttle=lambda *_: door.deliver_all("a")) as producer:
            results = producer.append_many("a", values)
        lsns = [each.lsn for each in results.accepted]
        assert (len(lsns), results.refused) == (60, [])
        assert lsns == sorted(lsns)


@pytest.mark.usefixtures("long_pauses")
def test_many_values_of_which_only_some_find_room_are_told_one_by_one():
    values = [b"v" * 200_000] * 60
    with quoted(a=StreamSettings("a", quota_pending_bytes=3 << 20)) as door:
        with wald.connect(door.path) as producer:
            results = producer.append_many("a", values, timeout=IN_VAIN_S)
        assert 0 < len(results.accepted) < 60
        assert {each.code for each in results.refused} == {"backpressure"}
        assert [each.index for each in results.refused] == list(range(len(results.accepted), 60))


@pytest.mark.usefixtures("long_pauses")
def test_what_was_submitted_is_told_when_it_finds_no_room():
    with quoted(a=TEN) as door, wald.connect(door.path) as producer:
        producer.append_many("a", [b"v"] * 10)
        pending = producer.submit("b", b"v")
        with pytest.raises(wald.Backpressure):
            producer.submit("a", b"v", timeout=IN_VAIN_S).result(5)
        assert pending.result(5).lsn == 11


@pytest.mark.usefixtures("long_pauses")
def test_a_flood_into_a_stream_that_fills_is_told_one_by_one_and_goes_on_when_there_is_room():
    full = StreamSettings("a", quota_records=500)
    pendings: list[wald.Pending] = []
    with quoted(a=full) as door:
        with wald.connect(door.path) as producer:

            def flood() -> None:
                for number in range(100_000):
                    value = b"%d" % number
                    pendings.append(producer.submit("a", value, timeout=IN_VAIN_S))

            with pytest.raises(wald.Backpressure):
                flood()
            assert producer.submit("b", b"beside").result().lsn  # its stream is not in the way
            errors = [each.exception() for each in pendings]
            stored = errors.count(None)  # up to the soft mark at least
            assert 400 <= stored < 100_000
            assert errors[:stored] == [None] * stored  # no gap
            assert {type(each) for each in errors[stored:]} <= {wald.Backpressure}
            door.deliver_all("a")
            door.heard("a")
            assert producer.submit("a", b"later", urgent=True).result().lsn  # it takes no pause
        values = [each for each in door.stored_values() if each not in {b"", b"beside"}]
    assert values == [*(b"%d" % number for number in range(stored)), b"later"]


# --- frame by frame -----------------------------------------------------------------------------


def test_one_full_stream_does_not_slow_another_on_the_same_connection():
    with quoted(a=TEN) as door, door.hearing() as peer:
        a, b = peer.open("a"), peer.open("b")
        frames = [append(a if n % 2 else b, n, lag=n) for n in range(1, 61)]
        peer.send(*frames)  # in one go: of a 10 are stored and 20 refused, of b all are stored
        events = answers(peer, 60)
        assert refused(events) == list(range(21, 60, 2))
        door.stop()
        stored = {row[1]: row[2] for row in door.figures()["streams"]}
        assert stored == {"a": 10, "b": 30}


def test_what_is_in_flight_behind_a_refusal_is_refused_too_and_the_order_stays():
    with quoted(a=TEN) as door, door.hearing() as peer:
        a, b = peer.open("a"), peer.open("b")
        peer.send(append(a, 1, records=10), append(a, 2, lag=2))
        events = answers(peer, 2)
        assert refused(events) == [2]
        door.delivered(a=10)  # there is room again, and the client has not heard of the refusal
        door.heard("a")
        peer.send(append(a, 3, lag=2), append(b, 4, lag=3))
        events = answers(peer, 4)
        assert refused(events) == [3]
        peer.send(append(a, 5, lag=1))  # it has now
        assert refused(answers(peer, 5)) == []


def test_over_a_reconnect_a_refusal_is_remembered_and_the_order_stays():
    with quoted(a=TEN) as door, door.hearing() as peer:
        a = peer.open("a")
        peer.send(append(a, 1, records=10), append(a, 2, lag=2))
        answers(peer, 2)
        peer.socket.close()
        door.delivered(a=10)
        door.heard("a")
        with door.peer() as again:
            assert again.hello("", peer.session, Capability.THROTTLE).last_sequence == 2
            again.send(append(a, 2, lag=2), append(a, 3, lag=3))
            assert refused(answers(again, 3)) == [2, 3]
            again.send(append(a, 4, lag=1))
            assert refused(answers(again, 4)) == []


def test_pauses_are_asked_for_before_the_quota_is_used():
    with quoted(a=StreamSettings("a", quota_records=100)) as door, door.hearing() as peer:
        a = peer.open("a")
        pauses: list[int] = []
        for sequence in range(1, 101):
            peer.send(append(a, sequence))
            events = answers(peer, sequence)
            pauses += [each.retry_after_ms for each in events if isinstance(each, Throttle)]
            assert bool(pauses) == (sequence > 80), sequence
            assert refused(events) == []
        assert pauses == sorted(pauses)
        assert pauses[0] < 20
        assert 500 < pauses[-1] <= 1000


def test_a_client_that_knows_no_quotas_is_told_as_of_any_lack_of_room():
    with quoted(a=TEN) as door, door.peer() as peer:
        peer.hello()
        a = peer.open("a")
        peer.send(append(a, 1, records=10), append(a, 2, lag=2), append(a, 3, lag=3))
        events = [peer.next(), peer.next()]
        (failed,) = [each for each in events if isinstance(each, Failed)]
        assert (failed.code, failed.request, failed.not_stored) == ("backpressure", 2, True)
        assert failed.retry_after_ms == limits.QUOTA_PAUSE_MAX_S * 1000
        door.delivered(a=10)
        door.heard("a")
        peer.send(append(a, 2, lag=1))
        event = peer.next()
        assert isinstance(event, Ack)
        assert (event.first, event.through) == (2, 2)


# --- what is pending ----------------------------------------------------------------------------


@pytest.mark.usefixtures("long_pauses")
def test_a_quota_of_age_counts_from_what_waits_longest():
    with (
        quoted(a=StreamSettings("a", quota_age_s=0.3)) as door,
        wald.connect(door.path) as producer,
    ):
        producer.append("a", b"v")

        def append_for_ever() -> None:
            while True:
                lsns.append(producer.append("a", b"v", timeout=IN_VAIN_S).lsn)

        lsns: list[int] = []
        with pytest.raises(wald.Backpressure):
            append_for_ever()
        door.delivered(a=len(lsns) + 1)
        door.heard("a")
        with wald.connect(door.path) as other:  # that was not asked to pause
            other.append("a", b"v")


@pytest.mark.parametrize("clean", [True, False], ids=["a clean stop", "no figures of before"])
@pytest.mark.usefixtures("long_pauses")
def test_a_restart_forgets_no_quota(clean: bool):  # noqa: FBT001 - a row of the table
    with quoted(a=StreamSettings("a", quota_pending_bytes=1 << 20)) as door:
        with wald.connect(door.path) as producer:
            for _ in range(6):
                producer.append("a", bytes(200_000), timeout=5)
        door.stop()
        if not clean:
            page = Path(door.data_dir) / "ingest.page"
            page.write_bytes(bytes(page.stat().st_size))
        door.start()
        with wald.connect(door.path) as producer, pytest.raises(wald.Backpressure):
            producer.append("a", b"v", timeout=IN_VAIN_S)


def test_after_a_restart_bytes_are_known_where_records_differ_in_size():
    with quoted(a=StreamSettings("a", quota_pending_bytes=1 << 20)) as door:
        with wald.connect(door.path) as producer:
            producer.append_many("a", [b"v"] * 5_000)
            door.delivered(a=5_000)
            producer.append("b", b"v")
            for _ in range(3):  # 600 kB are pending, two fifths of the mean a record
                producer.append("a", bytes(200_000))
        door.stop()
        door.start()
        with wald.connect(door.path) as producer:
            producer.append("a", b"v")
        door.stop()
        pending = door.figures()["quotas"]["a"]
        assert pending["pending_records"] == 4
        assert 500_000 < pending["pending_bytes"] < 700_000


@pytest.mark.usefixtures("long_pauses")
def test_the_figures_say_who_is_refused_and_why():
    with quoted(a=TEN) as door:
        with wald.connect(door.path) as producer:
            producer.append_many("a", [b"v"] * 9)
            producer.append("a", b"v", timeout=2)
            with (
                wald.connect(door.path) as other,  # that was not asked to pause
                pytest.raises(wald.Backpressure),
            ):
                other.append("a", b"v", timeout=IN_VAIN_S)
        door.stop()
        said = door.figures()
        quota = said["quotas"]["a"]
        assert (quota["full"], quota["slowest"]) == (True, "a")
        assert quota["says"] == "10 of 10 records"
        assert quota["throttled"] >= 1
        assert quota["refused"] == said["refused"]["backpressure"] == 1
        assert set(said["quotas"]) == {"a"}


# --- the asynchronous twin ----------------------------------------------------------------------


def test_tasks_wait_for_room_too():
    heard: list[float] = []
    values = [bytes([n]) * 200_000 for n in range(30)]

    async def append_all(door: Quoted) -> tuple[list[int], list[int]]:
        def deliver(stream: str, pause_s: float) -> None:
            heard.append(pause_s)
            door.deliver_all(stream)

        async with wald.connect_async(door.path, on_throttle=deliver) as producer:
            many = (await producer.append_many("a", values)).accepted
            each = [await producer.append("a", value) for value in values[:8]]
            return [one.lsn for one in many], [one.lsn for one in each]

    with quoted(a=StreamSettings("a", quota_pending_bytes=2 << 20)) as door:
        many, each = asyncio.run(append_all(door))
        assert (many, each) == (list(range(1, 31)), list(range(31, 39)))
        assert heard


@pytest.mark.usefixtures("long_pauses")
def test_tasks_are_told_by_type_that_there_is_no_room():
    async def append_to_a_full_one(door: Quoted) -> None:
        async with wald.connect_async(door.path) as producer:
            await producer.append_many("a", [b"v"] * 10)
            await producer.append("a", b"v", timeout=IN_VAIN_S)

    with quoted(a=TEN) as door, pytest.raises(wald.Backpressure):
        asyncio.run(append_to_a_full_one(door))
