"""Which sink a lane uses: the real one, behind its faults; or one in a process of its own."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from wald import limits
from wald.drainer.faults import Fault, FaultBoard, FaultKind, of_kind, refused_by
from wald.drainer.route import LaneMemory, Route
from wald.drainer.sending import close_sink
from wald.drainer.shaping import Elsewhere
from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import Chance, Clock, EncodingSink, Sink

_T = TypeVar("_T")


def fit_sink(route: Route, memory: LaneMemory) -> None:
    """Give the memory the sink that the open batch needs, if it has another one or none.

    A batch in which the process died again and again goes to a guarded sink until it is finished.
    """
    manifest = memory.held.manifest
    if manifest is None or manifest.number != memory.guarded_batch:
        memory.guarded_batch = 0
        if manifest is not None and manifest.crashes >= limits.GUARDED_AFTER_CRASHES_COUNT:
            memory.guarded_batch = manifest.number
    if memory.sink is not None and is_guarded(memory.sink) != bool(memory.guarded_batch):
        close_sink(route, memory)
    if memory.sink is None:
        memory.sink = _open(route, guarded=bool(memory.guarded_batch))
        memory.replay = memory.sink.capabilities.replay


def is_guarded(sink: Sink) -> bool:
    """Tell whether a lane's sink lives in a process of its own."""
    return isinstance(sink, TendedSink) and sink.guarded


def _open(route: Route, *, guarded: bool) -> Sink:
    shared = route.shared
    sink = shared.make_sink(route.settings, route.sink)
    if guarded:
        capabilities, encoder = sink.capabilities, str(getattr(sink, "encoder", ""))
        sink.close()
        sink = shared.guard(route.settings, route.sink, capabilities, encoder)
    # a fault is one of the route's own target: a fallback is there to take over from it
    is_fallback = route.settings.sink == route.settings.fallback
    board = FaultBoard() if is_fallback else shared.faults
    tended = TendedSink(sink, route.birth.name, board, shared.clock, shared.chance)
    tended.guarded = guarded
    return tended


class TendedSink:
    """A sink as its lane calls it: behind the faults of its route, and watched.

    ``busy_since_ns`` is when the call under way began, by the monotonic clock; 0 between calls.
    ``guarded`` says that the sink lives in a process of its own, which bounds it.
    """

    def __init__(
        self, inner: Sink, route: str, board: FaultBoard, clock: Clock, chance: Chance
    ) -> None:
        self.inner = inner
        self._route = route
        self._board = board
        self._clock = clock
        self._chance = chance
        self.busy_since_ns = 0
        self.guarded = False

    @property
    def capabilities(self) -> Capabilities:
        """Those of the sink."""
        return self.inner.capabilities

    @property
    def encoder(self) -> str:
        """That of the sink; empty if it freezes nothing."""
        return str(getattr(self.inner, "encoder", ""))

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Ask, unless the target plays dead."""
        down = self._down()
        return self._watched(lambda: down or self.inner.read_row(key))

    def deliver(self, attempt: Attempt) -> Outcome:
        """Deliver, with the faults that last."""
        down = self._down()
        if down is not None:
            return down
        faults = self._faults()
        for slow in of_kind(faults, FaultKind.SLOW):
            self._clock.sleep(slow.amount)
        refused = refused_by(faults, attempt.records)
        if refused:
            return Rejected(tuple(refused), refused[0].message)
        outcome = self._watched(lambda: self.inner.deliver(attempt))
        for losing in of_kind(faults, FaultKind.LOSE_ANSWERS):
            if isinstance(outcome, Delivered) and self._chance.uniform(0.0, 1.0) < losing.amount:
                return Unknown("game day: the answer was lost")
        return outcome

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Probe; what a fault refuses is named first."""
        named = self._down() or refused_by(self._faults(), records)
        return named or self._watched(lambda: self.inner.probe(attempt, records))

    def encode(self, attempt: Attempt) -> bytes:
        """Encode as the sink does."""
        inner = cast("EncodingSink", self.inner)
        return self._watched(lambda: inner.encode(attempt))

    def transform(self, name: str, records: list[Record], timeout_s: float) -> Iterable[object]:
        """Call a transform in the process of a guarded sink."""
        return cast("Elsewhere", self.inner).transform(name, records, timeout_s)

    def check(self) -> Sequence[Finding]:
        """Verify at the target."""
        return self.inner.check()

    def close(self) -> None:
        """Close the sink."""
        self.inner.close()

    def _watched(self, call: Callable[[], _T]) -> _T:
        self.busy_since_ns = self._clock.monotonic_ns()
        try:
            return call()
        finally:
            self.busy_since_ns = 0

    def _faults(self) -> tuple[Fault, ...]:
        return self._board.of(self._route, self._clock.monotonic_ns())

    def _down(self) -> Systemic | None:
        if of_kind(self._faults(), FaultKind.DOWN):
            return Systemic(SystemicKind.UNREACHABLE, "game day: the target plays dead")
        return None
