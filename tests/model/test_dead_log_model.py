"""The dead log written anew and let go, between restores, kills and retirement.

The world of ``heal_world`` with one more thing that may happen: a round of the undertaker, cut at
any durable step. At rest every dead letter's body is found, and so is the chain of the lane's row.
"""

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.model import heal_world
from tests.model.heal_parts import Guarded, HistoryLog, Killed
from tests.model.heal_world import World
from tests.model.promises import Violation
from wald.core import dead
from wald.drainer import burying
from wald.drainer.burying import Grounds, Undertaker
from wald.drainer.redriving import _read_bodies
from wald.errors import DiskFull, LedgerFailed
from wald.storage.deadlog import DeadEntry

SEEDS = 120
FOUND_RIVALS = (
    1094600469249,  # files went while an older ledger, parked, did not know their chain
    1061105864090,  # a row was believed beyond the ledger's, and its block had left the log
    1061105864412,
    1061105864566,
    1061105864824,
    1094600469333,  # a row of which the log held nothing any more was believed: a letter forgotten
    377929266984,  # a purge was forgotten while a chain that was written anew named its letter
)
MORE = (1, 1, 3, 1)  # groups behind those of a schedule: the log lets go of where it was
AT_THE_END = (
    *("settle", "bury", "reveal", "settle", "reveal", "settle", "retire", "bury"),
    *("reveal", "reveal", "settle", "retire", "retire", "bury", "settle"),
)
OLDER_LEDGER = (  # put back while the row is another host's, as the target's newest copy is later
    *("settle", "copy_ledger", "restart", "reveal", "settle", "reveal", "settle", "reveal", "lost"),
    *("step", "step", "step", "step", "copy_target", "intrude", "restore_ledger", "step", "bury"),
    *("step", "take_over", "reveal", "settle", "reveal", "settle", "retire", "bury"),
    *("restore_target", "settle"),
)
LEDGER = ("move_letters", "note", "forget_purged", "purge")
DEAD = ("append", "roll", "remove")


class BuryingWorld(World):
    """Lets the undertaker come by."""

    removed = 0

    def __init__(self, log: HistoryLog, seed: int) -> None:
        super().__init__(log, seed)
        self.seed = seed

    def bury(self) -> str:
        shared = replace(
            self.lane.route.shared,
            ledger=Guarded(self.ledger, self.fuse, *LEDGER),
            dead_log=Guarded(self.dead_log, self.fuse, *DEAD),  # type: ignore[arg-type]
        )
        before = len(self.dead_log.files())
        try:
            Undertaker(shared).bury(Grounds({1: self.lane.route}, [self.lane.route.key]))
        except Killed:
            self.restart()
            return "killed in a round of the undertaker"
        except (LedgerFailed, DiskFull) as error:
            return f"the undertaker leaves: {error.message}"
        self.removed += max(0, before - len(self.dead_log.files()))
        return f"buried: files {self.dead_log.files()}"

    def purged(self) -> set[int]:
        row = self.row()
        chain = self.dead_log.walk(row.dead_rev) if row else None
        return super().purged() | (chain.dropped if chain else frozenset())

    def _check_books(self) -> None:
        super()._check_books()
        letters = [each for each in self.ledger.dead_letters(1) if each.dead_file]
        lost = [letter.lsn for letter, body in _read_bodies(self.dead_log, letters) if body is None]
        if lost:
            self.broken(f"BODIES LOST: {lost}")
        row = self.row()
        chain = self.dead_log.walk(row.dead_rev) if row else None
        if row and chain is None:
            self.broken("CHAIN LOST")
        named = {each.lsn for each in letters} | self.purged()
        if chain and chain.letters.keys() - named:
            self.broken("the chain names letters that the ledger does not know")


def schedule(chance: Random) -> list[str]:
    """Return a schedule with rounds of the undertaker in it, and more that they may break."""
    actions = []
    for action in heal_world.schedule(chance):
        actions.append(action)
        if chance.random() < 0.08:
            actions.append("bury")
        if chance.random() < 0.03:
            actions.append(chance.choice(["retire", "redrive", "purge", "restore_target"]))
    return [each for each in actions if each != "intrude"]


def run(log: HistoryLog, seed: int, *, rivals: bool = False) -> int:
    """Play a seed; returns how many files went. With ``rivals`` other hosts write there too.

    Raises:
        Violation: a promise did not hold.
    """
    world = BuryingWorld(log, seed)
    actions: Iterable[str] = schedule(world.chance)
    if rivals:
        actions = heal_world.with_rivals(actions, Random(seed + 2))
        rival = Random(seed + 3)
        world.sets_aside = lambda: rival.random() < 0.2
    return play(world, [*actions, *AT_THE_END])


def play(world: BuryingWorld, actions: Iterable[str]) -> int:
    """Let it all happen; returns how many files went.

    Raises:
        Violation: a promise did not hold.
    """
    try:
        for action in actions:
            said: Any
            if action in {"late", "lost", "down"}:
                said = world.meet(action)
            else:
                said = getattr(world, action)()
            if said:
                world.trace.append(said)
            world.look()
    except Violation as violation:
        msg = f"seed {world.seed}: {violation}"
        raise Violation(msg) from None
    finally:
        world.close()
    return world.removed


@pytest.fixture(scope="module")
def log() -> HistoryLog:
    return HistoryLog(MORE)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write anew in every round, as one record an entry."""
    monkeypatch.setattr(dead, "is_worth_rewriting", lambda *_: True)
    monkeypatch.setattr("wald.limits.DEAD_LOG_PART_BYTES", 1)
    # kills of the undertaker are no crashes of a sink: no process of its own for a batch
    monkeypatch.setattr("wald.limits.GUARDED_AFTER_CRASHES_COUNT", 1_000)


def test_no_schedule_of_restores_kills_and_burials_loses_a_dead_letter(log: HistoryLog) -> None:
    removed = sum(run(log, seed) for seed in range(SEEDS))
    assert removed > SEEDS // 20  # files did go, or nothing was tried


def test_nor_does_one_in_which_other_hosts_write_to_the_target_and_are_taken_over(
    log: HistoryLog,
) -> None:
    for seed in [*FOUND_RIVALS, *range(SEEDS // 3)]:
        run(log, seed, rivals=True)


def found_by(log: HistoryLog, seeds: int = 250) -> str:
    """Return what the first violation says; empty if no seed has one."""
    for seed in range(seeds):
        try:
            run(log, seed)
        except Violation as violation:
            return str(violation)
    return ""


def test_it_is_found_when_files_go_while_an_older_row_may_lead_there(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Undertaker, "_is_passed", lambda *_: True)
    assert found_by(log)


def test_it_is_found_when_what_letters_refer_to_is_not_asked(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Undertaker, "_needed", lambda _: set())
    monkeypatch.setattr(Undertaker, "_is_passed", lambda *_: True)
    assert found_by(log)


def test_it_is_found_when_a_chain_does_not_say_what_was_purged_and_left_out(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burying, "DeadEntry", lambda *said: DeadEntry(*said[:5]))
    assert found_by(log)


def test_it_is_found_when_an_older_ledger_lets_files_go_before_it_knows_the_row(
    log: HistoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, planted = BuryingWorld(log, 311), BuryingWorld(log, 311)
    held.sets_aside = planted.sets_aside = lambda: True
    play(held, OLDER_LEDGER)
    monkeypatch.setattr(Undertaker, "_unasked", lambda *_: ())
    with pytest.raises(Violation, match="broken-chain"):
        play(planted, OLDER_LEDGER)
