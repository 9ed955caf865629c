"""One lane of a route over a real log, with everything else in the hands of a seed.

``World`` drives ``Lane.step`` on a clock that stands still, against a target that refuses, loses
answers, applies them late, is down, or is put back to an earlier state, and a process that dies at
any call of a port. What was promised is checked after each step and, once all is calm, in full.
What does not hold raises ``Violation``.

It plays targets of all classes; where they have no progress row, ledgers that are lost or older
too. What restores do where they have one, purges, redrives and segments that retire are played by
``heal_world``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NoReturn, TypeVar

from tests.model.promises import Violation
from wald.config import BatchSettings, RouteSettings, SinkSettings
from wald.core import body, frame, state
from wald.core.frame import Section, SectionKind
from wald.core.told import Stand, ToldRoute
from wald.drainer.frontier import FrontierBoard
from wald.drainer.lane import Lane
from wald.drainer.lane_figures import stand_of
from wald.drainer.recalling import begin_life
from wald.drainer.route import Route, Shared
from wald.drainer.stands import StandsPage
from wald.drainer.targets import Targets
from wald.errors import DiskFull
from wald.model import (
    Attempt,
    Capabilities,
    Decision,
    Delivered,
    Finding,
    Frontier,
    LaneKey,
    Lsn,
    Mark,
    Outcome,
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RevisionId,
    RouteBirth,
    RouteId,
    RowMoved,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import Transaction
from wald.storage.deadlog import DeadEntry, DeadLog, DeadPlace
from wald.storage.ledger import StoreLedger, found_ledger
from wald.storage.log import Log, LogOptions
from wald.storage.tickets import Ticket
from wald.testing import ManualClock, SimFileSystem
from wald.testing.memory_ledger import MemoryStore, copied

DATA = "/var/wald"
OWNER = 77
_T = TypeVar("_T")


class Killed(BaseException):
    """The process ended at a call of a port; nothing of ours may catch it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A log that many worlds read: nobody writes it any more."""

    fs: SimFileSystem
    log_id: bytes
    frontiers: tuple[Frontier, ...]
    lsns: tuple[tuple[Lsn, ...], ...]  # of each frontier: what it adds
    poison: frozenset[Lsn]
    keys: dict[Lsn, str]


def make_scene(groups: int = 14, seed: int = 5) -> Scene:
    """Return a log of one stream and one route; about every twelfth record is poison."""
    chance = Random(seed)
    fs = SimFileSystem(Random(seed), directories=["/var", DATA])
    options = LogOptions(segment_bytes=128 * 1024)
    log = Log.open(fs, DATA, ManualClock(), chance, options)
    route = state.RouteState(1, "orders", 1, "orders", "digest", 0, 0, 0)
    log.append_group([state.stream_opened(1, "orders"), state.route_birth(route)])
    log.append_group([state.session_issued(7, "")])
    frontiers = [log.frontier]
    lsns: list[tuple[Lsn, ...]] = [()]
    poison: set[Lsn] = set()
    keys: dict[Lsn, str] = {}
    for sequence in range(1, groups + 1):
        count = chance.randint(1, 4)
        named = [f"k{chance.randint(0, 2)}" for _ in range(count)]
        bad = [chance.random() < 1 / 12 for _ in range(count)]
        values = [b"poison" if each else b"value" for each in bad]
        data = body.encode(body.Body(0, values, list(named)))
        table = frame._REQUEST.pack(count, count, len(data), frame.crc32c(data))
        section = Section(SectionKind.APPEND, 1, 1, 7, sequence, 0, count, table, (), data)
        first = log.append_group([section]).first_lsn
        added = tuple(range(first, first + count))
        frontiers.append(log.frontier)
        lsns.append(added)
        poison |= {lsn for lsn, each in zip(added, bad, strict=True) if each}
        keys |= dict(zip(added, named, strict=True))
    log_id = log.log_id
    log.close()
    return Scene(fs, log_id, tuple(frontiers), tuple(lsns), frozenset(poison), keys)


@dataclass
class Target:
    """The store: what it holds, in the order of arrival, and what it remembers of lanes."""

    replay: ReplayClass
    applied: list[Lsn] = field(default_factory=list)
    rows: dict[LaneKey, ProgressRow] = field(default_factory=dict)
    batches: set[RevisionId] = field(default_factory=set)

    def apply(self, attempt: Attempt) -> Outcome:
        """Take an attempt, as the class of the target does; poison was refused before."""
        if self.replay is ReplayClass.TRANSACTIONAL:
            row = self.rows.get(attempt.key)
            if not _continues(row, attempt):
                return RowMoved(row)
            self.rows[attempt.key] = attempt.row
        if self.replay is ReplayClass.WINDOW and attempt.row.rev_id in self.batches:
            return Delivered()
        self.batches.add(attempt.row.rev_id)
        known = set(self.applied) if self.replay is ReplayClass.KEYED else ()
        self.applied += [record.lsn for record in attempt.records if record.lsn not in known]
        return Delivered()


def _continues(row: ProgressRow | None, attempt: Attempt) -> bool:
    if row is None:
        return attempt.row.batch_no == 1
    before = (row.batch_no, row.rev_id)
    return before == (attempt.row.batch_no - 1, attempt.prev_rev) and row.owner == OWNER


_NOT_REACHED = {
    "down": Systemic(SystemicKind.UNREACHABLE, "down"),
    "busy": Systemic(SystemicKind.BUSY, "busy", retry_after_s=1.0),
}


@dataclass
class Odds:
    """How likely it is that an attempt goes wrong in each way, while the world is wild."""

    down: float = 0.08
    busy: float = 0.05
    lost_before: float = 0.05
    lost_behind: float = 0.07
    late: float = 0.05
    retry: float = 0.15  # of a record, where the target answers for each

    @classmethod
    def calm(cls) -> "Odds":
        return cls(0, 0, 0, 0, 0, 0)


class World:
    """See the module."""

    def __init__(
        self,
        scene: Scene,
        seed: int,
        replay: ReplayClass = ReplayClass.TRANSACTIONAL,
        *,
        on_unknown: str = "resend",
        lane_type: type[Lane] = Lane,
    ) -> None:
        self.chance = Random(seed)
        self.scene = scene
        self.clock = ManualClock()
        self.target = Target(replay)
        self.odds = Odds()
        self.names_poison = self.chance.random() < 0.5
        self.awaits_seal = replay is ReplayClass.TRANSACTIONAL and self.chance.random() < 0.7
        self.late: list[Attempt] = []
        self.unknowns = 0
        self.visible = 0
        self.fuse = 0  # calls of ports until the process dies; 0: it lives
        self.full = 0  # so many writes find no room
        self.refused_for_room = 0
        self.restores = 0
        self.mended = False
        self.broken = ""
        self.store = _Store(self)
        self.store.write(lambda txn: found_ledger(txn, scene.log_id))
        self.snapshots: list[Target] = []
        self.ledgers: list[dict[str, dict[bytes, bytes]]] = []
        self.dead_fs = SimFileSystem(Random(seed + 1), directories=["/var", DATA])
        self.released: Lsn = 0  # as ``progress`` says
        self.known: Lsn = 0  # up to here a ledger that was lost is told what is done
        self.losses = 0
        self.shown_at_loss: Lsn = 0
        self.settings = RouteSettings(
            "orders",
            "orders",
            "out",
            batch=BatchSettings(self.chance.randint(1, 6), 1 << 20, 0.2),
            on_unknown=on_unknown,
        )
        self.lane_type = lane_type
        self.trail: list[str] = []
        self.events: tuple[tuple[float, Callable[[], None]], ...] = (
            (0.10, self.show_more),
            (0.06, self.light_fuse),
            (0.04, self.fill_disk),
            (0.04, self.land_late),
            (0.02, self.keep_copies),
            (0.02, self.put_back),
            (0.06, self.tell),
            (0.03, self.mend),
            (0.02, self.jump),
            (0.02, self.die),
            (0.04, self.commit_later),
        )
        self.start()

    # --- the process ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a process, again where it dies in that: all that is in memory is new."""
        while True:
            try:
                self._start()
            except (Killed, DiskFull):
                continue
            return

    @property
    def has_row(self) -> bool:
        """Whether the target has a progress row."""
        return self.target.replay is ReplayClass.TRANSACTIONAL

    def _start(self) -> None:
        self.store.forget_waiting()
        self.board = FrontierBoard()
        self.board.pin(self.scene.frontiers[self.visible])
        self.ledger = StoreLedger(self.store, self.scene.log_id)
        self.page = _Page(self)
        dead_log, end = _DeadLog(self), self.scene.frontiers[self.visible].lsn
        released = {1: self.released} if self.released else {}
        told = begin_life(self.ledger, dead_log, self.page, released, lambda: end, self.chance)
        shared = Shared(
            self.scene.fs,
            DATA,
            self.scene.log_id,
            OWNER,
            self.clock,
            self.chance,
            self.ledger,
            dead_log,
            self.board,
            lambda *_: Sink(self),
            lambda: 1,
            lambda _: 0,
            told=None if self.has_row else told,
            reserve=self.page.reserve,
            targets=Targets(),
            guard=lambda *_: Sink(self),
        )
        birth = self.ledger.birth(RouteBirth(1, "orders", 1, "orders", "out", 0, OWNER))
        self.route = Route(shared, birth, self.settings, SinkSettings("out", "sim"))
        self.lane = self.lane_type(self.route)

    def tick(self, what: str) -> None:
        """A call of a port: the process dies here if its fuse is at its end.

        Nothing can be written while the disk is full.
        """
        if self.full and what.startswith("before"):
            self.full -= 1
            self.refused_for_room += 1
            self.unknowns += 1  # what an attempt came to may be lost with the lane's memory
            self.say(f"the disk is full {what}")
            msg = "no room"
            raise DiskFull(msg, retry_after_s=1.0)
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.say(f"dies at {what}")
                raise Killed(what)

    def say(self, what: str) -> None:
        """Note what happened, for who reads a failure."""
        self.trail.append(what)

    # --- what happens ---------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen, by chance; then check."""
        for share, happens in self.events:
            if self.chance.random() < share:
                happens()
                break
        else:
            self.work()
        self.check()

    def light_fuse(self) -> None:
        """The process is to die at one of its next calls of a port."""
        self.fuse = self.chance.randint(1, 6)

    def fill_disk(self) -> None:
        """The next writes of ledger, dead log and pages find no room."""
        self.full = self.chance.randint(1, 5)

    def commit_later(self) -> None:
        """What the ledger was given to write later becomes durable."""
        try:
            self.store.commit_waiting()
        except Killed:
            self.die()

    def keep_copies(self) -> None:
        """Somebody copies target and ledger; one that no row corrects while no drainer runs."""
        self.snapshots.append(deepcopy(self.target))
        if self.has_row:
            self.ledgers.append(self.store.copy())

    def jump(self) -> None:
        """The wall clock is set."""
        jump_s = self.chance.choice([-3600.0, 3600.0, 1.0])
        self.clock.set_wall(self.clock.wall_ns() + round(jump_s * 1e9))

    def work(self) -> float:
        """Let the lane do a step; a rest passes at once."""
        try:
            rest_s = self.lane.step()
        except Killed:
            self.die()
            return 0.0
        if rest_s > 0:
            self.clock.advance(min(rest_s, 60.0))
        return rest_s

    def die(self) -> None:
        """The process ends and another one begins."""
        self.fuse = 0
        self.say("process begins anew")
        if self.ledger.lane(self.route.key).manifest is not None:
            self.unknowns += 1  # an attempt was counted, and nobody knows what it came to
        if not self.has_row:
            if self.chance.random() < 0.2:
                self.ledgers.append(self.store.copy())
            if self.chance.random() < 0.2:
                self.light_fuse()
        self.start()

    def show_more(self) -> None:
        """One more group becomes durable."""
        if self.visible + 1 < len(self.scene.frontiers):
            self.visible += 1
            self.board.pin(self.scene.frontiers[self.visible])
            self.say(f"frontier {self.scene.frontiers[self.visible].lsn}")

    def land_late(self) -> None:
        """An attempt that was given up as unanswered takes effect, or fails, only now."""
        if self.late:
            attempt = self.late.pop(self.chance.randrange(len(self.late)))
            if not self._refused(attempt.records):
                self.say(f"late: {attempt.row.batch_no} {self.target.apply(attempt)}")

    def meet_late(self, attempt: Attempt) -> None:
        """One that was given up takes effect, maybe, just before a further attempt."""
        if self.late and attempt.number > 2 and self.chance.random() < 0.3:
            self.mend()

    def mend(self) -> None:
        """The target takes from now on what it refused.

        One without a row could then take a late attempt of what is a dead letter by now, and
        nobody would be told: no rule can see that.
        """
        if not self.mended and self.target.replay is ReplayClass.TRANSACTIONAL:
            self.say("the target takes poison from now on")
            self.mended = True
            self.land_late()

    def tell(self) -> None:
        """The main thread tells how far the lane is."""
        if self.has_row or not self.lane.figures.replay:
            return
        figures = self.lane.figures
        try:
            self.page.write({"1": [stand_of(self.route, figures)]}, [1])
        except Killed:
            self.die()
        except DiskFull:
            return
        self.released = max(self.released, figures.checkpoint_lsn)

    def lose_ledger(self) -> None:
        """The ledger is gone, or a copy of it is put back; a new process begins."""
        told = self.page.told({1: self.released}).get(1, ToldRoute())
        self.known = max([self.known, told.released, *(each.lsn for each in told.stands or ())])
        self.losses += 1
        self.shown_at_loss = self.scene.frontiers[self.visible].lsn
        self.unknowns += 1
        if self.ledgers and self.chance.random() < 0.5:
            self.say("LEDGER PUT BACK")
            self.store.put_back(self.chance.choice(self.ledgers))
        else:
            self.say("LEDGER LOST")
            self.store.put_back({})
            self.store.found()
        self.die()

    def put_back(self) -> None:
        """The target, or in a new process the ledger, is what it was once."""
        if not self.has_row:
            self.lose_ledger()
            return
        if not self.snapshots:
            return
        at = self.chance.randrange(len(self.snapshots))
        self.restores += 1
        if self.chance.random() < 0.7:
            self.say(f"target put back, {len(self.snapshots[at].applied)} records")
            self.target = deepcopy(self.snapshots[at])
        else:
            self.say("ledger put back")
            self.store.put_back(self.ledgers[at])
            self.die()

    # --- the sink -------------------------------------------------------------------------------

    def attempt(self, attempt: Attempt) -> Outcome:
        """Answer an attempt as chance wants it."""
        if not self.awaits_seal:
            self._check_manifest(attempt)
        if any(record.lsn <= self.known for record in attempt.records):
            self.fail("sent again, and it was known to be done")
        self.clock.advance(self.chance.choice([0.001, 0.01, 0.3]))
        fate = self._fate()
        if fate in _NOT_REACHED:
            return _NOT_REACHED[fate]
        if self.awaits_seal:
            refused = self._refused(attempt.records)
            if refused and self.chance.random() < 0.3:  # before it commits
                return Rejected(tuple(refused) if self.names_poison else (), "poison")
            attempt.await_seal()
            self.tick("the target's commit")
            self._check_manifest(attempt)
        if fate == "late":
            self.late.append(attempt)
        if fate in {"late", "lost_before"}:
            return self._unknown(fate)
        outcome = self._take(attempt)
        self.tick("the target's answer")
        lost = fate == "lost_behind" and not isinstance(outcome, Rejected)
        return self._unknown(fate) if lost else outcome

    def _fate(self) -> str:
        """Draw what becomes of an attempt; empty if all goes well."""
        odds, draw = self.odds, self.chance.random()
        for name in ("down", "busy", "lost_before", "late", "lost_behind"):
            draw -= getattr(odds, name)
            if draw < 0:
                return name
        return ""

    def _unknown(self, why: str) -> Unknown:
        self.unknowns += 1
        return Unknown(why)

    def _take(self, attempt: Attempt) -> Outcome:
        refused = self._refused(attempt.records)
        if self.target.replay in {ReplayClass.TRANSACTIONAL, ReplayClass.WINDOW}:
            if refused:
                return Rejected(tuple(refused) if self.names_poison else (), "poison")
            return self.target.apply(attempt)
        bad = {item.lsn for item in refused}
        retry = [
            record
            for record in attempt.records
            if record.lsn not in bad and self.chance.random() < self.odds.retry
        ]
        left = {record.lsn for record in retry} | bad
        taken = [record for record in attempt.records if record.lsn not in left]
        self.target.apply(replace(attempt, records=taken))
        if not left:
            return Delivered()
        again = tuple(RejectedRecord(record.lsn, "throttled", "later") for record in retry)
        return Partial(tuple(refused), again, "not all")

    def _refused(self, records: Sequence[Record]) -> list[RejectedRecord]:
        if self.mended:
            return []
        return [
            RejectedRecord(record.lsn, "poison", "no")
            for record in records
            if record.value == b"poison"
        ]

    # --- the promises ---------------------------------------------------------------------------

    @property
    def shown(self) -> set[Lsn]:
        """Every record that is durable."""
        return {lsn for added in self.scene.lsns[: self.visible + 1] for lsn in added}

    @property
    def dead(self) -> set[Lsn]:
        """The dead letters that count."""
        return {letter.lsn for letter in self.ledger.dead_letters(1)}

    def may_double(self) -> bool:
        """Whether the target cannot tell a batch again, and was told to take that."""
        resends = self.settings.on_unknown == "resend"
        return self.target.replay is ReplayClass.NONE and resends and self.unknowns > 0

    def check(self) -> None:
        """Check what holds at any time; and what a sink found, whose errors the lane survives."""
        if self.broken:
            raise Violation(self.broken)
        applied = self.target.applied
        if len(set(applied)) != len(applied) and not self.may_double():
            self.fail(f"twice at the target: {sorted(applied)}")
        if not set(applied) <= self.shown:
            self.fail("at the target, and not durable")
        if self.lane.figures.checkpoint_lsn > self.checkpoint.lsn:
            self.fail("shown, and not durable in the ledger")
        if not self.dead <= self.scene.poison:
            self.fail(f"set aside without a fault of theirs: {self.dead}")
        if not self.may_double():
            self._check_order()

    def _check_order(self) -> None:
        latest: dict[str, Lsn] = {}
        for lsn in self.target.applied:
            key = self.scene.keys[lsn]
            # a record that the target wants later is sent again behind others of its key
            if lsn < latest.get(key, 0) and self.target.replay is ReplayClass.TRANSACTIONAL:
                self.fail(f"order of key {key}: {self.target.applied}")
            latest[key] = max(lsn, latest.get(key, 0))

    def _check_manifest(self, attempt: Attempt) -> None:
        manifest = self.ledger.lane(attempt.key).manifest
        if manifest is None or manifest.current.rev_id != attempt.row.rev_id:
            self.fail("an attempt without its durable manifest")
        if manifest.attempts != attempt.number:
            self.fail("an attempt that was not counted before")

    def settle(self, steps: int = 600) -> None:
        """Calm the world and let the lane finish; then every promise must hold in full."""
        self.odds = Odds.calm()
        self.fuse = self.full = 0
        while self.visible + 1 < len(self.scene.frontiers):
            self.show_more()
        while self.late:
            self.land_late()
        last = self.scene.frontiers[-1].lsn
        for _ in range(steps):
            self.work()
            figures = self.lane.figures
            if figures.parked == "uncertain":
                self._check_uncertain()
                if not self.resolve():
                    return
            is_idle = figures.state == "idle" and self.ledger.lane(self.route.key).manifest is None
            if is_idle and figures.through_lsn >= last and self._row_fits():
                break
        else:
            self.fail(f"does not come to rest: {self.lane.figures}")
        self.check()
        self._check_books()

    def _row_fits(self) -> bool:
        """Whether an idle lane has noticed what was put back while it slept."""
        if self.target.replay is not ReplayClass.TRANSACTIONAL:
            return True
        row, checkpoint = self.target.rows.get(self.route.key), self.checkpoint
        at = (0, bytes(16)) if row is None else (row.batch_no, row.rev_id)
        return at == (checkpoint.batch_no, checkpoint.rev_id)

    @property
    def checkpoint(self) -> Any:
        return self.ledger.lane(self.route.key).checkpoint

    def _check_uncertain(self) -> None:
        holds = self.target.replay is ReplayClass.NONE and self.settings.on_unknown == "hold"
        if not self.unknowns or not (holds or self.target.replay is ReplayClass.WINDOW):
            self.fail("held as uncertain without need")

    def resolve(self) -> bool:
        """A person looks into the target for a batch of a lost ledger; False: it is not one.

        What it holds in part is left as it is.
        """
        manifest = self.ledger.lane(self.route.key).manifest
        if manifest is None or not manifest.held.startswith("ledger-lost"):
            return False
        lsns = {lsn for lsn in self.shown if manifest.lo <= lsn <= manifest.current.hi}
        if min(lsns) > self.shown_at_loss or max(lsns) <= self.known:
            self.fail(f"held, and nobody is unsure of it: {sorted(lsns)}")
        there = lsns & set(self.target.applied)
        if there and there != lsns:
            return False
        decision = Decision.DELIVERED if there else Decision.NOT_DELIVERED
        self.say(f"resolved as {decision.value}: {sorted(lsns)}")
        self.ledger.mark(self.route.key, manifest.current.rev_id, Mark(decision=decision))
        self.lane.look_again()
        return True

    def _check_books(self) -> None:
        applied, dead = set(self.target.applied), self.dead
        if applied & dead:
            self.fail(f"both at the target and a dead letter: {sorted(applied & dead)}")
        if self.shown - applied - dead:
            self.fail(f"lost: {sorted(self.shown - applied - dead)}")
        checkpoint = self.checkpoint
        counted = (checkpoint.delivered, checkpoint.dead_letters)
        if counted != (len(applied), len(dead)):
            self.fail(f"counted {counted}, true {(len(applied), len(dead))}")

    def fail(self, what: str) -> NoReturn:
        """Say what does not hold, with what led to it."""
        self.broken = what + "\n  " + "\n  ".join(self.trail[-40:])
        raise Violation(self.broken)


class Sink:
    """See ``wald.ports.Sink``: the door of a world's target."""

    encoder = "sim/1"

    def __init__(self, world: World) -> None:
        self._world = world
        window = world.target.replay is ReplayClass.WINDOW
        self.capabilities = Capabilities(
            world.target.replay,
            100,
            1 << 20,
            7200.0 if window else None,
            freezes=window,
            awaits_seal=world.awaits_seal,
        )

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        world = self._world
        world.tick("read_row")
        if world.chance.random() < world.odds.down:
            return Systemic(SystemicKind.UNREACHABLE, "down")
        return world.target.rows.get(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        world = self._world
        world.tick("deliver")
        world.meet_late(attempt)
        outcome = world.attempt(attempt)
        world.say(
            f"attempt {attempt.row.batch_no}.{attempt.number} "
            f"{[record.lsn for record in attempt.records]}: {outcome!r:.80}"
        )
        return outcome

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        del attempt
        world = self._world
        world.tick("probe")
        if world.chance.random() < world.odds.down / 2:
            return Systemic(SystemicKind.UNREACHABLE, "down")
        refused = world._refused(records)
        return Rejected((), "poison") if refused and not world.names_poison else refused

    def encode(self, attempt: Attempt) -> bytes:
        return b"".join(record.lsn.to_bytes(8, "big") for record in attempt.records)

    def check(self) -> Sequence[Finding]:
        return ()

    def close(self) -> None:
        """There is nothing to let go."""


class _Later(Ticket[_T]):
    """What is written at the latest when somebody waits for it."""

    def __init__(self, store: "_Store", work: Callable[[Transaction], _T]) -> None:
        super().__init__(work)
        self._store = store

    def is_settled_within(self, timeout_s: float) -> bool:
        del timeout_s
        if self._store._world.chance.random() < 0.2:  # the disk is slow
            return False
        self._store.commit_waiting()
        return True

    def wait(self) -> _T:
        self._store.commit_waiting()
        return super().wait()


class _Store(MemoryStore):
    """A store in which the process may die before or behind a commit."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._waiting: list[_Later[Any]] = []

    def write_later(self, work: Callable[[Transaction], _T]) -> _Later[_T]:
        self.commit_waiting()
        ticket = _Later(self, work)
        self._waiting.append(ticket)
        return ticket

    def commit_waiting(self) -> None:
        while self._waiting:
            ticket = self._waiting.pop()
            try:
                ticket.settle(self._commit(ticket.work))
            except DiskFull as error:
                ticket.fail(error)

    def forget_waiting(self) -> None:
        """The process ended."""
        self._waiting.clear()

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        self.commit_waiting()
        return self._commit(work)

    def _commit(self, work: Callable[[Transaction], _T]) -> _T:
        self._world.tick("before a commit of the ledger")
        result = super().write(work)
        self._world.tick("behind a commit of the ledger")
        return result

    def found(self) -> None:
        """Begin with nothing."""
        super().write(lambda txn: found_ledger(txn, self._world.scene.log_id))

    def copy(self) -> dict[str, dict[bytes, bytes]]:
        return copied(self._tables)

    def put_back(self, tables: dict[str, dict[bytes, bytes]]) -> None:
        self._tables = {name: dict(rows) for name, rows in tables.items()}


class _DeadLog(DeadLog):
    """A dead log in which the process may die before or behind an entry."""

    def __init__(self, world: World) -> None:
        super().__init__(world.dead_fs, DATA)
        self._world = world

    def append(self, entry: DeadEntry) -> DeadPlace:
        self._world.tick("before an entry of the dead log")
        place = super().append(entry)
        self._world.tick("behind an entry of the dead log")
        return place


class _Page(StandsPage):
    """What is told beside the ledger; the process may die before or behind it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.dead_fs, DATA)
        self._world = world

    def begin_life(self, life: int, sealed: Mapping[RouteId, Lsn]) -> None:
        self._world.tick("before a life is told")
        super().begin_life(life, sealed)
        self._world.tick("behind a life that was told")

    def reserve(self, route_id: RouteId, lsn: Lsn) -> None:
        self._world.tick("before a bound is told")
        super().reserve(route_id, lsn)
        self._world.tick("behind a bound that was told")

    def write(
        self, stands: Mapping[str, Sequence[Stand]], living: Collection[RouteId] | None
    ) -> None:
        self._world.tick("before stands are told")
        super().write(stands, living)
        self._world.tick("behind stands that were told")
