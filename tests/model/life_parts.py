"""What the machine of a whole life is made of: its targets, and the files of one of its processes.

A target commits, loses answers, is down, applies an attempt late, is put back to a copy, and may
be in the middle of an attempt when the power of everything goes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.model.promises import Violation
from wald.model import (
    Attempt,
    Delivered,
    LaneKey,
    LaneProgress,
    Outcome,
    ProgressRow,
    Record,
    ReplayClass,
    RevisionId,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import File
from wald.testing import RecordingSink, RecordingTarget, SimFileSystem

POISON = b"poison"
WINDOW_S = 7_200.0
DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
HELD_LONGER = frozenset({ReplayClass.WINDOW, ReplayClass.NONE})  # must not be sent to again


class OwnFiles:
    """The file system as one process has it: when it dies, its files are closed, no others."""

    def __init__(self, fs: SimFileSystem) -> None:
        self._fs = fs
        self._files: list[File] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def open(self, path: str, *, write: bool = False) -> File:
        return self._own(self._fs.open(path, write=write))

    def create(self, path: str, *, mode: int = 0o600) -> File:
        return self._own(self._fs.create(path, mode=mode))

    def _own(self, file: File) -> File:
        self._files.append(file)
        return file

    def die(self) -> None:
        for file in self._files:
            file.close()
        self._files.clear()


@dataclass(slots=True)
class Odds:
    """How likely an attempt meets each of these."""

    down: float = 0.06
    lost_before: float = 0.05
    lost_behind: float = 0.07
    late: float = 0.05
    power: float = 0.01


CALM = Odds(0, 0, 0, 0, 0)


@dataclass(slots=True)
class Target:
    """A store, with what it did; and the attempts that are on their way to it."""

    name: str
    replay: ReplayClass
    chance: Random
    store: RecordingTarget
    odds: Odds = field(default_factory=Odds)
    dark: bool = False  # down until somebody says otherwise
    late: list[Attempt] = field(default_factory=list)
    took: set[RevisionId] = field(default_factory=set)
    copies: list[tuple[list[Record], dict[LaneKey, ProgressRow], set[RevisionId]]] = field(
        default_factory=list
    )
    unanswered: int = 0
    goes_back: bool = False  # whether it may: where the log keeps what it needs then
    mended: bool = False

    def keep_copy(self) -> None:
        """Somebody makes a backup."""
        store = self.store
        self.copies.append((list(store.records), dict(store.rows), set(self.took)))

    def put_back(self) -> None:
        """Somebody restores one."""
        records, rows, took = self.chance.choice(self.copies)
        self.store.records, self.store.rows = list(records), dict(rows)
        self.took = set(took)

    def mend(self) -> None:
        """It takes from now on what it refused.

        One without a row could then take a late attempt of what is a dead letter by now, and
        nobody would be told: no rule can see that.
        """
        self.mended = True
        self.store.refuses = lambda _: False
        if self.replay is not ReplayClass.TRANSACTIONAL:
            self.late.clear()

    def land(self) -> str:
        """An attempt that was given up as unanswered takes effect, or fails, only now."""
        attempt = self.late.pop(self.chance.randrange(len(self.late)))
        outcome = LifeSink(self, lambda: None, lambda _: None).apply(attempt)
        return f"LATE at {self.name}: {attempt.row.batch_no} {outcome!r:.60}"


def refuses(record: Record) -> bool:
    """What no target takes until it was mended."""
    return record.value.startswith(POISON)


class LifeSink(RecordingSink):
    """The door of a ``Target``.

    Args:
        target: where it leads.
        cut: the power goes, in the middle of an attempt.
        held: returns what the ledger holds of a lane.
        may_send: tells whether nobody holds an attempt back.
    """

    def __init__(
        self,
        target: Target,
        cut: Callable[[], None],
        held: Callable[[LaneKey], LaneProgress | None],
        may_send: Callable[[Attempt], bool] = lambda _: True,
    ) -> None:
        super().__init__(
            target.store,
            replay=target.replay,
            window_s=WINDOW_S if target.replay is ReplayClass.WINDOW else None,
        )
        self._at = target
        self._cut = cut
        self._held = held
        self._may_send = may_send

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        at = self._at
        return DOWN if at.dark or at.chance.random() < at.odds.down / 2 else super().read_row(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        at, draw = self._at, self._at.chance.random
        if not self._may_send(attempt):
            msg = f"sent while it was held back: {attempt.row}"
            raise Broken(msg)
        if at.dark or draw() < at.odds.down:
            return DOWN
        if draw() < at.odds.lost_before:
            at.unanswered += 1
            return Unknown("no answer")
        if not self.capabilities.awaits_seal or draw() < 0.5:
            attempt.await_seal()
            self._check_manifest(attempt)
        if draw() < at.odds.power:
            self._lose_power(attempt)
        if draw() < at.odds.late and self._may_be_late(attempt):
            attempt.await_seal()
            at.unanswered += 1
            at.late.append(attempt)
            return Unknown("no answer in time")
        return self._take_effect(attempt)

    def _lose_power(self, attempt: Attempt) -> None:
        if self._at.chance.random() < 0.5:
            self.apply(attempt)
        self._at.unanswered += 1
        self._cut()

    def _take_effect(self, attempt: Attempt) -> Outcome:
        at, outcome = self._at, self.apply(attempt)
        if isinstance(outcome, Delivered):
            self._check_manifest(attempt)
        if at.chance.random() < at.odds.lost_behind:
            at.unanswered += 1
            return Unknown("the answer was lost")
        return outcome

    def apply(self, attempt: Attempt) -> Outcome:
        """Take effect, or not, as the target does."""
        outcome = super().deliver(attempt)
        if isinstance(outcome, Delivered):
            self._at.took.add(attempt.row.rev_id)
        return outcome

    def _may_be_late(self, attempt: Attempt) -> bool:
        at = self._at
        if at.replay in HELD_LONGER:
            return False
        return at.replay is ReplayClass.TRANSACTIONAL or not any(map(refuses, attempt.records))

    def _check_manifest(self, attempt: Attempt) -> None:
        if attempt.from_owner is not None:  # a takeover is one compare-and-set, without records
            return
        held = self._held(attempt.key)
        manifest = held.manifest if held is not None else None
        if manifest is None or manifest.current.rev_id != attempt.row.rev_id:
            msg = f"an attempt without its durable manifest: {attempt.row}"
            raise Broken(msg)


class Broken(BaseException):
    """A ``Violation`` that no lane survives."""

    @property
    def violation(self) -> Violation:
        """What is to be raised where nothing catches it."""
        return Violation(*self.args)


def new_target(name: str, replay: ReplayClass, seed: int, now_s: Callable[[], float]) -> Target:
    """Return an empty target."""
    chance = Random(seed)
    store = RecordingTarget(refuses=refuses, now_s=now_s)
    store.names = chance.random() < 0.5
    return Target(name, replay, chance, store, replace(Odds()))
