"""The ledger's transactions T2 to T6 as pure steps of one lane.

Each takes what the ledger holds and returns what it holds next, or None where it is not what the
caller worked on: then nothing changes. Every ledger does exactly these, durably.
"""

from dataclasses import replace

from wald.model import (
    AttemptStamp,
    Checkpoint,
    Decision,
    LaneProgress,
    Manifest,
    Mark,
    Revision,
    RevisionId,
)


def seal(held: LaneProgress, manifest: Manifest) -> LaneProgress | None:
    """T2: open a manifest that continues the lane, if none is open."""
    if held.manifest is not None or not continues(held.checkpoint, manifest):
        return None
    return LaneProgress(held.checkpoint, manifest)


def continues(checkpoint: Checkpoint, manifest: Manifest) -> bool:
    """Tell whether a manifest is the next of the lane's chain, its first attempt counted."""
    if manifest.is_redrive:
        at = {manifest.lo, *(revision.hi for revision in manifest.revisions)}
        follows = at == {checkpoint.lsn}
    else:
        follows = manifest.lo > checkpoint.lsn
    return (
        follows
        and manifest.number == checkpoint.batch_no + 1
        and manifest.prev_rev == checkpoint.rev_id
        and manifest.attempts >= 1
    )


def revise(
    held: LaneProgress,
    worked_on: RevisionId,
    revision: Revision,
    stamp: AttemptStamp,
    *,
    replaces: bool = False,
) -> LaneProgress | None:
    """T3: add a revision, and count its attempt if it begins.

    With ``replaces`` those before are forgotten, but for the first, which says what batch it is.
    """
    manifest = _worked_on(held, worked_on)
    if manifest is None:
        return None
    before = manifest.revisions[:1] if replaces else manifest.revisions
    revised = replace(manifest, revisions=(*before, revision))
    return LaneProgress(held.checkpoint, _stamped(revised, stamp))


def attempt(held: LaneProgress, worked_on: RevisionId, stamp: AttemptStamp) -> LaneProgress | None:
    """T4: count a further attempt; a held batch has none.

    Where no attempt before can have taken effect, its window begins with this one.
    """
    manifest = _worked_on(held, worked_on)
    if manifest is None or manifest.held:
        return None
    stamped = _stamped(manifest, stamp)
    if stamped.cleared >= manifest.attempts:
        began = replace(
            manifest.current,
            boot_id=stamp.boot_id,
            boot_clock_ns=stamp.boot_clock_ns,
            time_ns=stamp.time_ns,
            batches=stamp.batches,
        )
        stamped = replace(stamped, revisions=(*manifest.revisions[:-1], began))
    return LaneProgress(held.checkpoint, stamped)


def mark(held: LaneProgress, worked_on: RevisionId, mark: Mark) -> LaneProgress | None:
    """T11: hold the batch, take a decision on a held one, or clear doubt."""
    manifest = _worked_on(held, worked_on)
    if manifest is None or (mark.decision is not None and not manifest.held):
        return None
    marked = replace(manifest, cleared=max(manifest.cleared, mark.cleared))
    if mark.held:
        marked = replace(marked, held=mark.held, decision="")
    if mark.decision is Decision.NOT_DELIVERED:
        marked = replace(marked, held="", cleared=manifest.attempts)
    elif mark.decision is not None:
        marked = replace(marked, held="", decision=mark.decision.value)
    return LaneProgress(held.checkpoint, marked)


def is_in_doubt(manifest: Manifest) -> bool:
    """Tell whether an attempt that was counted may have taken effect without our knowing."""
    return manifest.attempts > manifest.cleared


def finish(
    held: LaneProgress,
    worked_on: RevisionId,
    checkpoint: Checkpoint,
    following: Manifest | None = None,
) -> LaneProgress | None:
    """T5: close the open manifest by one of its revisions, and seal the next."""
    manifest = held.manifest
    if (
        manifest is None
        or worked_on not in {revision.rev_id for revision in manifest.revisions}
        or (checkpoint.batch_no, checkpoint.rev_id) != (manifest.number, worked_on)
    ):
        return None
    if following is not None and not continues(checkpoint, following):
        return None
    return LaneProgress(with_purges(held.checkpoint, checkpoint), following)


def with_purges(held: Checkpoint, after: Checkpoint) -> Checkpoint:
    """Return a checkpoint with what was purged since the lane read the one it worked on.

    Purging is the one change to a checkpoint that is not its lane's, and may come at any time.
    """
    since = held.purged - after.purged
    if not since:
        return after
    return replace(after, purged=held.purged, dead_letters=after.dead_letters - since)


def advance(
    held: LaneProgress, worked_on: Checkpoint, checkpoint: Checkpoint
) -> LaneProgress | None:
    """T6: move the checkpoint over what is not the lane's; never back, never with one open."""
    if (
        held.manifest is not None
        or held.checkpoint != with_purges(held.checkpoint, worked_on)
        or (checkpoint.batch_no, checkpoint.rev_id) != (worked_on.batch_no, worked_on.rev_id)
        or checkpoint.lsn < worked_on.lsn
    ):
        return None
    return LaneProgress(with_purges(held.checkpoint, checkpoint), None)


def _worked_on(held: LaneProgress, worked_on: RevisionId) -> Manifest | None:
    manifest = held.manifest
    return manifest if manifest is not None and manifest.current.rev_id == worked_on else None


def _stamped(manifest: Manifest, stamp: AttemptStamp) -> Manifest:
    return replace(
        manifest,
        attempts=manifest.attempts + stamp.begins,
        records=manifest.records if stamp.records is None else stamp.records,
        cleared=max(manifest.cleared, stamp.cleared),
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        attempt_time_ns=stamp.time_ns,
        last_error=stamp.last_error,
        crashes=stamp.crashes,
    )
