"""A lane, its log, ledger, dead log and target in one thread: driven by seeded schedules.

The lane, the ledger, the dead log and the log are the real code; time is a clock of the test. The
world may restore target and ledger from copies, lose answers, let attempts land late, kill the
drainer before or behind any durable step, let the log retire what was delivered, and purge or send
again what was set aside. At each quiet point the promises are checked.

Its target is transactional. Targets of the other classes, with their partial results, windows and
batches held for a person, are played by ``delivery_world``.
"""

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

from tests.logtools import DATA, new_fs
from tests.model.heal_parts import (
    GROUPS,
    LEDGER_STEPS,
    OWNER,
    POISON,
    Chances,
    Copy,
    Fuse,
    Guarded,
    HistoryLog,
    Killed,
    Net,
    NetSink,
    RetiringFs,
)
from tests.model.promises import Violation
from wald import limits
from wald.config import BatchSettings, RouteSettings, SinkSettings
from wald.drainer import takeover
from wald.drainer.frontier import FrontierBoard
from wald.drainer.lane import Lane
from wald.drainer.recalling import begin_life
from wald.drainer.route import Route, Shared
from wald.drainer.stands import StandsPage
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Frontier,
    Lsn,
    ProgressRow,
    RevisionId,
    RouteBirth,
)
from wald.storage.deadlog import DeadLog
from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget


class World:
    """Everything, and what may be done to it; each action says what it did."""

    def __init__(self, log: HistoryLog, seed: int) -> None:
        self.log = log
        self.chance = Random(seed)
        self.clock = ManualClock()
        own = new_fs(seed)
        own.make_directory(DATA)
        own.sync_directory("/var")
        self.fs = RetiringFs(log.fs, own)
        self.ledger = MemoryLedger(log.log_id)
        self.ledger.birth(RouteBirth(1, "orders", 1, "orders", "target", 0, OWNER))
        self.target = RecordingTarget(refuses=lambda record: record.lsn in POISON)
        self.target.names = self.chance.random() < 0.5
        self.net, self.fuse = Net(), Fuse()
        self.revealed = 1
        self.told: list[tuple[int, Lsn]] = []  # checkpoints as ingest may have heard them, and when
        self.released = 0
        self.intruders: set[RevisionId] = set()  # of another history of the log
        self.sets_aside: Callable[[], bool] = lambda: False  # whether such a one names dead letters
        self.taken_over = False  # so that something may be at the target, or not
        self.unsure_through = 0  # what is told of it
        self.unknowable: set[Lsn] = set()  # what nobody can tell to be missing at the target
        self.target_copy = self._copy()
        self.ledger_copy: Any = self.ledger.store._tables  # type: ignore[attr-defined]
        self.trace: list[str] = []
        self._chances = Chances(seed)
        self.lane = self._begin()

    # --- lives ----------------------------------------------------------------------------------

    @property
    def frontier(self) -> Frontier:
        return self.log.frontiers[self.revealed]

    def _begin(self) -> Lane:
        self.fuse.arm(0, behind=False)
        self.board = FrontierBoard()
        self.board.pin(self.frontier)
        fs: Any = self.fs
        self.dead_log = DeadLog(fs, DATA)
        page = StandsPage(fs, DATA)
        through = lambda: self.frontier.lsn  # noqa: E731
        told = begin_life(self.ledger, self.dead_log, page, {}, through, self._chances)
        page.close()
        shared = Shared(
            fs,
            DATA,
            self.log.log_id,
            OWNER,
            self.clock,
            self._chances,
            Guarded(self.ledger, self.fuse, *LEDGER_STEPS),
            Guarded(self.dead_log, self.fuse, "append"),  # type: ignore[arg-type]
            self.board,
            lambda *_: Guarded(
                NetSink(self.target, self.net, self._take_note), self.fuse, "deliver"
            ),
            lambda: 1,
            lambda _: self.released,
            told=told,
        )
        batch = BatchSettings(max_records=2, max_age_s=1.0, adaptive=False)
        settings = RouteSettings("orders", "orders", "target", batch=batch)
        birth = self.ledger.births()[0]
        return Lane(Route(shared, birth, settings, SinkSettings("target", "recording")))

    def restart(self) -> None:
        self.close()
        self.lane = self._begin()

    def close(self) -> None:
        self.lane._steps.let_go()
        self.dead_log.close()

    # --- what may happen ------------------------------------------------------------------------

    def step(self) -> str:
        try:
            rest_s = self.lane.step()
        except Killed:
            self.restart()
            return "killed"
        self._tell()
        if rest_s > 0:
            self.clock.advance(min(rest_s, 0.5 if self.chance.random() < 0.5 else 61.0))
        return f"step: {self.lane._step.value}"

    def _tell(self) -> None:
        """What the drainer says up to here is heard within 1.5 s, and never forgotten."""
        now_ns, lsn = self.clock.monotonic_ns(), self.lane.figures.checkpoint_lsn
        since_ns = now_ns - round(1.5 * limits.CLOCK_NS_PER_S)
        heard = [item for item in self.told if item[0] >= since_ns]
        self.told = [*(heard or self.told[-1:]), (now_ns, lsn)]
        self.released = max(self.released, lsn)
        healing = self.lane._steps.memory.healing
        self.unsure_through = max(self.unsure_through, healing.unsure_through if healing else 0)

    def _take_note(self, attempt: Attempt) -> None:
        """A takeover is tried.

        Above our own number nothing shows that the target was set back; and where the log is gone,
        nothing that the row is not ours.
        """
        held, moved = self.held().checkpoint, attempt.row
        is_unknown = moved.batch_no - 1 > held.batch_no or moved.hi_lsn <= self._gone_through()
        if attempt.from_owner is not None and is_unknown:
            delivered = set(range(1, held.lsn + 1)) - self._dead()
            self.unknowable |= delivered - set(self.target.lsns)

    def _gone_through(self) -> Lsn:
        retired = self.fs.retired_through
        return max((end for number, end in self.log.ends.items() if number <= retired), default=0)

    def reveal(self) -> str | None:
        if self.revealed + 1 >= len(self.log.frontiers):
            return None
        self.revealed += 1
        self.board.pin(self.frontier)
        return f"appended up to {self.frontier.lsn}"

    def copy_target(self) -> str:
        self.target_copy = self._copy()
        return f"target copied at {self._rows()}"

    def _copy(self) -> Copy:
        return Copy(tuple(self.target.records), tuple(self.target.rows.items()))

    def restore_target(self) -> str:
        self.target.records = list(self.target_copy.records)
        self.target.rows = dict(self.target_copy.rows)
        return f"TARGET RESTORED to {self._rows()}"

    def copy_ledger(self) -> str:
        self.ledger_copy = self.ledger.store._tables  # type: ignore[attr-defined]
        return "ledger copied"

    def restore_ledger(self) -> str:
        self.ledger.store._tables = self.ledger_copy  # type: ignore[attr-defined]
        self.restart()
        return f"LEDGER RESTORED to batch {self.held().checkpoint.batch_no}"

    def meet(self, fate: str) -> str:
        self.net.fate = fate
        return f"the next attempt: {fate}"

    def land(self) -> str | None:
        if not self.net.late:
            return None
        attempt = self.net.late.pop(self.chance.randrange(len(self.net.late)))
        outcome = RecordingSink(self.target).deliver(attempt)
        return f"LATE batch {attempt.row.batch_no} lands: {type(outcome).__name__}"

    def intrude(self) -> str | None:
        """Another host with a copy of our log delivers a record of its own."""
        row = self.row()
        if row is None:
            return None
        owner, lsn, anchor = OWNER + 1, row.hi_lsn, row.anchor  # a copy that knew what it was
        if self.chance.random() < 0.5:  # or one that did not, whose log went on by itself
            lsn = self.chance.randint(row.hi_lsn, self.frontier.lsn + 1)
            owner, anchor = OWNER, Anchor(4711, lsn)
        rev_id = self._chances.randbytes(16)
        dead_rev = rev_id if self.sets_aside() else row.dead_rev
        moved = ProgressRow(row.batch_no + 1, rev_id, lsn, anchor, owner, dead_rev)
        attempt = Attempt(
            self.lane.route.key, "orders", row.rev_id, moved, (), from_owner=row.owner
        )
        RecordingSink(self.target).deliver(attempt)
        self.intruders.add(moved.rev_id)
        return f"ANOTHER HOST delivers batch {moved.batch_no}, LSN {lsn}, owner {owner}"

    def take_over(self) -> str | None:
        """A person decides that we go on, where the lane waits for that."""
        if self.lane.figures.parked != "diverged":
            return None
        takeover.decide_by_name(self.ledger, "orders", OWNER, self.clock.wall_ns())
        self.taken_over = True
        return "TAKEN OVER"

    def kill(self) -> str:
        steps, behind = self.chance.randint(1, 4), self.chance.random() < 0.5
        self.fuse.arm(steps, behind=behind)
        return f"to be killed {'behind' if behind else 'before'} durable step {steps}"

    def fill(self) -> str:
        self.fuse.full = self.chance.randint(1, 5)
        return f"the next {self.fuse.full} durable steps find no room"

    def mend(self) -> str:
        self.target.refuses = lambda _: False
        return "the target takes everything now"

    def redrive(self) -> str | None:
        letters = self.ledger.dead_letters(1)
        lsns = [letter.lsn for letter in letters if letter.code != takeover.CODE]
        if not lsns:
            return None
        self.ledger.ask_redrive(1, lsns, "", self.clock.wall_ns())
        self.lane.look_again()
        return f"redrive of {lsns} is asked for"

    def purge(self) -> str | None:
        lsns = [letter.lsn for letter in self.ledger.dead_letters(1)][:1]
        if not lsns:
            return None
        self.ledger.purge(1, lsns, self.clock.wall_ns())
        self.lane.look_again()
        return f"{lsns} are purged"

    def retire(self) -> str | None:
        floor = self.chance.choice(self.told)[1] if self.told else 0
        newest = self.frontier.segment
        gone = [each for each, end in self.log.ends.items() if end < floor and each < newest]
        if max(gone, default=0) <= self.fs.retired_through:
            return None
        self.fs.retired_through = max(gone)
        return f"the log begins behind {self.log.ends[max(gone)]}"

    def command_meanwhile(self, chance: Random) -> None:
        """Let people ask for something now and then in the middle of a step of the lane."""

        def meanwhile() -> None:
            if chance.random() < 0.1:
                said = chance.choice([self.redrive, self.redrive, self.purge, self.take_over])()
                if said:
                    self.trace.append(f"MEANWHILE {said}")

        self.fuse.meanwhile = meanwhile

    def held(self) -> Any:
        return self.ledger.lane(self.lane.route.key)

    def row(self) -> ProgressRow | None:
        return self.target.rows.get(self.lane.route.key)

    def _rows(self) -> str:
        row = self.row()
        return f"batch {row.batch_no}, LSN {row.hi_lsn}" if row else "nothing"

    # --- the promises ---------------------------------------------------------------------------

    @property
    def intruded(self) -> bool:
        """Whether the target's row goes back to another history, and nobody took it over since."""
        row = self.row()
        rev_id = row.rev_id if row else NO_REVISION
        while rev_id in self.net.sent or rev_id in self.intruders:
            if rev_id in self.intruders:
                return True
            attempt = self.net.sent[rev_id]
            if attempt.from_owner is not None:
                return False
            rev_id = attempt.prev_rev
        return False

    def until(self, state: str) -> None:
        """Take steps until the lane is in a state."""
        for _ in range(400):
            self.trace.append(self.step())
            if self.lane.figures.state == state:
                return
        self.broken(f"never {state}")

    def look(self) -> None:
        """Check what holds at any time."""
        lsns = self.target.lsns
        if len(set(lsns)) < len(lsns):
            self.broken(f"TWICE: the target holds {lsns}")

    def settle(self) -> None:
        """Let everything come to rest, and check what holds then."""
        self.net.fate = ""
        self.fuse.arm(0, behind=False)
        self.fuse.full = 0
        commands, self.fuse.meanwhile = self.fuse.meanwhile, lambda: None
        try:
            self._come_to_rest()
        finally:
            self.fuse.meanwhile = commands

    def _come_to_rest(self) -> None:
        while said := self.land():
            self.trace.append(said)
        looks = parks = 0
        for _ in range(400):
            self.trace.append(self.step())
            self.look()
            figures = self.lane.figures
            if figures.state == "parked":  # and it stays so when the row is read again
                parks += 1
                self.clock.advance(limits.PARKED_REREAD_S)
                if parks > 4:
                    self._check_park()
                    return
            parks = 0 if figures.state in {"idle", "delivering"} else parks
            rests = figures.state == "idle" and self.held().manifest is None
            if rests and figures.through_lsn >= self.frontier.lsn:
                looks += 1
                if looks == 1:  # and it stays so when the lane looks at its row again
                    self.clock.advance(limits.REREAD_S + limits.ADVANCE_EVERY_S)
                if looks > 4:
                    self._check_books()
                    return
        self.broken(f"STUCK: {self.lane.figures}")

    def _check_park(self) -> None:
        row = self.row()
        behind = (
            row.hi_lsn if row else 0
        ) <= self._gone_through()  # nothing tells then whose history it is
        if self.intruded:
            if self.lane.figures.parked != "diverged" and not behind:
                self.broken(f"PARKED wrongly: {self.lane.figures}")
            return
        if self.lane.figures.parked != "target-behind" or not behind:
            self.broken(f"PARKED without need: {self.lane.figures}")

    def _check_books(self) -> None:
        if self.intruded:
            self.broken("INTRUDED: the lane goes on over another history")
        inside = {record.lsn for record in self.target.records}
        dead, purged = self._dead(), self.purged()
        accepted = set(range(1, self.frontier.lsn + 1))
        if self.taken_over:  # a person looks at the target before those are sent again
            dead -= inside
        if inside & dead:
            self.broken(f"BOTH: {inside & dead} are in the target and dead letters")
        lost = accepted - inside - dead - purged - self.unknowable
        lost -= set(range(1, self.unsure_through + 1))
        if lost:
            self.broken(f"LOST: {lost}")
        if inside - accepted or dead - accepted:
            self.broken(f"INVENTED: {inside - accepted}, {dead - accepted}")
        lsns = [lsn for lsn in self.target.lsns if lsn not in POISON]
        if lsns != sorted(lsns):
            self.broken(f"ORDER: {lsns}")
        self._check_counts(inside, dead, accepted)

    def _check_counts(self, inside: set[Lsn], dead: set[Lsn], accepted: set[Lsn]) -> None:
        held = self.held().checkpoint
        counts = (held.delivered, held.dead_letters, held.purged)
        truth = (len(inside), len(dead), len(accepted) - len(inside) - len(dead))
        if (sum(counts) != len(accepted)) if self.taken_over else (counts != truth):
            self.broken(f"COUNTS: {counts} of {len(accepted)}, and it is {truth}")

    def _dead(self) -> set[Lsn]:
        """What is a dead letter; ranges that the log let go of, if a person gave them up."""
        return {
            lsn
            for letter in self.ledger.dead_letters(1)
            for lsn in range(letter.lsn, max(letter.lsn, letter.through_lsn) + 1)
            if letter.code != "damaged" or self.taken_over
        }

    def purged(self) -> set[Lsn]:
        """What was purged, as far as it is still named one by one."""
        return set(self.ledger.purged(self.lane.route.key))

    def broken(self, what: str) -> None:
        raise Violation("\n  ".join([what, *self.trace[-80:]]))


def schedule(chance: Random) -> Iterator[str]:
    """Yield actions: mostly steps, and of each kind of mishap a few at most."""
    budget = {
        "reveal": len(GROUPS),
        "copy_target": chance.randint(0, 3),
        "restore_target": chance.randint(0, 3),
        "copy_ledger": chance.randint(0, 2),
        "restore_ledger": chance.randint(0, 2),
        "late": chance.randint(0, 2),
        "lost": chance.randint(0, 2),
        "down": chance.randint(0, 1),
        "land": 3,
        "fill": chance.randint(0, 2),
        "kill": chance.randint(0, 3),
        "mend": chance.randint(0, 1),
        "redrive": chance.randint(0, 2),
        "purge": chance.randint(0, 1) * (chance.random() < 0.3),
        "intrude": chance.random() < 0.2,
        "take_over": 3 * (chance.random() < 0.5),
        "retire": chance.randint(0, 2) * (chance.random() < 0.4),
        "settle": 2,
    }
    if chance.random() < 0.1:  # the log lets go of all that it may while targets go back
        budget |= {"copy_target": 3, "restore_target": 3, "retire": 30, "kill": 0, "purge": 0}
    for _ in range(chance.randint(40, 120)):
        left = [name for name, count in budget.items() if count]
        if not left or chance.random() < 0.6:
            yield "step"
            continue
        action = chance.choice(left)
        budget[action] -= 1
        yield action


def with_rivals(actions: Iterable[str], chance: Random) -> Iterator[str]:
    """Yield a schedule in which others write to the target, and are taken over, again and again."""
    for action in actions:
        yield action
        if chance.random() < 0.2:
            yield chance.choice(["intrude", "intrude", "take_over", "take_over", "restore_target"])


def run(log: HistoryLog, seed: int, *, meanwhile: bool = False, rivals: bool = False) -> World:
    """Play the schedule of a seed.

    With ``meanwhile`` commands come in the middle of steps too, with ``rivals`` other hosts write
    to the target again and again.

    Raises:
        Violation: a promise did not hold; it names the seed.
    """
    world = World(log, seed)
    if meanwhile:
        world.command_meanwhile(Random(seed + 1))
    if rivals:
        rival = Random(seed + 3)
        world.sets_aside = lambda: rival.random() < 0.2
    try:
        actions = schedule(world.chance)
        if rivals:
            actions = with_rivals(actions, Random(seed + 2))
        for action in [*actions, "settle"]:
            if action in {"late", "lost", "down"}:
                said: str | None = world.meet(action)
            else:
                said = getattr(world, action)()
            if said:
                world.trace.append(said)
            world.look()
    except Violation as violation:
        msg = f"seed {seed}: {violation}"
        raise Violation(msg) from None
    finally:
        world.close()
    return world
