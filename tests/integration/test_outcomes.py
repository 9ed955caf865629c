"""Outcomes through real lanes: a target of each class, with a crash at each commit point."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.backlog import Backlog
from tests.onelane import WINDOW_S, Bench, Dying, Killed, values
from wald import limits
from wald.core.delivery import Step
from wald.core.outcomes import PASSED_OVER, RESENT, RETRIES_EXHAUSTED
from wald.drainer.batch_desk import BatchDesk
from wald.errors import DiskFull
from wald.model import (
    Decision,
    FinishedBatch,
    LaneKey,
    Manifest,
    Mark,
    Partial,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Revision,
    RouteBirth,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.testing.clock import ManualClock
from wald.testing.recording_sink import RecordingSink

ROW, MONOTONE, KEYED, WINDOW, NONE = (
    ReplayClass.TRANSACTIONAL,
    ReplayClass.MONOTONE,
    ReplayClass.KEYED,
    ReplayClass.WINDOW,
    ReplayClass.NONE,
)
NO_ROW = [MONOTONE, KEYED, WINDOW, NONE]
DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


def refused(lsn, code="bad", message="no"):
    return RejectedRecord(lsn, code, message)


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [KEYED, WINDOW, NONE])
def test_what_took_effect_is_never_sent_again_and_what_is_wanted_later_is(backlog, replay):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, replay)
    bench.target.script.append(Partial((refused(lsns[3]),), (refused(lsns[5]), refused(lsns[6]))))
    bench.through()
    first, second = bench.target.attempts
    assert [record.lsn for record in first.records] == lsns
    assert [record.lsn for record in second.records] == [lsns[5], lsns[6]]
    assert bench.dead == {lsns[3]: "bad"}
    assert second.row.rev_id != first.row.rev_id


@pytest.mark.parametrize("replay", NO_ROW)
def test_a_target_that_answers_for_each_record_gets_each_once(backlog, replay):
    lsns = backlog.append(*values(25))
    bench = Bench(backlog, replay)
    asked: dict[int, int] = {}

    def later(record):  # each fourth is taken at the third try
        asked[record.lsn] = asked.get(record.lsn, 0) + 1
        return record.lsn % 4 == 0 and asked[record.lsn] < 3

    bench.target.per_record = True
    bench.target.wants_later = later
    bench.target.refuses = lambda record: record.lsn == lsns[7]
    bench.through()
    passed = {lsn for lsn, code in bench.dead.items() if code == PASSED_OVER}
    assert bench.dead.keys() == {lsns[7]} | passed
    assert bool(passed) == (replay is MONOTONE)
    assert sorted(bench.target.lsns) == [lsn for lsn in lsns if lsn not in bench.dead]


def test_a_record_that_is_wanted_later_for_ever_becomes_a_dead_letter_at_the_bound(backlog):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, KEYED)
    bench.target.per_record = True
    bench.target.wants_later = lambda record: record.lsn == lsns[4]
    bench.through()
    assert bench.dead == {lsns[4]: RETRIES_EXHAUSTED}
    assert len(bench.target.attempts) == limits.RECORD_ATTEMPTS_MAX
    (letter,) = bench.ledger.dead_letters(1)
    assert "this target takes it later" in letter.message


def test_the_bound_of_tries_survives_restarts(backlog):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, KEYED)
    bench.target.per_record = True
    bench.target.wants_later = lambda record: record.lsn == lsns[4]
    for count in range(1, limits.RECORD_ATTEMPTS_MAX):
        bench.run(lambda: len(bench.target.attempts) == count)  # noqa: B023 - run at once
        bench.run(lambda: bench.step is not Step.SETTLING)
        bench.start()
    bench.through()
    assert bench.dead == {lsns[4]: RETRIES_EXHAUSTED}
    assert len(bench.target.attempts) == limits.RECORD_ATTEMPTS_MAX


def test_when_most_records_are_wanted_later_for_ever_that_is_an_outage(backlog):
    backlog.batch = 200
    lsns = backlog.append(*values(200))
    bench = Bench(
        backlog, KEYED, batch=replace(backlog.settings.routes["events"].batch, max_records=200)
    )
    bench.target.per_record = True
    bench.target.wants_later = lambda record: record.lsn % 4 != 0
    bench.run(lambda: len(bench.target.attempts) > 2 * limits.RECORD_ATTEMPTS_MAX)
    bench.run(lambda: bench.step is Step.WAITING)
    assert bench.dead == {}
    assert bench.lane.figures.last_error.startswith("too-many-rejects")
    bench.target.wants_later = lambda _: False
    bench.through()
    assert bench.dead == {}
    assert sorted(bench.target.lsns) == lsns


# --- too large ----------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_a_batch_that_is_too_large_is_cut_and_the_rest_is_the_next_batch(backlog, replay):
    lsns = backlog.append(*values(25))
    bench = Bench(backlog, replay)
    bench.target.largest = 3
    bench.through()
    assert bench.target.lsns == lsns
    assert max(len(each.records) for each in bench.target.attempts if each.records) == 10
    assert bench.dead == {}


def open_line(bench):
    (line,) = BatchDesk(bench.ledger, bench.ledger.births).ask("drain.batch.list")["batches"]
    return line


def test_a_batch_that_was_cut_is_listed_with_what_is_left_of_it(backlog):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, KEYED)
    bench.target.largest = 3
    bench.run(lambda: len(bench.target.attempts) == 1)
    assert [open_line(bench)[name] for name in ("lo", "hi", "records")] == [1, lsns[9], 10]
    bench.run(lambda: bench.held.manifest.records < 10)
    assert [open_line(bench)[name] for name in ("lo", "hi", "records")] == [1, lsns[4], 5]
    bench.run(lambda: bench.held.manifest.records < 5)
    assert [open_line(bench)[name] for name in ("lo", "hi", "records")] == [1, lsns[2], 3]
    bench.through()
    assert bench.target.lsns == lsns


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_a_record_that_is_too_large_alone_is_a_dead_letter(backlog, replay):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, replay)

    class Narrow(RecordingSink):
        def _outcome(self, attempt):
            if any(record.lsn == lsns[6] for record in attempt.records):
                return TooLarge("413")
            return super()._outcome(attempt)

    bench.kind = Narrow
    bench.start()
    bench.through()
    assert bench.dead == {lsns[6]: "too-large"}
    assert bench.target.lsns == [lsn for lsn in lsns if lsn != lsns[6]]


def test_a_rest_that_is_too_large_and_cannot_be_cut_counts_as_wanted_later(backlog):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, KEYED)
    wanted = tuple(map(refused, lsns[:4]))
    bench.target.script.extend([Partial(retry=wanted), TooLarge("413"), TooLarge("413")])
    bench.through()
    assert sorted(each.lsn for each in bench.target.records) == lsns[:4]  # the last was scripted
    assert bench.dead == {}


# --- refusals where nothing can be rolled back --------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("replay", NO_ROW)
def test_refused_records_are_found_without_a_probe(backlog, replay, named):
    lsns = backlog.append(*values(40))
    bench = Bench(backlog, replay)
    bad = {lsns[2], lsns[13], lsns[14], lsns[39]}
    bench.target.names = named
    bench.target.refuses = lambda record: record.lsn in bad
    bench.through()
    assert bench.dead.keys() == bad
    assert bench.target.lsns == [lsn for lsn in lsns if lsn not in bad]
    assert bench.target.probes == 0


def test_a_batch_of_which_every_record_is_refused_is_closed_without_an_attempt(backlog):
    lsns = backlog.append(*values(10))
    bench = Bench(backlog, KEYED)
    bench.target.script.append(Rejected(tuple(map(refused, lsns)), "all of them"))
    bench.through()
    assert len(bench.target.attempts) == 1
    assert bench.dead.keys() == set(lsns)


# --- wrong sinks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [None, 7, "ok", Partial(retry=(refused(999),)), RuntimeError("a bug")],
)
@pytest.mark.parametrize("replay", [ROW, MONOTONE, KEYED, WINDOW])
def test_a_wrong_sink_loses_and_doubles_nothing_and_is_named(backlog, replay, said):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, replay)
    bench.target.script.append(said)
    bench.run(lambda: len(bench.target.attempts) == 1)
    bench.run(lambda: bench.step is Step.WAITING)
    assert "the sink" in bench.lane.figures.last_error
    bench.through()
    assert bench.target.lsns == lsns


# --- unknown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [ROW, MONOTONE, KEYED, WINDOW])
@pytest.mark.parametrize("restart", [False, True])
def test_a_lost_answer_doubles_nothing(backlog, replay, restart):
    lsns = backlog.append(*values(25))
    bench = Bench(backlog, replay)
    bench.target.lost_answers = 2
    if restart:
        bench.run(lambda: len(bench.target.attempts) == 1)
        bench.start()
    bench.through()
    assert bench.target.lsns == lsns


def test_at_a_target_that_cannot_tell_a_lost_answer_may_double_and_is_counted(backlog):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE)
    bench.target.lost_answers = 1
    bench.through()
    assert bench.target.lsns == lsns + lsns
    assert bench.lane.figures.policy["notes"] == {RESENT: 1}


@pytest.mark.parametrize("restart", [False, True])
def test_on_unknown_hold_holds_and_doubles_nothing(backlog, restart):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, on_unknown="hold")
    bench.target.lost_answers = 1
    bench.parked()
    if restart:
        bench.start()
        bench.parked()
    for _ in range(20):
        bench.clock.advance(bench.lane.step())
    assert bench.target.lsns == lsns
    assert bench.lane.figures.parked == "uncertain"
    assert bench.held.manifest is not None
    assert bench.held.manifest.held.startswith("no-answer-held")


def test_an_outage_makes_no_batch_uncertain_not_even_over_a_restart(backlog):
    for replay, settings in ((WINDOW, {}), (NONE, {"on_unknown": "hold"})):
        lsns = backlog.append(*values(5))
        bench = Bench(backlog, replay, **settings)
        bench.target.down = DOWN
        for attempts in range(1, 5):
            bench.run(lambda: len(bench.target.attempts) == attempts)  # noqa: B023
            bench.run(lambda: bench.step is Step.WAITING)  # noqa: B023
            bench.clock.advance(WINDOW_S)
        bench.start()
        bench.target.down = None
        bench.through()
        assert bench.target.lsns[-5:] == lsns


def test_a_window_that_is_over_holds_the_batch_and_the_window_begins_with_the_doubt(backlog):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, WINDOW)
    bench.target.script.append(DOWN)
    bench.run(lambda: bench.step is Step.WAITING)
    bench.clock.advance(10 * WINDOW_S)  # nothing was sent: no window has begun
    bench.target.lost_answers = 1
    bench.run(lambda: len(bench.target.attempts) == 2)
    assert bench.step is Step.WAITING
    bench.clock.advance(WINDOW_S)
    bench.parked()
    assert len(bench.target.attempts) == 2
    assert "window-over" in bench.lane.figures.last_error
    assert bench.target.lsns == lsns


def test_a_process_that_died_in_an_attempt_is_in_doubt_by_the_class_of_its_target(backlog):
    lsns = backlog.append(*values(5))
    for replay, settings, holds in (
        (WINDOW, {}, False),
        (NONE, {}, False),
        (NONE, {"on_unknown": "hold"}, True),
    ):
        bench = Bench(backlog, replay, **settings)
        bench.run(lambda: bench.step is Step.SENDING)  # noqa: B023 - sealed, counted, not sent
        bench.start()
        if holds:
            bench.parked()
            assert bench.target.attempts == []
            assert "the process ended in it" in bench.lane.figures.last_error
        else:
            bench.through()
            assert bench.target.lsns == lsns


def test_a_lane_that_leaves_before_it_sends_leaves_no_doubt(backlog):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, on_unknown="hold")
    bench.run(lambda: bench.step is Step.SENDING)  # sealed, counted, not sent
    bench.lane.stop(0.0)
    bench.lane._run()
    bench.start()
    bench.through()
    assert bench.target.lsns == lsns


@pytest.mark.parametrize(("others", "sent"), [(2, True), (3, False)])
def test_a_target_that_forgets_by_batches_is_sent_to_again_while_few_came_since(
    backlog, others, sent
):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, WINDOW)
    bench.options |= {"window_s": None, "window_batches": 4}
    bench.start()
    bench.target.lost_answers = 1
    bench.run(lambda: bench.step is Step.WAITING)
    other = LaneKey(backlog.log.log_id, 2, 0, 0)  # of another route to the same sink
    bench.ledger.birth(RouteBirth(2, "other", 1, "events", "events", 0, 7))
    for number in range(1, others + 1):
        rev_id, before = bytes([number]) * 16, bench.ledger.lane(other).checkpoint
        revisions = (Revision(rev_id, number),)
        manifest = Manifest(number, number, before.rev_id, 1, revisions, 1, 0)
        after = replace(before, batch_no=number, rev_id=rev_id, lsn=number)
        line = FinishedBatch(number, rev_id, number, number, 1, 0, 1, 0, 0)
        assert bench.ledger.seal(other, manifest)
        assert bench.ledger.finish(other, rev_id, after, line)
    if sent:
        bench.through()
        assert len(bench.target.attempts) == 2
    else:
        bench.parked()
        assert "too-many-batches" in bench.lane.figures.last_error
    assert bench.target.lsns == lsns


def reboot_and(jump: Callable[[ManualClock], None]) -> Callable[[ManualClock], None]:
    def both(clock: ManualClock) -> None:
        clock.reboot()
        jump(clock)

    return both


JUMPS: list[tuple[Callable[[ManualClock], None], bool]] = [
    (lambda clock: clock.set_wall(clock.wall_ns() + 10**15), True),
    (lambda clock: clock.set_wall(clock.wall_ns() - 10**15), True),
    (lambda clock: clock.advance(WINDOW_S), False),
    (lambda clock: clock.reboot(), True),
    (reboot_and(lambda clock: clock.set_wall(clock.wall_ns() - 1)), False),
    (reboot_and(lambda clock: clock.advance(WINDOW_S)), False),
]


@pytest.mark.parametrize("replay", [ROW, MONOTONE, KEYED, WINDOW])
@pytest.mark.parametrize("number", range(len(JUMPS)))
def test_a_clock_that_jumps_between_an_attempt_and_the_next_doubles_nothing(
    backlog, replay, number
):
    jump, sent = JUMPS[number]
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, replay)
    bench.target.lost_answers = 1
    bench.run(lambda: bench.step is Step.WAITING)
    jump(bench.clock)
    bench.target.now_s = lambda: 0.0  # whatever the clocks say: it has not forgotten
    bench.start()
    if sent or replay is not WINDOW:
        bench.through()
    else:
        bench.parked()
    assert bench.target.lsns == lsns


def test_a_manifest_stays_bounded_while_a_target_answers_in_parts_for_ever(backlog):
    backlog.batch = 200
    backlog.append(*values(200))
    batch = replace(backlog.settings.routes["events"].batch, max_records=200)
    bench = Bench(backlog, WINDOW, batch=batch)
    bench.target.per_record = True
    bench.target.refuses = lambda record: record.lsn % 4 != 0
    bench.run(lambda: len(bench.target.attempts) > 30)
    assert bench.dead == {}
    assert bench.held.manifest is not None
    assert len(bench.held.manifest.revisions) == 2


@pytest.mark.parametrize("step", ["revise", "finish"])
@pytest.mark.parametrize("times", [1, 3])
def test_what_took_effect_is_not_in_doubt_because_the_ledger_finds_no_room(backlog, step, times):
    """The process knows what the target said, and does T3 or T5 once there is room."""
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, on_unknown="hold")
    bench.target.per_record = step == "revise"
    later = {lsns[4]} if step == "revise" else set()
    bench.target.wants_later = lambda record: record.lsn in later
    whole, left = getattr(bench.ledger, step), [times]

    def full(*args, **options):
        if left[0]:
            left[0] -= 1
            msg = "no room for the ledger"
            raise DiskFull(msg, retry_after_s=1.0)
        later.clear()
        return whole(*args, **options)

    setattr(bench.ledger, step, full)
    bench.through()
    assert not left[0]
    assert bench.target.lsns == lsns
    assert len(bench.target.attempts) == 1 + (step == "revise")
    assert bench.dead == {}


@pytest.mark.parametrize("step", ["revise", "finish"])
def test_what_took_effect_stays_in_doubt_behind_a_restart(backlog, step):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, on_unknown="hold")
    bench.target.per_record = step == "revise"
    bench.target.wants_later = lambda record: step == "revise" and record.lsn == lsns[4]
    whole = getattr(bench.ledger, step)

    def full(*_args, **_options):
        msg = "no room for the ledger"
        raise DiskFull(msg, retry_after_s=1.0)

    setattr(bench.ledger, step, full)
    bench.run(lambda: "no room" in bench.lane.figures.last_error)
    setattr(bench.ledger, step, whole)
    bench.start()
    bench.parked()
    assert len(bench.target.attempts) == 1
    assert bench.lane.figures.parked == "uncertain"


def test_answers_for_each_record_leave_no_doubt_although_nothing_is_set_aside(backlog):
    backlog.append(*values(200))
    batch = replace(backlog.settings.routes["events"].batch, max_records=200)
    bench = Bench(backlog, NONE, batch=batch, on_unknown="hold")
    bench.target.per_record = True
    bench.target.refuses = lambda _: True
    bench.run(lambda: len(bench.target.attempts) == 5)
    assert bench.lane.figures.parked is None
    bench.target.refuses = lambda _: False
    bench.through()
    assert bench.dead == {}


def test_what_may_have_taken_effect_is_not_cut(backlog):
    lsns = backlog.append(*values(6))
    for said in (TooLarge("413"), Rejected((), "400")):
        bench = Bench(backlog, WINDOW)
        bench.target.script.extend([Unknown("cut"), said])
        bench.parked()
        assert "in-doubt" in bench.lane.figures.last_error
        bench.ledger.mark(
            bench.key, bench.held.manifest.current.rev_id, Mark(decision=Decision.NOT_DELIVERED)
        )
        bench.through()
        assert bench.target.lsns == lsns


# --- decisions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("decision", list(Decision))
def test_a_decision_is_carried_out_now_or_at_the_next_start(backlog, decision, restart):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, on_unknown="hold")
    bench.target.script.append(Unknown("cut"))
    bench.parked()
    rev_id = bench.held.manifest.current.rev_id
    assert bench.ledger.mark(bench.key, rev_id, Mark(decision=decision))
    assert not bench.ledger.mark(bench.key, rev_id, Mark(decision=decision))  # held no more
    if restart:
        bench.start()
    more = backlog.append(*values(3))
    bench.start() if restart else bench.lane.route.shared.board.pin(backlog.log.frontier)
    bench.lane.flush(backlog.log.frontier.lsn)
    bench.through()
    sent = lsns if decision is Decision.NOT_DELIVERED else []
    assert bench.target.lsns == sent + more
    dead = lsns if decision is Decision.DEAD_LETTER else []
    assert bench.dead == dict.fromkeys(dead, "uncertain")


# --- a crash at each commit point ---------------------------------------------------------------


STEPS_OF_LEDGER = ("seal", "revise", "attempt", "finish", "advance", "mark")


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("replay", [ROW, MONOTONE, KEYED, WINDOW])
def test_a_crash_at_any_commit_point_loses_and_doubles_nothing(place, replay, behind):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(23))
    bad = {lsns[3], lsns[12]}
    for at in itertools.count(1):
        bench = Bench(backlog, replay)
        dying = Dying(at, behind=behind)
        target = bench.target
        target.refuses = lambda record: record.lsn in bad
        target.per_record = replay is not ROW
        target.largest = None if replay is WINDOW else 7  # which is not cut while in doubt
        target.wants_later = lambda record: record.lsn == lsns[22] and len(target.attempts) < 12  # noqa: B023
        for name in STEPS_OF_LEDGER:
            setattr(bench.ledger, name, dying.around(getattr(bench.ledger, name)))
        bench.dead_log.append = dying.around(bench.dead_log.append)  # type: ignore[method-assign]

        class Mortal(RecordingSink):
            def deliver(self, attempt):
                return dying.around(super().deliver)(attempt)  # noqa: B023

        bench.kind = Mortal
        bench.start()
        try:
            bench.through()
        except Killed:
            bench.start()
            bench.through()
        passed = {lsn for lsn, code in bench.dead.items() if code == PASSED_OVER}
        assert bench.dead.keys() - passed == bad, at
        assert passed <= {lsns[22]}
        assert sorted(target.lsns) == sorted(set(lsns) - bench.dead.keys()), at
        bench.dead_log.close()
        if not dying.died:
            break
    assert at > 12
    backlog.close()
