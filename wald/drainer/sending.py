"""SENDING and SEARCHING: one attempt of the open batch, and what follows from its outcome."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from wald import limits
from wald.core import delivery, outcomes, shaping
from wald.core.delivery import Event, Parked, RejectGuard
from wald.core.outcomes import Facts
from wald.core.row import effective_dead_rev
from wald.core.traffic import REQUESTS, Traffic
from wald.core.where import sampled
from wald.drainer import freezing
from wald.drainer.aside import is_pardoned
from wald.drainer.doubt import facts, hold, is_decided, sent_batches, take_in
from wald.drainer.producers import trace_of
from wald.drainer.reader import Batch, LaneReader
from wald.drainer.recalling import name_final, why_unsure
from wald.drainer.redriving import close_redrive
from wald.drainer.route import LaneMemory, Route, Sealing, must
from wald.drainer.settling import set_aside, settle_by_person, settle_refused
from wald.drainer.thawing import look, thaw
from wald.errors import LedgerFailed
from wald.model import (
    NO_REVISION,
    Attempt,
    Checkpoint,
    DeadLetter,
    Decision,
    Delivered,
    FinishedBatch,
    LaneProgress,
    Manifest,
    Outcome,
    Partial,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Revision,
    RevisionId,
    RowMoved,
    Systemic,
    Unknown,
)

_log = logging.getLogger("wald.drain")
_LSN, _VALUE = attrgetter("lsn"), attrgetter("value")


def new_manifest(
    route: Route, memory: LaneMemory, batch: Batch, checkpoint: Checkpoint
) -> Manifest:
    """Return what freezes a batch, its first attempt counted; what it sends is kept already."""
    stamp = route.stamp()
    revision = Revision(
        route.new_revision(),
        batch.hi,
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        time_ns=stamp.time_ns,
        batches=sent_batches(route, memory),
    )
    manifest = Manifest(
        number=checkpoint.batch_no + 1,
        lo=checkpoint.lsn + 1,
        prev_rev=checkpoint.rev_id,
        attempts=1,
        revisions=(revision,),
        records=len(batch.records),
        sealed_time_ns=stamp.time_ns,
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        attempt_time_ns=stamp.time_ns,
        traces=sampled(batch.records, _LSN, trace_of, route.shared.trace_sample),
        held=why_unsure(memory, batch.hi),
    )
    if not freezing.freezes(route, memory):
        return manifest
    if memory.died_making == manifest.number:  # made behind the seal, so that deaths are counted
        memory.died_making = 0
        return replace(manifest, cleared=1, crashes=1)
    work = freezing.Work(manifest, revision, batch, checkpoint)
    frozen = freezing.freeze_if_it_works(route, memory, work)
    # without a digest the attempt that is counted cannot be made
    return replace(manifest, revisions=(frozen,), cleared=0 if frozen.digest else 1)


def seal(route: Route, memory: LaneMemory, batch: Batch) -> Event:
    """T2: seal a batch; UNCERTAIN if it waits for a person from the start."""
    checkpoint = memory.held.checkpoint
    manifest = new_manifest(route, memory, batch, checkpoint)
    must(done=route.shared.ledger.seal(route.key, manifest))  # COMMIT POINT: T2
    memory.held = LaneProgress(checkpoint, manifest)
    memory.batch = batch
    if manifest.held:
        memory.park(Parked.UNCERTAIN, manifest.held)
        return Event.UNCERTAIN
    memory.counted = manifest.current.rev_id
    return Event.SEALED


def foregone(route: Route, memory: LaneMemory) -> Event | None:
    """Return what the open batch comes to without an attempt; None if there must be one.

    So it is once a person has decided, and where no row waits for the batch and nothing of it is
    left to be sent.
    """
    manifest = memory.manifest
    if is_decided(manifest, Decision.DEAD_LETTER):
        look(route, memory)
        if freezing.to_send(memory):
            why = f"a person decided so; {manifest.last_error or 'nothing was answered'}"
            settle_by_person(route, memory, outcomes.UNCERTAIN, why)
    elif not is_decided(manifest, Decision.DELIVERED):
        instead = thaw(route, memory)
        if instead is not None:
            memory.counted = NO_REVISION
            memory.verdict_of = manifest.number
            return instead
        if freezing.to_send(memory) or memory.replay is ReplayClass.TRANSACTIONAL:
            return None
    memory.note(Delivered())
    memory.counted = NO_REVISION
    memory.verdict_of = manifest.number
    return Event.DELIVERED


def send(route: Route, memory: LaneMemory) -> Event:
    """Make one attempt, counted already; its outcome is in the memory.

    A sink that raises has a bug: what it did is unknown, and it is made anew.
    """
    assert memory.sink is not None
    memory.counted = NO_REVISION
    attempt = _attempt(route, memory)
    before = facts(route, memory, attempts=memory.manifest.attempts - 1)
    try:
        said = _deliver(memory, attempt)  # COMMIT POINT: the target's
    except Exception as error:  # noqa: BLE001 - a sink is anybody's code
        memory.settle_seal()  # what went through it may be the ledger's word
        _log.error("route %s: the sink raised", route.birth.name, exc_info=error)
        close_sink(route, memory)
        said = Unknown(f"the sink raised {error!r}")
    memory.settle_seal()
    if not isinstance(said, Delivered):
        memory.sent = tuple(dict.fromkeys(map(_LSN, attempt.records)))
    outcome = outcomes.read_outcome(said, memory.sent, memory.replay)
    memory.traffic = _with_attempt(memory.traffic, attempt, outcome)
    memory.note(outcome)
    memory.verdict_of = memory.manifest.number
    take_in(route, memory, outcome, in_doubt=before.in_doubt)
    verdict = outcomes.judge(outcome, before)
    if verdict.event is Event.UNCERTAIN:
        hold(route, memory, f"{verdict.label}: {memory.last_error}")
    return verdict.event


def _deliver(memory: LaneMemory, attempt: Attempt) -> object:
    """Call the sink, and once more where the ledger takes long to seal the batch.

    Its transaction is open while it waits: what is wrong with our disk must not keep the target's
    locks from others.
    """
    assert memory.sink is not None
    sealing, late = memory.sealing, False
    if sealing is None:
        return memory.sink.deliver(attempt)

    def await_seal() -> None:
        nonlocal late
        late = not sealing.underway.is_settled_within(limits.SEAL_WAIT_S)
        if late:
            msg = "the ledger takes long to seal the batch"
            raise LedgerFailed(msg)
        must(done=sealing.underway.wait())

    try:
        return memory.sink.deliver(replace(attempt, await_seal=await_seal))
    except LedgerFailed:
        if not late:
            raise
    must(done=sealing.underway.wait())  # and the caller settles it, also if this raises
    return memory.sink.deliver(attempt)


def _with_attempt(traffic: Traffic, attempt: Attempt, outcome: Outcome) -> Traffic:
    """Count an attempt: every one was a request, and cost something."""
    if not isinstance(outcome, Delivered | Partial):
        return traffic.with_attempt(1, 0, 0)
    taken = len(attempt.records)
    if isinstance(outcome, Partial):
        taken -= len(outcome.rejected) + len(outcome.retry)
        return traffic.with_attempt(1, taken, _size_bytes(attempt))
    return traffic.with_attempt(outcome.notes.get(REQUESTS, 1), taken, _size_bytes(attempt))


def _size_bytes(attempt: Attempt) -> int:
    if attempt.body is not None:
        return len(attempt.body)
    return sum(map(len, map(_VALUE, attempt.records)))


def close_sink(route: Route, memory: LaneMemory) -> None:
    """Close the sink, whatever it does about it; another one is made when needed."""
    sink, memory.sink = memory.sink, None
    if sink is not None:
        try:
            sink.close()
        except BaseException as error:  # noqa: BLE001 - a sink is anybody's code
            _log.warning("route %s: closing the sink: %r", route.birth.name, error)


def _attempt(route: Route, memory: LaneMemory) -> Attempt:
    records, body = freezing.to_send(memory), freezing.body_of(memory)
    return freezing.attempt_of(route, memory, freezing.open_work(memory), records, body)


def finish(
    route: Route, memory: LaneMemory, took_effect: RevisionId, following: Batch | None
) -> None:
    """T5 or T8: close the batch by the revision that took effect; T2: seal the following one."""
    manifest, memory.took = memory.manifest, took_effect
    lost: list[DeadLetter] = []
    if manifest.is_redrive:
        after, finished = close_redrive(route, memory, took_effect)
    else:
        after, finished, lost = _close(route, memory, took_effect)
    name_final(route, memory, after)
    sealed = new_manifest(route, memory, following, after) if following else None
    ledger = route.shared.ledger
    if sealed is not None and not lost and _runs_ahead(route, memory, sealed):
        underway = ledger.finish_later(route.key, took_effect, after, finished, sealed)
        memory.sealing = Sealing(underway, memory.held)  # COMMIT POINT: T5 with T2, once it took
    else:
        done = ledger.finish(route.key, took_effect, after, finished, lost, sealed)
        must(done=done)  # COMMIT POINT: T5 or T8, T2
    if is_pardoned(route, memory):
        memory.guard = RejectGuard()  # what comes later is judged anew
    elif not (manifest.is_redrive or manifest.decision):  # of which none falls by the target's word
        refused = len(manifest.revision(took_effect).excluded)
        memory.guard = memory.guard.with_batch(finished.records, refused)
    freezing.forget(route, *manifest.revisions)
    memory.unsendable, memory.halted = (), ()
    memory.held = LaneProgress(after, sealed)
    memory.batch = following
    memory.counted = sealed.current.rev_id if sealed and not sealed.held else NO_REVISION


def _runs_ahead(route: Route, memory: LaneMemory, sealed: Manifest) -> bool:
    """Tell whether the next batch may go to the sink while T5 and its T2 are on their way.

    So it is where the sink waits for them before its commit point, behind a plain batch that this
    process sent at its first attempt: a record that kills the process is then known at the second
    start, since behind a start everything is durable before it is sent.
    """
    manifest = memory.manifest
    plain = manifest.attempts == len(manifest.revisions) == 1
    plain = plain and not (manifest.is_redrive or manifest.decision or sealed.held)
    ours = memory.verdict_of == manifest.number
    assert memory.sink is not None
    awaits = memory.sink.capabilities.awaits_seal and memory.replay is ReplayClass.TRANSACTIONAL
    return plain and ours and awaits and not freezing.freezes(route, memory)


def advance(route: Route, memory: LaneMemory, reader: LaneReader) -> None:
    """T6: move an idle lane's checkpoint over what is not its, and tell what damage took."""
    before = memory.held.checkpoint
    lost = route.letters_of_lost(reader.take_lost(), before.batch_no, before.rev_id)
    after = replace(
        before,
        lsn=reader.through,
        anchor=reader.through_anchor,
        dead_letters=before.dead_letters + sum(letter.records for letter in lost),
    )
    must(done=route.shared.ledger.advance(route.key, before, after, lost))
    memory.held = LaneProgress(after, None)  # COMMIT POINT: T6


def _close(
    route: Route, memory: LaneMemory, took_effect: RevisionId
) -> tuple[Checkpoint, FinishedBatch, list[DeadLetter]]:
    """T5: return the checkpoint behind the open batch, its line of history, what was lost."""
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
        dead_rev=effective_dead_rev(before, revision),
        delivered=before.delivered + delivered,
        dead_letters=before.dead_letters + dead_letters,
        superseded=before.superseded + revision.superseded,
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
        superseded=revision.superseded,
        last_error=manifest.last_error,
        traces=manifest.traces,
    )
    return after, finished, lost


def search(route: Route, memory: LaneMemory) -> Event:
    """Find every refused record, then exclude them in a revision (T3).

    A target with transactions is probed: what is tried there is rolled back.
    """
    rejected = memory.outcome
    assert isinstance(rejected, Rejected)
    if rejected.code == shaping.TRANSFORM_FAILED:
        return set_aside(route, memory, rejected.records) or Event.CULPRITS
    if memory.replay is not ReplayClass.TRANSACTIONAL:
        return settle_refused(route, memory, rejected)
    found = _probe_all(route, memory, rejected)
    if not isinstance(found, tuple):
        if not isinstance(found, Systemic | RowMoved):
            found = Unknown(f"a probe came to {found!r}")
        memory.note(found)
        return outcomes.judge(found, Facts(memory.replay)).event
    if not found:
        return Event.NO_CULPRIT
    return set_aside(route, memory, found) or Event.CULPRITS


def _probe_all(
    route: Route, memory: LaneMemory, rejected: Rejected
) -> tuple[RejectedRecord, ...] | Outcome:
    """Return all refused records, or the outcome that ended the search."""
    assert memory.sink is not None
    attempt = _attempt(route, memory)
    lsns = {record.lsn for record in attempt.records}
    steps = delivery.find_refused(attempt.records, rejected.records)
    try:
        records = next(steps)
        while True:
            answer = _probe(route, memory, attempt, records)
            if not isinstance(answer, Rejected | Sequence):
                return outcomes.read_outcome(answer, lsns, memory.replay)
            records = steps.send(answer)
    except StopIteration as end:
        return tuple(end.value)


def _probe(route: Route, memory: LaneMemory, attempt: Attempt, records: Sequence[Record]) -> object:
    """Return what the sink says; of what it raised nothing took effect: it is no verdict."""
    assert memory.sink is not None
    try:
        return memory.sink.probe(attempt, records)
    except Exception as error:  # noqa: BLE001 - a sink is anybody's code
        _log.error("route %s: the sink raised", route.birth.name, exc_info=error)
        close_sink(route, memory)
        return Unknown(repr(error))
