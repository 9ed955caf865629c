"""Past ranges that are delivered again: each with a lane of its own, pinned before it begins.

    replays  uuid 16s -> [source route, route id, stream, ..., see ``Replay``]

The route id of a replay is made of its uuid and lies in a range that ingest never gives, so that
ledger and target know its lane by a key that no route has. What lies behind its checkpoint stays
in the log until it is finished or forgotten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from wald import limits
from wald.errors import ReplayRefused
from wald.model import Checkpoint, LaneKey, LaneProgress, Lsn, RouteBirth, RouteId, StreamId
from wald.ports import Store, Transaction
from wald.storage.ledger_rows import ROUTE, get_lane, pack, put_lane, unpack

RESERVED_ROUTES: Final[RouteId] = 1 << 31  # ingest counts from 1, in jumps of 2^16
_U32: Final = Struct(">I")
_OF_A_ROUTE: Final = (
    *("lanes", "aside", "dead", "history"),
    *("redrives", "allowed", "purged"),
)


@dataclass(frozen=True, slots=True)
class Replay:
    """A past range of a stream on its way to a sink.

    Attributes:
        uuid: 16 random bytes.
        route: the name of the route whose settings it goes by.
        stream_id, stream: what is read.
        sink: the name of the table ``[sinks.NAME]``.
        after: the LSN before the first.
        until: the last LSN.
        key: only records of this key; None for all.
        owner: who began it.
        time_ns: when it was begun.
        records: how many were counted then.
    """

    uuid: bytes
    route: str
    stream_id: StreamId
    stream: str
    sink: str
    after: Lsn
    until: Lsn
    key: str | None
    owner: int
    time_ns: int
    records: int

    @property
    def route_id(self) -> RouteId:
        """The id that ledger and target know its lane by."""
        return RESERVED_ROUTES | int(_U32.unpack_from(self.uuid)[0] >> 1)

    @property
    def name(self) -> str:
        """How it is named in messages and dead letters."""
        return f"replay:{self.uuid.hex()}"

    def lane(self, log_id: bytes) -> LaneKey:
        """Return the key of its lane."""
        return LaneKey(log_id, self.route_id, 0, 0)

    def birth(self) -> RouteBirth:
        """Return it as a lane sees its route."""
        return RouteBirth(
            self.route_id,
            self.name,
            self.stream_id,
            self.stream,
            self.sink,
            self.after,
            self.owner,
        )


class Replays:
    """The replays that were begun and are not finished. Any thread; each method one transaction."""

    def __init__(self, store: Store, log_id: bytes) -> None:
        self._store = store
        self._log_id = log_id

    def begin(self, replay: Replay) -> None:
        """Pin the range; durable on return.

        Raises:
            ReplayRefused: too many are unfinished, or its id is taken.
        """

        def work(txn: Transaction) -> None:
            if sum(1 for _ in txn.scan("replays")) >= limits.REPLAYS_MAX:
                msg = f"{limits.REPLAYS_MAX} replays are unfinished"
                raise ReplayRefused(msg, hint="finish one with --resume, or drop it with --forget")
            key = replay.lane(self._log_id)
            if any(True for _ in txn.scan("lanes", ROUTE.pack(replay.route_id))):
                msg = "the id of the replay is taken"
                raise ReplayRefused(msg, hint="run it again")
            txn.put("replays", replay.uuid, pack(replay))
            put_lane(txn, key, LaneProgress(Checkpoint(lsn=replay.after), None))

        self._store.write(work)

    def all(self) -> list[Replay]:
        """Return those that are not finished, the oldest first."""
        found = self._store.read(
            lambda txn: [Replay(*unpack(value)) for _, value in txn.scan("replays")]
        )
        return sorted(found, key=lambda each: each.time_ns)

    def pins(self) -> Mapping[StreamId, Lsn]:
        """Return by stream up to where replays need nothing any more."""

        def work(txn: Transaction) -> dict[StreamId, Lsn]:
            pins: dict[StreamId, Lsn] = {}
            for _, value in txn.scan("replays"):
                replay = Replay(*unpack(value))
                lsn = get_lane(txn, replay.lane(self._log_id)).checkpoint.lsn
                pins[replay.stream_id] = min(lsn, pins.get(replay.stream_id, lsn))
            return pins

        return self._store.read(work)

    def forget(self, replay: Replay) -> None:
        """Let go of a replay, finished or given up, and of all that was kept for it."""

        def work(txn: Transaction) -> None:
            for table in _OF_A_ROUTE:
                for at, _ in list(txn.scan(table, ROUTE.pack(replay.route_id))):
                    txn.delete(table, at)
            txn.delete("replays", replay.uuid)

        self._store.write(work)
