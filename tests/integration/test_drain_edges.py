"""The drainer at its bounds: bad askers, sinks that misbehave, requests that do not add up."""

import errno
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from random import Random

import pytest

from tests.backlog import CLOCK, FS, Backlog, end, eventually
from wald import limits
from wald.core import body, frame, state
from wald.core.batching import Bounds
from wald.core.frame import Section, SectionKind
from wald.core.lanes import WHOLE, Share, lane_of
from wald.drainer import process
from wald.drainer.asks import Asks
from wald.drainer.catalogue import Catalogue
from wald.drainer.frontier import FrontierBoard
from wald.drainer.reader import LaneReader
from wald.errors import DataDirectoryUnusable, LedgerFailed, WaldError
from wald.ingest.figures import Figures
from wald.model import Frontier, Systemic, SystemicKind
from wald.storage.log import Log, LogOptions
from wald.storage.owner import load_owner
from wald.storage.tail import TailReader, find_anchor, segment_path
from wald.supervisor.children import is_final
from wald.system import PosixFileSystem
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget


def reader(backlog, after=0, share=WHOLE):
    return LaneReader(
        FS, backlog.data_dir, backlog.log.log_id, CLOCK, stream=1, after=after, share=share
    )


# --- reading ------------------------------------------------------------------------------------


def append_raw(backlog, data, stored):
    table = frame._REQUEST.pack(stored, stored, len(data), 0)
    backlog.sequence += 1
    section = Section(SectionKind.APPEND, 1, 1, 7, backlog.sequence, 0, stored, table, (), data)
    backlog.log.append_group([section])


@pytest.mark.parametrize(
    "data", [b"\xc1", body.encode(body.Body(0, [b"one"])), body.encode(body.Body(0, [b""] * 9))]
)
def test_a_request_that_does_not_hold_what_its_section_says_is_lost_alone(backlog, data):
    first = backlog.append(b"a", b"b")
    append_raw(backlog, data, stored=3)
    last = backlog.append(b"c")
    tail = reader(backlog)
    tail.fill(backlog.log.frontier, Bounds())
    batch = tail.take(Bounds())
    assert [record.lsn for record in batch.records] == first + last
    (lost,) = batch.lost
    assert (lost.first_lsn, lost.last_lsn) == (first[-1] + 1, first[-1] + 3)
    tail.close()


def test_a_lane_that_is_held_back_keeps_nothing_of_what_other_lanes_are_sent(backlog):
    ours, others = (
        next(key for key in map(str, range(99)) if lane_of(key, 0, 2) == lane) for lane in (0, 1)
    )
    lsns = backlog.append(b"waits", keys=[ours])
    tail = reader(backlog, share=Share(2, 0))
    kept = []
    for _ in range(2):
        for _ in range(50):
            backlog.append(b"another lane's", keys=[others])
        tail.fill(backlog.log.frontier, Bounds())  # as at each group, until it may go on
        kept.append(sum(len(each) for each in vars(tail).values() if isinstance(each, Sized)))
    assert kept[0] == kept[1]
    lsns += backlog.append(b"waits too", keys=[ours])
    tail.fill(backlog.log.frontier, Bounds())
    batch = tail.take(Bounds())
    frontier = backlog.log.frontier
    anchor = find_anchor(FS, backlog.data_dir, backlog.log.log_id, batch.hi, frontier)
    assert ([record.lsn for record in batch.records], batch.anchor) == (lsns, anchor)
    tail.close()


def test_a_request_that_was_half_delivered_is_cut_at_the_checkpoint(backlog):
    lsns = backlog.append(b"a", b"b", b"c")
    for after in (lsns[0], lsns[-1]):
        tail = reader(backlog, after=after)
        tail.fill(backlog.log.frontier, Bounds())
        assert tail.waiting().records == len([lsn for lsn in lsns if lsn > after])
        tail.close()


def test_a_sealed_batch_is_not_read_before_the_frontier_is_known_to_hold_it(backlog):
    lsns = backlog.append(b"a", b"b", b"c")
    tail = reader(backlog)
    frontier = backlog.log.frontier
    assert tail.take_through(lsns[1], Frontier(frontier.segment, 0, lsns[0])) is None
    batch = tail.take_through(lsns[1], frontier)
    assert batch is not None
    assert [record.value for record in batch.records] == [b"a", b"b"]
    assert [record.value for record in tail.take(Bounds()).records] == [b"c"]
    tail.close()


def test_a_sealed_batch_is_not_cut_by_a_frontier_whose_file_was_cut(backlog):
    first = backlog.append(b"a", b"b")
    place = backlog.log.frontier
    lsns = backlog.append(b"c")
    stale = backlog.log.frontier
    path = Path(segment_path(backlog.data_dir, stale.segment))
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(place.end_bytes)
    tail = reader(backlog)
    assert tail.take_through(lsns[0], stale) is None
    assert tail.fill(stale, Bounds()).records == 2
    path.write_bytes(whole)
    batch = tail.take_through(lsns[0], stale)
    assert batch is not None
    assert ([record.lsn for record in batch.records], batch.lost) == (first + lsns, ())
    tail.close()


def test_memory_is_bounded_by_the_batch_and_not_by_the_backlog(backlog):
    for _ in range(200):
        backlog.append(*[b"x" * 100] * 10)
    tail = reader(backlog)
    bounds = Bounds(max_records=50)
    taken = 0
    while tail.fill(backlog.log.frontier, bounds).records:
        assert tail.waiting().records <= 60
        taken += len(tail.take(bounds).records)
    assert taken == 2_000
    tail.close()


def test_records_keep_keys_headers_and_contents(backlog):
    columns = body.Body(bytes([0, 2]), [b"a", b"2"], ["k", None], [None, {"h": b"v"}], ["d", None])
    append_raw(backlog, body.encode(columns), stored=2)
    tail = reader(backlog)
    tail.fill(backlog.log.frontier, Bounds())
    first, second = tail.take(Bounds()).records
    assert (first.content, first.value, first.key, first.dedup_id) == (0, b"a", "k", "d")
    assert (second.content, second.key, second.headers) == (2, None, {"h": b"v"})
    tail.close()


# --- the catalogue ------------------------------------------------------------------------------


def test_the_catalogue_follows_births_and_deaths_and_passes_damage(backlog):
    catalogue = Catalogue(FS, backlog.data_dir, backlog.log.log_id)
    catalogue.update(backlog.log.frontier)
    assert [route.name for route in catalogue.routes.values()] == ["events"]
    assert (catalogue.stream_name(1), catalogue.stream_name(9)) == ("events", "9")
    backlog.append(b"x")
    frontier = backlog.log.frontier
    backlog.append(b"lost")
    other = state.RouteState(2, "more", 1, "events", "digest", 0, 0, 0)
    backlog.log.append_group([state.route_birth(other)])
    with Path(segment_path(backlog.data_dir, frontier.segment)).open("r+b") as file:
        file.seek(frontier.end_bytes)
        file.write(b"\xff" * 8)
    catalogue.update(backlog.log.frontier)
    assert [route.name for route in catalogue.routes.values()] == ["events", "more"]
    backlog.log.append_group([state.route_death(1)])
    catalogue.update(backlog.log.frontier)
    assert list(catalogue.routes) == [2]
    assert catalogue.count_streams() == 1
    catalogue.close()
    Catalogue(FS, backlog.data_dir, backlog.log.log_id).close()


def test_a_catalogue_that_cannot_begin_misses_no_route_once_it_can(backlog, monkeypatch):
    other = state.RouteState(2, "more", 1, "events", "digest", 0, 0, 0)
    backlog.log.append_group([state.route_birth(other), backlog.section(b"x")])
    catalogue = Catalogue(FS, backlog.data_dir, backlog.log.log_id)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "not now")

    with monkeypatch.context() as failing:
        failing.setattr(TailReader, "begin_at_head", fail)
        with pytest.raises(OSError, match="not now"):
            catalogue.update(backlog.log.frontier)
        catalogue.close()
    backlog.append(b"y")
    catalogue.update(backlog.log.frontier)
    assert catalogue.is_whole
    assert [route.name for route in catalogue.routes.values()] == ["events", "more"]
    catalogue.close()


def damaged_snapshot(backlog):
    """Flip a bit in what stands at the head of the newest segment, and tells of all before."""
    with Path(segment_path(backlog.data_dir, backlog.log.frontier.segment)).open("r+b") as file:
        file.seek(limits.ALIGNMENT_MIN_BYTES + frame.BLOCK_HEADER_BYTES + 8)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def tell(backlog):
    """Write what ingest writes of itself."""
    figures = Figures(FS, backlog.data_dir, backlog.log, pid=1, started_ns=1)
    figures.write(groups=1, connections=0, refused=Counter())
    figures.close()


def begun_anew(backlog):
    """The log goes on in a segment whose snapshot alone tells of streams and routes."""
    backlog.log.close()
    backlog.log = Log.open(FS, backlog.data_dir, CLOCK, backlog.chance, LogOptions())
    return Catalogue(FS, backlog.data_dir, backlog.log.log_id)


def test_routes_that_a_damaged_snapshot_told_are_learned_from_what_ingest_tells(backlog):
    catalogue = begun_anew(backlog)
    damaged_snapshot(backlog)
    catalogue.update(backlog.log.frontier)
    assert (list(catalogue.routes), catalogue.is_whole) == ([], False)
    tell(backlog)
    other = state.RouteState(2, "more", 1, "events", "digest", 0, 0, 0)
    backlog.log.append_group([state.route_birth(other)])  # behind what was told
    catalogue.update(backlog.log.frontier)
    assert [route.name for route in catalogue.routes.values()] == ["events", "more"]
    assert catalogue.stream_name(1) == "events"
    assert catalogue.is_whole
    catalogue.close()


def test_what_ingest_told_before_the_damage_does_not_stand_for_what_it_took(backlog):
    catalogue = begun_anew(backlog)
    tell(backlog)
    frontier = backlog.log.frontier
    other = state.RouteState(2, "more", 1, "events", "digest", 0, 0, 0)
    backlog.log.append_group([state.route_birth(other)])
    with Path(segment_path(backlog.data_dir, frontier.segment)).open("r+b") as file:
        file.seek(frontier.end_bytes)
        file.write(b"\xff" * 8)
    catalogue.update(backlog.log.frontier)
    assert (list(catalogue.routes), catalogue.is_whole) == ([1], False)
    tell(backlog)
    catalogue.update(backlog.log.frontier)
    assert (list(catalogue.routes), catalogue.is_whole) == ([1, 2], True)
    catalogue.close()


def test_up_to_an_old_frontier_not_all_was_read(backlog):
    catalogue = Catalogue(FS, backlog.data_dir, backlog.log.log_id)
    before = backlog.log.frontier
    catalogue.update(before)
    assert catalogue.is_current
    other = state.RouteState(2, "more", 1, "events", "digest", 0, 0, 0)
    backlog.log.append_group([state.route_birth(other)])
    old = backlog.log.frontier
    with Path(segment_path(backlog.data_dir, old.segment)).open("r+b") as file:
        file.truncate(before.end_bytes)  # as a start cuts what it has copied
    catalogue.update(old)
    assert (list(catalogue.routes), catalogue.is_whole, catalogue.is_current) == ([1], True, False)
    catalogue.close()


# --- lanes --------------------------------------------------------------------------------------


def test_a_sink_that_cannot_even_close_harms_nobody(backlog):
    class Stuck(RecordingSink):
        def close(self):
            msg = "no"
            raise OSError(msg)

    backlog.append(b"a")
    target = RecordingTarget()
    assert backlog.replay(lambda *_: Stuck(target))["pending"] == 0


def test_a_sink_that_cannot_be_made_shows_in_the_state_and_is_tried_again(backlog):
    backlog.append(b"a")
    target = RecordingTarget()
    failures = [WaldError("no such option"), ValueError("a bug")]

    def make(*_):
        if failures:
            raise failures.pop()
        return RecordingSink(target)

    assert backlog.replay(make)["pending"] == 0
    failures += [WaldError("no such option")] * 10_000
    backlog.append(b"b")
    done = backlog.replay(make, patience_s=0.05)
    assert done["pending"] == 1
    assert done["routes"]["events"]["last_error"] == "no such option"


def test_a_ledger_that_has_no_room_is_tried_with_growing_pauses(backlog):
    class Full(MemoryLedger):
        def finish(self, *_):
            msg = "no room for the ledger"
            raise LedgerFailed(msg)

    backlog.append(b"a")
    target = RecordingTarget()
    shared = backlog.shared(lambda *_: RecordingSink(target), ledger=Full(backlog.log.log_id))
    fleet = backlog.fleet(shared)
    try:
        eventually(lambda: fleet.lane(1).figures.failures >= 3, fleet.figures)
    finally:
        end(fleet)


def test_it_is_known_since_when_records_wait_for_a_target_that_was_never_up(backlog):
    backlog.append(b"a")
    target = RecordingTarget()
    target.down = Systemic(SystemicKind.UNREACHABLE, "down")
    fleet = backlog.fleet(backlog.shared(lambda *_: RecordingSink(target)))
    try:
        eventually(lambda: fleet.figures()["events"]["oldest_pending_ns"], fleet.figures)
        assert fleet.figures()["events"]["through_lsn"] == 0
    finally:
        end(fleet)


def test_a_lane_without_a_frontier_waits_for_one_and_leaves_at_once_when_stopped(backlog):
    backlog.append(b"a")
    target = RecordingTarget()
    shared = backlog.shared(lambda *_: RecordingSink(target))
    object.__setattr__(shared, "board", FrontierBoard())
    fleet = backlog.fleet(shared)
    shared.board.pin(backlog.log.frontier)
    eventually(lambda: len(target.records) == 1)
    end(fleet)
    object.__setattr__(shared, "board", FrontierBoard())
    fleet = backlog.fleet(shared)
    fleet.stop(3600.0)
    assert fleet.join(60.0) == []


def test_an_attempt_that_does_not_return_is_named_and_not_abandoned(backlog):
    go_on = threading.Event()

    class Slow(RecordingSink):
        def deliver(self, attempt):
            with self.target.changed:
                self.target.probes = 1
                self.target.changed.notify_all()
            go_on.wait(60.0)
            return super().deliver(attempt)

    lsns = backlog.append(b"a")
    target = RecordingTarget()
    fleet = backlog.fleet(backlog.shared(lambda *_: Slow(target)))
    assert target.wait_for(lambda: target.probes == 1)
    fleet.stop(0.0)
    assert fleet.join(0.01) == ["events"]
    go_on.set()
    assert fleet.join(60.0) == []
    assert target.lsns == lsns
    assert fleet.figures()["events"]["delivered"] == 1


def test_a_stale_frontier_at_a_start_holds_back_the_open_batch_until_it_is_known(backlog):
    backlog.append(b"a")
    stale = backlog.log.frontier
    lsns = backlog.append(b"b")
    target = RecordingTarget(lost_answers=1)
    shared = backlog.shared(lambda *_: RecordingSink(target))
    ledger = shared.ledger
    fleet = backlog.fleet(shared)
    eventually(lambda: len(target.records) == 2)
    end(fleet)
    again = backlog.shared(lambda *_: RecordingSink(target), ledger=ledger)
    board = FrontierBoard()
    board.pin(stale)
    object.__setattr__(again, "board", board)
    fleet = backlog.fleet(again)
    board.pin(backlog.log.frontier)
    eventually(lambda: fleet.figures()["events"]["through_lsn"] == lsns[-1], fleet.figures)
    end(fleet)
    assert len(target.records) == 2


# --- who we are ---------------------------------------------------------------------------------


def test_no_directory_has_no_owner(place):
    with pytest.raises(DataDirectoryUnusable):
        load_owner(FS, str(place / "absent"), Backlog.__new__(Backlog))  # type: ignore[arg-type]


def test_a_whole_owner_file_that_says_nothing_is_drawn_anew(backlog):
    junk = b"\xc1"
    data = junk + frame.crc32c(junk).to_bytes(4, "little")
    (Path(backlog.data_dir) / "owner").write_bytes(data)
    assert load_owner(FS, backlog.data_dir, backlog.chance).moved


# --- asks ---------------------------------------------------------------------------------------


@pytest.fixture
def asks(place):
    opened = Asks(str(place / "a.sock"), lambda request: {"said": request["op"]})
    yield opened
    opened.close()


def connect(place):
    asking = socket.socket(socket.AF_UNIX)
    asking.connect(str(place / "a.sock"))
    asking.settimeout(60.0)
    return asking


def answered(asks, asking):
    for _ in range(20):
        asks.poll(0.0)
    return asking.recv(4096)


def test_lines_are_answered_in_order_also_in_pieces(place, asks):
    with connect(place) as asking:
        asking.sendall(b'{"op": "a"}\n{"op": "b"}\n{"op"')
        lines = answered(asks, asking).splitlines()
        assert [json.loads(line)["said"] for line in lines] == ["a", "b"]
        asking.sendall(b': "c"}\n')
        assert json.loads(answered(asks, asking))["said"] == "c"


def test_one_asker_too_many_is_closed_and_the_others_go_on(place, asks):
    askers = []
    for _ in range(limits.ASKS_CONNECTIONS_MAX):
        askers.append(connect(place))
        asks.poll(0.0)
    with connect(place) as late:
        assert answered(asks, late) == b""
    askers[0].sendall(b'{"op": "a"}\n')
    assert json.loads(answered(asks, askers[0]))["said"] == "a"
    for asker in askers:
        asker.close()
    asks.poll(0.0)
    with connect(place) as next_one:
        next_one.sendall(b'{"op": "b"}\n')
        assert json.loads(answered(asks, next_one))["said"] == "b"


def test_a_line_without_an_end_is_not_kept_for_ever(place, asks, monkeypatch):
    monkeypatch.setattr(limits, "CONTROL_LINE_MAX_BYTES", 100)
    with connect(place) as asking:
        asking.sendall(b"x" * 200)
        assert answered(asks, asking) == b""


def test_an_asker_that_is_gone_before_its_answer_harms_nobody(place, asks):
    asking = connect(place)
    asking.sendall(b'{"op": "a"}\n' * 50)
    asking.close()
    for _ in range(5):
        asks.poll(0.0)
    with connect(place) as other:
        other.sendall(b'{"op": "b"}\n')
        assert json.loads(answered(asks, other))["said"] == "b"


def test_an_ask_that_fails_is_answered_and_ends_nothing(place):
    def fails(request):
        raise ValueError(request)

    asks = Asks(str(place / "a.sock"), fails)
    with connect(place) as asking:
        for _ in range(2):
            asking.sendall(b'{"op": "a"}\n')
            assert json.loads(answered(asks, asking))["error"]["code"] == "internal"
    asks.close()


def test_a_socket_that_cannot_be_made_is_an_error_and_leaves_no_descriptor(place):
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="No such file"):
        Asks(str(place / "absent" / "a.sock"), lambda _: {})
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EIO, "start.failed"),
        (errno.EMFILE, "start.failed"),
        (errno.EROFS, "start.failed"),
    ],
)
def test_a_start_that_the_system_refuses_is_said_and_tried_again(backlog, number, code):
    class Refusing(PosixFileSystem):
        def create(self, path, *, mode=0o600):
            if path.endswith("/progress"):
                raise OSError(number, os.strerror(number), path)
            return super().create(path, mode=mode)

    with pytest.raises(WaldError, match=backlog.data_dir) as raised:
        process.run(
            backlog.settings,
            make_sink=lambda *_: RecordingSink(RecordingTarget()),
            fs=Refusing(),
            clock=CLOCK,
            chance=Random(1),
            ready=lambda _: None,
            stop=threading.Event(),
        )
    assert raised.value.code == code
    assert not is_final(raised.value, "drain")  # else it would end the whole daemon
