"""A lane under restores of target and ledger, late commits, kills: seeded, replayable schedules.

WALD_MODEL_PROFILE=long .venv/bin/pytest tests/model/test_delivery_model.py
"""

import os
from random import SystemRandom

import pytest

from tests.logtools import DATA
from tests.model.heal_parts import OWNER, VALUE, HistoryLog
from tests.model.heal_world import World, run
from tests.model.planting import Patch, plant
from tests.model.promises import Violation
from wald import limits
from wald.core import row
from wald.core.healing import from_numbers, words
from wald.drainer import adopting, checking, moving, steps, takeover
from wald.drainer.aside import body_of
from wald.model import NO_REVISION, Anchor, Lsn, ProgressRow
from wald.storage.deadlog import DeadLog
from wald.storage.ledger import StoreLedger

LONG = os.environ.get("WALD_MODEL_PROFILE") == "long"
SEEDS = 20_000 if LONG else 40
PLANTED_SEEDS_MAX = 400


@pytest.fixture(scope="module")
def log() -> HistoryLog:
    return HistoryLog()


@pytest.fixture(autouse=True)
def no_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in which the drainer died twice stays in this process."""
    monkeypatch.setattr(limits, "GUARDED_AFTER_CRASHES_COUNT", 1 << 30)


FOUND_MEANWHILE = (
    2126,  # purged in an older ledger, and sent again by the chain that the target knows
    11012,
    173_996_337_923,  # another host wrote to a target that had been set back, and was taken over
)
FOUND_RIVALS = (
    28,  # taken over where our log begins behind the row: for ever "nothing is taken over"
    58,
    59,  # a target that was set back was believed to hold what was delivered
    870_488_406_843,  # a row was believed whose dead letters nobody here knows
    870_488_407_111,
    870_488_407_378,
    870_488_408_110,
    870_488_407_413,  # what the log had let go of behind an older ledger was counted twice
    870_488_408_347,
    870_488_408_631,
    790_997_559_482,  # the anchor of a row that nobody could check was believed later on
    870_488_408_362,  # a dead letter that another chain did not set aside was sent again
)
FOUND = (
    242,  # a batch that took effect, then left the log: its records were called damaged
    308,  # taken over twice: what had been set aside the first time was forgotten
    *range(8),
)


def test_schedules_that_once_found_something_hold(log: HistoryLog) -> None:
    for seed in FOUND:
        run(log, seed)


def test_random_schedules_hold_every_promise(log: HistoryLog) -> None:
    first = _first_seed()
    for seed in range(first, first + SEEDS):
        run(log, seed)


def test_commands_in_the_middle_of_a_step_break_no_promise(log: HistoryLog) -> None:
    """Purges, redrives, takeovers between what a lane reads and what it writes."""
    first = _first_seed()
    for seed in [*FOUND_MEANWHILE, *range(first, first + 2 * SEEDS)]:
        run(log, seed, meanwhile=True)


def test_others_that_write_to_the_target_again_and_again_break_no_promise(log: HistoryLog) -> None:
    first = _first_seed()
    for seed in [*FOUND_RIVALS, *range(first, first + SEEDS)]:
        run(log, seed, meanwhile=True, rivals=True)


def _first_seed() -> int:
    """The short profile plays the same schedules each time, the long one others."""
    first = SystemRandom().randrange(1 << 40) if LONG else 100_000
    print(f"seeds from {first}")
    return first


def test_a_redrive_that_is_sealed_of_what_was_purged_meanwhile_is_found(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, Patch(StoreLedger, "seal", [("if not are_dead(", "if False and (")]))
    assert _first_violation(log, 0, meanwhile=True)[1]


# --- planted bugs -------------------------------------------------------------------------------

JUDGE = "return next(case for case in ROW_CASES if case.holds(facts))"
BUGS = {
    "the anchor is not looked at": (
        Patch(checking, "_look", [("if found != at.anchor:", "if False:")]),
        "INTRUDED",
    ),
    "another owner's row is accepted": (
        Patch(
            row,
            "judge_row",
            [
                (
                    JUDGE,
                    (
                        "return next(\n        case for case in ROW_CASES "
                        "if case.label != 'other-owner' and case.holds(facts)\n    )"
                    ),
                )
            ],
            also=[checking],
        ),
        "PARKED wrongly|INTRUDED|STUCK",
    ),
    "a row with an LSN not below ours is believed to be ours": (
        Patch(
            row,
            "judge_row",
            [
                (
                    JUDGE,
                    "if facts.row and facts.row.hi_lsn >= facts.checkpoint.lsn:\n"
                    "        return ROW_CASES[5]\n    " + JUDGE,
                )
            ],
            also=[checking],
        ),
        "STUCK|LOST|INTRUDED|COUNTS",
    ),
    "the open manifest is kept": (
        Patch(
            StoreLedger,
            "adopt",
            [("LaneProgress(after, None)", "LaneProgress(after, held.manifest)")],
        ),
        "",
    ),
    "what lies between is not recounted": (
        Patch(
            adopting,
            "adopt",
            [
                (
                    "after = adopted(before, base, found.between, dead)",
                    (
                        "after = replace(adopted(before, base, found.between, dead), "
                        "delivered=before.delivered)"
                    ),
                )
            ],
            also=[checking],
        ),
        "COUNTS",
    ),
    "the dead letters stay as the ledger has them": (
        Patch(
            adopting,
            "adopt",
            [
                (
                    "letters = _letters_of_chain(route, chain)",
                    "letters = {each.lsn: each for each in letters_of_lane(route)}",
                )
            ],
            also=[checking],
        ),
        "BOTH|LOST|COUNTS|INVENTED",
    ),
    "a chain is carried out newest first": (
        Patch(DeadLog, "walk", [("for place in reversed(steps):", "for place in steps:")]),
        "BOTH|LOST|COUNTS",
    ),
    "redriven letters are not taken off a chain": (
        Patch(DeadLog, "walk", [("letters.pop(lsn, None)", "pass")]),
        "BOTH|COUNTS",
    ),
    "the lane reads on from where it stood": (
        Patch(
            adopting,
            "_go_on",
            [("    memory.reader = route.reader(after.lsn)\n", "")],
        ),
        "",
    ),
    "a target that was set back is believed to hold what was delivered": (
        Patch(moving, "_plan", [("if row.batch_no > before.batch_no or", "if True or")]),
        "LOST",
    ),
    "an idle lane never looks at its row": (
        Patch(
            steps.Steps,
            "_collect",
            [("self._now_ns() >= self.look_ns", "self._now_ns() >= 1 << 62")],
        ),
        "LOST",
    ),
}


RIVALS = {  # of bugs that only a schedule with rivals meets
    "a target that was set back is believed to hold what was delivered",
}
FIRST_SEEDS = {  # of bugs that only few schedules meet: one in 150 or so
    "a chain is carried out newest first": 150,
    "redriven letters are not taken off a chain": 150,
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, log: HistoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, found = BUGS[bug]
    with monkeypatch.context() as planted:
        plant(planted, patch)
        first = FIRST_SEEDS.get(bug, 0)
        rivals = bug in RIVALS
        seed, what = _first_violation(log, first, meanwhile=rivals, rivals=rivals)
    print(f"{bug}: found by example {seed - first + 1}: {what.splitlines()[0]}")
    assert any(word in what for word in found.split("|"))
    run(log, seed, meanwhile=rivals, rivals=rivals)  # without the bug it holds


@pytest.mark.parametrize("seed", range(4))
def test_what_a_target_lost_before_another_host_wrote_there_is_set_aside(
    log: HistoryLog, seed: int
) -> None:
    """Of what was delivered above the copy nobody can tell what the other host delivered."""
    world = World(log, seed)
    try:
        world.mend()
        world.reveal()
        world.settle()
        world.copy_target()
        for _ in range(3):
            world.reveal()
            world.settle()
        world.restore_target()
        world.intrude()
        world.until("parked")
        world.take_over()
        world.settle()
        lost = set(range(1, world.frontier.lsn + 1)) - set(world.target.lsns)
        letters = {letter.lsn: letter.code for letter in world.ledger.dead_letters(1)}
    finally:
        world.close()
    assert lost
    assert letters.keys() >= lost
    assert set(letters.values()) == {"diverged"}


def _let_another_host_begin_anew(world: World) -> None:
    """Deliver 9 records; then the target lost all, and holds a batch of another's through LSN 7."""
    world.mend()
    for _ in range(5):
        world.reveal()
        world.settle()
    theirs = ProgressRow(1, b"t" * 16, 7, Anchor(4711, 7), OWNER + 1, NO_REVISION)
    world.target.records.clear()
    world.target.rows[world.lane.route.key] = theirs
    world.intruders.add(theirs.rev_id)


@pytest.mark.parametrize(
    ("room", "letters", "unsure_through"), [(9, range(1, 10), 0), (3, range(5, 10), 4)]
)
def test_what_a_takeover_cannot_set_aside_of_that_is_told(
    log: HistoryLog,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    letters: range,
    unsure_through: Lsn,
) -> None:
    monkeypatch.setattr(limits, "TAKE_OVER_MAX_RECORDS", room)
    monkeypatch.setattr(limits, "DEAD_LOG_PART_BYTES", 2 * len(VALUE))  # so that it is in parts
    world = World(log, seed=1)
    try:
        _let_another_host_begin_anew(world)
        world.until("parked")
        world.take_over()
        world.settle()
        assert [letter.lsn for letter in world.ledger.dead_letters(1)] == list(letters)
        assert world.unsure_through == unsure_through
        if unsure_through:
            note = from_numbers(world.lane.figures.policy["healing"])
            assert note is not None
            assert f"up to LSN {unsure_through} may be missing" in words(note.said(), str)
    finally:
        world.close()


def test_what_the_log_let_go_of_since_an_older_ledger_is_told_by_a_takeover(
    log: HistoryLog,
) -> None:
    """Up to the ledger's LSN 3 all is known, LSN 4 has left the log, the others are set aside."""
    world = World(log, seed=1)
    try:
        world.mend()
        world.reveal()
        world.settle()
        world.copy_ledger()
        for _ in range(4):
            world.reveal()
            world.settle()
        world.fs.retired_through = min(world.log.ends)
        world.restore_ledger()
        theirs = ProgressRow(50, b"t" * 16, 9, Anchor(4711, 9), OWNER + 1, NO_REVISION)
        world.target.rows[world.lane.route.key] = theirs
        world.intruders.add(theirs.rev_id)
        world.until("parked")
        world.take_over()
        world.settle()
        assert [letter.lsn for letter in world.ledger.dead_letters(1)] == list(range(5, 10))
        assert world.unsure_through == 4
    finally:
        world.close()


def test_a_dead_letter_stays_one_where_the_log_no_longer_tells_whose_row_it_is(
    log: HistoryLog,
) -> None:
    """Another host's row, which knows nothing of LSN 3, comes back when LSN 4 has left the log."""
    world = World(log, seed=1)
    try:
        for _ in range(2):
            world.reveal()
            world.settle()
        theirs = ProgressRow(50, b"t" * 16, 3, Anchor(4711, 3), OWNER, NO_REVISION)
        world.target.rows[world.lane.route.key] = theirs
        world.copy_target()
        while world.reveal():
            pass
        world.fs.retired_through = min(world.log.ends)
        world.restore_target()
        world.until("parked")
        assert world.lane.figures.parked == "target-behind"
        takeover.decide_by_name(world.ledger, "orders", OWNER, world.clock.wall_ns())
        world.taken_over = True
        world.settle()
        letters = {letter.lsn: letter.code for letter in world.ledger.dead_letters(1)}
        assert letters == {3: "diverged", 4: "damaged", 7: "refused"}
    finally:
        world.close()


def test_what_was_sent_again_before_a_target_was_set_back_is_set_aside_again(
    log: HistoryLog,
) -> None:
    """The row's dead letters are another's, so that our own chain goes on: it sent 3 again."""
    world = World(log, seed=1)
    try:
        world.reveal()
        world.settle()
        world.copy_target()
        for _ in range(3):
            world.reveal()
            world.settle()
        world.mend()
        assert world.redrive()
        world.settle()
        assert 3 in world.target.lsns
        world.restore_target()
        world.sets_aside = lambda: True
        world.intrude()
        world.until("parked")
        world.take_over()
        world.settle()
        assert 3 in {letter.lsn for letter in world.ledger.dead_letters(1)}
    finally:
        world.close()


def test_what_is_set_aside_for_a_takeover_is_written_once_however_often_it_is_tried(
    log: HistoryLog,
) -> None:
    world = World(log, seed=1)
    try:
        _let_another_host_begin_anew(world)
        world.until("parked")
        world.take_over()
        entries = set()
        for _ in range(3):
            world.meet("down")
            world.until("waiting")
            entries.add(len(list(world.dead_log.entries())))
        assert entries == {1}
        world.settle()
        assert len(list(world.dead_log.entries())) == 1
    finally:
        world.close()


@pytest.mark.parametrize("files", [[1], [1, 2]])
@pytest.mark.parametrize("log_lets_go", [False, True])
def test_dead_letters_whose_bodies_are_lost_stay_dead_letters_behind_a_takeover(
    log: HistoryLog, files: list[int], *, log_lets_go: bool
) -> None:
    """Files of the dead log are gone, and the target goes back: its chain leads nowhere."""
    world = World(log, seed=1)
    try:
        for _ in range(3):
            world.reveal()
        world.settle()
        world.copy_target()
        world.restart()  # each life begins a file of its own
        while world.reveal():
            pass
        world.settle()
        for number in files:
            world.fs.unlink(f"{DATA}/dead/dead-{number:010d}.log")
        if log_lets_go:
            world.fs.retired_through = min(world.log.ends)
        world.restart()
        world.restore_target()
        world.until("parked")
        world.take_over()
        world.settle()
        assert [letter.lsn for letter in world.ledger.dead_letters(1)] == [3, 7]
        bodies = [body_of(world.lane.route, letter) for letter in world.ledger.dead_letters(1)]
        assert [body is None for body in bodies] == [log_lets_go, False]
    finally:
        world.close()


def rewound_while_the_log_lets_go(log: HistoryLog, *, at_once: bool = False) -> World:
    """Ingest, which may have heard the higher checkpoint last, retires what it may.

    At once, when the lane has just adopted the row, or when it begins to read on.
    """
    world = World(log, seed=1)
    try:
        world.mend()
        world.settle()
        world.copy_target()
        while world.reveal():
            pass
        world.settle()
        world.restore_target()
        world.until("waiting")
        if at_once:
            assert world.retire() is not None
        world.until("parked" if at_once else "idle")
        for _ in range(20):  # whatever was heard last
            world.retire()
        world.settle()
    finally:
        world.close()
    return world


def test_a_lane_whose_records_the_log_lets_go_while_it_is_healed_is_parked(log: HistoryLog) -> None:
    world = rewound_while_the_log_lets_go(log, at_once=True)
    assert world.lane.figures.parked == "target-behind"


def test_behind_a_rewind_a_lane_waits_until_the_log_lets_go_of_nothing_that_it_needs(
    log: HistoryLog,
) -> None:
    world = rewound_while_the_log_lets_go(log)
    assert world.lane.figures.parked is None
    assert world.target.lsns == list(range(1, world.frontier.lsn + 1))


def test_a_lane_that_does_not_wait_behind_a_rewind_loses_what_the_log_lets_go(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = Patch(adopting, "_go_on", [("limits.REWIND_PAUSE_S if behind else 0.0", "0.0")])
    plant(monkeypatch, patch)
    with pytest.raises(Violation, match="LOST"):
        rewound_while_the_log_lets_go(log)


def _first_violation(
    log: HistoryLog, first: int, *, meanwhile: bool = False, rivals: bool = False
) -> tuple[int, str]:
    for seed in range(first, first + PLANTED_SEEDS_MAX):
        try:
            run(log, seed, meanwhile=meanwhile, rivals=rivals)
        except Violation as violation:
            return seed, str(violation)
    pytest.fail(f"not found by {PLANTED_SEEDS_MAX} schedules")
