"""Keys and values of the ledger's tables: big-endian keys, values as msgpack arrays."""

from collections.abc import Sequence
from dataclasses import replace
from struct import Struct
from typing import Any, Final, cast

import msgpack

from wald.model import (
    Anchor,
    Checkpoint,
    DeadLetter,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Revision,
    RouteId,
)
from wald.ports import Transaction

ROUTE: Final = Struct(">I")
LANE: Final = Struct(">III")
NUMBER: Final = Struct(">Q")


def pack(value: object) -> bytes:
    """Pack a value: one of our slotted dataclasses becomes the array of its fields."""
    return cast("bytes", msgpack.packb(value, default=_fields))


def _fields(value: Any) -> list[object]:  # noqa: ANN401 - any of our slotted dataclasses
    return [getattr(value, name) for name in value.__slots__]


def unpack(data: bytes) -> Any:  # noqa: ANN401 - rows of any of our types
    """Unpack what ``pack`` made; arrays become tuples."""
    return msgpack.unpackb(data, use_list=False)


def lane_bytes(key: LaneKey) -> bytes:
    """Return the key of a lane's rows."""
    return LANE.pack(key.route_id, key.layout, key.lane)


def lane_lsn(key: LaneKey, lsn: Lsn) -> bytes:
    """Return the key of what is kept for an LSN of a lane."""
    return lane_bytes(key) + NUMBER.pack(lsn)


def lsn_of(at: bytes) -> Lsn:
    """Return the LSN that a key ends with."""
    return cast("int", NUMBER.unpack_from(at, len(at) - NUMBER.size)[0])


def dead_key(route_id: RouteId, lsn: Lsn) -> bytes:
    """Return the key of a dead letter."""
    return ROUTE.pack(route_id) + NUMBER.pack(lsn)


def get_lane(txn: Transaction, key: LaneKey) -> LaneProgress:
    """Return what is held of a lane; a fresh checkpoint if nothing is."""
    return _held_at(txn, lane_bytes(key))


def _held_at(txn: Transaction, at: bytes) -> LaneProgress:
    held = txn.get("lanes", at)
    return LaneProgress(Checkpoint(), None) if held is None else lane_of(held)


def put_lane(txn: Transaction, key: LaneKey, after: LaneProgress | None) -> bool:
    """Hold something of a lane; False, and nothing is changed, if that is None."""
    if after is None:
        return False
    txn.put("lanes", lane_bytes(key), pack(list(after)))
    return True


def forget_lane(txn: Transaction, key: LaneKey) -> None:
    """Forget a lane that never is at work again, and what is kept for it."""
    at = lane_bytes(key)
    for table in ("lanes", "history", "redrives", "allowed", "purged", "aside"):
        for found, _ in list(txn.scan(table, at)):
            txn.delete(table, found)
    lane = f" {key.route_id}.{key.layout}.{key.lane}".encode()  # as what is noted of it is named
    for name in [name for name, _ in txn.scan("meta") if name.endswith(lane)]:
        txn.delete("meta", name)


def lane_of(data: bytes) -> LaneProgress:
    """Unpack what is held of a lane."""
    checkpoint, manifest = unpack(data)
    batch_no, rev_id, lsn, anchor, *rest = checkpoint
    return LaneProgress(
        Checkpoint(batch_no, rev_id, lsn, Anchor(*anchor), *rest), _manifest_of(manifest)
    )


def _manifest_of(row: tuple[Any, ...] | None) -> Manifest | None:
    if row is None:
        return None
    number, lo, prev_rev, attempts, revisions, *rest = row
    return Manifest(
        number, lo, prev_rev, attempts, tuple(Revision(*each) for each in revisions), *rest
    )


def letter_of(data: bytes) -> DeadLetter:
    """Unpack a dead letter."""
    return DeadLetter(*unpack(data))


def letters_of(data: bytes | None) -> list[DeadLetter]:
    """Unpack a list of dead letters; empty where there is none."""
    return [] if data is None else [DeadLetter(*row) for row in unpack(data)]


def bury(txn: Transaction, route_id: RouteId, letters: Sequence[DeadLetter]) -> None:
    """Take dead letters into the index; one that was purged once is dead anew.

    What damage took is told by its first LSN, without a body. Another lane may have set that record
    aside before: the range then stands at its first LSN that is free.
    """
    for letter in letters:
        at = dead_key(route_id, letter.lsn)
        row = txn.get("dead", at)
        held = None if row is None else letter_of(row)
        if held is not None and _is_range_of_another(letter, held):
            _put_range(txn, route_id, letter)
            continue
        txn.put("dead", at, pack(letter))
        lane = LANE.pack(route_id, letter.layout, letter.lane)
        txn.delete("purged", lane + NUMBER.pack(letter.lsn))
        if held is not None and _is_range_of_another(held, letter):
            _put_range(txn, route_id, held)


def _is_range_of_another(letter: DeadLetter, other: DeadLetter) -> bool:
    """Tell whether a letter has no body, and another lane's has one."""
    others = (letter.layout, letter.lane) != (other.layout, other.lane)
    return others and not letter.dead_file and bool(other.dead_file)


def _put_range(txn: Transaction, route_id: RouteId, letter: DeadLetter) -> None:
    """Put what damage took; if all of it is dead letters with bodies, its count is purged."""
    for lsn in range(letter.lsn + 1, letter.through_lsn + 1):
        row = txn.get("dead", dead_key(route_id, lsn))
        if row is None:
            txn.put("dead", dead_key(route_id, lsn), pack(replace(letter, lsn=lsn)))
            return
    count_purged(txn, LANE.pack(route_id, letter.layout, letter.lane), letter.records)


def count_purged(txn: Transaction, at: bytes, records: int) -> None:
    """Count so many dead letters of the lane at a key as purged."""
    checkpoint, manifest = _held_at(txn, at)
    after = replace(
        checkpoint,
        dead_letters=checkpoint.dead_letters - records,
        purged=checkpoint.purged + records,
    )
    txn.put("lanes", at, pack([after, manifest]))
