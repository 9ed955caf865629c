"""How routes are divided into lanes, durably: T9 of the ledger.

    layouts  route u32             -> [number, lanes, since, next lanes, barrier, sink]
    former   route u32 layout u32  -> [number, lanes, since, 0, 0, sink]: of a layout before

A route without a row has one lane in layout 0. Former layouts are kept: their lanes hold counts,
dead letters that are redriven through their chain, and rows at the target that may go back. Those
of which only the counts are left are folded: one lane of a layout that never was holds them all.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from struct import Struct

from wald.core import lanes
from wald.core.lanes import Layout
from wald.errors import LedgerFailed
from wald.model import Checkpoint, LaneKey, LaneProgress, Lsn, RouteBirth, RouteId
from wald.ports import Store, Transaction
from wald.storage.ledger_rows import (
    ROUTE,
    forget_lane,
    get_lane,
    lane_bytes,
    lane_of,
    pack,
    put_lane,
    unpack,
)

_FORMER = Struct(">II")
_FOLDED = 0xFFFF_FFFF  # no layout gets that number


class Layouts:
    """The layouts of all routes; any thread. Each method is one transaction."""

    def __init__(self, store: Store, log_id: bytes) -> None:
        self._store = store
        self._log_id = log_id

    def settle(
        self,
        birth: RouteBirth,
        wanted: int,
        frontier_lsn: Lsn,
        told: Sequence[Layout] = (),
        sealed_through: Lsn = 0,
    ) -> Layout:
        """T9: bring the layout of a route in line with a wanted number of lanes.

        A route of which nothing was sealed yet gets it at once; else a change begins, goes on,
        or is called off, as ``core.lanes.decide`` says. No lane of the route may be at work.

        Args:
            birth: the route, taken in (T1).
            wanted: the number of lanes.
            frontier_lsn: the frontier as it is known now; what an earlier life has sealed counts
                too, for it may have known a newer one.
            told: the newest layouts that were told outside the ledger, the one at work last: if it
                does not know of them it went back. Their lanes begin anew then, and their rows at
                the target say how far they are.
            sealed_through: no lane has sealed beyond it, by a ledger that was lost since; a route
                of before of which no layout is told had one lane.
        """

        def work(txn: Transaction) -> Layout:
            held = _get(txn, birth.route_id)
            if told and _is_older(held, told[-1]):
                held = self._restore(txn, birth.route_id, told, held)
            is_new = birth.birth_lsn >= sealed_through
            if held is None and is_new and self._is_untouched(txn, birth):
                return self._found(txn, birth.route_id, Layout(0, wanted, birth.birth_lsn))
            layout = held or Layout(0, 1, birth.birth_lsn)
            sealed = max(self._sealed(txn, birth), sealed_through)
            after = lanes.changed(layout, wanted, max(frontier_lsn, sealed))
            if after.is_changing:
                after = replace(after, barrier=max(after.barrier, sealed_through))
            if after != held:
                _put(txn, birth.route_id, after)
            return after

        return self._store.write(work)

    def switch(self, route_id: RouteId, worked_on: Layout) -> Layout:
        """T9: put the following layout to work once every lane is through to the barrier.

        Returns the layout that stands: ``worked_on`` if a lane is not through yet.

        Raises:
            LedgerFailed: the ledger holds another layout.
        """

        def work(txn: Transaction) -> Layout:
            held = _get(txn, route_id)
            if held == worked_on.following():
                return held  # it was put to work, and not told of
            if held != worked_on:
                msg = "the ledger holds another layout"
                raise LedgerFailed(msg)
            lanes_held = [
                get_lane(txn, LaneKey(self._log_id, route_id, worked_on.number, lane))
                for lane in range(worked_on.lanes)
            ]
            barrier = worked_on.barrier
            if any(each.manifest or each.checkpoint.lsn < barrier for each in lanes_held):
                return worked_on
            _put_former(txn, route_id, worked_on)
            return self._found(txn, route_id, worked_on.following())

        return self._store.write(work)

    def turn(self, birth: RouteBirth, worked_on: Layout, sink: str) -> Layout:
        """T9: let the lanes deliver to another sink, behind all that was sealed, at once.

        What was sealed, and what lies before it, stays with the lanes of the layout before, and
        their sink. No lane of the route may be at work.

        Raises:
            LedgerFailed: the ledger holds another layout.
        """

        def work(txn: Transaction) -> Layout:
            held = _get(txn, birth.route_id)
            if held is not None and (held.number, held.sink) == (worked_on.number + 1, sink):
                return held  # it was put to work, and not told of
            if held != worked_on:
                msg = "the ledger holds another layout"
                raise LedgerFailed(msg)
            _put_former(txn, birth.route_id, worked_on)
            after = worked_on.turned(sink, self._sealed(txn, birth))
            return self._found(txn, birth.route_id, after)

        return self._store.write(work)

    def of(self, route_id: RouteId) -> Layout | None:
        """Return the layout of a route; None if it was never settled."""
        return self._store.read(lambda txn: _get(txn, route_id))

    def sinks_of(self, route_id: RouteId) -> set[str]:
        """Return the sinks beside its own that a route has delivered to."""
        at_work = self.of(route_id)
        layouts = [*self.former(route_id), *([at_work] if at_work else [])]
        return {layout.sink for layout in layouts if layout.sink}

    def former(self, route_id: RouteId) -> list[Layout]:
        """Return the layouts before the one at work, oldest first."""
        return self._store.read(
            lambda txn: [
                Layout(*unpack(row)) for _, row in txn.scan("former", ROUTE.pack(route_id))
            ]
        )

    def fold(self, route_id: RouteId, gone: Collection[int]) -> int:
        """T9: take the counts of the oldest former layouts together, and forget their lanes.

        Of those that are named, up to the first in which something is left to be done: a batch, a
        dead letter, a record that was not delivered. No lane of the route may be at work.

        Args:
            route_id: the route.
            gone: the numbers of layouts whose end the log does not hold any more, so that no row
                at the target may lead back to them.

        Returns:
            How many were folded.
        """

        def work(txn: Transaction) -> int:
            at_work = _get(txn, route_id)
            rows = [Layout(*unpack(row)) for _, row in txn.scan("former", ROUTE.pack(route_id))]
            if at_work is None or not gone:
                return 0
            count = 0
            at = folded_key(LaneKey(self._log_id, route_id, 0, 0))
            folded = get_lane(txn, at).checkpoint
            for layout, following in pairwise([*rows, at_work]):
                keys = [
                    at._replace(layout=layout.number, lane=lane) for lane in range(layout.lanes)
                ]
                held = [get_lane(txn, key) for key in keys]
                if layout.number not in gone or not all(
                    _is_finished(each, following.since) for each in held
                ):
                    break
                if any(next(txn.scan("purged", lane_bytes(key)), None) for key in keys):
                    break  # what became of those is still told one by one
                for key, each in zip(keys, held, strict=True):
                    folded = _together(folded, each.checkpoint)
                    forget_lane(txn, key)
                txn.delete("former", _FORMER.pack(route_id, layout.number))
                count += 1
            if count:
                put_lane(txn, at, LaneProgress(folded, None))
            return count

        return self._store.write(work)

    def _is_untouched(self, txn: Transaction, birth: RouteBirth) -> bool:
        first = get_lane(txn, LaneKey(self._log_id, birth.route_id, 0, 0))
        return first == LaneProgress(Checkpoint(lsn=birth.birth_lsn), None)

    def _restore(
        self, txn: Transaction, route_id: RouteId, told: Sequence[Layout], held: Layout | None
    ) -> Layout:
        """Take in layouts that the ledger does not know, or not any more."""
        former = [] if held is None or held.number >= told[0].number else [held]
        for layout in (*former, *told):
            begin = LaneProgress(Checkpoint(lsn=layout.since), None)
            for lane in range(layout.lanes):
                key = LaneKey(self._log_id, route_id, layout.number, lane)
                if txn.get("lanes", lane_bytes(key)) is None:
                    put_lane(txn, key, begin)
        for layout in (*former, *told[:-1]):
            _put_former(txn, route_id, layout)
        _put(txn, route_id, told[-1])
        return told[-1]

    def _sealed(self, txn: Transaction, birth: RouteBirth) -> Lsn:
        """Return up to where any lane of a route has ever sealed."""
        sealed = birth.birth_lsn
        for _, row in txn.scan("lanes", ROUTE.pack(birth.route_id)):
            held = lane_of(row)
            revisions = held.manifest.revisions if held.manifest else ()
            sealed = max(sealed, held.checkpoint.lsn, *(each.hi for each in revisions), 0)
        return sealed

    def _found(self, txn: Transaction, route_id: RouteId, layout: Layout) -> Layout:
        begin = LaneProgress(Checkpoint(lsn=layout.since), None)
        for lane in range(layout.lanes):
            put_lane(txn, LaneKey(self._log_id, route_id, layout.number, lane), begin)
        _put(txn, route_id, layout)
        return layout


def _get(txn: Transaction, route_id: RouteId) -> Layout | None:
    row = txn.get("layouts", ROUTE.pack(route_id))
    return None if row is None else Layout(*unpack(row))


def _is_older(held: Layout | None, told: Layout) -> bool:
    """Tell whether a ledger holds less than what was told: it is new, or an older copy."""
    return held is None or held.number < told.number


def _put_former(txn: Transaction, route_id: RouteId, layout: Layout) -> None:
    row = (layout.number, layout.lanes, layout.since, 0, 0, layout.sink)
    txn.put("former", _FORMER.pack(route_id, layout.number), pack(row))


def _put(txn: Transaction, route_id: RouteId, layout: Layout) -> None:
    txn.put("layouts", ROUTE.pack(route_id), pack(layout))


# --- folded layouts -----------------------------------------------------------------------------


def folded_key(key: LaneKey) -> LaneKey:
    """Return the lane that holds the counts of the route's folded layouts."""
    return key._replace(layout=_FOLDED, lane=0)


def _is_finished(held: LaneProgress, until: Lsn) -> bool:
    """Tell whether nothing is left of a former lane but its counts."""
    checkpoint = held.checkpoint
    return held.manifest is None and checkpoint.lsn >= until and not checkpoint.dead_letters


def _together(one: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return the counts of both. There is no chain to go on with."""
    return Checkpoint(
        batch_no=one.batch_no + other.batch_no,
        lsn=max(one.lsn, other.lsn),
        delivered=one.delivered + other.delivered,
        superseded=one.superseded + other.superseded,
        purged=one.purged + other.purged,
    )
