"""Game days: what each fault does at a sink's port, and that it ends by itself."""

from random import Random

import pytest

from wald import limits
from wald.drainer.faults import Fault, FaultBoard, FaultKind, asked_fault
from wald.drainer.sinks import TendedSink
from wald.errors import InputError
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Attempt,
    Delivered,
    LaneKey,
    ProgressRow,
    Record,
    Rejected,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.testing.clock import ManualClock
from wald.testing.recording_sink import RecordingSink, RecordingTarget

KEY = LaneKey(bytes(16), 1, 0, 0)
SEED = 2026
NS = limits.CLOCK_NS_PER_S


def attempt(records: int = 1_000) -> Attempt:
    row = ProgressRow(1, bytes([1]) * 16, records, NO_ANCHOR, 7, NO_REVISION)
    sent = [Record(lsn, 0, 0, b"v") for lsn in range(1, records + 1)]
    return Attempt(KEY, "orders", NO_REVISION, row, sent)


class Day:
    """A sink with faults, on a clock of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.board = FaultBoard()
        self.target = RecordingTarget()
        self.sink = TendedSink(
            RecordingSink(self.target), "orders", self.board, self.clock, Random(SEED)
        )

    def begin(self, kind: str, amount: float = 0.0, for_s: float = 60.0) -> None:
        said = {"kind": kind, "amount": amount, "for_s": for_s}
        self.board.add("orders", asked_fault(said, self.clock.monotonic_ns(), Random(SEED)))

    def texts(self) -> list[str]:
        now_ns = self.clock.monotonic_ns()
        return [fault.text(now_ns) for fault in self.board.of("orders", now_ns)]


def test_without_a_fault_the_sink_is_as_it_is() -> None:
    day = Day()
    assert day.sink.deliver(attempt(3)) == Delivered()
    assert day.sink.read_row(KEY) == attempt(3).row
    assert day.texts() == []


def test_a_target_that_plays_dead_is_not_touched_and_comes_back_by_itself() -> None:
    day = Day()
    day.begin("down", for_s=60.0)
    for answer in (
        day.sink.deliver(attempt()),
        day.sink.read_row(KEY),
        day.sink.probe(attempt(), attempt().records),
    ):
        assert isinstance(answer, Systemic)
        assert answer.kind is SystemicKind.UNREACHABLE
    assert day.target.attempts == []
    day.clock.advance(59.0)
    assert day.texts() == ["game day: down, for 1 s more"]
    day.clock.advance(1.0)
    assert day.texts() == []
    assert day.sink.deliver(attempt(3)) == Delivered()


def test_a_slow_target_takes_its_time_and_delivers() -> None:
    day = Day()
    day.begin("slow", 0.5)
    before_ns = day.clock.monotonic_ns()
    assert day.sink.deliver(attempt(3)) == Delivered()
    assert day.clock.monotonic_ns() - before_ns == NS // 2


def test_refused_records_are_named_and_a_probe_names_the_same() -> None:
    day = Day()
    day.begin("reject", 0.01)
    outcome = day.sink.deliver(attempt())
    assert isinstance(outcome, Rejected)
    assert 1 <= len(outcome.records) <= 30
    assert day.sink.probe(attempt(), attempt().records) == list(outcome.records)
    assert day.target.records == []
    refused = {item.lsn for item in outcome.records}
    rest = [record for record in attempt().records if record.lsn not in refused]
    assert not day.sink.probe(attempt(), rest)


def test_a_lost_answer_comes_behind_the_effect() -> None:
    day = Day()
    day.begin("lose-answers", 1.0)
    assert isinstance(day.sink.deliver(attempt(3)), Unknown)
    assert day.target.lsns == [1, 2, 3]


def test_a_fault_of_one_kind_replaces_the_one_before_and_clear_ends_all() -> None:
    day = Day()
    day.begin("slow", 0.5)
    day.begin("slow", 1.0)
    day.begin("reject", 0.5)
    assert [text.partition(",")[0] for text in day.texts()] == [
        "game day: slower by 1000 ms",
        "game day: refuses 50.00% of the records",
    ]
    day.board.clear("orders")
    assert day.texts() == []


def test_a_fault_of_one_route_is_none_of_another() -> None:
    day = Day()
    day.board.add("others", Fault(FaultKind.DOWN, 0.0, day.clock.monotonic_ns() + NS))
    assert day.sink.deliver(attempt(3)) == Delivered()


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "upside-down", "for_s": 1},
        {"kind": "down", "amount": 1, "for_s": 1},
        {"kind": "reject", "amount": 1.1, "for_s": 1},
        {"kind": "reject", "amount": "1%", "for_s": 1},
        {"kind": "slow", "amount": -1, "for_s": 1},
        {"kind": "slow", "amount": True, "for_s": 1},
        {"kind": "down", "for_s": limits.FAULT_MAX_S + 1},
    ],
)
def test_what_is_no_fault_is_refused_with_a_reason(said: dict[str, object]) -> None:
    with pytest.raises(InputError):
        asked_fault(said, 0, Random(SEED))
