"""SETTLING, and SEARCHING where nothing can be rolled back: what becomes of a batch in parts.

Every step is a new revision (T3): what took effect is not sent again, what was refused for good is
a dead letter once the batch is closed, what is wanted later or is too many at once goes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wald.core import outcomes, shaping
from wald.core.delivery import Event
from wald.core.shaping import Output
from wald.drainer import doubt, freezing
from wald.drainer.aside import known_refusals, may_set_aside
from wald.drainer.redriving import exclude_again
from wald.drainer.route import LaneMemory, Route, must
from wald.model import (
    NO_REVISION,
    DeadLetter,
    Lsn,
    Partial,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RevisionId,
    TooLarge,
)
from wald.storage.deadlog import DeadEntry


def settle(route: Route, memory: LaneMemory) -> Event:
    """Make durable what a part of the batch came to, or send less of it at a time."""
    outcome = memory.outcome
    if isinstance(outcome, Partial):
        return _settle_part(route, memory, outcome)
    assert isinstance(outcome, TooLarge)
    return _send_less(route, memory, outcomes.TOO_LARGE, outcome.message)


def settle_refused(route: Route, memory: LaneMemory, rejected: Rejected) -> Event:
    """Set aside what a target without transactions refused; halve where it does not say what.

    Nothing can be tried there and rolled back: each half is sent for good.
    """
    if rejected.records:
        return set_aside(route, memory, rejected.records) or Event.CULPRITS
    return _send_less(route, memory, rejected.code, rejected.message)


def set_aside(route: Route, memory: LaneMemory, refused: Sequence[RejectedRecord]) -> Event | None:
    """T3: exclude refused records, and count the attempt without them; else say why not.

    Of a shaped batch every record goes that stands behind a refused one, and nothing that a newer
    one has superseded comes back.
    """
    outputs = freezing.outputs_of(memory)
    if outputs is not None:
        refused = shaping.spread(outputs, refused)
        outputs = shaping.less(outputs, {item.lsn for item in refused})
    if memory.manifest.is_redrive:
        exclude_again(route, memory, tuple(refused))
        return None
    unless = may_set_aside(route, memory, refused)
    if unless is None:
        revise(route, memory, Change(refused=tuple(refused), outputs=outputs))
    return unless


def settle_by_person(route: Route, memory: LaneMemory, code: str, why: str) -> None:
    """T3: set aside all that is left of the open batch, whatever the guard would say."""
    refused = tuple(RejectedRecord(lsn, code, why) for lsn in _left(memory))
    if memory.manifest.is_redrive:
        exclude_again(route, memory, refused)
    else:
        outputs = None if freezing.outputs_of(memory) is None else ()
        revise(route, memory, Change(refused=refused, outputs=outputs))


@dataclass(frozen=True, slots=True)
class Change:
    """What a new revision changes of the one before; None leaves a field as it is.

    ``outputs`` is what is left to be sent of a shaped batch; None to shape it anew.
    """

    refused: tuple[RejectedRecord, ...] = ()
    taken: tuple[Lsn, ...] = ()
    hi: Lsn | None = None
    redriven: tuple[Lsn, ...] | None = None
    outputs: tuple[Output, ...] | None = None
    retries: int = 0
    begins: bool = True
    settles: bool = False  # the attempt before was answered for each record: it leaves no doubt


def revise(route: Route, memory: LaneMemory, change: Change) -> None:
    """T3: add a revision; behind a synced entry of the dead log if it excludes records."""
    assert memory.batch is not None
    manifest = memory.manifest
    before, hi = manifest.current, change.hi or manifest.current.hi
    redriven = before.redriven if change.redriven is None else change.redriven
    rev_id = route.new_revision()
    if manifest.is_redrive:
        letters = _named_again(route, memory, rev_id, redriven)
    else:
        letters = _letters(route, memory, rev_id, hi, change.refused)
    stamp = doubt.attempt_stamp(route, memory, begins=change.begins)
    if change.settles:
        stamp = replace(stamp, cleared=manifest.attempts)
    if change.redriven is not None:
        gone = len(before.redriven) - len(redriven)
        stamp = replace(stamp, records=manifest.records - gone)
    elif change.hi is not None:
        stamp = replace(stamp, records=sum(each.lsn <= hi for each in memory.batch.records))
    revision = replace(
        before,
        rev_id=rev_id,
        hi=hi,
        excluded=() if manifest.is_redrive else tuple(letter.lsn for letter in letters),
        settled=tuple(sorted({*before.settled, *change.taken})),
        redriven=redriven,
        retries=change.retries,
        superseded=_still_superseded(memory, change),
        encoder="",
        digest=b"",
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        time_ns=stamp.time_ns,
        batches=stamp.batches,
    )
    work = replace(freezing.open_work(memory), revision=revision)
    revision = freezing.freeze_if_it_works(route, memory, work, change.outputs)
    replaces = memory.replay is not ReplayClass.TRANSACTIONAL  # no row names an older one
    done = route.shared.ledger.revise(
        route.key, before.rev_id, revision, letters, stamp, replaces=replaces
    )
    must(done=done)  # COMMIT POINT: T3
    memory.held = route.shared.ledger.lane(route.key)
    memory.counted = rev_id if change.begins else NO_REVISION
    freezing.forget(route, before)


def _still_superseded(memory: LaneMemory, change: Change) -> int:
    """Return how many records stay covered by others; those that are refused now are not."""
    outputs = freezing.outputs_of(memory) or ()
    sent = {output.record.lsn for output in outputs}
    gone = {item.lsn for item in change.refused} - sent
    return max(0, memory.manifest.current.superseded - (len(gone) if outputs else 0))


def _letters(
    route: Route,
    memory: LaneMemory,
    rev_id: RevisionId,
    hi: Lsn,
    found: Sequence[RejectedRecord],
) -> list[DeadLetter]:
    """Return all dead letters of a revision, their bodies synced in the dead log."""
    assert memory.batch is not None
    manifest = memory.manifest
    letters, known, lost = known_refusals(route, manifest.current, memory.batch)
    refused = {item.lsn: item for item in [*known, *found] if item.lsn <= hi}
    if refused:
        letters += route.set_aside(
            manifest,
            rev_id,
            memory.held.checkpoint.dead_rev,
            [refused[lsn] for lsn in sorted(refused)],
            [*memory.batch.records, *lost],
        )  # COMMIT POINT: the dead log
    return sorted((each for each in letters if each.lsn <= hi), key=lambda letter: letter.lsn)


def _named_again(
    route: Route, memory: LaneMemory, rev_id: RevisionId, redriven: tuple[Lsn, ...]
) -> list[DeadLetter]:
    """Name in the dead log what a revision redrives; return what was refused again before."""
    if redriven:
        entry = DeadEntry(rev_id, memory.held.checkpoint.dead_rev, (), redriven)
        route.shared.dead_log.append(entry)  # COMMIT POINT: the dead log
    rev_before = memory.manifest.current.rev_id
    return list(route.shared.ledger.set_aside(route.key, rev_before))


def _settle_part(route: Route, memory: LaneMemory, part: Partial) -> Event:
    before = memory.manifest.current
    found = outcomes.settle(part, memory.sent, memory.replay, before.retries)
    if memory.manifest.is_redrive:
        return _settle_redrive(route, memory, found)
    refused, taken, left = _of_the_log(memory, found)
    unless = may_set_aside(route, memory, refused) if refused else None
    if unless is not None and not taken and memory.replay is not ReplayClass.WINDOW:
        doubt.clear_uncalled(memory, in_doubt=False)  # each record was answered for: none taken
        return unless  # nothing has changed; a window's target wants another id
    if unless is not None:  # what took effect did: the refused ones wait with the rest
        left = _not_taken(memory, found)
        revise(
            route,
            memory,
            Change((), taken, None, None, left, before.retries, begins=False, settles=True),
        )
        return unless
    rest = bool(found.rest)
    retries = found.retries if rest else 0
    revise(
        route,
        memory,
        Change(refused, taken, None, None, left, retries, begins=not rest, settles=True),
    )
    return Event.REST if rest else Event.NOTHING_LEFT


def _of_the_log(
    memory: LaneMemory, found: outcomes.Settlement
) -> tuple[tuple[RejectedRecord, ...], tuple[Lsn, ...], tuple[Output, ...] | None]:
    """Return what was refused and what took effect as records of the log, and what is left."""
    outputs = freezing.outputs_of(memory)
    if outputs is None:
        return found.refused, found.taken, None
    rest = set(found.rest)
    left = tuple(output for output in outputs if output.record.lsn in rest)
    refused = shaping.spread(outputs, found.refused)
    open_lsns = {lsn for output in left for lsn in output.sources}
    taken = shaping.standing_for(outputs, set(found.taken)) - open_lsns
    taken -= {item.lsn for item in refused}
    return refused, tuple(sorted(taken)), left


def _not_taken(memory: LaneMemory, found: outcomes.Settlement) -> tuple[Output, ...] | None:
    outputs, taken = freezing.outputs_of(memory), set(found.taken)
    if outputs is None:
        return None
    return tuple(output for output in outputs if output.record.lsn not in taken)


def _settle_redrive(route: Route, memory: LaneMemory, found: outcomes.Settlement) -> Event:
    """What is refused again stays the dead letter that it was."""
    refused, taken, left = _of_the_log(memory, found)
    if refused:
        exclude_again(route, memory, refused)
    rest = bool(found.rest)
    retries = found.retries if rest else 0
    revise(
        route, memory, Change((), taken, None, None, left, retries, begins=not rest, settles=True)
    )
    return Event.REST if rest else Event.NOTHING_LEFT


def _send_less(route: Route, memory: LaneMemory, code: str, message: str) -> Event:
    """Send the first half; a record that is alone is refused for good."""
    lsns = _left(memory)
    if len(lsns) == 1:
        sent = freezing.to_send(memory)[0].lsn
        alone = (RejectedRecord(sent, code, message),)
        return set_aside(route, memory, alone) or Event.CULPRITS
    if memory.manifest.is_redrive:
        return _cut_redrive(route, memory, lsns)
    hi = outcomes.cut_at(lsns, memory.manifest.current.settled)
    if hi is None:  # what took effect stands behind it: it cannot be left to the next batch
        left = freezing.to_send(memory)
        memory.sent = tuple(dict.fromkeys(record.lsn for record in left))
        wanted = tuple(RejectedRecord(lsn, code, message) for lsn in memory.sent)
        return _settle_part(route, memory, Partial(retry=wanted, message=message))
    revise(route, memory, Change(hi=hi, retries=memory.manifest.current.retries, begins=False))
    memory.batch = None
    if memory.reader is not None:  # it is behind what is the next batch's now
        memory.reader.close()
        memory.reader = None
    return Event.CUT


def _left(memory: LaneMemory) -> list[Lsn]:
    """Return the records of the log that stand behind what is left to be sent."""
    outputs = freezing.outputs_of(memory)
    if outputs is None:
        return [record.lsn for record in freezing.to_send(memory)]
    return sorted({lsn for output in outputs for lsn in output.sources})


def _cut_redrive(route: Route, memory: LaneMemory, lsns: Sequence[Lsn]) -> Event:
    """Redrive the first half; the rest stays asked for."""
    kept = {*lsns[: (len(lsns) + 1) // 2], *memory.manifest.current.settled}
    redriven = tuple(lsn for lsn in memory.manifest.current.redriven if lsn in kept)
    revise(route, memory, Change(redriven=redriven, begins=False))
    return Event.CUT
