"""A lane, its log, ledger, dead log and target in one thread: driven by seeded schedules.

The lane, the ledger, the dead log and the log are the real code; time is a clock of the test. The
world may restore target and ledger from copies, lose answers, let attempts land late, kill the
drainer before or behind any durable step, let the log retire what was delivered, and purge or send
again what was set aside. At each quiet point the promises are checked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.logtools import DATA, SMALL, append, first_group, new_fs, open_log
from tests.model.promises import Violation
from wald import limits
from wald.config import BatchSettings, RouteSettings, SinkSettings
from wald.drainer.frontier import FrontierBoard
from wald.drainer.lane import Lane
from wald.drainer.route import Route, Shared
from wald.model import (
    Anchor,
    Attempt,
    Frontier,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    RouteBirth,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import File, FileSystem
from wald.storage.deadlog import DeadLog
from wald.storage.segment import segment_number
from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

GROUPS = (1, 2, 1, 1, 3, 1, 1)  # records of each group
VALUE = b"v" * 9_000  # a few groups fill a segment
POISON = (3, 7)
OWNER = 77
DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
LEDGER_STEPS = ("seal", "revise", "attempt", "finish", "advance", "adopt", "note")
STEPS_MAX = 2_000


class Killed(BaseException):
    """The process is gone, in the middle of something."""


class HistoryLog:
    """A log with a few groups in several segments; the frontier behind each. Read only."""

    def __init__(self) -> None:
        self.fs = new_fs()
        log = open_log(self.fs, options=SMALL)
        log.append_group(first_group())
        self.log_id = log.log_id
        self.frontiers = [log.frontier]
        self.ends: dict[int, Lsn] = {}  # the last LSN of each segment
        for sequence, count in enumerate(GROUPS, 1):
            log.append_group([append(sequence, *[VALUE] * count)])
            self.frontiers.append(log.frontier)
            self.ends[log.frontier.segment] = log.frontier.lsn
        log.close()


class RetiringFs:
    """The log's files, less those that were retired; everything else of a file system beside it."""

    def __init__(self, log: FileSystem, own: FileSystem) -> None:
        self._log = log
        self._own = own
        self.retired_through = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _of(self, path: str) -> FileSystem:
        return self._log if path.startswith(f"{DATA}/log") else self._own

    def _is_gone(self, path: str) -> bool:
        number = segment_number(path.rsplit("/", 1)[-1])
        return number is not None and number <= self.retired_through

    def open(self, path: str, *, write: bool = False) -> File:
        if self._is_gone(path):
            raise FileNotFoundError(path)
        return self._of(path).open(path, write=write)

    def stat(self, path: str) -> Any:
        return None if self._is_gone(path) else self._of(path).stat(path)

    def list_directory(self, path: str) -> list[str]:
        return [name for name in self._of(path).list_directory(path) if not self._is_gone(name)]


class Fuse:
    """Kills the process at the n-th durable step from now, before or behind its effect."""

    def __init__(self) -> None:
        self.left = 0
        self.behind = False

    def arm(self, steps: int, *, behind: bool) -> None:
        self.left, self.behind = steps, behind

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        blows = self.left == 1
        self.left = max(0, self.left - 1)
        if blows and not self.behind:
            raise Killed
        result = method(*args, **kwargs)
        if blows:
            raise Killed
        return result


class Guarded:
    """Passes calls on; those named go through the fuse."""

    def __init__(self, inner: Any, fuse: Fuse, *names: str) -> None:
        self._inner, self._fuse, self._names = inner, fuse, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args, **kwargs: self._fuse.call(found, *args, **kwargs)


@dataclass(slots=True)
class Net:
    """Between us and the target: what the next attempt meets, and attempts that are on their way.

    ``fate`` is "" (nothing happens), "down", "lost" (it takes effect, the answer is lost) or "late"
    (it may take effect whenever it likes).
    """

    fate: str = ""
    late: list[Attempt] = field(default_factory=list)


class NetSink(RecordingSink):
    """A sink of a target behind a net."""

    def __init__(self, target: RecordingTarget, net: Net) -> None:
        super().__init__(target)
        self._net = net

    def deliver(self, attempt: Attempt) -> Outcome:
        fate, self._net.fate = self._net.fate, ""
        if fate == "down":
            return DOWN
        if fate == "late":
            self._net.late.append(attempt)
            return Unknown("no answer in time")
        outcome = super().deliver(attempt)
        return Unknown("the answer was lost") if fate == "lost" else outcome


@dataclass(frozen=True, slots=True)
class Copy:
    """The target as a backup has it."""

    records: tuple[Record, ...]
    rows: tuple[tuple[LaneKey, ProgressRow], ...]
    intruded: bool


class Chances(Random):
    """No pauses; random revisions."""

    def uniform(self, a: float, _b: float, /) -> float:
        return a


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
        self.intruded = False  # another history of the log was delivered to the target
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
            lambda *_: Guarded(NetSink(self.target, self.net), self.fuse, "deliver"),
            lambda: 1,
            lambda _: self.released,
        )
        batch = BatchSettings(max_records=2, max_age_s=1.0, adaptive=False)
        settings = RouteSettings("orders", "orders", "target", batch=batch)
        birth = self.ledger.births()[0]
        return Lane(Route(shared, birth, settings, SinkSettings("target", "recording")))

    def restart(self) -> None:
        self.close()
        self.lane = self._begin()

    def close(self) -> None:
        self.lane._let_go()
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
        return Copy(tuple(self.target.records), tuple(self.target.rows.items()), self.intruded)

    def restore_target(self) -> str:
        self.target.records = list(self.target_copy.records)
        self.target.rows = dict(self.target_copy.rows)
        self.intruded = self.target_copy.intruded
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
        moved = ProgressRow(
            row.batch_no + 1, self._chances.randbytes(16), lsn, anchor, owner, row.dead_rev
        )
        attempt = Attempt(
            self.lane.route.key, "orders", row.rev_id, moved, (), from_owner=row.owner
        )
        RecordingSink(self.target).deliver(attempt)
        self.intruded = True
        return f"ANOTHER HOST delivers batch {moved.batch_no}, LSN {lsn}, owner {owner}"

    def kill(self) -> str:
        steps, behind = self.chance.randint(1, 4), self.chance.random() < 0.5
        self.fuse.arm(steps, behind=behind)
        return f"to be killed {'behind' if behind else 'before'} durable step {steps}"

    def mend(self) -> str:
        self.target.refuses = lambda _: False
        return "the target takes everything now"

    def redrive(self) -> str | None:
        lsns = [letter.lsn for letter in self.ledger.dead_letters(1)]
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

    def held(self) -> Any:
        return self.ledger.lane(self.lane.route.key)

    def row(self) -> ProgressRow | None:
        return self.target.rows.get(self.lane.route.key)

    def _rows(self) -> str:
        row = self.row()
        return f"batch {row.batch_no}, LSN {row.hi_lsn}" if row else "nothing"

    # --- the promises ---------------------------------------------------------------------------

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
        retired = self.fs.retired_through
        gone = max((end for number, end in self.log.ends.items() if number <= retired), default=0)
        row = self.row()
        if self.intruded:
            if self.lane.figures.parked != "diverged":
                self.broken(f"PARKED wrongly: {self.lane.figures}")
            return
        if self.lane.figures.parked != "target-behind" or (row.hi_lsn if row else 0) > gone:
            self.broken(f"PARKED without need: {self.lane.figures}")

    def _check_books(self) -> None:
        if self.intruded:
            self.broken("INTRUDED: the lane goes on over another history")
        held = self.held().checkpoint
        inside = {record.lsn for record in self.target.records}
        dead = {letter.lsn for letter in self.ledger.dead_letters(1)}
        purged = set(self.ledger.purged(self.lane.route.key))
        accepted = set(range(1, self.frontier.lsn + 1))
        if inside & dead:
            self.broken(f"BOTH: {inside & dead} are in the target and dead letters")
        if accepted - inside - dead - purged:
            self.broken(f"LOST: {accepted - inside - dead - purged}")
        if inside - accepted or dead - accepted:
            self.broken(f"INVENTED: {inside - accepted}, {dead - accepted}")
        lsns = [lsn for lsn in self.target.lsns if lsn not in POISON]
        if lsns != sorted(lsns):
            self.broken(f"ORDER: {lsns}")
        counts = (held.delivered, held.dead_letters, held.purged)
        truth = (len(inside), len(dead), len(accepted) - len(inside) - len(dead))
        if counts != truth:
            self.broken(f"COUNTS: {counts}, and it is {truth}")

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
        "kill": chance.randint(0, 3),
        "mend": chance.randint(0, 1),
        "redrive": chance.randint(0, 2),
        "purge": chance.randint(0, 1) * (chance.random() < 0.3),
        "intrude": chance.random() < 0.15,
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


def run(log: HistoryLog, seed: int) -> World:
    """Play the schedule of a seed.

    Raises:
        Violation: a promise did not hold; it names the seed.
    """
    world = World(log, seed)
    try:
        for action in [*schedule(world.chance), "settle"]:
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
