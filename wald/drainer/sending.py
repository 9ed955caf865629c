"""SENDING and SEARCHING: one attempt of the open batch, and what follows from its outcome."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from wald import limits
from wald.core import delivery
from wald.core.delivery import Event, Parked
from wald.core.row import effective_dead_rev
from wald.drainer.reader import Batch
from wald.drainer.route import LaneMemory, Route, must
from wald.model import (
    NO_REVISION,
    Attempt,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneProgress,
    Manifest,
    Outcome,
    ProgressRow,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Revision,
    RevisionId,
    Unknown,
)

_log = logging.getLogger("wald.drain")


def new_manifest(route: Route, batch: Batch, checkpoint: Checkpoint) -> Manifest:
    """Return what freezes a batch, its first attempt counted."""
    stamp = route.stamp()
    return Manifest(
        number=checkpoint.batch_no + 1,
        lo=checkpoint.lsn + 1,
        prev_rev=checkpoint.rev_id,
        attempts=1,
        revisions=(
            Revision(
                route.new_revision(),
                batch.hi,
                boot_id=stamp.boot_id,
                boot_clock_ns=stamp.boot_clock_ns,
                time_ns=stamp.time_ns,
            ),
        ),
        records=len(batch.records),
        sealed_time_ns=stamp.time_ns,
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        attempt_time_ns=stamp.time_ns,
    )


def send(route: Route, memory: LaneMemory) -> Event:
    """Make one attempt, counted already; its outcome is in the memory.

    A sink that raises has a bug: what it did is unknown, and it is made anew.
    """
    assert memory.sink is not None
    memory.counted = NO_REVISION
    try:
        outcome = memory.sink.deliver(_attempt(route, memory))  # COMMIT POINT: the target's
    except Exception as error:  # noqa: BLE001 - a sink is anybody's code
        _log.error("route %s: the sink raised", route.birth.name, exc_info=error)
        close_sink(route, memory)
        outcome = Unknown(repr(error))
    memory.note(outcome)
    memory.verdict_of = memory.manifest.number
    event = delivery.event_of(outcome, memory.replay)
    if event is Event.UNCERTAIN:
        memory.park(Parked.UNCERTAIN, memory.last_error)
    return event


def close_sink(route: Route, memory: LaneMemory) -> None:
    """Close the sink, whatever it does about it; another one is made when needed."""
    sink, memory.sink = memory.sink, None
    if sink is not None:
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - a sink is anybody's code
            _log.warning("route %s: closing the sink: %r", route.birth.name, error)


def _attempt(route: Route, memory: LaneMemory) -> Attempt:
    assert memory.batch is not None
    manifest, batch = memory.manifest, memory.batch
    revision = manifest.current
    records = batch.records
    if revision.excluded:
        excluded = set(revision.excluded)
        records = [record for record in records if record.lsn not in excluded]
    row = ProgressRow(
        manifest.number,
        revision.rev_id,
        revision.hi,
        batch.anchor,
        route.shared.owner,
        effective_dead_rev(memory.held.checkpoint, revision.rev_id, revision.excluded),
    )
    return Attempt(
        route.key,
        route.birth.stream,
        manifest.prev_rev,
        row,
        records,
        number=manifest.attempts,
        timeout_s=memory.timeout_s,
    )


def finish(
    route: Route, memory: LaneMemory, took_effect: RevisionId, following: Batch | None
) -> None:
    """T5: close the batch by the revision that took effect; T2: seal the following one."""
    assert memory.batch is not None
    manifest, batch = memory.manifest, memory.batch
    revision = next(item for item in manifest.revisions if item.rev_id == took_effect)
    excluded = frozenset(revision.excluded)
    lost = route.letters_of_lost(batch.lost, manifest.number, took_effect, excluded)
    refused = len(excluded)
    # what the log lost since the seal is not in the batch, and counts as lost alone
    delivered = len(batch.records)
    if excluded:
        delivered -= sum(record.lsn in excluded for record in batch.records)
    dead_letters = refused + sum(letter.records for letter in lost)
    before = memory.held.checkpoint
    after = replace(
        before,
        batch_no=manifest.number,
        rev_id=took_effect,
        lsn=revision.hi,
        anchor=batch.anchor,
        dead_rev=effective_dead_rev(before, took_effect, revision.excluded),
        delivered=before.delivered + delivered,
        dead_letters=before.dead_letters + dead_letters,
    )
    finished = FinishedBatch(
        manifest.number,
        took_effect,
        manifest.lo,
        revision.hi,
        delivered + refused,
        dead_letters,
        manifest.attempts,
        manifest.sealed_time_ns,
        route.shared.clock.wall_ns(),
        last_error=manifest.last_error,
        traces=manifest.traces,
    )
    sealed = new_manifest(route, following, after) if following else None
    done = route.shared.ledger.finish(route.key, took_effect, after, finished, lost, sealed)
    must(done=done)  # COMMIT POINT: T5, T2
    memory.guard = memory.guard.with_batch(delivered + refused, refused)
    memory.held = LaneProgress(after, sealed)
    memory.batch = following
    memory.counted = sealed.current.rev_id if sealed else NO_REVISION


def search(route: Route, memory: LaneMemory) -> Event:
    """Find every refused record by probes, then exclude them in a revision (T3)."""
    assert isinstance(memory.outcome, Rejected)
    found = _probe_all(route, memory, memory.outcome)
    if not isinstance(found, tuple):
        memory.note(found)
        return delivery.event_of(found, ReplayClass.TRANSACTIONAL)
    if not found:
        return Event.NO_CULPRIT
    manifest = memory.manifest
    excluded = {*manifest.current.excluded, *(item.lsn for item in found)}
    if memory.guard.too_many(manifest.records, len(excluded)):
        memory.say(
            f"too-many-rejects: {len(excluded)} of {manifest.records} records, "
            f"the first: {found[0].message}"
        )
        return Event.TOO_MANY
    if memory.held.checkpoint.dead_letters + len(excluded) > limits.DEAD_LETTERS_MAX:
        _park_full(route, memory, found)
        return Event.QUOTA
    _exclude(route, memory, found)
    return Event.CULPRITS


def _park_full(route: Route, memory: LaneMemory, found: tuple[RejectedRecord, ...]) -> None:
    """Set nothing more aside: ledger and dead log are bounded. Tried again now and then."""
    before = memory.last_error
    memory.park(
        Parked.QUOTA,
        f"dead-letter-quota: with {len(found)} more the route's dead letters were above "
        f"{limits.DEAD_LETTERS_MAX:,}; the first: {found[0].message}",
    )
    if memory.last_error != before:
        _log.error("route %s: %r", route.birth.name, memory.last_error)


def _probe_all(
    route: Route, memory: LaneMemory, rejected: Rejected
) -> tuple[RejectedRecord, ...] | Outcome:
    """Return all refused records, or the outcome that ended the search."""
    assert memory.sink is not None
    attempt = _attempt(route, memory)
    steps = delivery.find_refused(attempt.records, rejected.records)
    try:
        records = next(steps)
        while True:
            answer = memory.sink.probe(attempt, records)
            if not isinstance(answer, Rejected | Sequence):
                return answer
            records = steps.send(answer)
    except StopIteration as end:
        return tuple(end.value)


def _exclude(route: Route, memory: LaneMemory, found: tuple[RejectedRecord, ...]) -> None:
    assert memory.batch is not None
    shared, manifest = route.shared, memory.manifest
    before = manifest.current
    known, refused = _known(route, before, memory.batch)
    rev_id = route.new_revision()
    previous = memory.held.checkpoint.dead_rev
    letters: list[DeadLetter] = route.set_aside(
        manifest,
        rev_id,
        previous,
        sorted([*refused, *found], key=lambda item: item.lsn),
        memory.batch.records,
    )  # COMMIT POINT: the dead log
    letters = sorted([*known, *letters], key=lambda letter: letter.lsn)
    revision = Revision(rev_id, before.hi, tuple(letter.lsn for letter in letters))
    stamp = route.stamp(memory.last_error)
    must(done=shared.ledger.revise(route.key, before.rev_id, revision, letters, stamp))
    # COMMIT POINT: T3
    memory.held = shared.ledger.lane(route.key)
    memory.counted = rev_id


def _known(
    route: Route, revision: Revision, batch: Batch
) -> tuple[list[DeadLetter], list[RejectedRecord]]:
    """Return the refusals of the revision before: an earlier search's, in this life or another.

    First the letters of those whose record the log has lost since: their body stays where it is.
    """
    letters = route.shared.ledger.set_aside(route.key, revision.rev_id)
    here = {record.lsn for record in batch.records}
    return (
        [letter for letter in letters if letter.lsn not in here],
        [
            RejectedRecord(letter.lsn, letter.code, letter.message)
            for letter in letters
            if letter.lsn in here
        ],
    )
