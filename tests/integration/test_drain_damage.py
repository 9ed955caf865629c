"""What damage took from the log: declared, counted once, and everything else is delivered."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.backlog import FS, Backlog, end, eventually
from tests.logtools import SMALL
from wald import limits
from wald.core import frame
from wald.drainer.released import ProgressPage
from wald.model import NO_REVISION, LaneKey, LostRange, Systemic, SystemicKind
from wald.storage.deadlog import DeadPlace
from wald.storage.lmdb_store import open_ledger
from wald.storage.tail import segment_path
from wald.testing.recording_sink import RecordingSink, RecordingTarget
from wald.testing.simfs import SimFileSystem, Stopped

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
BOOKS = ("accepted", "delivered", "dead_letters", "lost", "pending")


def sink_of(target):
    return lambda *_: RecordingSink(target)


def values(count, start=0):
    return [b"%05d" % number for number in range(start, start + count)]


def test_what_damage_took_becomes_a_dead_letter_and_the_rest_is_delivered(backlog):
    before = backlog.append(*values(5))
    frontier = backlog.log.frontier
    lost = backlog.append(*values(7, 5))
    after = backlog.append(*values(5, 12))
    with Path(segment_path(backlog.data_dir, frontier.segment)).open("r+b") as file:
        file.seek(frontier.end_bytes + 200)  # in the payload of the lost block
        file.write(b"\xff\xff\xff")
    target = RecordingTarget()
    done = backlog.replay(sink_of(target))
    assert target.lsns == before + after
    route = done["routes"]["events"]
    assert (route["delivered"], route["dead_letters"], route["pending"]) == (10, 7, 0)
    ledger = open_ledger(FS, backlog.data_dir, backlog.log.log_id)
    (letter,) = ledger.dead_letters(1)
    ledger.close()
    assert (letter.code, letter.lsn, letter.through_lsn) == ("damaged", lost[0], lost[-1])


def test_damage_at_the_end_is_passed_by_an_idle_lane(backlog):
    frontier = backlog.log.frontier
    backlog.append(*values(7))
    with Path(segment_path(backlog.data_dir, frontier.segment)).open("r+b") as file:
        file.seek(frontier.end_bytes + 200)
        file.write(b"\xff\xff\xff")
    done = backlog.replay(sink_of(RecordingTarget()))
    assert done["routes"]["events"]["dead_letters"] == 7


def damage(backlog, *found):
    """Spoil the given bytes wherever they stand in the log."""
    path = Path(segment_path(backlog.data_dir, backlog.log.frontier.segment))
    data = path.read_bytes()
    for each in found:
        assert each in data
        data = data.replace(each, b"\xff" * len(each))
    path.write_bytes(data)


class Refusing(RecordingSink):
    """Says its row, and takes nothing."""

    def deliver(self, _attempt):
        return DOWN


def test_a_record_lost_while_its_batch_is_open_counts_as_lost_and_not_as_delivered(backlog):
    lsns = backlog.append(*values(3))
    backlog.append(*values(4, 3))
    lsns += backlog.append(*values(2, 7))
    assert backlog.replay(lambda *_: Refusing(), patience_s=0.3)["pending"] == 9
    damage(backlog, b"00004")
    target = RecordingTarget()
    route = backlog.replay(sink_of(target))["routes"]["events"]
    assert target.lsns == lsns
    assert (route["delivered"], route["dead_letters"], route["pending"]) == (5, 4, 0)


def test_a_record_set_aside_and_then_lost_is_one_dead_letter_with_its_body(backlog):
    first = backlog.append(*values(3))
    (bad,) = backlog.append(b"bad")
    last = backlog.append(*values(3, 4))
    shared = backlog.shared(sink_of(RecordingTarget()))
    target = RecordingTarget(refuses=lambda record: record.lsn == bad)

    class DownOnceSearched(RecordingSink):
        def probe(self, attempt, records):
            answer = super().probe(attempt, records)
            self.target.down = DOWN
            return answer

    object.__setattr__(shared, "make_sink", lambda *_: DownOnceSearched(target))
    fleet = backlog.fleet(shared)
    key = LaneKey(backlog.log.log_id, 1, 0, 0)

    def revised():
        manifest = shared.ledger.lane(key).manifest
        return manifest is not None and manifest.current.excluded == (bad,)

    eventually(revised)
    end(fleet)
    damage(backlog, b"bad")
    target.down, target.refuses = None, lambda record: record.lsn in {bad, last[1]}
    object.__setattr__(shared, "make_sink", sink_of(target))
    fleet = backlog.deliver_all(shared)
    assert target.lsns == [*first, last[0], last[2]]
    figures = fleet.figures()["events"]
    assert (figures["delivered"], figures["dead_letters"]) == (5, 2)
    letters = shared.ledger.dead_letters(1)
    assert [letter.lsn for letter in letters] == [bad, last[1]]
    for letter in letters:
        entry = shared.dead_log.read(DeadPlace(letter.dead_file, letter.dead_offset))
        assert letter.lsn in [record.lsn for record in entry.excluded]
    shared.dead_log.close()


def test_what_damage_took_of_two_streams_is_counted_for_each_or_said_to_be_lost(two):
    before = {1: two.append(b"a", stream=1), 2: two.append(b"b", stream=2)}
    ours = [two.section(b"one-%d" % number, stream=1) for number in range(2)]
    theirs = [two.section(b"two-%d" % number, stream=2) for number in range(3)]
    two.log.append_group(ours + theirs)  # the sections can still be told: 2 and 3
    two.append(b"mine alone", b"too", stream=1)  # as here: none of the other's
    frontier = two.log.frontier
    two.append(b"c", b"d", b"e", b"f", stream=1)  # here they cannot
    after = two.append(b"g", stream=2)
    damage(two, b"two-1", b"mine alone")
    with Path(segment_path(two.data_dir, frontier.segment)).open("r+b") as file:
        file.seek(frontier.end_bytes)
        file.write(b"\xff\xff\xff")
    targets = {"one": RecordingTarget(), "two": RecordingTarget()}
    done = two.replay(lambda route, _: RecordingSink(targets[route.name]))
    assert targets["one"].lsns == before[1]
    assert targets["two"].lsns == before[2] + after
    books = [{name: done["routes"][route][name] for name in BOOKS} for route in ("one", "two")]
    assert books == [
        {"accepted": 9, "delivered": 1, "dead_letters": 4, "lost": 4, "pending": 0},
        {"accepted": 5, "delivered": 2, "dead_letters": 3, "lost": 0, "pending": 0},
    ]
    ledger = open_ledger(FS, two.data_dir, two.log.log_id)
    assert [letter.records for letter in ledger.dead_letters(1)] == [2, 2, 0]
    assert [letter.records for letter in ledger.dead_letters(2)] == [3, 0, 0]
    ledger.close()


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
@pytest.mark.parametrize("stream", [2, 9])
def test_a_damaged_block_that_names_another_stream_is_a_dead_letter_all_the_same(
    place, names, stream
):
    backlog = Backlog(place, *names)
    before = backlog.append(b"a")
    section = backlog.section(b"lost", b"too")
    backlog.log.append_group([section])
    after = backlog.append(b"b")
    path = Path(segment_path(backlog.data_dir, backlog.log.frontier.segment))
    data = path.read_bytes()
    at = data.index(section.requests) - frame.SECTION_BYTES
    fields = list(frame._SECTION.unpack_from(data, at))
    fields[3] = stream
    path.write_bytes(data[:at] + frame._SECTION.pack(*fields) + data[at + frame.SECTION_BYTES :])
    target = RecordingTarget()
    targets = {"one": target, "two": RecordingTarget()}
    done = backlog.replay(lambda route, _: RecordingSink(targets[route.name]))["routes"]["one"]
    assert target.lsns == before + after
    ledger = open_ledger(FS, backlog.data_dir, backlog.log.log_id)
    for route_id in range(1, len(names) + 1):
        (letter,) = ledger.dead_letters(route_id)
        assert (letter.code, letter.lsn, letter.through_lsn) == (
            "damaged",
            before[-1] + 1,
            after[0] - 1,
        )
        assert letter.records == (2 if len(names) == 1 else 0)
    ledger.close()
    assert (done["dead_letters"] + done["lost"], done["pending"]) == (2, 0)
    backlog.close()


def test_a_lost_range_with_a_jump_in_it_counts_no_records(backlog):
    shared = backlog.shared(sink_of(RecordingTarget()))
    route = backlog.fleet(shared).lane(1).route
    lost = [
        LostRange(1, 5, 1, 0, "why"),
        LostRange(1, limits.LSN_JUMP_UNCLEAN + 1, 1, 0, "why"),
        LostRange(1, limits.LSN_JUMP_UNCLEAN + 1, 1, 0, "why", 3),
    ]
    letters = route.letters_of_lost(lost, 1, NO_REVISION)
    assert [letter.records for letter in letters] == [5, 0, 3]


def segments_of(backlog):
    return sorted((Path(backlog.data_dir) / "log").glob("seg-*.wal"))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("begun", [False, True])
def test_a_lost_segment_is_declared_and_all_else_is_delivered(place, which, begun):
    """Also by a lane that begins behind the damage: a gap in our own log parks nobody."""
    backlog = Backlog(place, "events", options=SMALL)
    target = RecordingTarget()
    lsns = backlog.append(b"first")
    if begun:
        backlog.replay(sink_of(target))
    for number in range(60):
        lsns += backlog.append(b"%d" % number)
    assert len(segments_of(backlog)) > 4
    segments_of(backlog)[which].unlink()
    route = backlog.replay(sink_of(target))["routes"]["events"]
    assert (route["parked"], route["pending"]) == (None, 0)
    assert target.lsns == sorted(set(target.lsns))
    assert len(target.lsns) > 40
    assert target.lsns[-1] == lsns[-1]
    assert route["delivered"] == len(target.lsns)
    assert route["dead_letters"] == len(lsns) - len(target.lsns) > 0
    backlog.close()


def test_where_ledger_and_target_both_went_back_behind_the_log_the_lane_is_parked(place):
    backlog = Backlog(place, "events", options=SMALL)
    for number in range(60):
        backlog.append(b"%d" % number)
    backlog.replay(sink_of(RecordingTarget()))
    shutil.rmtree(Path(backlog.data_dir) / "ledger")
    segments_of(backlog)[0].unlink()  # as retirement does
    for _ in range(2):  # what was told stays known
        route = backlog.replay(sink_of(RecordingTarget()))["routes"]["events"]
        assert (route["parked"], route["delivered"]) == ("target-behind", 0)
    backlog.close()


def test_what_was_released_is_remembered_for_living_routes(place):
    progress = ProgressPage(FS, str(place))
    progress.write({"1": 50, "2": 60}, {1, 2})
    progress.write({"1": 20}, {1})
    progress.close()
    progress = ProgressPage(FS, str(place))
    assert [progress.released(route_id) for route_id in (1, 2, 3)] == [50, 0, 0]
    progress.write({}, {1})
    progress.close()
    progress = ProgressPage(FS, str(place))
    assert progress.released(1) == 50
    progress.close()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["sync", "pwritev", "open"])
def test_a_failed_sync_of_the_progress_page_does_not_end_it(seed, kind):
    """And what was durable before stays so until the next statement is."""
    fs = SimFileSystem(Random(seed), directories=("/data",))
    progress = ProgressPage(fs, "/data")
    for lsn in (10, 20, 30):
        progress.write({"1": lsn}, {1})
    for lsn in (40, 41):
        fs.fail(1, kind="sync")
        if lsn == 41:
            fs.fail(1, kind=kind)
        with pytest.raises(OSError, match="error"):
            progress.write({"1": lsn}, {1})
        fs.heal()
    if seed % 2:
        fs.stop(1, kind="sync")  # the power goes before the next one is durable
        with pytest.raises(Stopped):
            progress.write({"1": 50}, {1})
    else:
        progress.write({"1": 50}, {1})
        progress.write({"1": 60}, {1})
        fs.fail(1, kind="sync")
        with pytest.raises(OSError, match="error"):
            progress.write({"1": 70}, {1})
    fs.crash()
    kept = ProgressPage(fs, "/data").released(1)
    assert kept in ({30, 40, 41, 50} if seed % 2 else {60, 70})


# --- a disk that is away for a moment -----------------------------------------------------------


class Away:
    """A file system whose log gives nothing behind an offset for so many reads."""

    def __init__(self):
        self.left = self.behind = 0

    def __getattr__(self, name):
        return getattr(FS, name)

    def open(self, path, **options):
        file = FS.open(path, **options)
        return AwayFile(file, self) if path.endswith(".wal") else file


class AwayFile:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __getattr__(self, name):
        return getattr(self.file, name)

    def pread(self, length, offset):
        if self.disk.left > 0 and offset + length > self.disk.behind:
            self.disk.left -= 1
            raise OSError(errno.EIO, "Input/output error")
        return self.file.pread(length, offset)


@pytest.mark.parametrize(
    ("reads", "lost"), [(limits.UNREAD_TRIES_COUNT - 1, False), (1_000_000, True)]
)
def test_what_the_disk_does_not_give_for_a_moment_is_not_lost(backlog, reads, lost):
    """A read of one page: whether it is that page or the whole disk does not show."""
    first = backlog.append(b"first")
    target = RecordingTarget()
    disk = Away()
    shared = replace(backlog.shared(sink_of(target)), fs=disk)
    fleet = backlog.fleet(shared)
    try:
        assert target.wait_for(lambda: len(target.records) == 1)
        disk.left, disk.behind = reads, backlog.log.frontier.end_bytes
        second = backlog.append(b"second")
        shared.board.pin(backlog.log.frontier)
        fleet.flush(backlog.log.frontier.lsn)
        if lost:
            eventually(lambda: shared.ledger.dead_letters(1), fleet.figures)
        else:
            assert target.wait_for(lambda: len(target.records) == 2)
    finally:
        end(fleet)
    letters = [(each.lsn, each.code) for each in shared.ledger.dead_letters(1)]
    assert letters == ([(second[0], "damaged")] if lost else [])
    assert target.lsns == (first if lost else first + second)
