"""What ``drain.page`` says of routes: each is the sum of its lanes, and as good as its worst."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wald import limits
from wald.config import SinkSettings
from wald.core import healing, traffic
from wald.core.lanes import Layout, badness
from wald.drainer.lane import Lane
from wald.drainer.lane_figures import LaneFigures
from wald.drainer.layout import RouteLanes
from wald.model import RouteBirth

_LANE_ERROR_CHARS = 80
_LANE_MAX_BYTES = 160 + 4 * _LANE_ERROR_CHARS  # of a lane's line
_HALTED_SHOWN = 8
_NOTE_MAX_BYTES = 4 * limits.NOTE_MAX_CHARS + 24
_TEXTS = 3  # of a route: its last error, and the message and the hint of a breaker


def route_figures(route: RouteLanes) -> dict[str, Any]:
    """Return what is said of a route that is delivered."""
    running = list(route.each())
    said = summed(route.template.birth, [lane.figures for lane in running], route.at_rest())
    if said["dead_letters"] >= route.template.settings.dead_letters.alarm_records:
        said["alarm"] = "dead-letters"
    said["through_lsn"] = route.through_lsn()
    since_ns = route.template.crew.paused_ns
    if since_ns is not None:
        said["paused_ns"] = since_ns
        if said["state"] != "delivering":
            said["state"] = "paused"
    said["traffic"] = _traffic([lane.figures for lane in running], route.template.sink)
    said["lane_count"] = route.layout.lanes
    said["workers"] = min(route.template.crew.places, route.layout.lanes)
    if len(running) > 1 or route.layout.number:
        said["lanes"] = [lane_line(lane) for lane in running]
    if route.layout.sink:
        since, own = route.layout.since, route.own.word
        said["fallback"] = {"sink": route.layout.sink, "after_lsn": since, "own": own}
    shared, name = route.template.shared, route.template.birth.name
    now_ns = shared.clock.monotonic_ns()
    if faults := shared.faults.of(name, now_ns):  # also while the lanes have nothing to say
        said["policy"] = {**said["policy"], "faults": [fault.text(now_ns) for fault in faults]}
    if route.layout.is_changing:
        said["change"] = _change(route.layout, route.waits_for())
    return said


def summed(
    birth: RouteBirth, running: Sequence[LaneFigures], at_rest: Sequence[LaneFigures] = ()
) -> dict[str, Any]:
    """Return the figures of a route from those of its lanes.

    Args:
        birth: the route.
        running: of the lanes at work, and of former ones that have something to do.
        at_rest: of former lanes that have not: only their counts are the route's.
    """
    every = [*running, *at_rest]
    worst = max(
        running, key=lambda each: (badness(each.state), bool(each.last_error), -each.through_lsn)
    )
    oldest = [each.oldest_pending_ns for each in running if each.oldest_pending_ns is not None]
    halted = sorted(lsn for each in running for lsn in each.halted)
    return {
        "route_id": birth.route_id,
        "stream": birth.stream,
        "sink": birth.sink,
        "class": next((each.replay for each in running if each.replay), ""),
        "state": worst.state,
        "through_lsn": min(each.through_lsn for each in running),
        "delivered": sum(each.delivered for each in every),
        "dead_letters": sum(each.dead_letters for each in every),
        "purged": sum(each.purged for each in every),
        "redrives": sum(each.redrives for each in running),
        "batch_no": sum(each.batch_no for each in every),
        "attempts": max(each.attempts for each in running),
        "last_error": worst.last_error,
        "oldest_pending_ns": min(oldest, default=None),
        "parked": worst.parked,
        "halted": halted[:_HALTED_SHOWN],
        "policy": {**worst.policy, **_newest_healing(running), **_notes(running)},
    }


def _notes(running: Sequence[LaneFigures]) -> dict[str, Any]:
    """Return what the sinks of all lanes ignored or counted, by reason."""
    total: Counter[str] = Counter()
    for each in running:
        total.update(each.policy.get("notes") or {})
    return {"notes": dict(total)} if total else {}


def _newest_healing(running: Sequence[LaneFigures]) -> dict[str, Any]:
    """Return the newest note with the records of all lanes that met the same going back."""
    numbers = [each.policy["healing"] for each in running if each.policy.get("healing")]
    notes = [note for note in map(healing.from_numbers, numbers) if note is not None]
    return {"healing": healing.of_lanes(notes).numbers()} if notes else {}


def lane_line(lane: Lane) -> dict[str, Any]:
    """Return what is said of one lane."""
    figures = lane.figures
    return {
        "layout": lane.route.layout,
        "lane": lane.route.lane,
        "state": figures.state,
        "parked": figures.parked,
        "through_lsn": figures.through_lsn,
        "delivered": figures.delivered,
        "dead_letters": figures.dead_letters,
        "batch_no": figures.batch_no,
        "attempts": figures.attempts,
        "oldest_pending_ns": figures.oldest_pending_ns,
        "last_error": figures.last_error[:_LANE_ERROR_CHARS],
    }


def _traffic(running: Sequence[LaneFigures], sink: SinkSettings) -> list[Any]:
    """Return requests, records, bytes and cost since the process began."""
    total = traffic.summed([each.traffic for each in running])
    cost = total.cost(sink.cost_per_request, sink.cost_per_kib)
    return [*total, None if cost is None else float(f"{cost:.6g}")]


def _change(layout: Layout, waits_for: Sequence[Lane]) -> dict[str, Any]:
    """Return what is said of a change of the number of lanes."""
    parked = [lane for lane in waits_for if lane.figures.parked]
    return {
        "from": layout.lanes,
        "to": layout.next_lanes,
        "barrier": layout.barrier,
        "waits_for": [lane.route.lane for lane in waits_for],
        "blocked_by": [lane.route.lane for lane in parked],
    }


def fitting_the_page(routes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures cut, so that any number of routes fits ``drain.page``.

    Errors are shortened; of many lanes only the first routes' are listed one by one.
    """
    share = limits.PAGE_ERRORS_MAX_BYTES // max(1, len(routes)) // _TEXTS
    notes_max = limits.PAGE_NOTES_MAX_BYTES // max(1, len(routes)) // _NOTE_MAX_BYTES
    room_lanes = limits.PAGE_LANES_MAX_BYTES // _LANE_MAX_BYTES
    for figures in routes.values():
        figures["last_error"] = _cut(figures["last_error"], share)
        breaker = figures["policy"].get("breaker")
        if breaker:
            cut = {key: _cut(breaker[key], share) for key in ("message", "hint")}
            figures["policy"] = {**figures["policy"], "breaker": {**breaker, **cut}}
        notes = figures["policy"].get("notes")
        if notes and len(notes) > notes_max:
            figures["policy"] = {**figures["policy"], "notes": _fewer(notes, notes_max)}
        if len(figures.get("lanes", ())) > room_lanes:
            figures["lanes"] = []
        room_lanes -= len(figures.get("lanes", ()))
    return routes


def _fewer(notes: Mapping[str, int], most: int) -> dict[str, int]:
    """Return some counts by themselves, and all others as one."""
    kept = dict(list(notes.items())[: max(0, most - 1)])
    left = sum(notes.values()) - sum(kept.values())
    return {**kept, "other": kept.get("other", 0) + left}


def _cut(text: str, share_bytes: int) -> str:
    if len(text) * 4 <= share_bytes:  # no character is longer
        return text
    return text.encode(errors="replace")[:share_bytes].decode(errors="ignore")
