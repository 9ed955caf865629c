"""What a lane shows of itself, as ``drain.page`` and the fleet need it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from wald.core.delivery import Step
from wald.core.told import Stand
from wald.core.traffic import Traffic
from wald.drainer.gate import Gate
from wald.drainer.route import LaneMemory, Route
from wald.model import Checkpoint, Lsn
from wald.ports import Underway

_STATES = {
    Step.COLLECTING: "idle",
    Step.SENDING: "delivering",
    Step.SEARCHING: "delivering",
    Step.SETTLING: "delivering",
}


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """What a lane publishes; replaced as a whole, so that any thread may read it."""

    state: str = "starting"
    replay: str = ""
    checkpoint_lsn: Lsn = 0
    through_lsn: Lsn = 0
    delivered: int = 0
    dead_letters: int = 0
    batch_no: int = 0
    attempts: int = 0
    last_error: str = ""
    oldest_pending_ns: int | None = None
    parked: str | None = None
    failures: int = 0
    policy: Mapping[str, Any] = field(default_factory=dict)
    purged: int = 0
    redrives: int = 0
    halted: tuple[Lsn, ...] = ()
    traffic: Traffic = Traffic()  # noqa: RUF009 - a tuple
    overwrites: bool = False  # a record replaces a newer one of its key at the target


class Shown:
    """What a lane shows: of its ledger nothing that is not durable. One thread puts, any reads.

    Attributes:
        overdue: what another thread says of a lane that stands still and cannot say it itself.
    """

    def __init__(self) -> None:
        self.overdue = ""
        self._figures = LaneFigures()
        self._ahead: tuple[Underway[bool], LaneFigures] | None = None

    @property
    def now(self) -> LaneFigures:
        """What it shows."""
        figures = self._durable()
        if self.overdue:
            return replace(figures, state="failed", last_error=self.overdue)
        return figures

    def _durable(self) -> LaneFigures:
        ahead = self._ahead
        took = ahead is not None and ahead[0].took and ahead[0].wait()  # not refused either
        return ahead[1] if ahead is not None and took else self._figures

    def put(self, figures: LaneFigures, *, once: Underway[bool] | None = None) -> None:
        """Show something from now on, or once a step of the ledger took."""
        if once is None:
            self._figures, self._ahead = figures, None
        else:  # what took before stays shown until this does
            self._figures, self._ahead = self._durable(), (once, figures)


class Stance(NamedTuple):
    """Where a lane stands beside its memory: its step, failures in a row, redrives to be sent."""

    step: Step
    failures: int
    redrives: int


def lane_figures(
    memory: LaneMemory, gate: Gate, stance: Stance, before: LaneFigures
) -> LaneFigures:
    """Return what a lane shows now; the gate is told how far it is."""
    checkpoint, manifest = memory.held
    through, oldest_ns = _reach(memory)
    gate.note(through, oldest_ns)
    state = _STATES.get(stance.step, stance.step.value)
    if gate.is_shut and stance.step in {Step.CHECKING, Step.COLLECTING}:
        state = Step.WAITING.value
    return LaneFigures(
        state,
        memory.replay.value if memory.sink else before.replay,
        checkpoint.lsn,
        through,
        checkpoint.delivered,
        checkpoint.dead_letters,
        manifest.number if manifest else checkpoint.batch_no,
        manifest.attempts if manifest else 0,
        memory.last_error,
        oldest_ns,
        memory.parked.value if memory.parked else None,
        stance.failures,
        _policy(memory, gate),
        checkpoint.purged,
        stance.redrives,
        memory.halted,
        memory.traffic,
        memory.sink.capabilities.overwrites if memory.sink else before.overwrites,
    )


def _reach(memory: LaneMemory) -> tuple[Lsn, int | None]:
    """Return up to where the lane is through, and the commit time of what waits longest."""
    (checkpoint, manifest), reader, batch = memory.held, memory.reader, memory.batch
    if manifest is not None and manifest.is_redrive:  # of which nothing counts as pending
        return checkpoint.lsn, reader.oldest_time_ns if reader is not None else None
    if batch is not None and batch.records:
        return checkpoint.lsn, batch.records[0].time_ns
    if reader is not None and manifest is None:
        return max(checkpoint.lsn, reader.through), reader.oldest_time_ns
    return checkpoint.lsn, None


def _policy(memory: LaneMemory, gate: Gate) -> dict[str, Any]:
    said = dict(gate.figures())
    if memory.guarded_batch:
        said["guarded_batch"] = memory.guarded_batch
    if memory.notes:
        said["notes"] = dict(memory.notes)
    if memory.healing:
        said["healing"] = memory.healing.numbers()
    return said


def stand_of(route: Route, figures: LaneFigures) -> Stand:
    """Return how far a lane is, as it is told beside the ledger."""
    return Stand(route.layout, route.lane, figures.checkpoint_lsn, figures.batch_no)


def figures_of(checkpoint: Checkpoint, state: str, redrives: int = 0) -> LaneFigures:
    """Return what is said of a lane that does not run."""
    return LaneFigures(
        state,
        checkpoint_lsn=checkpoint.lsn,
        through_lsn=checkpoint.lsn,
        delivered=checkpoint.delivered,
        dead_letters=checkpoint.dead_letters,
        batch_no=checkpoint.batch_no,
        purged=checkpoint.purged,
        redrives=redrives,
    )
