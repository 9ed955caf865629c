"""Dead letters that go: purged by hand or by age, and a dead log that stays bounded."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.backlog import CLOCK, FS, Backlog, end, eventually
from tests.integration.test_dlq_redrive import books, desk_of, running, with_bad
from tests.integration.test_drain import sink_of, values
from wald import limits
from wald.config import DeadLetterSettings
from wald.core.told import Told
from wald.drainer.burying import Grounds, Undertaker
from wald.drainer.layout import RouteLanes
from wald.drainer.recalling import is_in_line
from wald.errors import FormatDamaged, LedgerFailed
from wald.model import Checkpoint, LaneKey, LaneProgress, Purged, RouteBirth
from wald.storage.deadlog import DeadLog, DeadPlace
from wald.storage.layouts import folded_key
from wald.storage.ledger_rows import put_lane
from wald.storage.log import LogOptions
from wald.testing.recording_sink import RecordingTarget

ROUTE = 1


def lane_key(backlog):
    return LaneKey(backlog.log.log_id, ROUTE, 0, 0)


def grounds(fleet, told=None):
    routes = {number: route.template for number, route in fleet.routes.items()}
    tell = (lambda _: None) if told is None else told.append
    return Grounds(routes, fleet.lane_keys(), fleet.unasked(), tell)


def bodies(shared):
    """Read every dead letter's record where the ledger says that it is."""
    found: dict[int, bytes] = {}
    for letter in shared.ledger.dead_letters(ROUTE):
        entry = shared.dead_log.read(DeadPlace(letter.dead_file, letter.dead_offset))
        found.update((each.lsn, each.value) for each in entry.excluded if each.lsn == letter.lsn)
    return found


def among(bad, record):
    return record.lsn in bad


# --- purging ------------------------------------------------------------------------------------


def test_purged_letters_leave_the_index_and_stay_in_the_books(backlog):
    _, bad, target = with_bad(backlog, 3, 17, 20)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (27, 3, 0), fleet.figures)
        answer = desk_of(fleet).ask("drain.dlq.purge", route="events", lsns=bad[:2])
        assert (answer["letters"], answer["records"], answer["spared"]) == (2, 2, 0)
        eventually(lambda: books(fleet) == (27, 1, 2), fleet.figures)
        backlog.append(*values(5, 30))
        shared.board.pin(backlog.log.frontier)
        fleet.flush(backlog.log.frontier.lsn)
        eventually(lambda: books(fleet) == (32, 1, 2), fleet.figures)
    assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == [bad[2]]
    checkpoint = shared.ledger.lane(lane_key(backlog)).checkpoint
    assert (checkpoint.delivered, checkpoint.dead_letters, checkpoint.purged) == (32, 1, 2)


def test_a_purge_while_a_batch_is_open_is_counted_when_it_is_closed(backlog):
    _, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    backlog.deliver_all(shared)
    backlog.append(*values(5, 30))
    shared.board.pin(backlog.log.frontier)
    ledger, key = shared.ledger, lane_key(backlog)
    purged = []

    class Purging:
        """Purges between the target's commit and T5."""

        def __getattr__(self, name):
            return getattr(ledger, name)

        def finish(self, *args, **kwargs):
            purged.append(ledger.purge(ROUTE, bad, 1))
            return ledger.finish(*args, **kwargs)

    again = replace(shared, ledger=Purging())
    with running(backlog, again) as fleet:
        eventually(lambda: ledger.lane(key).checkpoint.delivered == 34, fleet.figures)
    assert purged[0].letters == 1
    checkpoint = ledger.lane(key).checkpoint
    assert (checkpoint.delivered, checkpoint.dead_letters, checkpoint.purged) == (34, 0, 1)


def test_a_letter_that_is_being_sent_again_is_not_purged(backlog):
    _, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        target.refuses = lambda _: False
        shared.ledger.ask_redrive(ROUTE, bad, "", 1)
        assert shared.ledger.purge(ROUTE, bad, 1, spare_asked=True).spared == 1
        inside = []
        target.refuses = lambda record: (
            inside.append(shared.ledger.purge(ROUTE, bad, 1)) if record.lsn in bad else None
        )
        fleet.each_lane()[0].look_again()
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert inside[0].spared == 1
    assert shared.ledger.lane(lane_key(backlog)).checkpoint.purged == 0


def test_a_purge_in_the_moment_in_which_a_redrive_is_sealed_keeps_the_books(backlog):
    """The lane has read what it is asked for; the record is purged; then it would be sealed."""
    _, bad, target = with_bad(backlog, 3, 7)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
    target.refuses = lambda _: False
    log, purged = DeadLog(FS, backlog.data_dir), list[Purged]()

    class Purging:
        """Purges between the entry of the dead log and T7."""

        def __getattr__(self, name):
            return getattr(log, name)

        def append(self, entry):
            place = log.append(entry)
            if entry.redriven and not purged:
                purged.append(shared.ledger.purge(ROUTE, bad[:1], 1))
            return place

    shared.ledger.ask_redrive(ROUTE, bad, "", 1)
    again = replace(shared, dead_log=Purging())
    with running(backlog, again) as fleet:
        eventually(lambda: books(fleet) == (29, 0, 1), fleet.figures)
    assert purged[0].letters == 1
    checkpoint = shared.ledger.lane(lane_key(backlog)).checkpoint
    assert (checkpoint.delivered, checkpoint.dead_letters, checkpoint.purged) == (29, 0, 1)
    assert bad[1] in target.lsns
    assert bad[0] not in target.lsns


def test_a_purge_of_what_is_asked_for_and_not_begun_takes_the_request_with_it(backlog):
    _, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    backlog.deliver_all(shared)
    shared.ledger.ask_redrive(ROUTE, bad, "", 1)
    assert shared.ledger.purge(ROUTE, bad, 1).letters == 1
    assert shared.ledger.count_redrives(lane_key(backlog)) == 0
    shared.dead_log.close()


def test_a_restored_target_brings_no_purged_letter_back(backlog):
    lsns, bad, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        backup = (list(target.records), dict(target.rows))
        shared.ledger.purge(ROUTE, bad[:1], 1)
        backlog.append(*values(10, 30))
        shared.board.pin(backlog.log.frontier)
        fleet.flush(backlog.log.frontier.lsn)
        eventually(lambda: target.rows[lane_key(backlog)].batch_no > 3, fleet.figures)
        eventually(lambda: books(fleet)[0] == 38, fleet.figures)
    target.records[:], target.rows = backup
    again = replace(shared, dead_log=DeadLog(FS, backlog.data_dir))
    with running(backlog, again) as fleet:  # ADOPT, and what followed the row is sent again
        eventually(lambda: len(target.lsns) == len(lsns) + 10 - 2, fleet.figures)
        eventually(lambda: books(fleet) == (38, 1, 1), fleet.figures)
    assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == bad[1:]


def test_a_purged_letter_above_a_restored_row_is_pending_again_and_dies_anew(backlog):
    _, bad, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        shared.ledger.purge(ROUTE, bad, 1)
    target.records.clear()
    target.rows.clear()  # the target lost everything
    again = replace(shared, dead_log=DeadLog(FS, backlog.data_dir))
    with running(backlog, again) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
    assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == bad


# --- by age -------------------------------------------------------------------------------------


class Later:
    """The clock, so much later: the time of the wall jumps, if the clock since boot does not."""

    wall_ahead_s = boot_ahead_s = 0

    def __getattr__(self, name):
        return getattr(CLOCK, name)

    def wall_ns(self):
        return CLOCK.wall_ns() + self.wall_ahead_s * limits.CLOCK_NS_PER_S

    def boot_ns(self):
        return CLOCK.boot_ns() + self.boot_ahead_s * limits.CLOCK_NS_PER_S


def test_letters_older_than_the_bound_are_purged_counted_and_logged(backlog, caplog):
    _, bad, target = with_bad(backlog, 3, 17)
    old = replace(backlog.settings.routes["events"], dead_letters=DeadLetterSettings(max_age_s=60))
    backlog.settings = replace(backlog.settings, routes={"events": old})

    clock = Later()
    told: list[int] = []
    shared = replace(backlog.shared(sink_of(target)), clock=clock)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        undertaker = Undertaker(shared)
        undertaker.bury(grounds(fleet, told))
        assert not told
        shared.ledger.ask_redrive(ROUTE, bad[:1], "", 1)  # a person asked for this one
        clock.wall_ahead_s = clock.boot_ahead_s = 61
        undertaker.bury(grounds(fleet, told))
        assert told == [ROUTE]
        assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == bad[:1]
        assert "1 dead letters (1 records) older than 60 s were purged" in caplog.text
    assert shared.ledger.lane(lane_key(backlog)).checkpoint.purged == 1


def test_a_wall_clock_that_jumps_purges_nothing_before_it_has_held(backlog, caplog):
    _, bad, target = with_bad(backlog, 3, 17)
    week = DeadLetterSettings(max_age_s=7 * 86_400)
    old = replace(backlog.settings.routes["events"], dead_letters=week)
    backlog.settings = replace(backlog.settings, routes={"events": old})
    clock = Later()
    shared = replace(backlog.shared(sink_of(target)), clock=clock)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        undertaker = Undertaker(shared)
        hour = int(limits.CLOCK_HELD_S)
        for wall_s, boot_s, left in (
            (0, 0, 2),
            (hour, hour, 2),
            (30 * 86_400, hour + 60, 2),  # a wrong date
            (2 * hour, 2 * hour, 2),  # mended within the hour
            (30 * 86_400, 2 * hour, 2),  # again, and this time nobody minds
            (30 * 86_400 + hour - 60, 3 * hour - 60, 2),
            (30 * 86_400 + hour + 60, 3 * hour + 60, 0),
        ):
            clock.wall_ahead_s, clock.boot_ahead_s = wall_s, boot_s
            undertaker.bury(grounds(fleet))
            assert len(shared.ledger.dead_letters(ROUTE)) == left, (wall_s, boot_s)
    assert caplog.text.count("the clock jumped") == 3
    assert len(bad) == 2


# --- a bounded dead log -------------------------------------------------------------------------


@pytest.fixture
def small(place, monkeypatch):
    monkeypatch.setattr(limits, "DEAD_LOG_WASTE_BYTES", 2_000)
    monkeypatch.setattr(limits, "DEAD_LOG_PART_BYTES", 300)
    options = LogOptions(
        segment_bytes=16 * limits.MIB, retain_after_delivery_s=0, retain_after_delivery_bytes=0
    )
    backlog = Backlog(place, "events", options=options)
    yield backlog
    backlog.close()


def big(count, start=0):
    return [b"%05d" % number + b"x" * 95 for number in range(start, start + count)]


def test_what_is_dead_is_written_anew_and_the_rest_goes_once_the_log_let_go(small, monkeypatch):
    lsns = small.append(*big(60))
    bad = set(lsns[::2])
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = small.shared(sink_of(target))
    key = lane_key(small)
    with running(small, shared) as fleet:
        eventually(lambda: books(fleet)[1] == 30, fleet.figures)
        target.refuses = lambda _: False
        again = sorted(bad)[:25]
        desk_of(fleet).ask("drain.dlq.redrive", route="events", lsns=again)
        eventually(lambda: books(fleet) == (55, 5, 0), fleet.figures)
        shared.ledger.purge(ROUTE, sorted(bad)[25:27], 1)
        left = sorted(bad)[27:]
        before, files = bodies(shared), shared.dead_log.files()
        undertaker = Undertaker(shared)
        undertaker.bury(grounds(fleet))  # writes anew
        assert bodies(shared) == before
        assert {letter.dead_file for letter in shared.ledger.dead_letters(ROUTE)} == {files[-1] + 1}
        chain = shared.dead_log.walk(shared.ledger.lane(key).checkpoint.dead_rev)
        assert sorted(chain.letters) == left
        undertaker.bury(grounds(fleet))  # the log still holds where an older row could stand
        assert set(files) <= set(shared.dead_log.files())
        assert shared.ledger.purged(key).keys() == set(sorted(bad)[25:27])

        monkeypatch.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
        undertaker.bury(grounds(fleet))
        assert shared.dead_log.files() == [files[-1] + 1]
        assert not shared.ledger.purged(key)
        assert bodies(shared) == before
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (58, 0, 2), fleet.figures)
    assert sorted(target.lsns) == [lsn for lsn in lsns if lsn not in set(sorted(bad)[25:27])]


def test_the_dead_log_stays_bounded_over_many_rounds_and_a_restore_still_heals(small):
    """Rounds of refusals and redrives through a real log whose segments retire."""
    target = RecordingTarget()
    shared = small.shared(sink_of(target))
    key, sizes = lane_key(small), []
    with running(small, shared) as fleet:
        undertaker = Undertaker(shared)
        for start in range(0, 1_000, 50):
            target.refuses = lambda _: False
            lsns = small.append(*big(50, start))
            bad = set(lsns[::5])
            target.refuses = partial(among, bad)
            shared.board.pin(small.log.frontier)
            fleet.flush(small.log.frontier.lsn)
            eventually(lambda: fleet.figures()["events"]["through_lsn"] >= lsns[-1])  # noqa: B023
            target.refuses = lambda _: False
            desk_of(fleet).ask("drain.dlq.redrive", route="events")
            eventually(lambda: books(fleet)[1] == 0, fleet.figures)
            small.log.append_group([small.section(b"y" * (3 * limits.MIB))])
            shared.board.pin(small.log.frontier)
            fleet.flush(small.log.frontier.lsn)
            last = small.log.frontier.lsn
            eventually(lambda: fleet.figures()["events"]["through_lsn"] >= last)  # noqa: B023
            small.log.retire({ROUTE: shared.ledger.lane(key).checkpoint.lsn})
            undertaker.bury(grounds(fleet))
            sizes.append(shared.dead_log.size_bytes())
        # a round adds 25 KB, a page for each entry, and a segment lasts five: a saw, no ramp
        assert max(sizes) < 300_000, sizes
        assert max(sizes[10:]) <= max(sizes[:10]) + 2_500, sizes
    assert shared.ledger.lane(key).checkpoint.dead_letters == 0


def test_a_row_between_two_rewritings_is_adopted_with_its_letters(small):
    lsns = small.append(*big(40))
    bad = set(lsns[::2])
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = small.shared(sink_of(target))
    with running(small, shared) as fleet:
        eventually(lambda: books(fleet) == (20, 20, 0), fleet.figures)
        backup = (list(target.records), dict(target.rows))
        Undertaker(shared).bury(grounds(fleet))
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (40, 0, 0), fleet.figures)
        Undertaker(shared).bury(grounds(fleet))
    target.records[:], target.rows = backup
    again = replace(shared, dead_log=DeadLog(FS, small.data_dir))
    with running(small, again) as fleet:
        eventually(lambda: books(fleet) == (20, 20, 0), fleet.figures)
        assert bodies(again).keys() == bad
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (40, 0, 0), fleet.figures)
    assert sorted(target.lsns) == lsns


class _Purging(DeadLog):
    """Purges once, right behind the next entry."""

    lsns: tuple[int, ...] = ()
    ledger: Any = None

    def append(self, entry):
        place = super().append(entry)
        if lsns := self.lsns:
            self.lsns = ()
            self.ledger.purge(ROUTE, lsns, 1)
        return place


def test_a_letter_that_is_purged_while_it_is_written_anew_stays_purged(small, monkeypatch):
    lsns = small.append(*big(40))
    bad = set(lsns[::2])
    gone = min(bad)
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    dead_log = _Purging(FS, small.data_dir)
    shared = small.shared(sink_of(target), dead_log=dead_log)
    with running(small, shared) as fleet:
        eventually(lambda: books(fleet) == (20, 20, 0), fleet.figures)
        backup = (list(target.records), dict(target.rows))
        dead_log.lsns, dead_log.ledger = (gone,), shared.ledger
        undertaker = Undertaker(shared)
        undertaker.bury(grounds(fleet))
        with monkeypatch.context() as patched:
            patched.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
            patched.setattr(Undertaker, "_is_worth_rewriting", lambda _: False)
            undertaker.bury(grounds(fleet))
        small.append(*big(10))
        shared.board.pin(small.log.frontier)
        fleet.flush(small.log.frontier.lsn)
        eventually(lambda: books(fleet) == (30, 19, 1), fleet.figures)
    target.records[:], target.rows = backup
    again = replace(shared, dead_log=DeadLog(FS, small.data_dir))
    with running(small, again) as fleet:
        eventually(lambda: len(target.lsns) == 30, fleet.figures)
        eventually(lambda: books(fleet) == (30, 19, 1), fleet.figures)
        assert again.ledger.dead_letter(ROUTE, gone) is None
        monkeypatch.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
        monkeypatch.setattr(Undertaker, "_is_worth_rewriting", lambda _: True)
        for _ in range(2):  # writes anew without it; then nothing names it, and nobody need know
            Undertaker(again).bury(grounds(fleet))
        assert not again.ledger.purged(lane_key(small))


@pytest.fixture
def pair(place):
    backlog = Backlog(place, "events", "others")
    yield backlog
    backlog.close()


def come_and_go(backlog, shared, fleet, target):
    """Let 30 records of the second stream become dead letters, and send them again."""
    lsns = set(backlog.append(*big(60), stream=2)[::2])
    target.refuses = lambda record: record.lsn in lsns
    shared.board.pin(backlog.log.frontier)
    fleet.flush(backlog.log.frontier.lsn)
    eventually(lambda: fleet.figures()["others"]["dead_letters"] == 30, fleet.figures)
    target.refuses = lambda _: False
    desk_of(fleet).ask("drain.dlq.redrive", route="others")
    eventually(lambda: fleet.figures()["others"]["dead_letters"] == 0, fleet.figures)


@pytest.mark.parametrize("lost", ["file", "entry"])
def test_what_is_lost_of_one_route_keeps_the_dead_log_of_no_other_from_shrinking(
    pair, monkeypatch, lost
):
    monkeypatch.setattr(limits, "DEAD_LOG_WASTE_BYTES", 5_000)
    backlog = pair
    first, second = backlog.append(*big(10)), backlog.append(*big(60), stream=2)[::2]
    target = RecordingTarget(refuses=lambda record: record.lsn in {*first, *second})
    dead_log = DeadLog(FS, backlog.data_dir, file_bytes=1)  # an entry is a file
    shared = backlog.shared(sink_of(target), dead_log=dead_log)
    with running(backlog, shared) as fleet:

        def dead_letters():
            return [fleet.figures()[name]["dead_letters"] for name in ("events", "others")]

        eventually(lambda: dead_letters() == [10, 30], fleet.figures)
        number = shared.ledger.dead_letters(ROUTE)[0].dead_file
        path = f"{backlog.data_dir}/dead/dead-{number:010d}.log"
        whole = Path(path).read_bytes()
        if lost == "file":
            FS.unlink(path)
        else:
            Path(path).write_bytes(whole[:40] + b"?" + whole[41:])
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="others")
        eventually(lambda: dead_letters() == [10, 0], fleet.figures)
        monkeypatch.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
        undertaker = Undertaker(shared)
        undertaker._round(grounds(fleet))  # writes anew
        rewritten, *_ = shared.ledger.note("dead_log")
        assert rewritten > 0
        said = undertaker.figures()
        assert "the chain of route 1, lane 0 does not resolve" in said["trouble"]
        assert ("route events: the bodies of 10" in said["trouble"]) == (lost == "file")
        assert "from a backup" in said["hint"]

        # what comes and goes from now on needs nothing of the files that are held for the chain
        kept = shared.dead_log.files()
        for time in range(6):  # each adds 9 files
            come_and_go(backlog, shared, fleet, target)
            for _ in range(3):
                undertaker._round(grounds(fleet))
            assert undertaker.figures() == said
            assert len(shared.dead_log.files()) <= 2 * len(kept) + 9, time

        Path(path).write_bytes(whole)  # from a backup
        for _ in range(4):
            come_and_go(backlog, shared, fleet, target)
            for _ in range(3):
                undertaker._round(grounds(fleet))
        assert undertaker.figures() == {}
        assert bodies(shared).keys() == set(first)
        assert len(shared.dead_log.files()) <= len(kept)


def test_a_chain_of_which_a_part_is_lost_is_whole_again_once_what_has_no_body_was_purged(
    pair, monkeypatch
):
    backlog = pair
    first, second = backlog.append(*big(10)), backlog.append(*big(10))
    refused = {*first, *second}
    target = RecordingTarget(refuses=lambda record: record.lsn in refused)
    dead_log = DeadLog(FS, backlog.data_dir, file_bytes=1)  # an entry is a file
    shared = backlog.shared(sink_of(target), dead_log=dead_log)
    with running(backlog, shared) as fleet:
        eventually(lambda: fleet.figures()["events"]["dead_letters"] == 20, fleet.figures)
        monkeypatch.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
        number = shared.ledger.dead_letters(ROUTE)[0].dead_file
        FS.unlink(f"{backlog.data_dir}/dead/dead-{number:010d}.log")
        undertaker = Undertaker(shared)
        for _ in range(3):
            undertaker._round(grounds(fleet))
            undertaker._rewrite()  # changes nothing of the lane
        assert "does not resolve" in undertaker.figures()["trouble"]
        desk_of(fleet).ask("drain.dlq.purge", route="events", lsns=list(first))
        undertaker._round(grounds(fleet))
        assert undertaker.figures() == {}
        assert bodies(shared).keys() == set(second)
        held = shared.ledger.lane(lane_key(backlog)).checkpoint
        chain = shared.dead_log.walk(held.dead_rev, shared.dead_log.index())
        assert (chain.letters.keys(), chain.dropped) == (set(second), set(first))
        refused.clear()
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: fleet.figures()["events"]["dead_letters"] == 0, fleet.figures)
        assert books(fleet) == (10, 0, 10)


def worth_tidying(backlog, target, count=40):
    """Let half of some records become dead letters, and send them again; ends the fleet."""
    bad = set(backlog.append(*big(count))[::2])
    target.refuses = partial(among, bad)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet)[1] == len(bad), fleet.figures)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet)[1] == 0, fleet.figures)
    return shared


def test_behind_an_older_ledger_a_round_waits_for_every_route_that_may_come_back(pair, monkeypatch):
    """Not for one that has ended, nor for the lane that only holds the counts of former ones."""
    monkeypatch.setattr(limits, "DEAD_LOG_WASTE_BYTES", 2_000)
    shared = worth_tidying(pair, RecordingTarget())
    older = replace(
        shared,
        told=Told(1, pair.log.frontier.lsn),
        dead_log=DeadLog(FS, pair.data_dir),
    )
    older.ledger.birth(RouteBirth(9, "ended", 1, "events", "digest", 0, 77))
    put_back = folded_key(lane_key(pair)), LaneProgress(Checkpoint(lsn=5), None)
    older.ledger.store.write(lambda txn: put_lane(txn, *put_back))
    both, undertaker = pair.settings, Undertaker(older)
    pair.settings = replace(both, routes={"events": both.routes["events"]})

    def rewritten():
        said = older.ledger.note("dead_log")
        return said is not None and said[0] > 0

    with running(pair, older) as fleet:
        eventually(lambda: is_in_line(older.ledger, older.told, lane_key(pair)), fleet.figures)
        undertaker._round(grounds(fleet))
        assert not rewritten()
        assert undertaker.figures()["trouble"].endswith("were not asked since: others")
        assert "route drop" in undertaker.figures()["hint"]
        fleet.drop(2, 0)
        undertaker._round(grounds(fleet))
        assert rewritten()
        assert not undertaker.figures()


def test_a_former_lane_that_an_older_ledger_may_not_know_looks_at_its_row_once(pair, monkeypatch):
    target, options = RecordingTarget(), pair.settings.routes["events"]
    shared = worth_tidying(pair, target)
    pair.settings = replace(pair.settings, routes={"events": replace(options, lanes=2)})
    changed = replace(shared, dead_log=DeadLog(FS, pair.data_dir))
    with running(pair, changed) as fleet:
        eventually(lambda: fleet.routes[ROUTE].layout.number == 1, fleet.figures)
    monkeypatch.setattr(RouteLanes, "_is_in_reach", lambda *_: False)
    told = Told(1, pair.log.frontier.lsn)
    older = replace(shared, told=told, dead_log=DeadLog(FS, pair.data_dir))
    with running(pair, older) as fleet:
        keys = fleet.lane_keys()
        assert len(keys) == 3
        eventually(lambda: all(is_in_line(older.ledger, told, key) for key in keys), fleet.figures)


class _Dying(DeadLog):
    """Fails at the n-th thing that is done to it."""

    left = 0

    def _call(self):
        self.left -= 1
        if not self.left:
            msg = "the disk"
            raise LedgerFailed(msg)

    def append(self, entry):
        self._call()
        return super().append(entry)

    def remove(self, numbers):
        self._call()
        super().remove(numbers)


def test_a_failure_anywhere_in_a_rewriting_loses_nothing(small, monkeypatch):
    lsns = small.append(*big(40))
    bad = set(lsns[::2])
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = small.shared(sink_of(target), dead_log=_Dying(FS, small.data_dir))
    with running(small, shared) as fleet:
        eventually(lambda: books(fleet) == (20, 20, 0), fleet.figures)
        before = bodies(shared)
        monkeypatch.setattr(type(fleet.routes[ROUTE].template), "find_anchor", lambda *_: None)
        for left in range(1, 40):
            shared.dead_log.left = left
            try:
                for _ in range(3):
                    Undertaker(shared).bury(grounds(fleet))
            except LedgerFailed:
                pass
            assert bodies(shared) == before, left
            chain = shared.dead_log.walk(shared.ledger.lane(lane_key(small)).checkpoint.dead_rev)
            assert chain is not None
            assert chain.letters.keys() == bad
        assert shared.dead_log.left > 0


def test_a_round_that_fails_is_told_once_and_the_next_one_goes_on(small, caplog):
    target = RecordingTarget()
    shared = small.shared(sink_of(target))
    undertaker = Undertaker(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "DEAD_LOOK_EVERY_S", 0.0)
        patch.setattr(type(shared.dead_log), "size_bytes", _failing)
        for _ in range(3):
            undertaker.look(lambda: Grounds({}))
            assert undertaker._thread is not None
            undertaker._thread.join()
    assert caplog.text.count("the dead log cannot be tended") == 1
    undertaker.close()


def _failing(*_):
    msg = "not readable"
    raise FormatDamaged(msg)


def test_a_drainer_that_stops_ends_a_round_at_its_next_step(small):
    lsns = small.append(*big(40))
    target = RecordingTarget(refuses=lambda record: record.lsn in set(lsns[::2]))
    shared = small.shared(sink_of(target))
    fleet = small.fleet(shared)
    eventually(lambda: books(fleet) == (20, 20, 0), fleet.figures)
    undertaker = Undertaker(shared)
    undertaker.close()
    with pytest.raises(LedgerFailed, match="stopping"):
        undertaker.bury(grounds(fleet))
    end(fleet)
    shared.dead_log.close()
