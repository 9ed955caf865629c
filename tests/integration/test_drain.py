"""Delivery from a real log: once, in order, through a failure at every commit point."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.backlog import CLOCK, FS, OWNER, Backlog, end, eventually
from tests.logtools import SMALL
from wald import limits
from wald.core import state
from wald.core.events import Failed, FrontierMoved, Welcome
from wald.drainer import process
from wald.drainer.fleet import _figures, fitting_the_page
from wald.drainer.frontier import FrontierBoard, Subscription, read_hint
from wald.drainer.lane import LaneFigures
from wald.drainer.released import ProgressPage
from wald.errors import DataDirectoryHeld
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Frontier,
    LaneKey,
    LostRange,
    ProgressRow,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RouteBirth,
    RowMoved,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.sqlite import make as make_sqlite
from wald.storage.deadlog import DeadLog, DeadPlace
from wald.storage.ledger import LmdbLedger
from wald.storage.owner import load_owner
from wald.storage.progress import TwoSlotPage
from wald.storage.tail import segment_path
from wald.supervisor.control import ControlServer
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def backlog(place):
    opened = Backlog(place, "events")
    yield opened
    opened.close()


@pytest.fixture
def two(place):
    opened = Backlog(place, "one", "two")
    yield opened
    opened.close()


def sink_of(target, **options):
    return lambda *_: RecordingSink(target, **options)


def values(count, start=0):
    return [b"%05d" % number for number in range(start, start + count)]


# --- once and in order --------------------------------------------------------------------------


def test_a_backlog_is_delivered_once_and_in_order(backlog):
    lsns = [lsn for start in range(0, 50, 5) for lsn in backlog.append(*values(5, start))]
    target = RecordingTarget()
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert [record.value for record in target.records] == values(50)
    assert done["pending"] == 0
    route = done["routes"]["events"]
    assert (route["accepted"], route["delivered"], route["dead_letters"]) == (50, 50, 0)
    assert [len(item.records) for item in target.attempts] == [10] * 5


def test_a_second_replay_delivers_only_what_came_since(backlog):
    target = RecordingTarget()
    backlog.append(*values(25))
    backlog.replay(sink_of(target))
    backlog.append(*values(3, 25))
    done = backlog.replay(sink_of(target))
    assert [record.value for record in target.records] == values(28)
    assert done["routes"]["events"]["delivered"] == 28


def test_a_request_larger_than_a_batch_is_cut_and_a_small_one_waits_for_no_other(backlog):
    backlog.append(*values(25))
    target = RecordingTarget()
    backlog.replay(sink_of(target))
    assert [len(item.records) for item in target.attempts] == [10, 10, 5]


def test_streams_do_not_mix_and_idle_checkpoints_move_over_foreign_lsns(two):
    ours = two.append(*values(3), stream=1)
    theirs = two.append(*values(4), stream=2)
    ours += two.append(*values(2), stream=1)
    targets = {"one": RecordingTarget(), "two": RecordingTarget()}
    two.replay(lambda route, _: RecordingSink(targets[route.name]))
    assert targets["one"].lsns == ours
    assert targets["two"].lsns == theirs
    page = TwoSlotPage.open(
        FS, f"{two.data_dir}/progress", slot_bytes=16 * limits.PAGE_SLOT_BYTES, write=False
    )
    said = page.read()
    page.close()
    assert said is not None
    said_routes = dict(said["routes"])  # type: ignore[call-overload]
    assert said_routes["1"] == ours[-1]
    assert said_routes["2"] in {theirs[-1], ours[-1]}  # passed over, or not told yet


# --- failures between the commit points ---------------------------------------------------------


class Fuse:
    """Blows at the n-th call of anything it guards, before or behind the call's effect."""

    def __init__(self, at, *, behind):
        self.left = at
        self.behind = behind
        self.blown = False

    def guard(self, inner, names):
        return _Guarded(self, inner, frozenset(names))

    def call(self, method, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and not self.behind:
            self.blown = True
            msg = "before"
            raise RuntimeError(msg)
        result = method(*args, **kwargs)
        if self.left == 0:
            self.blown = True
            msg = "behind"
            raise RuntimeError(msg)
        return result


class _Guarded:
    def __init__(self, fuse, inner, names):
        self._fuse, self._inner, self._names = fuse, inner, names

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args, **kwargs: self._fuse.call(found, *args, **kwargs)


LEDGER = ("birth", "seal", "revise", "attempt", "finish", "advance")
SINK = ("read_row", "deliver", "probe")


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_failure_at_any_call_leaves_every_record_applied_once(place, behind, named):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(30))
    bad = set(lsns[3:5]) | {lsns[25]}
    for at in itertools.count(2):  # the first call is the birth, which the caller makes
        fuse = Fuse(at, behind=behind)
        target = RecordingTarget(refuses=lambda record: record.lsn in bad, names=named)
        shared = backlog.shared(
            lambda *_: fuse.guard(RecordingSink(target), SINK),  # noqa: B023 - used in this round
            ledger=fuse.guard(MemoryLedger(backlog.log.log_id), LEDGER),
            dead_log=fuse.guard(DeadLog(FS, backlog.data_dir), ("append",)),
        )
        fleet = backlog.deliver_all(shared)
        shared.dead_log.close()
        assert target.lsns == [lsn for lsn in lsns if lsn not in bad], at
        figures = fleet.figures()["events"]
        assert (figures["delivered"], figures["dead_letters"]) == (27, 3), at
        letters = shared.ledger.dead_letters(1)
        assert [letter.lsn for letter in letters] == sorted(bad), at
        if not fuse.blown:
            break
    assert at > 12
    backlog.close()


def guarded_sqlite(fuse, path, *_):
    return fuse.guard(make_sqlite("events", "events", {"path": str(path)}), SINK)


@pytest.mark.parametrize("behind", [False, True])
def test_with_lmdb_and_sqlite_too_every_record_is_applied_once(place, behind):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(20))
    for at in itertools.count(2):
        fuse = Fuse(at, behind=behind)
        path = place / f"{at}.db"
        home = place / str(at)
        home.mkdir()
        ledger = LmdbLedger.open(FS, str(home), backlog.log.log_id)
        shared = backlog.shared(
            partial(guarded_sqlite, fuse, path),
            ledger=fuse.guard(ledger, LEDGER),
        )
        with closing(sqlite3.connect(path)) as other:  # a reader beside us, as a user's is
            other.execute("PRAGMA journal_mode = WAL").fetchall()
            backlog.deliver_all(shared)
            assert other.execute("SELECT lsn FROM events ORDER BY rowid").fetchall() == [
                (lsn,) for lsn in lsns
            ], at
        assert shared.ledger.lane(LaneKey(backlog.log.log_id, 1, 0, 0)).checkpoint.delivered == 20
        ledger.close()
        if not fuse.blown:
            break
    assert at > 6
    backlog.close()


def test_a_lost_answer_is_settled_by_the_row(backlog):
    lsns = backlog.append(*values(20))
    target = RecordingTarget(lost_answers=2)
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert done["pending"] == 0


@pytest.mark.parametrize(
    "outcome",
    [Unknown("cut"), DOWN, RowMoved(None), RuntimeError("a bug of the sink"), Rejected((), "?")],
)
def test_an_attempt_that_took_no_effect_is_made_again(backlog, outcome):
    lsns = backlog.append(*values(12))
    target = RecordingTarget()
    target.script.append(outcome)
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert (done["pending"], done["routes"]["events"]["dead_letters"]) == (0, 0)


@pytest.mark.parametrize("replay", [ReplayClass.KEYED, ReplayClass.MONOTONE, ReplayClass.NONE])
def test_a_target_without_a_row_is_sent_to_again(backlog, replay):
    lsns = backlog.append(*values(5))
    target = RecordingTarget()
    target.script.append(Unknown("cut"))
    done = backlog.replay(sink_of(target, replay=replay))
    assert target.lsns == lsns
    assert done["routes"]["events"]["class"] == replay.value


def test_an_unknown_outcome_of_a_window_target_waits_for_a_person(backlog):
    backlog.append(*values(5))
    target = RecordingTarget(script=RecordingTarget().script)
    target.script.append(Unknown("cut"))
    done = backlog.replay(sink_of(target, replay=ReplayClass.WINDOW))
    assert (done["pending"], done["routes"]["events"]["parked"]) == (5, "uncertain")
    assert len(target.attempts) == 1


def test_a_sink_takes_no_more_than_it_is_able_to(backlog):
    backlog.append(*values(10))
    target = RecordingTarget()
    backlog.replay(sink_of(target, max_records=3))
    assert [len(item.records) for item in target.attempts] == [3, 3, 3, 1]


# --- poison -------------------------------------------------------------------------------------


def test_a_refused_record_is_set_aside_with_its_body_and_harms_no_other(backlog):
    lsns = backlog.append(*values(20))
    target = RecordingTarget(refuses=lambda record: record.value == b"00013", names=False)
    done = backlog.replay(sink_of(target))
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[13]]
    assert done["routes"]["events"]["dead_letters"] == 1
    ledger = LmdbLedger.open(FS, backlog.data_dir, backlog.log.log_id)
    (letter,) = ledger.dead_letters(1)
    ledger.close()
    entry = DeadLog(FS, backlog.data_dir).read(DeadPlace(letter.dead_file, letter.dead_offset))
    assert (letter.lsn, letter.code, letter.batch_no) == (lsns[13], "rejected", 2)
    assert [record.value for record in entry.excluded] == [b"00013"]
    row = target.rows[LaneKey(backlog.log.log_id, 1, 0, 0)]
    assert row.dead_rev == entry.rev_id


def test_a_batch_whose_every_record_is_refused_still_commits_on_the_row(backlog):
    backlog.append(*values(3))
    target = RecordingTarget(refuses=lambda _: True)
    done = backlog.replay(sink_of(target))
    assert target.records == []
    assert (done["pending"], done["routes"]["events"]["dead_letters"]) == (0, 3)
    assert target.rows[LaneKey(backlog.log.log_id, 1, 0, 0)].batch_no == 1


def test_a_target_that_goes_down_while_it_is_searched_makes_no_dead_letter(backlog):
    lsns = backlog.append(*values(10))
    target = RecordingTarget(refuses=lambda record: record.value == b"00004")

    class Falls(RecordingSink):
        def probe(self, attempt, records):
            if self.target.probes == 0:
                self.target.probes = 1
                return DOWN
            return super().probe(attempt, records)

    done = backlog.replay(lambda *_: Falls(target))
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[4]]
    assert done["routes"]["events"]["dead_letters"] == 1


def test_too_large_a_share_of_refusals_is_taken_for_an_outage(place):
    backlog = Backlog(place, "events", batch=200)
    lsns = backlog.append(*values(200))
    target = RecordingTarget(refuses=lambda record: record.value > b"00050")
    done = backlog.replay(sink_of(target))
    route = done["routes"]["events"]
    assert (route["dead_letters"], route["pending"]) == (0, 200)
    assert route["last_error"].startswith("too-many-rejects: 149 of 200")
    target.refuses = lambda _: False  # the table was mended
    backlog.replay(sink_of(target))
    assert target.lsns == lsns
    backlog.close()


def test_a_full_quota_of_dead_letters_parks_the_lane_until_the_target_takes_the_batch(
    backlog, monkeypatch
):
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.01)
    monkeypatch.setattr(limits, "DEAD_LETTERS_MAX", 3)
    lsns = backlog.append(*values(40))
    bad = {lsns[1], lsns[2], lsns[12], lsns[22]}

    def halted():
        figures = fleet.figures()["events"]
        reason = figures["last_error"].startswith("dead-letter-quota: with 1 more")
        said = (figures["state"], figures["parked"], figures["dead_letters"])
        return said == ("parked", "dead-letter-quota", 3) and reason

    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = backlog.shared(sink_of(target))
    fleet = backlog.fleet(shared)
    try:
        eventually(halted, fleet.figures)
        assert target.lsns == [lsn for lsn in lsns[:20] if lsn not in bad]
        target.refuses = lambda _: False
        eventually(lambda: fleet.figures()["events"]["delivered"] == 37, fleet.figures)
        assert fleet.figures()["events"]["parked"] is None
    finally:
        end(fleet)
    assert len(shared.ledger.dead_letters(1)) == 3
    shared.dead_log.close()


def test_a_target_s_words_are_kept_within_bounds(backlog):
    class Wordy(RecordingSink):
        def _refused(self, records):
            return [RejectedRecord(item.lsn, "c" * 10_000, "w" * 10_000) for item in records][:1]

        def deliver(self, attempt):
            if len(attempt.records) < 2:
                return super().deliver(replace(attempt, records=()))
            return Rejected(tuple(self._refused(attempt.records)), "w")

        def probe(self, _attempt, records):
            return self._refused(records) if len(records) > 1 else ()

    backlog.append(*values(2))
    shared = backlog.shared(lambda *_: Wordy())
    backlog.deliver_all(shared)
    (letter,) = shared.ledger.dead_letters(1)
    assert len(letter.message) == len(letter.code) == limits.ERROR_TEXT_MAX_CHARS
    shared.dead_log.close()


# --- one target harms no other ------------------------------------------------------------------


def test_a_dead_target_does_not_delay_the_other_route(two):
    two.append(*values(30), stream=1)
    lsns = two.append(*values(30), stream=2)
    dead, good = RecordingTarget(down=DOWN), RecordingTarget()
    targets = {"one": dead, "two": good}
    done = two.replay(lambda route, _: RecordingSink(targets[route.name]))
    assert good.lsns == lsns
    assert done["routes"]["one"]["pending"] == 30
    assert done["routes"]["one"]["last_error"] == "unreachable: it is down"
    assert done["routes"]["two"]["pending"] == 0


def row_like(row, **changes):
    return replace(row, **changes)


FOREIGN = ProgressRow(9, b"x" * 16, 1, NO_ANCHOR, OWNER, NO_REVISION)


@pytest.mark.parametrize(
    ("spoil", "parked"),
    [
        (lambda _: None, "target-behind"),
        (lambda row: row_like(row, batch_no=1, rev_id=b"x" * 16), "target-behind"),
        (lambda row: row_like(row, rev_id=b"x" * 16), "ledger-older"),
        (lambda row: row_like(row, batch_no=9), "ledger-older"),
        (lambda row: row_like(row, owner=1), "diverged"),
        (lambda row: row_like(row, batch_no=9, anchor=NO_ANCHOR), "diverged"),
        (lambda row: row_like(row, batch_no=9, hi_lsn=row.hi_lsn + 10**9), "diverged"),
    ],
)
def test_a_strange_row_parks_its_lane_alone_and_it_leaves_when_the_row_fits(
    two, monkeypatch, spoil, parked
):
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.01)
    targets = {"one": RecordingTarget(), "two": RecordingTarget()}
    two.append(*values(20), stream=1)
    shared = two.shared(lambda route, _: RecordingSink(targets[route.name]))
    two.deliver_all(shared)
    key = LaneKey(two.log.log_id, 1, 0, 0)
    kept = targets["one"].rows.pop(key)
    spoiled = spoil(kept)
    if spoiled is not None:
        targets["one"].rows[key] = spoiled
    two.append(*values(5), stream=1)
    lsns = two.append(*values(5), stream=2)
    shared.board.pin(two.log.frontier)
    fleet = two.fleet(shared)
    try:
        eventually(lambda: fleet.figures()["one"]["parked"] == parked, fleet.figures)
        eventually(lambda: targets["two"].lsns == lsns)
        assert len(targets["one"].records) == 20
        assert fleet.figures()["one"]["last_error"]
        targets["one"].rows[key] = kept
        eventually(lambda: len(targets["one"].records) == 25, fleet.figures)
        eventually(lambda: fleet.figures()["one"]["parked"] is None)
    finally:
        end(fleet)


def test_a_copied_directory_parks_its_lanes_without_touching_a_row(backlog):
    backlog.append(*values(5))
    target = RecordingTarget()
    ledger = MemoryLedger(backlog.log.log_id)
    shared = backlog.shared(sink_of(target), ledger=ledger)
    backlog.deliver_all(shared)
    backlog.append(*values(5))
    moved = backlog.shared(sink_of(target), ledger=ledger, owner=OWNER + 1)
    fleet = backlog.fleet(moved)
    try:
        eventually(lambda: fleet.figures()["events"]["parked"] == "diverged")
    finally:
        end(fleet)
    assert len(target.attempts) == 1


def test_the_owner_is_drawn_anew_where_the_directory_is_another_one(place):
    chance = Backlog(place, "events")
    first = load_owner(FS, chance.data_dir, chance.chance)
    assert load_owner(FS, chance.data_dir, chance.chance) == first
    assert not first.moved
    shutil.copytree(chance.data_dir, place / "copy")
    copy = load_owner(FS, str(place / "copy"), chance.chance)
    assert copy.moved
    assert copy.value != first.value
    (Path(chance.data_dir) / "owner").write_bytes(b"damaged")
    assert load_owner(FS, chance.data_dir, chance.chance).moved
    chance.close()


# --- damage -------------------------------------------------------------------------------------


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
    ledger = LmdbLedger.open(FS, backlog.data_dir, backlog.log.log_id)
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
    assert backlog.replay(lambda *_: Refusing())["pending"] == 9
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
    ledger = LmdbLedger.open(FS, two.data_dir, two.log.log_id)
    assert [letter.records for letter in ledger.dead_letters(1)] == [2, 2, 0]
    assert [letter.records for letter in ledger.dead_letters(2)] == [3, 0]
    ledger.close()


BOOKS = ("accepted", "delivered", "dead_letters", "lost", "pending")


def test_a_lost_range_with_a_jump_in_it_counts_no_records(backlog):
    shared = backlog.shared(sink_of(RecordingTarget()))
    route = backlog.fleet(shared).lanes[1].route
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


# --- routes -------------------------------------------------------------------------------------


def test_a_route_without_settings_is_kept_and_pins_the_log(two):
    two.append(*values(3), stream=1)
    settings = replace(two.settings, routes={"two": two.settings.routes["two"]})
    done = two.replay(sink_of(RecordingTarget()), settings=settings)
    assert done["routes"]["one"]["state"] == "orphan"
    assert (done["routes"]["one"]["pending"], done["routes"]["one"]["through_lsn"]) == (3, 0)


def test_with_an_auto_sink_every_stream_has_a_route(backlog):
    backlog.append(*values(3))
    settings = replace(backlog.settings, routes={}, auto_sink="events")
    target = RecordingTarget()
    assert backlog.replay(sink_of(target), settings=settings)["pending"] == 0
    assert len(target.records) == 3


def test_a_dead_route_ends_its_lane(backlog):
    shared = backlog.shared(sink_of(RecordingTarget()))
    fleet = backlog.fleet(shared)
    lane = fleet.lanes[1]
    backlog.log.append_group([state.route_death(1)])
    fleet.follow(backlog.log.state.routes)
    assert fleet.figures() == {}
    assert lane.join(10.0)


def test_a_batch_is_sealed_by_age_alone(backlog):
    backlog.append(*values(3))
    target = RecordingTarget()
    fleet = backlog.fleet(backlog.shared(sink_of(target)))
    try:
        assert target.wait_for(lambda: bool(target.attempts))
    finally:
        end(fleet)


def test_stopping_delivers_what_is_there_unless_the_target_is_down(place):
    backlog = Backlog(place, "events", batch=1_000)
    settings = backlog.settings.routes["events"]
    slow = replace(settings, batch=replace(settings.batch, max_age_s=3600.0))
    backlog.settings = replace(backlog.settings, routes={"events": slow})
    backlog.append(*values(3))
    target = RecordingTarget()
    shared = backlog.shared(sink_of(target))
    fleet = backlog.fleet(shared)
    fleet.stop(10.0)
    assert fleet.join(10.0) == []
    assert len(target.records) == 3
    target.down = DOWN
    backlog.append(*values(3))
    shared.board.pin(backlog.log.frontier)
    fleet = backlog.fleet(shared)
    fleet.stop(3600.0)
    assert fleet.join(10.0) == []
    backlog.close()


# --- the process --------------------------------------------------------------------------------


class Running:
    """The drain process's main thread, as a thread."""

    def __init__(self, backlog, make_sink):
        self.stop = threading.Event()
        self.ready = threading.Event()
        self.backlog = backlog
        self.thread = threading.Thread(target=self.run, args=(make_sink,))

    def run(self, make_sink):
        process.run(
            self.backlog.settings,
            make_sink=make_sink,
            fs=FS,
            clock=CLOCK,
            chance=self.backlog.chance,
            ready=lambda _: self.ready.set(),
            stop=self.stop,
        )

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(10.0)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(20.0)
        assert not self.thread.is_alive()

    def ask(self, line):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(f"{self.backlog.data_dir}/drain.sock")
            asking.sendall((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
            with asking.makefile("rb") as answers:
                return json.loads(answers.readline())

    def page(self):
        page = TwoSlotPage.open(
            FS,
            f"{self.backlog.data_dir}/drain.page",
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=False,
        )
        try:
            return page.read()
        finally:
            page.close()


def serve_frontier(backlog, *, stop):
    """Stand in for ingest: say the frontier to whoever subscribes, whenever it moves."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(backlog.settings.socket)
    listening.listen()
    listening.settimeout(0.05)

    def serve():
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    welcome = Welcome(1, 0, 0, backlog.log.log_id, 1)
                    connection.sendall(welcome.encode())
                    told = None
                    while not stop.is_set():
                        if backlog.log.frontier != told:
                            told = backlog.log.frontier
                            connection.sendall(FrontierMoved(told).encode())
                        stop.wait(0.005)
        listening.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_process_delivers_publishes_answers_and_stops(backlog):
    lsns = backlog.append(*values(12))
    target = RecordingTarget(refuses=lambda record: record.value == b"00002")
    ended = threading.Event()
    with Running(backlog, sink_of(target)) as running:
        serving = serve_frontier(backlog, stop=ended)
        eventually(lambda: len(target.records) == 11)
        assert running.ask({"op": "drain.flush"})["through_lsn"] == lsns[-1]
        lsns += backlog.append(*values(3, 12))
        eventually(lambda: len(target.records) == 14)
        eventually(lambda: running.page()["routes"]["events"]["through_lsn"] == lsns[-1])
        said = running.page()
        assert said["pid"] == os.getpid()
        assert said["routes"]["events"]["delivered"] == 14
        assert said["routes"]["events"]["class"] == "transactional"
        (entry,) = running.ask({"op": "drain.dlq", "route": "events"})["entries"]
        assert (entry["lsn"], entry["code"]) == (lsns[2], "refused")
        assert running.ask({"op": "drain.dlq", "after": lsns[2]})["entries"] == []
        batches = running.ask({"op": "drain.batches"})["routes"]["events"]
        assert [line["number"] for line in batches["finished"]][:2] == [1, 2]
        wrong = [
            {"op": "drain.no"},
            {"op": "drain.dlq", "limit": -1},
            *({"op": "drain.dlq", "after": after} for after in (2**63 - 1, 2**64 - 1, 2**200)),
            {"op": "drain.batches", "limit": 2**64},
            {"op": "drain.dlq", "route": {}},
            {"op": "drain.flush", "through_lsn": 2**64},
            {"op": ["drain.flush"]},
        ]
        for bad in (b"{", b"[]", *(json.dumps(item).encode() for item in wrong)):
            assert running.ask(bad)["ok"] is False
        assert running.ask({"op": "drain.dlq", "route": "no"})["error"]["code"] == "input"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "LOCK_WAIT_S", 0.0)
            with pytest.raises(DataDirectoryHeld):
                backlog.replay(sink_of(target))
        lsns += backlog.append(*values(1, 15))
    ended.set()
    serving.join()
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[2]]
    assert not (Path(backlog.data_dir) / "drain.sock").exists()


def test_progress_is_told_also_where_the_figures_cannot_be_written(backlog, monkeypatch):
    monkeypatch.setattr(limits, "FIGURES_SLOT_BYTES", 128)  # without a route it fits
    lsns = backlog.append(*values(4))

    def told():
        with contextlib.suppress(FileNotFoundError):
            page = TwoSlotPage.open(
                FS,
                f"{backlog.data_dir}/progress",
                slot_bytes=16 * limits.PAGE_SLOT_BYTES,
                write=False,
            )
            with closing(page):
                return (page.read() or {}).get("routes")

    with Running(backlog, sink_of(RecordingTarget())) as running:
        eventually(lambda: told() == {"1": lsns[-1]}, told)
        assert not running.page()["routes"]


def test_the_figures_of_all_routes_fit_the_page_whatever_their_targets_say(place):
    name, number = "n" * limits.STREAM_NAME_MAX_BYTES, 2**63
    figures = LaneFigures(
        state="dead-letter-quota",
        replay="transactional",
        through_lsn=number,
        delivered=number,
        dead_letters=number,
        batch_no=number,
        attempts=number,
        last_error="\N{SNOWMAN}" * limits.ERROR_TEXT_MAX_CHARS,
        oldest_pending_ns=number,
        parked="dead-letter-quota",
    )
    birth = RouteBirth(2**31, name, 1, name, name, 0, 0)
    routes = {
        f"{route_id:0{len(name)}}": _figures(birth, figures)
        for route_id in range(limits.ROUTES_MAX)
    }
    page = TwoSlotPage.open(FS, f"{place}/p", slot_bytes=limits.FIGURES_SLOT_BYTES, write=True)
    with closing(page):
        page.write({"pid": 2**31, "routes": fitting_the_page(routes)}, sync=False)
        assert page.read() is not None
    (alone,) = fitting_the_page({"one": _figures(birth, figures)}).values()
    assert alone["last_error"] == figures.last_error


def test_a_batch_in_flight_shows_in_the_batches(backlog):
    backlog.append(*values(4))
    with Running(backlog, sink_of(RecordingTarget())) as running:

        def finished():
            return running.ask({"op": "drain.batches"})["routes"].get("events", {})

        eventually(lambda: bool(finished().get("finished")))
        assert finished()["open"] is None


def test_before_the_first_start_of_ingest_the_drainer_waits(place):
    backlog = Backlog(place, "events")
    backlog.settings = replace(backlog.settings, data_dir=str(place / "empty"))
    (place / "empty").mkdir()
    stop = threading.Event()
    stop.set()
    done = process.run(
        backlog.settings,
        make_sink=sink_of(RecordingTarget()),
        fs=FS,
        clock=CLOCK,
        chance=backlog.chance,
        ready=lambda _: None,
        stop=stop,
    )
    assert done == 0
    backlog.close()


def test_a_long_path_still_has_its_socket(place):
    deep = place / ("d" * 100)
    deep.mkdir()
    backlog = Backlog(deep, "events")
    backlog.append(*values(1))
    target = RecordingTarget()
    with Running(backlog, sink_of(target)):
        eventually(lambda: len(target.records) == 1)
        address = f"{backlog.data_dir}/drain.sock"
        assert Path(address).is_socket()
        control = ControlServer({}, address)
        answer = json.loads(asyncio.run(control.answer(b'{"op": "drain.flush"}\n')))
        assert answer["ok"], answer
    backlog.close()


def test_dead_letters_are_answered_within_the_bound_of_a_line_page_by_page(backlog, monkeypatch):
    monkeypatch.setattr(limits, "CONTROL_LINE_MAX_BYTES", 2_000)
    lsns = backlog.append(*values(9))
    target = RecordingTarget(refuses=lambda _: True)
    found: list[int] = []
    pages = 0
    with Running(backlog, sink_of(target)) as running:
        eventually(lambda: running.ask({"op": "drain.dlq", "after": lsns[-2]}).get("entries"))
        while entries := running.ask({"op": "drain.dlq", "after": max(found, default=0)})[
            "entries"
        ]:
            found += [entry["lsn"] for entry in entries]
            pages += 1
    assert found == lsns
    assert pages > 2


# --- the frontier -------------------------------------------------------------------------------


def test_without_a_subscription_the_hint_is_followed(backlog):
    lsns = backlog.append(*values(2))
    target = RecordingTarget()
    with Running(backlog, sink_of(target)):  # nobody listens where ingest should
        eventually(lambda: target.lsns == lsns)
        lsns += backlog.append(*values(3, 2))
        eventually(lambda: target.lsns == lsns)


def test_an_older_frontier_changes_nothing():
    board = FrontierBoard()
    board.pin(Frontier(2, 100, 50))
    turn = board.turn()
    for older in (Frontier(1, 900, 50), Frontier(2, 100, 49), Frontier(2, 50, 50)):
        board.pin(older)
    assert (board.current(), board.turn()) == (Frontier(2, 100, 50), turn)


def test_no_hint_is_no_frontier(place):
    assert read_hint(FS, str(place)) is None
    page = TwoSlotPage.open(
        FS, f"{place}/ingest.page", slot_bytes=limits.PAGE_SLOT_BYTES, write=True
    )
    page.write({"segment": 1}, sync=False)
    page.close()
    assert read_hint(FS, str(place)) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage" * 10,
        Welcome(1, 0, 0, b"another log 1234", 1).encode()
        + FrontierMoved(Frontier(1, 2, 3)).encode(),
        Failed("protocol-mismatch", "no").encode(),
    ],
)
def test_a_subscription_believes_only_its_own_log_and_reconnects(backlog, answer):
    board = FrontierBoard()
    path = backlog.settings.socket
    said = [answer, Welcome(1, 0, 0, backlog.log.log_id, 1).encode()]
    said[1] += FrontierMoved(Frontier(5, 6, 7)).encode()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        source = Subscription(path, board, backlog.chance, lambda it: it == backlog.log.log_id)
        source.start()
        try:
            for part in said:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(part)
                    if part is said[1]:
                        eventually(lambda: board.current() == Frontier(5, 6, 7))
                    else:
                        assert board.current() is None
        finally:
            source.stop()
