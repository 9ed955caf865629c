"""One record looked up: in the log by its LSN, in the ledger by lane and LSN."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.core.frame import SectionKind
from wald.model import (
    DeadLetter,
    FinishedBatch,
    Frontier,
    LaneKey,
    LostRange,
    Lsn,
    RouteId,
    StreamId,
)
from wald.ports import FileSystem, Store, Transaction
from wald.storage.ledger_rows import (
    ROUTE,
    dead_key,
    lane_bytes,
    lane_lsn,
    letter_of,
    lsn_of,
    unpack,
)
from wald.storage.packed import OpenPack, named_packed
from wald.storage.tail import TailBlock, TailReader


class Owned(NamedTuple):
    """Whose a record of the log is."""

    stream_id: StreamId
    session: int


def owner_of(
    fs: FileSystem, data_dir: str, log_id: bytes, lsn: Lsn, frontier: Frontier
) -> Owned | LostRange | None:
    """Find the section that holds an LSN, in the log or in a packed file.

    Returns what was lost where that is not there: by damage, or because it retired. None where
    the log goes on behind the LSN without it: no record has it.
    """
    reader = TailReader(
        fs,
        data_dir,
        log_id,
        after=lsn - 1,
        wants_block=lambda header: header.first_lsn <= lsn <= header.last_lsn,
        wants_section=lambda section: section.kind is SectionKind.APPEND,
    )
    try:
        for item in reader.read(frontier):
            if isinstance(item, LostRange):
                if item.first_lsn <= lsn <= item.last_lsn:
                    return _packed_owner(fs, data_dir, log_id, lsn) or item
                continue
            if item.header.records and item.header.last_lsn >= lsn:
                return _in_block(item, lsn)
    finally:
        reader.close()
    return None


def _packed_owner(fs: FileSystem, data_dir: str, log_id: bytes, lsn: Lsn) -> Owned | None:
    """Look into the packed files whose range holds an LSN: of each stream at most a few."""
    for packed in named_packed(fs, data_dir):
        if not packed.lo < lsn <= packed.hi:
            continue
        pack = OpenPack(fs, data_dir, log_id, packed)
        try:
            item = pack.next_after(lsn - 1)
        finally:
            pack.close()
        owner = _in_block(item, lsn) if isinstance(item, TailBlock) else None
        if owner is not None:
            return owner
    return None


def _in_block(block: TailBlock, lsn: Lsn) -> Owned | None:
    for first_lsn, section in block.sections:
        if first_lsn <= lsn < first_lsn + section.records:
            return Owned(section.stream, section.session)
    return None


@dataclass(frozen=True, slots=True)
class Lines:
    """What a lane's history says of an LSN: the batch that sealed it, the last that sent it again.

    Both None where nothing is told of it any more.
    """

    sealed: FinishedBatch | None = None
    redriven: FinishedBatch | None = None


class Lookup:
    """Questions about one record; any thread. Each method is one transaction that only reads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def lines(self, key: LaneKey, lsn: Lsn) -> Lines:
        """Return what the lane's history says of an LSN."""

        def work(txn: Transaction) -> Lines:
            sealed: FinishedBatch | None = None
            redriven: FinishedBatch | None = None
            for _, value in txn.scan("history", lane_bytes(key)):
                line = FinishedBatch(*unpack(value))
                if lsn in line.redriven:
                    redriven = line
                elif not line.redriven and line.lo <= lsn <= line.hi:
                    sealed = line  # the last: after a rewind it was sealed once more
            return Lines(sealed, redriven)

        return self._store.read(work)

    def is_asked(self, key: LaneKey, lsn: Lsn) -> bool:
        """Tell whether the dead letter is to be sent again."""
        return self._store.read(lambda txn: txn.get("redrives", lane_lsn(key, lsn))) is not None

    def is_purged(self, key: LaneKey, lsn: Lsn) -> bool:
        """Tell whether a dead letter of it was purged, and that is still remembered."""
        return self._store.read(lambda txn: txn.get("purged", lane_lsn(key, lsn))) is not None

    def letter(self, route_id: RouteId, lsn: Lsn) -> DeadLetter | None:
        """Return the dead letter of a record; None if it has none of its own."""
        found = self._store.read(lambda txn: txn.get("dead", dead_key(route_id, lsn)))
        return None if found is None else letter_of(found)

    def damaged(self, route_id: RouteId) -> list[DeadLetter]:
        """Return the dead letters that stand for damaged ranges, in order; reads all of a route.

        The number that is read is that of the dead letters of a route, which is bounded.
        """
        return self._store.read(
            lambda txn: [
                letter
                for _, value in txn.scan("dead", ROUTE.pack(route_id))
                if not (letter := letter_of(value)).dead_file
            ]
        )

    def aside_between(
        self, keys: Collection[LaneKey], lo: Lsn, hi: Lsn
    ) -> tuple[dict[Lsn, DeadLetter], set[Lsn]]:
        """Return the dead letters of LSNs from ``lo`` to ``hi``, and which of them were purged.

        ``keys`` are all lanes of one route.
        """

        def work(txn: Transaction) -> tuple[dict[Lsn, DeadLetter], set[Lsn]]:
            letters: dict[Lsn, DeadLetter] = {}
            purged: set[Lsn] = set()
            for route_id in {key.route_id for key in keys}:
                for at, value in txn.scan(
                    "dead", ROUTE.pack(route_id), start=dead_key(route_id, lo)
                ):
                    if lsn_of(at) > hi:
                        break
                    letters[lsn_of(at)] = letter_of(value)
            for key in keys:
                for at, _ in txn.scan("purged", lane_bytes(key), start=lane_lsn(key, lo)):
                    if lsn_of(at) > hi:
                        break
                    purged.add(lsn_of(at))
            return letters, purged

        return self._store.read(work)

    def letter_over(self, route_id: RouteId, lsn: Lsn) -> DeadLetter | None:
        """Return the dead letter of a damaged range that an LSN lies in; reads all before it.

        The number that is read is that of the dead letters of a route, which is bounded.
        """

        def work(txn: Transaction) -> DeadLetter | None:
            last = dead_key(route_id, lsn)
            for at, value in txn.scan("dead", ROUTE.pack(route_id)):
                if at > last:
                    break
                letter = letter_of(value)
                if letter.through_lsn >= lsn:
                    return letter
            return None

        return self._store.read(work)


assert limits.HISTORY_BATCHES_PER_LANE <= 4_096  # a lane's history is read whole for an answer
