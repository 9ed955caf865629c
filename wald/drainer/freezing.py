"""Freezing: what a revision sends is made once, kept in ``batches/``, and checked before it goes.

So it is at targets of the class ``window``, whose sink encodes a request, and on routes that
coalesce or transform. Elsewhere the set of records is what is frozen, and a newer release may
encode them otherwise.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from wald import limits
from wald.core import shaping
from wald.core.row import effective_dead_rev
from wald.core.shaping import ENCODE_FAILED, Frozen, Output
from wald.drainer.reader import Batch
from wald.drainer.route import LaneMemory, Route
from wald.drainer.shaping import Elsewhere, NeverWorks, RecordsFail, Shaper, failure
from wald.model import (
    Attempt,
    Checkpoint,
    Lsn,
    Manifest,
    ProgressRow,
    Record,
    ReplayClass,
    Revision,
)
from wald.ports import EncodingSink
from wald.storage.batches import FrozenFiles

_log = logging.getLogger("wald.drain")
_ONE_OF_AN_LSN = frozenset({ReplayClass.MONOTONE, ReplayClass.KEYED})


@dataclass(frozen=True, slots=True)
class Work:
    """A batch that a revision sends: of the open manifest, or of one that is being sealed."""

    manifest: Manifest
    revision: Revision
    batch: Batch
    checkpoint: Checkpoint

    @property
    def records(self) -> list[Record]:
        """The records of the log that it is about, whatever became of them so far."""
        revision, records = self.revision, self.batch.records
        if self.manifest.is_redrive:
            left = set(revision.redriven)
            return [record for record in records if record.lsn in left]
        if records and records[-1].lsn > revision.hi:
            return [record for record in records if record.lsn <= revision.hi]
        return records

    @property
    def done(self) -> set[Lsn]:
        """What took effect before, or was refused for good."""
        return {*self.revision.excluded, *self.revision.settled}


def open_work(memory: LaneMemory) -> Work:
    """Return the open batch."""
    assert memory.batch is not None
    manifest = memory.manifest
    return Work(manifest, manifest.current, memory.batch, memory.held.checkpoint)


def to_send(memory: LaneMemory) -> list[Record]:
    """Return the records that the current revision of the open batch sends."""
    outputs = outputs_of(memory)
    if outputs is not None:
        return [output.record for output in outputs]
    work = open_work(memory)
    done = work.done
    return [record for record in work.records if record.lsn not in done] if done else work.records


def outputs_of(memory: LaneMemory) -> tuple[Output, ...] | None:
    """Return what the current revision of the open batch sends, of a route that shapes it."""
    rev_id, frozen = memory.frozen
    return frozen.outputs if rev_id == memory.manifest.current.rev_id else None


def body_of(memory: LaneMemory) -> bytes | None:
    """Return the frozen request of the open batch, if its sink freezes it."""
    return memory.frozen[1].body


def attempt_of(
    route: Route,
    memory: LaneMemory,
    work: Work,
    records: Sequence[Record],
    body: bytes | None = None,
) -> Attempt:
    """Return the attempt that sends these records."""
    manifest, revision = work.manifest, work.revision
    row = ProgressRow(
        manifest.number,
        revision.rev_id,
        revision.hi,
        work.batch.anchor,
        route.shared.owner,
        effective_dead_rev(work.checkpoint, revision),
    )
    return Attempt(
        route.key,
        route.birth.stream,
        manifest.prev_rev,
        row,
        records,
        body,
        number=manifest.attempts,
        timeout_s=memory.timeout_s,
    )


def freezes(route: Route, memory: LaneMemory) -> bool:
    """Tell whether what is sent is made once and kept."""
    return _encodes(memory) or shaper_of(route, memory).shapes


def shaper_of(route: Route, memory: LaneMemory) -> Shaper:
    """Return what makes the records that are sent of those of the log."""
    if memory.shaper is None:
        memory.shaper = Shaper(route.settings)
    return memory.shaper


def make(
    route: Route, memory: LaneMemory, work: Work, outputs: tuple[Output, ...] | None = None
) -> Frozen:
    """Make what a revision sends; ``outputs`` is what is left of what the one before was to send.

    If that ends the process the next one knows (``LaneMemory.died_making``): that the attempt which
    was counted was not made. So no word is left behind one that was, and may have taken effect.

    Raises:
        RecordsFail: at some records it cannot be made.
        NeverWorks: it cannot be made, for no record's fault.
    """
    if not _is_unsent(memory, work.manifest.number):
        return _make(route, memory, work, outputs)
    with making(route, work.manifest.number):
        return _make(route, memory, work, outputs)


def _is_unsent(memory: LaneMemory, number: int) -> bool:
    """Tell whether nothing of the last attempt of a batch, if there was one, took effect."""
    manifest = memory.held.manifest
    if manifest is None or manifest.number != number:
        return True
    cleared = max(manifest.cleared, memory.cleared[1] if memory.cleared[0] == number else 0)
    return memory.counted == manifest.current.rev_id or manifest.attempts <= cleared


@contextlib.contextmanager
def making(route: Route, number: int) -> Iterator[None]:
    """Leave word while somebody else's code makes what is sent of a batch."""
    with files(route).making(route.key, number, route.shared.clock.boot_id()):
        yield


def elsewhere(memory: LaneMemory) -> Elsewhere | None:
    """Return where a transform is called if not in this process: it may have ended one before."""
    return cast("Elsewhere", memory.sink) if memory.guarded_batch else None


def _make(
    route: Route, memory: LaneMemory, work: Work, outputs: tuple[Output, ...] | None
) -> Frozen:
    shaper = shaper_of(route, memory)
    if outputs is None and shaper.shapes:
        route.shaping.since_ns = route.shared.clock.monotonic_ns()
        try:
            outputs = shaper.shape(work.records, work.done, elsewhere(memory))
        finally:
            route.shaping.since_ns = 0
        if memory.replay in _ONE_OF_AN_LSN:
            outputs = _one_of_each_lsn(outputs, memory.replay)
    if outputs is not None:
        records = [output.record for output in outputs]
    else:
        records = [record for record in work.records if record.lsn not in work.done]
    encodes = bool(records) and _encodes(memory)  # of nothing there is no request
    return Frozen(outputs, _encoded(route, memory, work, outputs, records) if encodes else None)


def freeze(
    route: Route, memory: LaneMemory, work: Work, outputs: tuple[Output, ...] | None = None
) -> Revision:
    """Make and keep what a revision sends, if that is frozen; returns it with its digest.

    Raises:
        RecordsFail, NeverWorks: as ``make`` does.
        DiskFull, LedgerFailed: it cannot be kept.
    """
    revision = work.revision
    if not freezes(route, memory):
        return revision
    frozen = make(route, memory, work, outputs)
    if outputs is None and frozen.outputs is not None:
        covered = shaping.superseded(work.records, frozen.outputs, work.done)
        revision = replace(revision, superseded=covered)
    content = shaping.pack(frozen)
    if len(content) > limits.FROZEN_MAX_BYTES:
        msg = f"what is sent of a batch has {len(content):,} bytes"
        raise NeverWorks(msg)
    digest = files(route).write(route.key, revision.rev_id, content)  # COMMIT POINT: the file
    memory.frozen = (revision.rev_id, frozen)
    encoder = _encoder(memory) if frozen.body is not None else ""
    return replace(revision, encoder=encoder, digest=digest)


def freeze_if_it_works(
    route: Route, memory: LaneMemory, work: Work, outputs: tuple[Output, ...] | None = None
) -> Revision:
    """As ``freeze``; without a digest where it fails: then it is tried again before it is sent."""
    try:
        return freeze(route, memory, work, outputs)
    except (RecordsFail, NeverWorks) as error:
        _log.warning("route %s: a batch cannot be made yet: %s", route.birth.name, error)
        return work.revision


def files(route: Route) -> FrozenFiles:
    """Return where it is kept."""
    return FrozenFiles(route.shared.fs, route.shared.data_dir)


def forget(route: Route, *revisions: Revision) -> None:
    """Remove what revisions that are not sent any more have kept."""
    for revision in revisions:
        if revision.digest:
            files(route).remove(route.key, revision.rev_id)


def _one_of_each_lsn(outputs: tuple[Output, ...], replay: ReplayClass) -> tuple[Output, ...]:
    """Return outputs in order, for a target that knows a record by its LSN and takes each once."""
    ordered = sorted(outputs, key=lambda output: output.record.lsn)
    if len({output.record.lsn for output in outputs}) < len(outputs):
        msg = (
            f"the transform makes several records of one LSN, and a target of the class "
            f"{replay.value} takes one of each: all others would be lost"
        )
        raise NeverWorks(msg)
    return tuple(ordered)


def _encodes(memory: LaneMemory) -> bool:
    assert memory.sink is not None
    return memory.sink.capabilities.freezes or memory.replay is ReplayClass.WINDOW


def _encoder(memory: LaneMemory) -> str:
    return cast("EncodingSink", memory.sink).encoder


def _encoded(
    route: Route,
    memory: LaneMemory,
    work: Work,
    outputs: tuple[Output, ...] | None,
    records: Sequence[Record],
) -> bytes:
    """Return the request as the sink encodes it.

    Raises:
        RecordsFail: it fails at some records.
        NeverWorks: it fails for no record's fault.
    """
    sink = cast("EncodingSink", memory.sink)

    def encode(some: Sequence[Record]) -> bytes:
        body = cast("object", sink.encode(attempt_of(route, memory, work, some)))
        if not isinstance(body, bytes):
            msg = f"it encodes to {body!r:.100}, which is not bytes"
            raise TypeError(msg)
        return body

    try:
        return encode(records)
    except BaseException as error:
        what = f"the sink's encoding {_encoder(memory)}"
        found = failure(records, encode, ENCODE_FAILED, what, worked=False)
        if isinstance(found, RecordsFail) and outputs is not None:
            found = RecordsFail(shaping.spread(outputs, found.refused))
        raise found from error
