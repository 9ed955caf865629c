"""Before an attempt: what is sent is at hand, and is what the ledger names; or is made anew."""

import logging

from wald.core import shaping
from wald.core.delivery import Event
from wald.drainer import doubt, freezing
from wald.drainer.route import LaneMemory, Route
from wald.drainer.settling import Change, revise
from wald.drainer.shaping import NeverWorks, RecordsFail
from wald.errors import FormatDamaged, FormatNewer
from wald.model import Rejected, ReplayClass, Systemic, SystemicKind, TooLarge

_log = logging.getLogger("wald.drain")
_HINT = "mend the function, or the configuration that names it"
_MAY_DOUBLE = frozenset({ReplayClass.WINDOW, ReplayClass.NONE})


def thaw(route: Route, memory: LaneMemory) -> Event | None:
    """Have what the open batch's revision sends at hand; return what happens instead of sending."""
    revision = memory.manifest.current
    if not freezing.freezes(route, memory):
        return None
    if memory.frozen[0] != revision.rev_id:
        if not _read(route, memory) and _must_hold(route, memory):
            return Event.UNCERTAIN
        if memory.frozen[0] != revision.rev_id:
            return _make_anew(route, memory)
    return _is_too_large(memory)


def look(route: Route, memory: LaneMemory) -> None:
    """Have at hand what was kept, if it can be read; nothing is made anew."""
    if memory.frozen[0] != memory.manifest.current.rev_id:
        _read(route, memory)


def _read(route: Route, memory: LaneMemory) -> bool:
    """Take what was kept; False if something was that cannot be believed any more."""
    revision = memory.manifest.current
    if not revision.digest:
        return True
    try:
        content = freezing.files(route).read(route.key, revision.rev_id, revision.digest)
        memory.frozen = (revision.rev_id, shaping.unpack(content))
    except (FormatDamaged, FormatNewer) as error:
        _log.error("route %s: %s", route.birth.name, error.message)
        memory.say(error.message)
        return False
    return True


def _must_hold(route: Route, memory: LaneMemory) -> bool:
    """T11: what may have taken effect in a form that is lost is not sent in another one."""
    facts = doubt.facts(route, memory, attempts=memory.manifest.attempts - 1)
    if not facts.in_doubt or facts.replay not in _MAY_DOUBLE:
        return False
    doubt.hold(route, memory, f"frozen-body-lost: {memory.last_error}")
    return True


def _make_anew(route: Route, memory: LaneMemory) -> Event | None:
    """T3: a revision that sends the same records, made anew under a new id."""
    manifest = memory.manifest
    before = doubt.facts(route, memory, attempts=manifest.attempts - 1)
    outcome: Rejected | Systemic
    try:
        freezing.make(route, memory, freezing.open_work(memory))  # to see whether it works
    except RecordsFail as fail:
        outcome = Rejected(fail.refused, str(fail), shaping.TRANSFORM_FAILED)
        event = Event.REJECTED
    except NeverWorks as never:
        outcome = Systemic(SystemicKind.CONFIGURATION, str(never), _HINT)
        event = Event.SYSTEMIC
    else:
        doubt.clear_uncalled(memory, in_doubt=before.in_doubt)
        # made once more: a request may name its revision
        revise(route, memory, Change(retries=manifest.current.retries))
        return _is_too_large(memory)
    memory.note(outcome)
    doubt.take_in(route, memory, outcome, in_doubt=before.in_doubt)
    return event


def _is_too_large(memory: LaneMemory) -> Event | None:
    """Tell whether a transform made more records than the target takes at a time."""
    assert memory.sink is not None
    outputs, most = freezing.outputs_of(memory), memory.sink.capabilities.max_records
    if outputs is None or len(outputs) <= most:
        return None
    memory.note(TooLarge(f"{len(outputs):,} records are made of it, the target takes {most:,}"))
    return Event.TOO_LARGE
