"""The seams of the fallback: full disks in the turn, lanes that are left behind, restores."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backlog import CLOCK, Backlog, end, eventually
from tests.integration.test_fallback import DOWN, Pair, until
from wald import limits
from wald.drainer.fleet import Fleet
from wald.drainer.lane import Lane
from wald.drainer.layout import RouteLanes
from wald.model import Checkpoint, LaneKey, RouteBirth
from wald.storage.layouts import Layouts
from wald.testing.memory_ledger import MemoryLedger


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(limits, "FALLBACK_BACK_S", 0.05)
    monkeypatch.setattr(limits, "REREAD_S", 0.05)
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.05)
    monkeypatch.setattr(limits, "REWIND_PAUSE_S", 0.05)
    backlog = Backlog(tmp_path, "one")
    yield Pair(backlog)
    backlog.close()


def at_fallback(fleet: Fleet) -> bool:
    return bool(fleet.figures()["one"].get("fallback"))


def until_whatever(fleet: Fleet, holds: Any) -> None:
    """Like the main thread's rounds, which survive what a route runs into."""

    def polled() -> bool:
        with contextlib.suppress(OSError):
            fleet.poll()
        return bool(holds())

    eventually(polled)


def fall_back(pair: Pair, fleet: Fleet, stuck: int = 1) -> list[int]:
    """Let the own target go down; returns what is appended before the turn."""
    pair.own.down = DOWN
    lsns = pair.append(stuck, fleet)
    until(fleet, lambda: at_fallback(fleet))
    return lsns


def come_back(pair: Pair, fleet: Fleet) -> None:
    pair.own.down = None
    until(fleet, lambda: not at_fallback(fleet))


def test_a_full_disk_in_the_turn_makes_no_layout_more_and_the_route_goes_on(pair: Pair) -> None:
    full = [30]

    def tell(*_: Any) -> None:
        if full[0] and pair.own.down:
            full[0] -= 1
            raise OSError(28, "No space left on device")

    fleet = pair.fleet(tell_layouts=tell)
    try:
        pair.own.down = DOWN
        pair.append(1, fleet)
        until_whatever(fleet, lambda: full[0] == 0)
        more = pair.append(5, fleet)
        until(fleet, lambda: set(more) <= set(pair.spare.lsns))
        assert [each.number for each in fleet.layouts.former(1)] == [0]
    finally:
        end(fleet)


def test_a_lane_that_cannot_be_begun_behind_the_turn_is_begun_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = Lane.start, [3]

    def start(lane: Lane) -> None:
        if lane.route.layout and left[0]:
            left[0] -= 1
            raise OSError(11, "can't start new thread")
        real(lane)

    monkeypatch.setattr(Lane, "start", start)
    fleet = pair.fleet()
    try:
        pair.own.down = DOWN
        pair.append(1, fleet)
        until_whatever(fleet, lambda: left[0] == 0)
        more = pair.append(5, fleet)
        until_whatever(fleet, lambda: set(more) <= set(pair.spare.lsns))
    finally:
        end(fleet)


def test_a_parked_lane_of_the_own_target_keeps_the_order_of_its_keys(pair: Pair) -> None:
    pair.own.refuses = lambda record: record.lsn == 3
    backlog = pair.backlog
    route = backlog.settings.routes["one"]
    backlog.settings = replace(backlog.settings, routes={"one": replace(route, on_reject="halt")})
    fleet = pair.fleet()
    try:
        first = pair.append(10, fleet)
        until(fleet, lambda: fleet.figures()["one"]["parked"] == "halted")
        pair.own.down = DOWN
        pair.append(5, fleet)
        fleet.routes[1].hurry()
        until(fleet, lambda: at_fallback(fleet))
        pair.own.down = None
        until(fleet, lambda: not at_fallback(fleet) or _is_parked_again(fleet))
        end_s = CLOCK.monotonic_ns() / 1e9 + 6 * limits.FALLBACK_BACK_S
        while CLOCK.monotonic_ns() / 1e9 < end_s:
            later = pair.append(5, fleet)
            until(fleet, lambda some=later: set(some) <= {*pair.own.lsns, *pair.spare.lsns})
            assert not set(later) & set(pair.own.lsns), "they must not overtake what is halted"
        until(fleet, lambda: fleet.figures()["one"]["fallback"]["own"] == "parked")
        pair.own.refuses = lambda _: False
        until(fleet, lambda: set(first) <= set(pair.own.lsns))
        come_back(pair, fleet)
    finally:
        end(fleet)
    assert pair.own.lsns == sorted(pair.own.lsns)


def _is_parked_again(fleet: Fleet) -> bool:
    return any(lane["parked"] for lane in fleet.figures()["one"]["lanes"])


def test_a_restore_while_at_the_fallback_keeps_the_order_at_the_own_target(pair: Pair) -> None:
    fleet = pair.fleet()
    try:
        first = pair.append(40, fleet)
        until(fleet, lambda: pair.own.lsns == first)
        stuck = fall_back(pair, fleet)
        pair.append(3, fleet)
        come_back(pair, fleet)
        # sealed before the turn it is the own target's, else the fallback's
        until(fleet, lambda: set(stuck) <= {*pair.own.lsns, *pair.spare.lsns})
        second = pair.append(40, fleet)
        until(fleet, lambda: set(second) <= set(pair.own.lsns))
        fall_back(pair, fleet)
        owned = set(pair.own.lsns)
        pair.own.records.clear()  # restored to the very beginning
        pair.own.rows.clear()
        pair.own.down = None
        until(fleet, lambda: owned <= set(pair.own.lsns))
    finally:
        end(fleet)
    assert pair.own.lsns == sorted(pair.own.lsns)


def test_outages_do_not_add_up_to_more_and_more_lanes_that_run(pair: Pair) -> None:
    fleet = pair.fleet()
    try:
        first = pair.append(3, fleet)
        until(fleet, lambda: pair.own.lsns == first)
        for _ in range(6):
            stuck = fall_back(pair, fleet)
            until(fleet, lambda: len(fleet.each_lane()) <= 3)
            come_back(pair, fleet)
            until(fleet, lambda some=stuck: set(some) <= {*pair.own.lsns, *pair.spare.lsns})
    finally:
        end(fleet)


@pytest.mark.parametrize("in_reach", [False, True])
def test_layouts_of_many_outages_are_folded_once_no_row_can_lead_back_to_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, in_reach: bool
) -> None:
    monkeypatch.setattr(RouteLanes, "_is_in_reach", lambda *_: in_reach)
    fleet = pair.fleet()
    layouts = Layouts(pair.ledger.store, pair.backlog.log.log_id)
    try:
        for _ in range(5):
            pair.own.down = DOWN
            pair.append(2, fleet)
            until(fleet, lambda: fleet.figures()["one"].get("fallback"))
            pair.append(2, fleet)
            pair.own.down = None
            until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
            last = pair.backlog.log.frontier.lsn
            until(fleet, lambda end=last: fleet.figures()["one"]["through_lsn"] >= end)
        until(fleet, lambda: fleet.figures()["one"]["delivered"] == 20)
        batches = fleet.figures()["one"]["batch_no"]
    finally:
        end(fleet)
    former = [layout.number for layout in layouts.former(1)]
    assert former == (list(range(10)) if in_reach else former[-limits.FORMER_LAYOUTS_KEPT_COUNT :])
    assert former[-1] == 9
    again = pair.fleet()  # and a start finds the same books
    try:
        until(again, lambda: again.figures()["one"]["delivered"] == 20)
        assert again.figures()["one"]["batch_no"] == batches
    finally:
        end(again)
    assert sorted(pair.own.lsns + pair.spare.lsns) == list(range(1, 21))
    lanes = pair.ledger.lanes(1)
    assert sum(held.checkpoint.delivered for held in lanes.values()) == 20


@pytest.mark.parametrize(
    ("what", "checkpoint", "folded"),
    [
        ("it is through", Checkpoint(3, b"r" * 16, 10, delivered=9, purged=1), 1),
        ("it is not through", Checkpoint(3, b"r" * 16, 9, delivered=9), 0),
        ("a dead letter may be sent again", Checkpoint(3, b"r" * 16, 10, dead_letters=1), 0),
    ],
)
def test_a_layout_in_which_something_is_left_is_not_folded(
    what: str, checkpoint: Checkpoint, folded: int
) -> None:
    ledger = MemoryLedger(b"L" * 16)
    birth = ledger.birth(RouteBirth(1, "one", 1, "one", "one", 0, 77))
    layouts = Layouts(ledger.store, b"L" * 16)
    first = layouts.settle(birth, 1, 0)
    key = LaneKey(b"L" * 16, 1, 0, 0)
    assert ledger.adopt(key, ledger.lane(key), replace(checkpoint, lsn=10), [])
    layouts.turn(birth, first, "spare")  # behind LSN 10
    ledger.adopt(key, ledger.lane(key), checkpoint, [])
    for name in ("told 1.0.0", "told 1.1.0"):
        ledger.note(name, [7])
    assert layouts.fold(1, [0]) == folded, what
    assert (ledger.note("told 1.0.0") is None) == bool(folded)  # what is noted of it goes with it
    assert ledger.note("told 1.1.0")
    assert layouts.fold(1, [0]) == 0
    assert len(layouts.former(1)) == 1 - folded
    delivered = sum(held.checkpoint.delivered for held in ledger.lanes(1).values())
    assert delivered == checkpoint.delivered
