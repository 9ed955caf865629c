"""The ledger: manifests, checkpoints, index of dead letters, history, over a key-value store.

Tables, keys big-endian, values msgpack arrays in the order of the fields of their type; fields
that a later release added at the end have defaults:

    meta     "format", "log_id"
    routes   route u32                              -> the birth (T1)
    lanes    route u32 layout u32 lane u32          -> [checkpoint, open manifest or nil]
    aside    route u32 layout u32 lane u32 rev 16s  -> dead letters of an open revision
    dead     route u32 lsn u64                      -> a dead letter that counts
    history  route u32 layout u32 lane u32 number u64 -> a finished batch

and those of ``storage.dead_index``. The real store is LMDB (``storage.lmdb_store``); a store in
memory passes the same tests. What else the drainer keeps in the store has a class of its own in a
module beside this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wald import limits
from wald.core import manifests
from wald.errors import DataDirectoryForeign, FormatNewer
from wald.model import (
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Manifest,
    Mark,
    Revision,
    RevisionId,
    RouteBirth,
)
from wald.ports import Store, Transaction, Underway
from wald.storage.dead_index import (
    DeadIndex,
    are_dead,
    settle_adopted,
    settle_allowed,
    settle_redrive,
)
from wald.storage.ledger_rows import (
    NUMBER,
    ROUTE,
    bury,
    get_lane,
    lane_bytes,
    letters_of,
    pack,
    put_lane,
    unpack,
)

FORMAT = 1
TABLES = (
    *("meta", "routes", "lanes", "aside", "dead", "history"),
    *("redrives", "allowed", "purged"),
    *("layouts", "former", "paused", "dropped"),
    *("packed", "replays"),
)


def found_ledger(txn: Transaction, log_id: bytes) -> None:
    """Write what an empty ledger begins with."""
    txn.put("meta", b"format", pack(FORMAT))
    txn.put("meta", b"log_id", log_id)


class StoreLedger(DeadIndex):
    """The ``Ledger`` over a store. Any thread; the store puts transactions one after the other."""

    def __init__(self, store: Store, log_id: bytes) -> None:
        """Take a founded store.

        Raises:
            DataDirectoryForeign: it belongs to another log.
            FormatNewer: a newer release wrote it.
        """
        self.store = store
        self._log_id = log_id
        store.read(self._check_owner)

    def _check_owner(self, txn: Transaction) -> None:
        version = unpack(txn.get("meta", b"format") or b"\0")
        if version > FORMAT:
            msg = f"the ledger has format {version}, this release reads {FORMAT}"
            raise FormatNewer(msg, needs_format=version, has_format=FORMAT)
        if version != FORMAT or txn.get("meta", b"log_id") != self._log_id:
            msg = "the ledger belongs to another log"
            raise DataDirectoryForeign(msg)

    # --- transactions ---------------------------------------------------------------------------

    def birth(self, birth: RouteBirth) -> RouteBirth:
        """See ``Ledger.birth`` (T1)."""

        def work(txn: Transaction) -> RouteBirth:
            key = ROUTE.pack(birth.route_id)
            held = txn.get("routes", key)
            if held is not None:
                return RouteBirth(*unpack(held))
            txn.put("routes", key, pack(birth))
            lane = LaneKey(self._log_id, birth.route_id, 0, 0)
            put_lane(txn, lane, LaneProgress(Checkpoint(lsn=birth.birth_lsn), None))
            return birth

        return self.store.write(work)

    def births(self) -> Sequence[RouteBirth]:
        """See ``Ledger.births``."""
        return self.store.read(
            lambda txn: [RouteBirth(*unpack(value)) for _, value in txn.scan("routes")]
        )

    def lane(self, key: LaneKey) -> LaneProgress:
        """See ``Ledger.lane``."""
        return self.store.read(lambda txn: get_lane(txn, key))

    def seal(self, key: LaneKey, manifest: Manifest) -> bool:
        """See ``Ledger.seal`` (T2, T7)."""

        def work(txn: Transaction) -> bool:
            redriven = manifest.current.redriven if manifest.is_redrive else ()
            if not are_dead(txn, key.route_id, redriven):
                return False
            return put_lane(txn, key, manifests.seal(get_lane(txn, key), manifest))

        return self.store.write(work)

    def revise(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        revision: Revision,
        set_aside: Sequence[DeadLetter],
        stamp: AttemptStamp,
        *,
        replaces: bool = False,
    ) -> bool:
        """See ``Ledger.revise`` (T3)."""

        def work(txn: Transaction) -> bool:
            held = get_lane(txn, key)
            after = manifests.revise(held, worked_on, revision, stamp, replaces=replaces)
            if not put_lane(txn, key, after):
                return False
            if replaces and held.manifest is not None:
                _drop_aside(txn, key, held.manifest)
            txn.put("aside", lane_bytes(key) + revision.rev_id, pack(list(set_aside)))
            return True

        return self.store.write(work)

    def mark(self, key: LaneKey, worked_on: RevisionId, mark: Mark) -> bool:
        """See ``Ledger.mark`` (T11)."""
        return self.store.write(
            lambda txn: put_lane(txn, key, manifests.mark(get_lane(txn, key), worked_on, mark))
        )

    def set_aside(self, key: LaneKey, rev_id: RevisionId) -> Sequence[DeadLetter]:
        """See ``Ledger.set_aside``."""
        return self.store.read(lambda txn: letters_of(txn.get("aside", lane_bytes(key) + rev_id)))

    def attempt(self, key: LaneKey, worked_on: RevisionId, stamp: AttemptStamp) -> bool:
        """See ``Ledger.attempt`` (T4)."""
        return self.store.write(
            lambda txn: put_lane(txn, key, manifests.attempt(get_lane(txn, key), worked_on, stamp))
        )

    def finish(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        lost: Sequence[DeadLetter] = (),
        following: Manifest | None = None,
    ) -> bool:
        """See ``Ledger.finish`` (T5, with the T2 of the next; T8 of a redrive)."""
        done = _Finish(key, worked_on, checkpoint, finished, tuple(lost), following)
        return self.store.write(done)

    def finish_later(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        following: Manifest,
    ) -> Underway[bool]:
        """See ``Ledger.finish_later`` (T5 with T2)."""
        done = _Finish(key, worked_on, checkpoint, finished, (), following)
        return self.store.write_later(done)

    def advance(
        self,
        key: LaneKey,
        worked_on: Checkpoint,
        checkpoint: Checkpoint,
        lost: Sequence[DeadLetter] = (),
    ) -> bool:
        """See ``Ledger.advance`` (T6)."""

        def work(txn: Transaction) -> bool:
            after = manifests.advance(get_lane(txn, key), worked_on, checkpoint)
            if not put_lane(txn, key, after):
                return False
            bury(txn, key.route_id, lost)
            return True

        return self.store.write(work)

    def adopt(
        self,
        key: LaneKey,
        worked_on: LaneProgress,
        checkpoint: Checkpoint,
        letters: Sequence[DeadLetter],
    ) -> bool:
        """See ``Ledger.adopt`` (T12)."""

        def work(txn: Transaction) -> bool:
            held = get_lane(txn, key)
            if held != worked_on:
                return False
            if held.manifest is not None:
                _drop_aside(txn, key, held.manifest)
            after = settle_adopted(txn, key, checkpoint, letters)
            return put_lane(txn, key, LaneProgress(after, None))

        return self.store.write(work)

    def history(self, key: LaneKey) -> Sequence[FinishedBatch]:
        """See ``Ledger.history``."""
        return self.store.read(
            lambda txn: [
                FinishedBatch(*unpack(value)) for _, value in txn.scan("history", lane_bytes(key))
            ]
        )

    def close(self) -> None:
        """Close; harmless to repeat."""
        self.store.close()


# --- inside a transaction -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Finish:
    """T5, or T8, as a work for a store."""

    key: LaneKey
    worked_on: RevisionId
    checkpoint: Checkpoint
    finished: FinishedBatch
    lost: tuple[DeadLetter, ...]
    following: Manifest | None

    def __call__(self, txn: Transaction) -> bool:
        """Close the batch, and seal what follows; False, with nothing done, if it is another."""
        key, number = self.key, self.finished.number
        held = get_lane(txn, key)
        after = manifests.finish(held, self.worked_on, self.checkpoint, self.following)
        if after is None or held.manifest is None:
            return False
        aside = _drop_aside(txn, key, held.manifest)
        letters = aside.get(self.worked_on, [])
        if held.manifest.is_redrive:
            redriven = held.manifest.revision(self.worked_on).redriven
            settle_redrive(txn, key, held.manifest, redriven, letters)
        settle_allowed(txn, key, letters)
        lane = lane_bytes(key)
        txn.put("history", lane + NUMBER.pack(number), pack(self.finished))
        forgotten = number - limits.HISTORY_BATCHES_PER_LANE
        if forgotten > 0:
            txn.delete("history", lane + NUMBER.pack(forgotten))
        put_lane(txn, key, after)
        bury(txn, key.route_id, [*letters, *self.lost])
        return True


def _drop_aside(
    txn: Transaction, key: LaneKey, manifest: Manifest
) -> dict[RevisionId, list[DeadLetter]]:
    """Forget what the revisions of a manifest set aside; return it."""
    found: dict[RevisionId, list[DeadLetter]] = {}
    for revision in manifest.revisions:
        at = lane_bytes(key) + revision.rev_id
        found[revision.rev_id] = letters_of(txn.get("aside", at))
        txn.delete("aside", at)
    return found
