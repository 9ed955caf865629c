"""Where a record is: ``drain.where`` for people, ``drain.delivered`` for producers that wait.

Asked beside lanes that go on: what the ledger holds of a lane is read before its dead letters and
its history, so that a batch that is closed in between is told as closed.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from wald import limits
from wald.core.lanes import Key, lane_of
from wald.core.where import Facts, Fate, Standing, Verdict, judge, whereabouts
from wald.drainer.asks import Request, natural
from wald.drainer.producers import trace_of
from wald.drainer.records import open_records
from wald.drainer.views import RouteView
from wald.errors import InputError, NoRecord
from wald.model import (
    DeadLetter,
    Frontier,
    LaneKey,
    LaneProgress,
    LostRange,
    Lsn,
    Record,
    RouteId,
    StreamId,
)
from wald.ports import Clock, FileSystem, Ledger
from wald.storage.lookup import Lookup, owner_of
from wald.storage.packed import named_packed

_PARTS_MAX = 4_096  # records times routes of an answer


class Sources(NamedTuple):
    """What is asked: with lanes at work beside it, or a directory that no daemon uses.

    ``frontier`` is asked with an LSN that it should have reached: up to it every route is known.
    """

    fs: FileSystem
    data_dir: str
    log_id: bytes
    clock: Clock
    ledger: Ledger
    views: Callable[[], Iterable[RouteView]]
    streams: Callable[[], Mapping[StreamId, str]]
    frontier: Callable[[Lsn], Frontier | None]


class Located(NamedTuple):
    """A record as the log has it. ``record`` is None where it is gone or lost."""

    stream_id: StreamId | None
    record: Record | None
    why: str = ""


@dataclass(slots=True)
class _Question:
    """What was read for one question, so that it is read once."""

    progress: dict[LaneKey, LaneProgress] = field(default_factory=dict)
    damage: dict[RouteId, list[DeadLetter]] = field(default_factory=dict)


class Where:
    """Answers; one thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._lookup = Lookup(sources.ledger.store)
        self._known: dict[Lsn, tuple[StreamId, Key]] = {}
        self._damaged: dict[RouteId, tuple[list[int], list[DeadLetter]]] = {}
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.where": self.where,
            "drain.delivered": self.delivered,
        }

    # --- for people -----------------------------------------------------------------------------

    def where(self, request: Request) -> dict[str, Any]:
        """Say all that is known of the record at an LSN.

        Raises:
            NoRecord: none has it.
            InputError: the request says no LSN.
        """
        lsn = natural(request, "lsn", 0)
        frontier = self._sources.frontier(lsn)
        if frontier is None or lsn > frontier.lsn:
            highest = frontier.lsn if frontier else 0
            msg = f"LSN {lsn:,} is not used yet: the highest is {highest:,}"
            raise NoRecord(msg)
        found = self._locate(lsn, frontier)
        views = list(self._sources.views())
        stream_id = self._stream_of(lsn, found, views)
        if found.record is None and stream_id is None and not views:
            msg = f"the log does not hold LSN {lsn:,}, and no route tells of it"
            raise NoRecord(msg)
        ours = [view for view in views if stream_id in {None, view.birth.stream_id}]
        routes = {view.birth.name: self._at(view, lsn, found.record) for view in ours}
        names = self._sources.streams()
        return {
            "lsn": lsn,
            "stream": None if stream_id is None else names.get(stream_id, str(stream_id)),
            "frontier_lsn": frontier.lsn,
            "why": found.why,
            **_said_of(found.record, routes),
            "routes": routes,
        }

    def _stream_of(self, lsn: Lsn, found: Located, views: Sequence[RouteView]) -> StreamId | None:
        """Return whose a record is; of one that is gone by its dead letter, or if all are one's."""
        if found.stream_id is not None:
            return found.stream_id
        for view in views:
            if self._lookup.letter(view.birth.route_id, lsn) is not None:
                return view.birth.stream_id
        streams = {*self._sources.streams(), *(view.birth.stream_id for view in views)}
        return streams.pop() if len(streams) == 1 else None

    def _at(self, view: RouteView, lsn: Lsn, record: Record | None) -> dict[str, Any]:
        """Return where a record is at one route.

        Where its lane is not known, because its key is gone with it, the one that is furthest
        behind speaks for all.
        """
        candidates = self._lanes_of(view, lsn, None if record is None else (record.key,))
        facts = [(key, self._facts(view, key, lsn, record)) for key in candidates]
        ranked = sorted(facts, key=lambda each: _eloquence(each[1]), reverse=True)
        key, chosen = ranked[0]
        row = whereabouts(chosen)
        line = chosen.redriven if row.fate is Fate.REDRIVEN else chosen.line
        layout = view.layout_of(lsn)
        fallback = layout.sink if layout is not None else ""
        said: dict[str, Any] = {
            "fate": row.fate.value,
            "case": row.label,
            "when": row.when,
            "stream": view.birth.stream,
            "sink": fallback or view.birth.sink,
            "is_fallback": bool(fallback),
            "blocked": "" if row.fate in _OVER else view.why_blocked(key),
        }
        if key is not None and len(facts) == 1:
            said |= {"layout": key.layout, "lane": key.lane}
        if row.fate in _IN_A_LINE and line is not None:
            said |= _line_as_json(line.number, line.rev_id, line.attempts, line.records)
            said |= {"time_ns": line.finished_time_ns, "last_error": line.last_error}
            said |= {"trace": dict(line.traces).get(lsn, "")}
        elif chosen.manifest is not None and row.fate in _IN_A_MANIFEST:
            open_batch = chosen.manifest
            said |= _line_as_json(
                open_batch.number,
                open_batch.current.rev_id,
                open_batch.attempts,
                open_batch.records,
            )
            said |= {"time_ns": open_batch.attempt_time_ns, "last_error": open_batch.last_error}
            said |= {"held": open_batch.held, "trace": dict(open_batch.traces).get(lsn, "")}
        if chosen.letter is not None:
            said["letter"] = _letter_as_json(chosen.letter)
        return said

    def _locate(self, lsn: Lsn, frontier: Frontier) -> Located:
        """Find a record in the log, or where it was packed.

        Raises:
            NoRecord: the log goes on behind the LSN without it.
        """
        sources = self._sources
        owner = owner_of(sources.fs, sources.data_dir, sources.log_id, lsn, frontier)
        if owner is None:
            msg = f"no record has LSN {lsn:,}: the log skipped it"
            raise NoRecord(msg)
        if not isinstance(owner, LostRange):
            record = self._read(owner.stream_id, lsn, frontier)
            why = "" if record else "its request cannot be read"
            return Located(owner.stream_id, record, why)
        for packed in named_packed(sources.fs, sources.data_dir):
            if packed.lo < lsn <= packed.hi:
                record = self._read(packed.stream_id, lsn, frontier)
                if record is not None:
                    return Located(packed.stream_id, record)
        return Located(None, None, f"the log does not hold it any more: {owner.reason}")

    def _read(self, stream_id: StreamId, lsn: Lsn, frontier: Frontier) -> Record | None:
        return next((each for each in self._records(stream_id, lsn - 1, lsn, frontier)), None)

    def _records(
        self, stream_id: StreamId, after: Lsn, until: Lsn, frontier: Frontier
    ) -> Iterable[Record]:
        sources = self._sources
        for item in open_records(
            sources.fs, sources.data_dir, sources.log_id, sources.clock,
            stream_id=stream_id, after=after, until=until, frontier=frontier,
        ):  # fmt: skip
            if isinstance(item, Record):
                yield item

    # --- facts ----------------------------------------------------------------------------------

    def _lanes_of(self, view: RouteView, lsn: Lsn, key: tuple[Key] | None) -> list[LaneKey | None]:
        """Return the lanes that may have a record: one if its key is known; None: not begun yet."""
        layout = view.layout_of(lsn)
        if layout is None:
            return [None]
        new_key = partial(LaneKey, self._sources.log_id, view.birth.route_id, layout.number)
        if layout.lanes == 1:
            return [new_key(0)]
        if key is None:
            return [new_key(lane) for lane in range(layout.lanes)]
        return [new_key(lane_of(key[0], lsn, layout.lanes))]

    def _facts(
        self, view: RouteView, key: LaneKey | None, lsn: Lsn, record: Record | None
    ) -> Facts:
        route_id = view.birth.route_id
        if key is None:
            return Facts(lsn, view.birth.birth_lsn, dropped=view.dropped)
        held = self._sources.ledger.lane(key)
        letter = self._lookup.letter(route_id, lsn)
        if letter is None and record is None:
            letter = self._lookup.letter_over(route_id, lsn)
        lines = self._lookup.lines(key, lsn)
        sealed = lines.sealed
        superseded = False
        if sealed is not None and sealed.superseded and view.coalesces and record is not None:
            superseded = self._is_superseded(view, record, sealed.hi)
        return Facts(
            lsn,
            view.birth.birth_lsn,
            held.checkpoint.lsn,
            held.manifest,
            letter,
            self._lookup.is_asked(key, lsn),
            self._lookup.is_purged(key, lsn),
            sealed,
            lines.redriven,
            superseded,
            view.dropped,
        )

    def _is_superseded(self, view: RouteView, record: Record, hi: Lsn) -> bool:
        """Tell whether a newer record of the key was in the same batch."""
        frontier = self._sources.frontier(hi)
        if record.key is None or frontier is None:
            return False
        behind = self._records(view.birth.stream_id, record.lsn, hi, frontier)
        return any(each.key == record.key for each in behind)

    # --- for producers --------------------------------------------------------------------------

    def delivered(self, request: Request) -> dict[str, Any]:
        """Say how many of the first records of a list are delivered, and how the next one stands.

        Answers {"delivered": so many, "next": None or {"lsn", "verdict", "routes"}}; asked again
        with what is left.

        Raises:
            InputError: the request says no stream, or no LSNs.
        """
        stream, lsns = request.get("stream"), request.get("lsns")
        if not isinstance(stream, str) or not isinstance(lsns, list) or not lsns:
            msg = "a stream and a list of LSNs are asked for"
            raise InputError(msg)
        numbers = [natural({"lsn": each}, "lsn", 0) for each in lsns[: limits.WHERE_LSNS_MAX]]
        frontier = self._sources.frontier(0)
        views = [view for view in self._sources.views() if view.birth.stream == stream]
        question = _Question()
        room = max(1, _PARTS_MAX // max(1, len(views)))
        for done, lsn in enumerate(numbers[:room]):
            known = frontier is not None and lsn <= frontier.lsn
            standings = self._standings(views, lsn, question) if known else {}
            verdict = judge(standing for standing, _ in standings.values())
            if verdict is not Verdict.DELIVERED:
                routes = {
                    name: {"fate": each.fate.value, "blocked": each.blocked, "why": why}
                    for name, (each, why) in standings.items()
                }
                said = {"lsn": lsn, "verdict": verdict.value, "routes": routes}
                return {"delivered": done, "next": said}
        return {"delivered": min(room, len(numbers)), "next": None}

    def _standings(
        self, views: Sequence[RouteView], lsn: Lsn, question: _Question
    ) -> dict[str, tuple[Standing, str]]:
        found = {}
        for view in views:
            key = self._lane_of_known(view, lsn)
            if key is not None and key not in question.progress:
                question.progress[key] = self._sources.ledger.lane(key)
            checkpoint, manifest = question.progress[key] if key is not None else (None, None)
            letter = self._lookup.letter(view.birth.route_id, lsn)
            if letter is None and checkpoint is not None and lsn <= checkpoint.lsn:
                letter = self._damage_over(view, lsn, question)
            facts = Facts(
                lsn,
                view.birth.birth_lsn,
                checkpoint.lsn if checkpoint else 0,
                manifest,
                letter,
                key is not None and letter is not None and self._lookup.is_asked(key, lsn),
                key is not None and letter is None and self._lookup.is_purged(key, lsn),
                dropped=view.dropped,
            )
            why = f"{letter.code}: {letter.message}" if letter else ""
            if not why and manifest is not None:
                why = manifest.held or manifest.last_error
            standing = Standing(whereabouts(facts).fate, view.why_blocked(key))
            found[view.birth.name] = (standing, why)
        return found

    def _damage_over(self, view: RouteView, lsn: Lsn, question: _Question) -> DeadLetter | None:
        """Return the letter of the damaged range that an LSN lies in.

        The ranges are read anew once the counts of the route's dead letters have changed.
        """
        route_id = view.birth.route_id
        if route_id not in question.damage:
            lanes = self._sources.ledger.lanes(route_id).values()
            stamp = [
                number
                for held in lanes
                for number in (held.checkpoint.dead_letters, held.checkpoint.purged)
            ]
            if self._damaged.get(route_id, ([], []))[0] != stamp:
                found = self._lookup.damaged(route_id) if any(stamp) else []
                self._damaged[route_id] = stamp, found
            question.damage[route_id] = self._damaged[route_id][1]
        ranges = question.damage[route_id]
        return next((each for each in ranges if each.lsn <= lsn <= each.through_lsn), None)

    def _lane_of_known(self, view: RouteView, lsn: Lsn) -> LaneKey | None:
        """Return the lane that has a record; the log is read for its key where that decides."""
        layout = view.layout_of(lsn)
        if layout is None or layout.lanes == 1:
            return self._lanes_of(view, lsn, None)[0]
        if lsn not in self._known:
            frontier = self._sources.frontier(lsn)
            assert frontier is not None
            record = self._read(view.birth.stream_id, lsn, frontier)
            if record is None:  # gone, so every lane has passed it, or damage took it
                return self._furthest_behind(view, lsn)
            self._known[lsn] = view.birth.stream_id, record.key
            while len(self._known) > limits.WHERE_REMEMBERED_MAX:
                del self._known[next(iter(self._known))]
        return self._lanes_of(view, lsn, (self._known[lsn][1],))[0]

    def _furthest_behind(self, view: RouteView, lsn: Lsn) -> LaneKey | None:
        lanes = [key for key in self._lanes_of(view, lsn, None) if key is not None]
        return min(lanes, key=lambda key: self._sources.ledger.lane(key).checkpoint.lsn)


_OVER = frozenset({Fate.DELIVERED, Fate.SUPERSEDED, Fate.REDRIVEN, Fate.NOT_OURS, Fate.PURGED,
                   Fate.LOST, Fate.DEAD_LETTER, Fate.GIVEN_UP})  # fmt: skip
_IN_A_LINE = frozenset({Fate.DELIVERED, Fate.SUPERSEDED, Fate.REDRIVEN})
_IN_A_MANIFEST = frozenset({Fate.SEALED, Fate.TAKEN, Fate.UNCERTAIN, Fate.REDRIVING})


def _eloquence(facts: Facts) -> tuple[bool, bool, int]:
    """Rank lanes of which one has the record: who names it, else who is furthest behind."""
    named = facts.letter is not None or facts.redriven is not None or facts.purged
    return named, facts.is_sent_again, -facts.checkpoint_lsn


def _line_as_json(number: int, rev_id: bytes, attempts: int, records: int) -> dict[str, Any]:
    return {
        "batch": number,
        "rev_id": rev_id.hex(),
        "attempts": attempts,
        "batch_records": records,
    }


def _letter_as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "code": letter.code,
        "message": letter.message,
        "time_ns": letter.time_ns,
        "attempts": letter.attempts,
        "batch": letter.batch_no,
        "records": letter.records,
        "through_lsn": letter.through_lsn,
    }


def _said_of(record: Record | None, routes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the record says of itself; the trace of one that is gone as a batch kept it."""
    kept = next((each["trace"] for each in routes.values() if each.get("trace")), "")
    if record is None:
        return {"key": None, "durable_ns": None, "bytes": None, "trace": kept}
    key: dict[str, Any] = {"key": record.key}
    if isinstance(record.key, bytes):
        key = {"key": None, "key_base64": b64encode(record.key).decode("ascii")}
    return {
        **key,
        "durable_ns": record.time_ns,
        "bytes": len(record.value),
        "trace": trace_of(record) or kept,
    }
