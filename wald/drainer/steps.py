"""What a lane does in each step: it carries out what the tables of ``core.delivery`` decide.

Commit points: T2 before the first attempt, T4 before each further one, the dead log and T3 before
an attempt without the refused records, the target's own commit, T5 (with the next T2) behind it.
Whatever ends between two of them, the next start finds the manifest, asks the target for its row,
and goes on.
"""

import contextlib
from collections.abc import Callable, Mapping

from wald import limits
from wald.core.batching import Bounds, why_seal
from wald.core.delivery import Event, Step
from wald.drainer.adopting import recall_healing
from wald.drainer.checking import check_row
from wald.drainer.doubt import count_again, still_held, take_back
from wald.drainer.freezing import to_send
from wald.drainer.gate import Gate
from wald.drainer.reader import Batch
from wald.drainer.recalling import is_to_recall, reserve, take_unsure
from wald.drainer.redriving import Redrives
from wald.drainer.route import LaneMemory, Route
from wald.drainer.sending import (
    advance,
    close_sink,
    finish,
    foregone,
    seal,
    search,
    send,
)
from wald.drainer.settling import settle
from wald.drainer.sinks import fit_sink
from wald.model import Lsn, ProgressRow, ReplayClass

_NS = limits.CLOCK_NS_PER_S
_IDLE_S = limits.LANE_IDLE_S


class Steps:
    """The steps of one lane, and what they work with. Used by the lane's thread.

    Attributes:
        route: the lane's.
        memory: what is known beside the ledger.
        gate: where the target is asked for leave.
        redrives: what is asked to be sent again.
        failures: so often in a row nothing came of it.
        leaving: whether the lane was asked to leave: what is there is sealed at once.
        flush_through: what waits up to here is sealed at once.
        look_ns: when an idle lane looks at its row again; 0 if it has not looked since it was
            begun or hurried.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self.memory = LaneMemory()
        self.gate = Gate(route)
        self.redrives = Redrives(route)
        self.failures = 0
        self.leaving = False
        self.flush_through: Lsn = 0
        self.look_ns = 0
        self._shared = route.shared
        self._redrive_wait_s = 0.0
        self._held_back_s = 0.0
        self._advance_ns = 0
        self.of: Mapping[Step, Callable[[], Event | float]] = {
            Step.CHECKING: self._check,
            Step.COLLECTING: self._collect,
            Step.SENDING: self._send,
            Step.SEARCHING: self._search,
            Step.SETTLING: lambda: settle(self.route, self.memory),
        }

    # --- asked by the lane ----------------------------------------------------------------------

    def flush(self, through: Lsn) -> None:
        """Seal at once what waits up to an LSN. Any thread."""
        self.flush_through = max(self.flush_through, through)
        self.gate.flush(through)

    def hurry(self) -> None:
        """Ask the target at once, whatever was found before. Any thread."""
        self.gate.ask_now()
        if self.memory.replay is ReplayClass.TRANSACTIONAL:  # others have no row to look at
            self.look_ns = 0

    @property
    def is_held_back(self) -> bool:
        """Whether the gate told it to wait, as was last asked."""
        return self.gate.is_shut or self._held_back_s > 0

    @property
    def has_at_hand(self) -> bool:
        """Whether what goes next to the target was read, or cannot be now."""
        memory = self.memory
        if memory.reader is None or memory.sink is None:
            return True
        manifest = memory.held.manifest
        if manifest is None:
            return not memory.reader.is_empty
        return memory.batch is not None or manifest.is_redrive

    @property
    def has_nothing_left(self) -> bool:
        """Whether everything of the lane up to the frontier was sealed and delivered."""
        frontier, reader = self.route.frontier(), self.memory.reader
        if frontier is None:
            return True
        return (
            self.memory.held.manifest is None
            and reader is not None
            and reader.is_empty
            and reader.through >= min(frontier.lsn, self.route.share.until or frontier.lsn)
        )

    def look_ahead(self) -> None:
        """Read what is next, so that it is known since when it waits."""
        memory, frontier = self.memory, self.route.frontier()
        if memory.reader is None or memory.sink is None or frontier is None:
            return
        manifest = memory.held.manifest
        if manifest is not None and not manifest.is_redrive:  # that is loaded in an attempt alone
            self._load_batch()
        elif manifest is None and memory.reader.is_empty:
            memory.reader.fill(frontier, self._bounds())

    def let_go(self) -> None:
        """Forget all that can be found again: in the ledger, the log, and at the target."""
        self.gate.leave()
        self.settle_seal()
        memory = self.memory
        take_back(self.route, memory)
        if memory.reader is not None:
            memory.reader.close()
        close_sink(self.route, memory)
        self.memory = memory.afresh()

    def settle_seal(self) -> None:
        """Wait until what was sealed last is durable, or is known not to be."""
        with contextlib.suppress(Exception):  # the ledger says what holds
            self.memory.settle_seal()

    # --- the steps ------------------------------------------------------------------------------

    def _check(self) -> Event | float:
        """Read the ledger, then ask the target for its row, and judge it."""
        memory = self.memory
        if self.route.frontier() is None:
            return _IDLE_S
        memory.held = self._shared.ledger.lane(self.route.key)
        if still_held(self.route, memory) and not is_to_recall(self.route, memory):
            return Event.UNCERTAIN
        if memory.reader is None:
            memory.reader = self.route.reader(memory.held.checkpoint.lsn)
            manifest = memory.held.manifest  # a restart does not begin anew to knock
            self.failures = max(self.failures, manifest.attempts - 1 if manifest else 0)
        held_back_s = self.gate.wait_s()
        if held_back_s > 0:
            self.look_ahead()
            return held_back_s
        fit_sink(self.route, memory)
        recall_healing(self.route, memory)
        self.look_ns = self._now_ns() + round(limits.REREAD_S * _NS)
        event, row = self._ask()
        if event is Event.ROW_APPLIED:
            if not memory.manifest.is_redrive and not self._load_batch():
                self.gate.rest()
                return _IDLE_S
            assert row is not None
            self._finish(row.rev_id)
        if event is not Event.ROW_STRANGE:
            memory.parked = None
        return event

    def _ask(self) -> tuple[Event, ProgressRow | None]:
        """Ask the target for the row; the gate is told how that went."""
        memory, began_ns = self.memory, self._now_ns()
        event, row = check_row(self.route, memory)
        if event is Event.SYSTEMIC:
            assert memory.outcome is not None
            self.gate.ended(memory.outcome, 0, (self._now_ns() - began_ns) / _NS)
        elif memory.replay is ReplayClass.TRANSACTIONAL and (
            event is not Event.ROW_FITS or memory.held.manifest is None
        ):
            self.gate.answered()
        return event, row

    def _collect(self) -> Event | float:
        memory = self.memory
        if memory.held.manifest is not None:
            return self._take_up()
        fit_sink(self.route, memory)
        if self._seal_redrive():
            return self._take_up()
        batch = self._next_batch()
        if batch is not None:
            return seal(self.route, memory, batch)
        self.gate.rest()
        self._advance()
        if memory.replay is ReplayClass.TRANSACTIONAL and self._now_ns() >= self.look_ns:
            return Event.LOOK
        waits_s = self._held_back_s or self._redrive_wait_s
        return waits_s or memory.rest_s(self._bounds(), self._now_ns(), self.look_ns)

    def _take_up(self) -> Event | float:
        """Go on with the open manifest: sealed just now with T5, or found."""
        memory, is_redrive = self.memory, self.memory.manifest.is_redrive
        if not is_redrive and not self._load_batch():
            self.gate.rest()
            return _IDLE_S
        self._held_back_s = self.gate.wait_s()
        if self._held_back_s > 0:
            memory.settle_seal()
            return self._held_back_s
        was_counted = memory.counted == memory.manifest.current.rev_id
        if not was_counted and not count_again(self.route, memory):
            self.gate.rest()
            return Event.UNCERTAIN
        fit_sink(self.route, memory)
        if is_redrive:  # behind the count: what transforms it may end the process
            self._load_batch()
            self.redrives.refuse_unsendable(memory)
        return Event.SEALED if was_counted else Event.OPEN_FOUND

    def _load_batch(self) -> bool:
        """Read the open manifest's records unless they are at hand; False: not readable yet."""
        memory, frontier = self.memory, self.route.frontier()
        assert memory.reader is not None
        if memory.batch is None and memory.manifest.is_redrive:
            memory.batch = self.redrives.load(memory)
        elif memory.batch is None and frontier is not None:
            memory.batch = memory.reader.take_through(memory.manifest.current.hi, frontier)
        return memory.batch is not None

    def _seal_redrive(self) -> bool:
        """T7: seal what is asked to be sent again, where that may go on now."""
        self._redrive_wait_s = 0.0
        if self.leaving or not self.redrives.are_asked():
            return False
        self._redrive_wait_s = self.gate.wait_s()
        if self._redrive_wait_s > 0:
            return False
        return self.redrives.seal(self.memory, self._bounds())

    def _next_batch(self) -> Batch | None:
        """Return a batch to be sealed now; None to wait for more."""
        reader, frontier, bounds = self.memory.reader, self.route.frontier(), self._bounds()
        assert reader is not None
        assert frontier is not None
        if self.memory.unsure_through:
            unsure = take_unsure(self.route, self.memory)
            if unsure is not None:
                return unsure
        waiting = reader.fill(frontier, bounds)
        flush = self.leaving or reader.through < self.flush_through
        self._held_back_s = 0.0
        if why_seal(waiting, bounds, self._now_ns(), flush=flush) is None:
            return None
        self._held_back_s = self.gate.wait_s()
        if self._held_back_s > 0:
            return None
        batch = reader.take(bounds)
        reserve(self.route, self.memory, batch)
        return batch

    def _bounds(self) -> Bounds:
        sink = self.memory.sink
        assert sink is not None
        return self.gate.bounds(sink.capabilities)

    def _advance(self) -> None:
        """T6: now and then move an idle lane's checkpoint over what is not its."""
        memory, reader = self.memory, self.memory.reader
        assert reader is not None
        checkpoint = memory.held.checkpoint
        due = self._now_ns() >= self._advance_ns or self.leaving
        until = self.route.share.until
        due = due or reader.has_lost  # a loss is told at once
        due = due or (until is not None and reader.through >= until)  # as is a layout's end
        if not due or not reader.is_empty or reader.through <= checkpoint.lsn:
            return
        self._advance_ns = self._now_ns() + round(limits.ADVANCE_EVERY_S * _NS)
        advance(self.route, memory, reader)

    def _send(self) -> Event:
        memory = self.memory
        known = foregone(self.route, memory)
        took_effect = memory.manifest.current.rev_id
        if known is not None:
            self.gate.rest()
            if known is Event.DELIVERED:
                self._finish(took_effect)
            return known
        began_ns, records = self._now_ns(), len(to_send(memory))
        memory.timeout_s = self.gate.begins(records)
        event = send(self.route, memory)
        assert memory.outcome is not None
        self.gate.ended(memory.outcome, records, (self._now_ns() - began_ns) / _NS)
        if event is Event.DELIVERED:
            self._finish(took_effect)
        return event

    def _search(self) -> Event:
        began_ns = self._now_ns()
        event = search(self.route, self.memory)
        if event in {Event.SYSTEMIC, Event.UNKNOWN}:
            assert self.memory.outcome is not None
            self.gate.ended(self.memory.outcome, 0, (self._now_ns() - began_ns) / _NS)
        return event

    def _finish(self, took_effect: bytes) -> None:
        manifest = self.memory.manifest
        # ordinary batches and redrives in turn: neither waits for all of the other
        alone = self.leaving
        alone = alone or (not manifest.is_redrive and self.redrives.are_asked())
        following = None if alone else self._next_batch()
        finish(self.route, self.memory, took_effect, following)
        if manifest.is_redrive:
            self.redrives.ended(manifest.records)
        self.failures = 0  # only now: a ledger without room is a failure again and again

    def _now_ns(self) -> int:
        return self._shared.clock.monotonic_ns()
