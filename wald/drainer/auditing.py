"""The books of a route proven: by counts for all time, record by record for what is still there.

Three sources that nobody computes from each other: what ingest counted at the door, what the
ledger counted behind each batch, and what is in log and packed files, read anew. Where the target
can tell, it is the fourth. Lanes go on meanwhile: what seems to differ is looked at once more.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from wald import limits
from wald.config import RouteSettings, Settings
from wald.core.lanes import Layout, lane_of
from wald.drainer.fleet import settings_of
from wald.drainer.records import open_records
from wald.drainer.route import Shared
from wald.drainer.views import RouteView
from wald.errors import SinkFailed, Unavailable, WaldError
from wald.model import Checkpoint, Frontier, LaneKey, LaneProgress, LostRange, Lsn, Record
from wald.ports import AuditableSink, FileSystem, Sink
from wald.storage.lookup import Lookup
from wald.storage.progress import TwoSlotPage

_log = logging.getLogger("wald.drain")
_POLL_S = 0.05
_SNAPSHOT_TRIES = 100
_NS = limits.CLOCK_NS_PER_S


class Accepted(NamedTuple):
    """What ingest counted of a route's stream since the route was born, up to an LSN."""

    records: int
    through_lsn: Lsn


class Difference(NamedTuple):
    """A record that is not where the books say: "missing", "extra", "doubled" at the target."""

    kind: str
    lsn: Lsn
    why: str


@dataclass(slots=True)
class RouteAudit:
    """What was found of a route."""

    route: str
    stream: str = ""
    sink: str = ""
    accepted: int = 0
    delivered: int = 0
    superseded: int = 0
    dead_letters: int = 0
    purged: int = 0
    pending: int = 0  # counted in the log, not computed
    lost: int = 0  # accepted, and neither settled nor there
    surplus: int = 0  # settled or there, and never accepted
    letters: int = 0  # records that the index of dead letters stands for
    examined: int = 0  # records that are still there, looked at one by one
    compared: int = 0  # of these, with the target
    gone: int = 0  # of these, the target may have had them: trimmed there, or deleted by others
    cannot_tell: str = ""  # why the target was not asked
    damaged_ranges: int = 0
    missing: int = 0
    extra: int = 0
    doubled: int = 0
    named: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether there is no difference."""
        return not self.problems

    def name(self, difference: Difference) -> None:
        """Count a difference, and name it while there is room."""
        setattr(self, difference.kind, getattr(self, difference.kind) + 1)
        if getattr(self, difference.kind) <= limits.AUDIT_NAMED_MAX:
            self.named.append(difference._asdict())

    def conclude(self) -> None:
        """Say what does not balance."""
        if self.surplus:
            self.problems.append(f"{self.surplus:,} records more than were accepted")
        if self.lost:
            self.problems.append(f"{self.lost:,} accepted records are nowhere: lost")
        if self.letters != self.dead_letters:
            self.problems.append(
                f"the checkpoints count {self.dead_letters:,} dead letters, the index has"
                f" {self.letters:,}"
            )
        for kind, words in _KINDS.items():
            count = getattr(self, kind)
            if count:
                self.problems.append(f"{count:,} {words}")

    def as_json(self) -> dict[str, Any]:
        """Return it as an answer has it."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return {**said, "balanced": self.balanced}


_KINDS = {
    "missing": "delivered records are not at the target",
    "extra": "records are at the target that were not delivered to it",
    "doubled": "records are at the target more than once",
}


def held_at(sink: object, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int | None] | None:
    """Ask a sink which records its target has; None if it cannot tell: of all, or of one.

    Raises:
        SinkFailed: the target cannot be asked.
    """
    if not hasattr(sink, "holds"):
        return None
    said = cast("AuditableSink", sink).holds(log_id, lsns)
    if said is None or isinstance(said, Mapping):
        return said
    raise SinkFailed(str(getattr(said, "message", said)))


def read_accepted(
    fs: FileSystem, data_dir: str, route_id: int, stream_id: int
) -> tuple[Accepted, Lsn] | None:
    """Return what ingest says it accepted for a route, and up to which frontier, if it does."""
    try:
        page = TwoSlotPage.open(
            fs,
            f"{data_dir}/ingest.page",
            offset=limits.FIGURES_OFFSET_BYTES,
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=False,
        )
    except OSError:
        return None
    try:
        said: dict[str, Any] = page.read() or {}
    finally:
        page.close()
    births = {row[0]: row for row in said.get("routes", ())}
    streams = {row[0]: row for row in said.get("streams", ())}
    if route_id not in births:
        return None
    row = streams.get(stream_id)
    records, last_lsn = (row[2], row[4]) if row else (0, 0)
    frontier = (said.get("frontier") or [0, 0, 0])[2]
    return Accepted(records - births[route_id][5], last_lsn), frontier


class Audit:
    """One run over some routes; ``run`` in a thread of its own.

    Args:
        settings: for the targets.
        shared: ledger, log and doors.
        views: the routes.
        frontier: up to where the log is followed.
    """

    def __init__(
        self, settings: Settings, shared: Shared, views: Sequence[RouteView], frontier: Frontier
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._views = views
        self._frontier = frontier
        self._lookup = Lookup(shared.ledger.store)
        self.stop = threading.Event()
        self.done = 0
        self.total = 0
        self.results: list[RouteAudit] = []
        self.error: WaldError | None = None
        self.finished = threading.Event()

    def run(self) -> None:
        """Audit all of them; whatever comes of it is in ``results`` and ``error``."""
        try:
            for view in self._views:
                self.results.append(self._audit(view))
        except WaldError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - an audit's failure is its own
            _log.error("an audit failed: %r", error, exc_info=error)
            self.error = WaldError(f"the audit failed: {error!r}")
        finally:
            self.finished.set()

    # --- one route ------------------------------------------------------------------------------

    def _audit(self, view: RouteView) -> RouteAudit:
        birth, shared = view.birth, self._shared
        found = RouteAudit(birth.name, birth.stream, birth.sink)
        lanes, found.letters = self._snapshot(birth.route_id)  # first: all else only grows
        for held in lanes.values():
            _add(found, held.checkpoint)
        accepted = self._accepted(view, max(held.checkpoint.lsn for held in lanes.values()))
        found.accepted = accepted.records
        settings = settings_of(self._settings, birth)
        targets = _Targets(shared, settings, self._settings, found)
        try:
            self._examine(view, lanes, accepted, found, targets)
        finally:
            targets.close()
        rest = found.accepted - found.delivered - found.dead_letters - found.purged - found.pending
        if found.damaged_ranges and rest > 0:
            # the lane has not come to them yet: they become dead letters, of which nobody knows
            found.pending, rest = found.pending + rest, 0
        found.lost, found.surplus = max(0, rest), max(0, -rest)
        found.conclude()
        return found

    def _accepted(self, view: RouteView, at_least: Lsn) -> Accepted:
        """Wait until ingest's figures have come to what the ledger has finished.

        Raises:
            Unavailable: they do not: ingest is down, or the route was not taken in yet.
        """
        clock, birth = self._shared.clock, view.birth
        end_ns = clock.monotonic_ns() + round(limits.AUDIT_FIGURES_S * _NS)
        while True:
            said = read_accepted(
                self._shared.fs, self._shared.data_dir, birth.route_id, birth.stream_id
            )
            if said is not None and said[1] >= at_least:
                return said[0]
            if clock.monotonic_ns() >= end_ns or self.stop.is_set():
                msg = f"ingest does not say what it accepted for route {birth.name!r}"
                raise Unavailable(msg, hint="see 'wald status': is it running?")
            clock.sleep(_POLL_S)

    def _snapshot(self, route_id: int) -> tuple[Mapping[LaneKey, LaneProgress], int]:
        """Return the lanes, and what the index of dead letters stands for, of one moment.

        The index is read in pages: while dead letters come and go it is read again.
        """
        ledger = self._shared.ledger
        lanes, count = ledger.lanes(route_id), self._count_letters(route_id)
        for _ in range(_SNAPSHOT_TRIES):
            again = ledger.lanes(route_id)
            if _aside(again) == _aside(lanes):
                break
            lanes, count = again, self._count_letters(route_id)
        return lanes, count

    def _count_letters(self, route_id: int) -> int:
        count, after = 0, 0
        while page := self._shared.ledger.dead_letters(route_id, after=after):
            count += sum(letter.records for letter in page)
            after = page[-1].lsn
        return count

    def _examine(
        self,
        view: RouteView,
        lanes: Mapping[LaneKey, LaneProgress],
        accepted: Accepted,
        found: RouteAudit,
        targets: "_Targets",
    ) -> None:
        """Look at every record that is still there, up to what was counted as accepted."""
        birth, shared = view.birth, self._shared
        frontier = shared.board.current() or self._frontier
        steps: defaultdict[str, _Step] = defaultdict(_Step)  # by sink, as layouts name it
        floor = min(held.checkpoint.lsn for held in lanes.values())
        for item in open_records(
            shared.fs, shared.data_dir, shared.log_id, shared.clock,
            stream_id=birth.stream_id, after=birth.birth_lsn, until=accepted.through_lsn,
            frontier=frontier,
        ):  # fmt: skip
            if self.stop.is_set():
                return
            if isinstance(item, LostRange):
                found.damaged_ranges += item.last_lsn > floor
                continue
            layout = view.layout_of(item.lsn) or view.layouts[-1].following()
            step = steps[layout.sink]
            held = lanes.get(self._lane_of(view, layout, item))
            found.examined += 1
            self.done, self.total = item.lsn, accepted.through_lsn
            if held is not None and item.lsn <= held.checkpoint.lsn:
                step.settled.append(item.lsn)
            else:
                found.pending += 1
                if not _is_open(held, item.lsn):
                    step.pending.append(item.lsn)
            if len(step.settled) + len(step.pending) >= limits.AUDIT_STEP_RECORDS:
                self._compare(view, targets.at(layout.sink), found, steps.pop(layout.sink))
        for sink, step in steps.items():
            self._compare(view, targets.at(sink), found, step)

    def _lane_of(self, view: RouteView, layout: Layout, record: Record) -> LaneKey:
        lane = lane_of(record.key, record.lsn, layout.lanes)
        return LaneKey(self._shared.log_id, view.birth.route_id, layout.number, lane)

    def _compare(
        self,
        view: RouteView,
        target: "_Target",
        found: RouteAudit,
        step: "_Step",
    ) -> None:
        done = frozenset(step.settled)
        differences, gone = self._differences(view, target, step.settled, step.pending)
        for difference in differences:
            # once more: a redrive, or the next batch, may have come between
            again = [difference.lsn]
            both = (again, []) if difference.lsn in done else ([], again)
            if difference in self._differences(view, target, *both)[0]:
                found.name(difference)
        if target.can_tell:
            found.compared += len(step.settled) + len(step.pending) - gone
            found.gone += gone

    def _differences(
        self,
        view: RouteView,
        target: "_Target",
        settled: Sequence[Lsn],
        pending: Sequence[Lsn],
    ) -> tuple[list[Difference], int]:
        """Return what differs, and of how many records the target cannot tell any more."""
        lsns = sorted((*settled, *pending))
        held = target.holds(lsns) if lsns else None
        if held is None:
            return [], 0
        lanes = self._shared.ledger.lanes(view.birth.route_id)  # behind what the target said
        aside = self._aside(lanes, lsns[0], lsns[-1])
        waiting = frozenset(pending)
        said: list[Difference] = []
        gone = 0
        for lsn in lsns:
            number = held.get(lsn, 0)
            if number is None:
                gone += lsn not in waiting and lsn not in aside
            elif number:
                too_soon = lsn in waiting and not _was_sent(lanes, lsn)
                why = aside.get(lsn, "it was not sent yet" if too_soon else "")
                said += _too_many(lsn, number, why)
            elif lsn not in aside and lsn not in waiting:
                said.append(Difference("missing", lsn, "its batch took effect"))
        return said, gone

    def _aside(self, lanes: Mapping[LaneKey, LaneProgress], lo: Lsn, hi: Lsn) -> dict[Lsn, str]:
        """Return why records are not at the target; empty for one that is on its way again."""
        letters, purged = self._lookup.aside_between(lanes.keys(), lo, hi)
        said = dict.fromkeys(purged, "it was purged")
        said |= {lsn: f"it is a dead letter: {letter.code}" for lsn, letter in letters.items()}
        for held in lanes.values():
            if held.manifest is not None:
                said |= dict.fromkeys(held.manifest.revisions[0].redriven, "")
        return said


def _too_many(lsn: Lsn, number: int, why_not: str) -> list[Difference]:
    """Return what is wrong with a record that is there: twice, or it should not be."""
    if number > 1:
        return [Difference("doubled", lsn, f"it is there {number:,} times")]
    return [Difference("extra", lsn, why_not)] if why_not else []


def _add(found: RouteAudit, checkpoint: Checkpoint) -> None:
    found.delivered += checkpoint.delivered
    found.superseded += checkpoint.superseded
    found.dead_letters += checkpoint.dead_letters
    found.purged += checkpoint.purged


def _aside(lanes: Mapping[LaneKey, LaneProgress]) -> list[tuple[int, int]]:
    return [(each.checkpoint.dead_letters, each.checkpoint.purged) for each in lanes.values()]


def _was_sent(lanes: Mapping[LaneKey, LaneProgress], lsn: Lsn) -> bool:
    """Tell whether any lane is past a record, or has it in its open batch."""
    return any(lsn <= held.checkpoint.lsn or _is_open(held, lsn) for held in lanes.values())


def _is_open(held: LaneProgress | None, lsn: Lsn) -> bool:
    """Tell whether an open batch has a record: its attempt may have taken effect."""
    return held is not None and held.manifest is not None and lsn <= held.manifest.revisions[0].hi


@dataclass(slots=True)
class _Step:
    """Records to be compared with one target in one go."""

    settled: list[Lsn] = field(default_factory=list)
    pending: list[Lsn] = field(default_factory=list)


class _Targets:
    """The targets of a route: its own, and the fallback that stood in for it for a while."""

    def __init__(
        self,
        shared: Shared,
        route: RouteSettings | None,
        settings: Settings,
        found: RouteAudit,
    ) -> None:
        self._shared = shared
        self._route = route
        self._settings = settings
        self._found = found
        self._opened: dict[str, _Target] = {}

    def at(self, sink: str) -> "_Target":
        """Return the target that a layout delivers to; empty: the route's own."""
        if sink not in self._opened:
            self._opened[sink] = self._open(sink)
        return self._opened[sink]

    def _open(self, sink: str) -> "_Target":
        route = self._route
        if route is None:
            return _Target(
                self._found, self._shared.log_id, None, "the configuration does not name the route"
            )
        if route.coalesce or route.transform:
            why = "what is sent is not what is in the log: coalesce or transform"
            return _Target(self._found, self._shared.log_id, None, why)
        if not sink:
            made = self._shared.make_sink(route, self._settings.sinks[route.sink])
            return _Target(self._found, self._shared.log_id, made)
        fallback = route.fallback or sink  # it may have another name now
        if fallback not in self._settings.sinks:
            why = f"the configuration does not name the fallback {sink!r}"
            return _Target(self._found, self._shared.log_id, None, why)
        there = replace(route, sink=fallback, options={})
        return _Target(
            self._found,
            self._shared.log_id,
            self._shared.make_sink(there, self._settings.sinks[fallback]),
        )

    def close(self) -> None:
        """Close the sinks."""
        for target in self._opened.values():
            target.close()


_MUTE = "a sink of this type is not asked for single records; the books are all there is to prove"
_NAMELESS = (
    "its rows do not say which record they are; in mode 'columns' the columns wald_log_id and"
    " wald_lsn would"
)


class _Target:
    """One target, where it can be compared; says in the audit why not."""

    def __init__(
        self, found: RouteAudit, log_id: bytes, sink: Sink | None, why_not: str = ""
    ) -> None:
        self._found = found
        self._log_id = log_id
        self._sink = sink
        self.can_tell = sink is not None
        found.cannot_tell = found.cannot_tell or why_not

    def holds(self, lsns: Sequence[Lsn]) -> Mapping[Lsn, int | None] | None:
        """Return which records it has; None if it cannot tell."""
        if self._sink is None or not self.can_tell:
            return None
        held = held_at(self._sink, self._log_id, lsns)
        if held is None:
            self.can_tell = False
            self._found.cannot_tell = _MUTE if not hasattr(self._sink, "holds") else _NAMELESS
        return held

    def close(self) -> None:
        """Close the sink."""
        if self._sink is not None:
            self._sink.close()
