"""A fallback takes over while the own target is down: each record in one of the two, in order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backlog import FS, Backlog, end, eventually
from wald import limits
from wald.config import SinkSettings
from wald.drainer.faults import Fault, FaultKind
from wald.drainer.fleet import Fleet
from wald.drainer.released import ProgressPage
from wald.model import Systemic, SystemicKind, Unknown
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


class Pair:
    """A route with a fallback, and the two targets."""

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.own, self.spare = RecordingTarget(), RecordingTarget()
        self.ledger = MemoryLedger(backlog.log.log_id)
        settings = backlog.settings
        route = replace(settings.routes["one"], fallback="spare", fallback_after_s=0.05)
        backlog.settings = replace(
            settings,
            routes={"one": route},
            sinks={**settings.sinks, "spare": SinkSettings("spare", "test")},
        )

    def fleet(self, **doors: Any) -> Fleet:
        targets = {"one": self.own, "spare": self.spare}
        shared = self.backlog.shared(
            lambda _, sink: RecordingSink(targets[sink.name]), ledger=self.ledger
        )
        self.shared = replace(shared, **doors)
        return self.backlog.fleet(self.shared)

    def append(self, count: int, fleet: Fleet | None = None) -> list[int]:
        lsns = [lsn for n in range(count) for lsn in self.backlog.append(b"%d" % n)]
        if fleet is not None:
            self.shared.board.pin(self.backlog.log.frontier)
            fleet.flush(self.backlog.log.frontier.lsn)
        return lsns


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(limits, "FALLBACK_BACK_S", 0.05)
    backlog = Backlog(tmp_path, "one")
    yield Pair(backlog)
    backlog.close()


def until(fleet: Fleet, holds) -> None:
    def polled() -> bool:
        fleet.poll()
        return bool(holds())

    eventually(polled, fleet.figures)


def test_while_the_own_target_is_down_the_fallback_takes_over_and_then_gives_back(
    pair: Pair,
) -> None:
    before = pair.append(10)
    fleet = pair.fleet()
    try:
        until(fleet, lambda: pair.own.lsns == before)
        pair.own.down = DOWN
        meanwhile = pair.append(25, fleet)
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
        meanwhile += pair.append(5, fleet)
        until(fleet, lambda: len(pair.spare.lsns) > 10)
        pair.own.down = None
        until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
        after = pair.append(10, fleet)
        last = pair.backlog.log.frontier.lsn
        until(fleet, lambda: fleet.figures()["one"]["through_lsn"] >= last)
        figures = fleet.figures()["one"]
    finally:
        end(fleet)
    assert pair.own.lsns == sorted(pair.own.lsns)
    assert pair.spare.lsns == sorted(pair.spare.lsns)
    assert sorted(pair.own.lsns + pair.spare.lsns) == before + meanwhile + after
    assert pair.own.lsns[-10:] == after
    assert (figures["delivered"], figures["dead_letters"]) == (50, 0)


def test_a_target_that_is_well_again_is_not_called_down_until_it_takes_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FALLBACK_BACK_S", 3_600.0)
    fleet = pair.fleet()

    def own() -> object:
        return (fleet.figures()["one"].get("fallback") or {}).get("own")

    try:
        pair.own.down = DOWN
        pair.append(3, fleet)
        until(fleet, lambda: own() == "down")
        pair.own.down = None
        until(fleet, lambda: own() == "well")
    finally:
        end(fleet)


def test_a_game_day_takes_the_own_target_down_and_not_the_fallback(pair: Pair) -> None:
    fleet = pair.fleet()
    now_ns = pair.shared.clock.monotonic_ns()
    pair.shared.faults.add(
        "one", Fault(FaultKind.DOWN, 0.0, now_ns + 3_600 * limits.CLOCK_NS_PER_S)
    )
    try:
        first = pair.append(10, fleet)
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
        meanwhile = pair.append(10, fleet)
        until(fleet, lambda: pair.spare.lsns[-10:] == meanwhile)
        assert pair.own.lsns == []
        pair.shared.faults.clear("one")
        until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
        until(fleet, lambda: sorted(pair.own.lsns + pair.spare.lsns) == first + meanwhile)
    finally:
        end(fleet)


def test_what_may_have_reached_the_own_target_stays_with_it(pair: Pair) -> None:
    pair.own.script.extend([Unknown("no answer")] * 10_000)
    sent = pair.append(10)
    fleet = pair.fleet()
    try:
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
        more = pair.append(10, fleet)
        until(fleet, lambda: pair.spare.lsns == more)
        pair.own.script.clear()
        until(fleet, lambda: pair.own.lsns == sent)
        until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
    finally:
        end(fleet)
    assert (pair.own.lsns, pair.spare.lsns) == (sent, more)


def test_a_start_in_the_middle_goes_on_at_the_fallback(pair: Pair) -> None:
    first = pair.append(10)
    fleet = pair.fleet()
    try:
        until(fleet, lambda: pair.own.lsns == first)
        pair.own.down = DOWN
        stuck = pair.append(1, fleet)
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
    finally:
        end(fleet)
    second = pair.append(10)
    fleet = pair.fleet()
    try:
        until(fleet, lambda: set(second) <= set(pair.spare.lsns))
        pair.own.down = None
        until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
        third = pair.append(10, fleet)
        until(fleet, lambda: set(third) <= set(pair.own.lsns))
    finally:
        end(fleet)
    # sealed before the turn it is the own target's, else the fallback's
    assert sorted(pair.own.lsns + pair.spare.lsns) == first + stuck + second + third
    assert pair.own.lsns == sorted(pair.own.lsns)


def test_a_short_outage_is_waited_for(pair: Pair) -> None:
    pair.backlog.settings = replace(
        pair.backlog.settings,
        routes={
            "one": replace(pair.backlog.settings.routes["one"], fallback_after_s=600.0),
        },
    )
    pair.own.script.extend([DOWN] * 20)
    sent = pair.append(10)
    fleet = pair.fleet()
    try:
        until(fleet, lambda: pair.own.lsns == sent)
    finally:
        end(fleet)
    assert pair.spare.lsns == []


def test_without_the_fallback_in_the_settings_the_own_target_takes_over_at_once(
    pair: Pair,
) -> None:
    fleet = pair.fleet()
    try:
        pair.own.down = DOWN
        pair.append(3, fleet)
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
        second = pair.append(10, fleet)
        until(fleet, lambda: set(second) <= set(pair.spare.lsns))
    finally:
        end(fleet)
    settings = pair.backlog.settings
    routes = {"one": replace(settings.routes["one"], fallback=None)}
    pair.backlog.settings = replace(settings, routes=routes)
    pair.own.down = None
    fleet = pair.fleet()
    try:
        third = pair.append(10, fleet)
        until(fleet, lambda: set(third) <= set(pair.own.lsns))
    finally:
        end(fleet)
    assert sorted(pair.own.lsns + pair.spare.lsns) == list(range(1, 24))


OTHER = SinkSettings("other", "test")


@pytest.mark.parametrize("fallback", [None, "other", "spare"])
def test_a_fallback_that_a_lost_ledger_alone_knew_is_never_taken_for_another_sink(
    pair: Pair, fallback: str | None
) -> None:
    progress = ProgressPage(FS, pair.backlog.data_dir)
    doors = {"told_layouts": progress.told_layouts, "tell_layouts": progress.tell_layouts}
    fleet = pair.fleet(**doors)
    try:
        pair.own.down = DOWN
        pair.append(3, fleet)
        until(fleet, lambda: fleet.figures()["one"].get("fallback"))
        second = pair.append(10, fleet)
        until(fleet, lambda: set(second) <= set(pair.spare.lsns))
    finally:
        end(fleet)
    pair.ledger = MemoryLedger(pair.backlog.log.log_id)
    pair.own.down = None
    settings = pair.backlog.settings
    route = replace(settings.routes["one"], fallback=fallback)
    sinks = {"one": settings.sinks["one"], "other": OTHER}
    pair.backlog.settings = replace(settings, routes={"one": route}, sinks=sinks)
    fleet = pair.fleet(**doors)  # its table has another name, or is gone
    assert not fleet.routes
    assert [orphan.birth.name for orphan in fleet.orphans.values()] == ["one"]
    end(fleet)
    sinks = {**settings.sinks, "other": OTHER}
    pair.backlog.settings = replace(settings, routes={"one": route}, sinks=sinks)
    fleet = pair.fleet(**doors)
    try:
        assert fleet.layouts.sinks_of(1) == {"spare"}
        until(fleet, lambda: not fleet.figures()["one"].get("fallback"))
        third = pair.append(10, fleet)
        until(fleet, lambda: set(third) <= set(pair.own.lsns))
    finally:
        end(fleet)
        progress.close()
    assert not set(second) & set(pair.own.lsns)
