"""Whether a batch may be sent (again): what is known of the attempts before, and for how long.

An attempt that was counted and of which nobody knows what it did leaves the batch *in doubt*. Then
the class of the target decides (``core.outcomes``): it is sent again, or held for a person (T11).
"""

import contextlib
import logging
from dataclasses import replace

from wald.core import manifests, outcomes
from wald.core.delivery import Event, Parked
from wald.core.outcomes import Facts
from wald.core.window import Moment, Window, WindowCase, WindowFacts, judge_window
from wald.drainer.freezing import files
from wald.drainer.route import LaneMemory, Route, must
from wald.errors import WaldError
from wald.model import (
    AttemptStamp,
    Decision,
    Delivered,
    LaneProgress,
    Manifest,
    Mark,
    Outcome,
    Partial,
    ReplayClass,
    Revision,
)

_log = logging.getLogger("wald.drain")
_MAY_DOUBLE = frozenset({ReplayClass.WINDOW, ReplayClass.NONE})


def facts(route: Route, memory: LaneMemory, *, attempts: int) -> Facts:
    """Return what decides behind so many attempts of the open batch."""
    revision = memory.manifest.current
    return Facts(
        memory.replay,
        in_doubt=attempts > cleared(memory),
        window_open=memory.replay is ReplayClass.WINDOW
        and _window(route, memory, revision).window is Window.OPEN,
        resend=route.settings.on_unknown == "resend",
    )


def cleared(memory: LaneMemory) -> int:
    """Return up to which attempt of the open batch it is known what took effect."""
    number, attempts = memory.cleared
    manifest = memory.manifest
    return max(manifest.cleared, attempts if number == manifest.number else 0)


def take_in(route: Route, memory: LaneMemory, outcome: Outcome, *, in_doubt: bool) -> None:
    """Remember what an outcome clears; durably where a restart would be in doubt for nothing.

    What took effect is cleared only by the T3 or T5 that says so: until then a second attempt
    may double it.
    """
    manifest = memory.manifest
    if isinstance(outcome, Delivered | Partial):
        return
    if not outcomes.leaves_no_doubt(outcome, in_doubt=in_doubt):
        return
    memory.cleared = (manifest.number, manifest.attempts)
    keeps = memory.replay is ReplayClass.WINDOW or (
        memory.replay is ReplayClass.NONE and route.settings.on_unknown == "hold"
    )
    if keeps and not isinstance(outcome, outcomes.SETTLING):  # those are followed by T3 or T5
        _mark(route, memory, Mark(cleared=manifest.attempts))


def clear_uncalled(memory: LaneMemory, *, in_doubt: bool) -> None:
    """Remember that the attempt that was counted was not made."""
    if not in_doubt:
        memory.cleared = (memory.manifest.number, memory.manifest.attempts)


def take_back(route: Route, memory: LaneMemory) -> None:
    """T11: note that the attempt that was counted was not begun, before the lane lets go.

    If the ledger cannot take it the next start is in doubt for nothing, and no more.
    """
    manifest = memory.held.manifest
    if manifest is None or memory.counted != manifest.current.rev_id:
        return
    if memory.replay in _MAY_DOUBLE and manifest.attempts - 1 <= cleared(memory):
        with contextlib.suppress(WaldError):
            _mark(route, memory, Mark(cleared=manifest.attempts))


def leave_word(route: Route, memory: LaneMemory) -> None:
    """Note that the last attempt came to an end, before the lane ends with its batch open.

    Else the next start would take an orderly stop for a crash in it.
    """
    manifest = memory.held.manifest
    if manifest is None or memory.verdict_of != manifest.number:
        return
    if memory.counted != manifest.current.rev_id and manifests.is_in_doubt(manifest):
        with contextlib.suppress(Exception):  # then it is counted as a crash, and no more
            route.shared.ledger.note(_verdict(route), (manifest.number, manifest.attempts))


def _verdict(route: Route) -> str:
    return f"verdict {route.birth.route_id}.{route.layout}.{route.lane}"


def attempt_stamp(
    route: Route, memory: LaneMemory, *, crashes: int = 0, begins: bool = True
) -> AttemptStamp:
    """Return the stamp of the open batch's next attempt."""
    return replace(
        route.stamp(memory.last_error, crashes),
        cleared=cleared(memory),
        begins=begins,
        batches=sent_batches(route, memory),
    )


def why_not(route: Route, memory: LaneMemory) -> Event | None:
    """Return UNCERTAIN, having held the batch (T11), if it must not be sent again; else None."""
    manifest = memory.manifest
    if manifest.decision:
        return None
    if manifest.held:
        memory.park(Parked.UNCERTAIN, manifest.held)
        return Event.UNCERTAIN
    found = facts(route, memory, attempts=manifest.attempts)
    row = outcomes.resend_of(found)
    if not row.send:
        hold(route, memory, _reason(route, memory, row.label))
        return Event.UNCERTAIN
    if found.in_doubt and memory.replay is ReplayClass.NONE:
        memory.count(outcomes.RESENT)
    return None


def count_again(route: Route, memory: LaneMemory) -> bool:
    """T4: count a further attempt of the open batch; False if it waits for a person instead."""
    manifest = memory.manifest
    died_making = memory.died_making == manifest.number
    memory.died_making = 0
    if died_making:  # so that nothing was sent in that attempt
        before = facts(route, memory, attempts=manifest.attempts - 1)
        clear_uncalled(memory, in_doubt=before.in_doubt)
    known = not died_making and (
        memory.verdict_of == manifest.number
        or not manifests.is_in_doubt(manifest)
        or route.shared.ledger.note(_verdict(route)) == (manifest.number, manifest.attempts)
    )
    if why_not(route, memory) is not None:
        return False
    # without a verdict the process died in the one before
    stamp = attempt_stamp(route, memory, crashes=0 if known else manifest.crashes + 1)
    rev_id, ledger = manifest.current.rev_id, route.shared.ledger
    must(done=ledger.attempt(route.key, rev_id, stamp))  # COMMIT POINT: T4
    memory.held = ledger.lane(route.key)
    memory.counted = rev_id
    return True


def hold(route: Route, memory: LaneMemory, why: str) -> None:
    """T11: the open batch waits for a person from now on."""
    _mark(route, memory, Mark(held=why, cleared=cleared(memory)))
    _log.error(
        "route %s: batch %s is held as uncertain: %s; see 'wald batch show %s'",
        route.birth.name,
        memory.manifest.number,
        why,
        memory.manifest.current.rev_id.hex()[:8],
    )
    memory.park(Parked.UNCERTAIN, why)


def still_held(route: Route, memory: LaneMemory) -> bool:
    """Tell whether the open batch waits for a person; the memory then says so too.

    A lane that begins, or begins anew, removes what a life before kept for nothing.
    """
    manifest = memory.held.manifest
    if memory.reader is None:
        keep = [revision.rev_id for revision in manifest.revisions] if manifest else []
        died_making = files(route).begin(route.key, keep, route.shared.clock.boot_id())
        memory.died_making = died_making or memory.died_making
    if manifest is None or not manifest.held:
        return False
    memory.park(Parked.UNCERTAIN, manifest.held)
    return True


def is_decided(manifest: Manifest, decision: Decision) -> bool:
    """Tell whether a person said this of the open batch."""
    return manifest.decision == decision.value


def sent_batches(route: Route, memory: LaneMemory) -> int:
    """Return how many batches all other lanes to this sink have sent, if that matters.

    The lane itself sends no other batch before the open one is closed.
    """
    if memory.sink is None or memory.sink.capabilities.window_batches is None:
        return 0
    ledger = route.shared.ledger
    births = [birth for birth in ledger.births() if birth.sink == route.birth.sink]
    lanes = [item for birth in births for item in ledger.lanes(birth.route_id).items()]
    return sum(
        held.checkpoint.batch_no + (held.manifest is not None)
        for key, held in lanes
        if key != route.key
    )


def _mark(route: Route, memory: LaneMemory, mark: Mark) -> None:
    rev_id = memory.manifest.current.rev_id
    must(done=route.shared.ledger.mark(route.key, rev_id, mark))  # COMMIT POINT: T11
    after = manifests.mark(memory.held, rev_id, mark)
    assert after is not None
    memory.held = LaneProgress(memory.held.checkpoint, after.manifest)


def _window(route: Route, memory: LaneMemory, revision: Revision) -> WindowCase:
    assert memory.sink is not None
    able, now = memory.sink.capabilities, route.stamp()
    return judge_window(
        WindowFacts(
            able.window_s,
            able.window_batches,
            Moment(revision.boot_id, revision.boot_clock_ns, revision.time_ns),
            Moment(now.boot_id, now.boot_clock_ns, now.time_ns),
            route.settings.attempt_timeout_s,
            max(0, sent_batches(route, memory) - revision.batches),
        )
    )


def _reason(route: Route, memory: LaneMemory, label: str) -> str:
    said = memory.last_error or memory.manifest.last_error or "the process ended in it"
    if memory.replay is ReplayClass.WINDOW:
        case = _window(route, memory, memory.manifest.current)
        label = f"{label} ({case.label}: {case.when})"
    return f"{label}: an attempt may have taken effect, and sending again may double; {said}"
