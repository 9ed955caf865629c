"""What is asked of batches, and the answers: with lanes beside it, or over a ledger alone."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from wald import limits
from wald.drainer.asks import Request, natural
from wald.drainer.lane_figures import LaneFigures
from wald.errors import InputError, NotUncertain
from wald.model import (
    Decision,
    FinishedBatch,
    LaneKey,
    Lsn,
    Manifest,
    Mark,
    Revision,
    RouteBirth,
    RouteId,
)
from wald.ports import Ledger

_log = logging.getLogger("wald.drain")
_LIST_HINT = "'wald batch list' says which there are"


class LaneLike(Protocol):
    """What the desk needs of a lane."""

    def look_again(self) -> None:
        """Say that a command changed what the ledger holds of the lane."""
        ...

    @property
    def figures(self) -> LaneFigures:
        """What is known of it as of its last step."""
        ...


class _Open(NamedTuple):
    birth: RouteBirth
    key: LaneKey
    manifest: Manifest


class BatchDesk:
    """Answers requests about batches; one thread.

    Args:
        ledger: the manifests.
        births: the routes there are, by name the newest last.
        lanes: those of a route with their keys, to be told; None if nothing delivers here.
    """

    def __init__(
        self,
        ledger: Ledger,
        births: Callable[[], Sequence[RouteBirth]],
        lanes: Callable[[RouteId], Mapping[LaneKey, LaneLike]] | None = None,
    ) -> None:
        self._ledger = ledger
        self._births = births
        self._lanes = lanes
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.batch.list": self._list,
            "drain.batch.show": self._show,
            "drain.batch.resolve": self._resolve,
        }

    def ask(self, op: str, **request: object) -> dict[str, Any]:
        """Answer one request, as ``Control.ask`` does over a socket.

        Raises:
            InputError: it asks for what is not there.
            NotUncertain: the batch does not wait for a decision.
        """
        return self.operations[op](request)

    # --- the operations -------------------------------------------------------------------------

    def _list(self, request: Request) -> dict[str, Any]:
        limit = min(natural(request, "limit", 100), limits.BATCHES_PER_ANSWER)
        last = min(natural(request, "finished", 0), limits.BATCHES_PER_ANSWER)
        found = list(self._open(request.get("route")))
        said = {
            "batches": [self._line(each) for each in found[:limit]],
            "more": max(0, len(found) - limit),
        }
        if last:
            said["finished"] = [
                finished_as_json(birth, key, line)
                for birth, key in self._lane_keys(request.get("route"))
                for line in self._ledger.history(key)[-last:]
            ][-limit:]
        return said

    def _show(self, request: Request) -> dict[str, Any]:
        prefix, route = _prefix(request), request.get("route")
        found = self._matching(prefix, route)
        if found:
            return {"batch": self._line(found[0]) | _revisions_as_json(found[0].manifest)}
        lines = self._finished(prefix, route)
        if len(lines) != 1:
            raise _not_one(prefix, len(lines))
        return {"batch": lines[0]}

    def _resolve(self, request: Request) -> dict[str, Any]:
        prefix = _prefix(request)
        decision = _decision(request)
        found = self._matching(prefix, request.get("route"))
        if not found:
            lines = self._finished(prefix, request.get("route"))
            if len(lines) != 1:
                raise _not_one(prefix, len(lines))
            msg = f"batch {lines[0]['batch'][:8]} of route {lines[0]['route']!r} is finished"
            raise NotUncertain(msg, hint=_LIST_HINT)
        birth, key, manifest = found[0]
        rev_id = manifest.current.rev_id
        if not (
            manifest.held and self._ledger.mark(key, rev_id, Mark(decision=decision))
        ):  # COMMIT POINT: T11
            msg = f"batch {rev_id.hex()[:8]} of route {birth.name!r} does not wait for a decision"
            raise NotUncertain(msg, hint=_LIST_HINT)
        _log.warning(
            "route %s: batch %s (LSN %s to %s) is resolved as %s: it was held as %s",
            birth.name,
            rev_id.hex()[:8],
            manifest.lo,
            manifest.current.hi,
            decision.value,
            manifest.held,
        )
        if self._lanes is not None and key in (lanes := self._lanes(birth.route_id)):
            lanes[key].look_again()
        return {"batch": rev_id.hex(), "route": birth.name, "decision": decision.value}

    # --- which are meant ------------------------------------------------------------------------

    def _lane_keys(self, route: object) -> Iterator[tuple[RouteBirth, LaneKey]]:
        births = [birth for birth in self._births() if route in (None, birth.name)]
        if route is not None and not births:
            names = sorted({birth.name for birth in self._births()})
            msg = f"there is no route {str(route)!r}"
            raise InputError(msg, hint=f"routes: {', '.join(names) or 'none yet'}")
        for birth in births:
            for key in sorted(self._ledger.lanes(birth.route_id)):
                yield birth, key

    def _open(self, route: object) -> Iterator[_Open]:
        for birth, key in self._lane_keys(route):
            manifest = self._ledger.lane(key).manifest
            if manifest is not None:
                yield _Open(birth, key, manifest)

    def _matching(self, prefix: str, route: object) -> list[_Open]:
        """Return the open batch that is named by the beginning of the id of a revision."""
        found = [
            each
            for each in self._open(route)
            if any(item.rev_id.hex().startswith(prefix) for item in each.manifest.revisions)
        ]
        if len(found) > 1:
            raise _not_one(prefix, len(found))
        return found

    def _finished(self, prefix: str, route: object) -> list[dict[str, Any]]:
        """Return the finished batches that are named by the beginning of their id."""
        return [
            finished_as_json(birth, key, line)
            for birth, key in self._lane_keys(route)
            for line in self._ledger.history(key)
            if line.rev_id.hex().startswith(prefix)
        ]

    def _line(self, batch: _Open) -> dict[str, Any]:
        birth, key, manifest = batch
        lane = self._lanes(birth.route_id).get(key) if self._lanes is not None else None
        doing = "waits for a drainer" if lane is None else lane.figures.state
        # an attempt that took no effect is not written down before the next one
        now = "" if lane is None else lane.figures.last_error
        state = "uncertain" if manifest.held else (manifest.decision or doing)
        return {
            "batch": manifest.current.rev_id.hex(),
            "route": birth.name,
            "layout": key.layout,
            "lane": key.lane,
            "number": manifest.number,
            "state": state,
            "records": manifest.records,
            "lo": manifest.lo,
            "hi": manifest.current.hi,
            "attempts": manifest.attempts,
            "last_error": manifest.held or now or manifest.last_error,
            "sealed_ns": manifest.sealed_time_ns,
            "attempt_ns": manifest.attempt_time_ns,
            **_redriven_as_json(manifest.current.redriven or manifest.revisions[0].redriven),
        }


def finished_as_json(birth: RouteBirth, key: LaneKey, line: FinishedBatch) -> dict[str, Any]:
    """Return a line of history as it is told."""
    return {
        "batch": line.rev_id.hex(),
        "route": birth.name,
        "layout": key.layout,
        "lane": key.lane,
        "number": line.number,
        "state": "finished",
        "records": line.records,
        "dead_letters": line.dead_letters,
        "superseded": line.superseded,
        "lo": line.lo,
        "hi": line.hi,
        "attempts": line.attempts,
        "last_error": line.last_error,
        "sealed_ns": line.sealed_time_ns,
        "finished_ns": line.finished_time_ns,
        **_redriven_as_json(line.asked or line.redriven),
    }


def _redriven_as_json(asked: Sequence[Lsn]) -> dict[str, Any]:
    """Return whether a batch sends dead letters again, and then which: its own LSNs are none."""
    return {"redrive": True, "lo": min(asked), "hi": max(asked)} if asked else {"redrive": False}


def _revisions_as_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "cleared": manifest.cleared,
        "crashes": manifest.crashes,
        "revisions": [_revision_as_json(each) for each in manifest.revisions],
    }


def _revision_as_json(revision: Revision) -> dict[str, Any]:
    return {
        "revision": revision.rev_id.hex(),
        "hi": revision.hi,
        "excluded": list(revision.excluded),
        "settled": list(revision.settled),
        "redriven": list(revision.redriven),
        "superseded": revision.superseded,
        "retries": revision.retries,
        "encoder": revision.encoder,
        "digest": revision.digest.hex(),
        "first_attempt_ns": revision.time_ns,
    }


def _prefix(request: Request) -> str:
    prefix = request.get("batch")
    if not isinstance(prefix, str) or not prefix or set(prefix) - set("0123456789abcdef"):
        msg = f"{str(prefix)[:80]!r} is not the beginning of a batch's id"
        raise InputError(msg, hint=_LIST_HINT)
    return prefix


def _decision(request: Request) -> Decision:
    said = request.get("decision")
    if not isinstance(said, str) or said not in set(Decision):
        msg = f"{str(said)[:80]!r} is no decision"
        raise InputError(msg, hint=", ".join(Decision))
    return Decision(said)


def _not_one(prefix: str, count: int) -> InputError:
    how = "no batch" if not count else f"{count} batches"
    return InputError(f"there {'is' if not count else 'are'} {how} {prefix}", hint=_LIST_HINT)
