"""The watchdog of the drainer: who stands still too long ends the process, nobody else."""

from dataclasses import dataclass

from wald import limits
from wald.drainer.watchdog import Watchdog
from wald.testing.clock import ManualClock


@dataclass
class Standing:
    busy_since_ns: int
    attempt_timeout_s: float = 10.0
    name: str = "orders"


def look_after(seconds: float, began_ns: int | None) -> list[str]:
    clock = ManualClock()
    ended: list[str] = []
    watchdog = Watchdog(clock, lambda: ended.append("ended"))
    start = clock.monotonic_ns() + 1
    clock.advance(seconds)
    watchdog.look([Standing(0), Standing(start if began_ns is None else began_ns)])
    return ended


def test_an_attempt_within_twice_its_timeout_is_left_alone() -> None:
    assert look_after(20.0, None) == []


def test_an_attempt_beyond_twice_its_timeout_ends_the_process() -> None:
    assert look_after(20.1, None) == ["ended"]


def test_between_two_calls_nothing_is_too_long() -> None:
    assert look_after(1e6, 0) == []


def test_the_timer_of_the_interpreter_is_set_anew_now_and_then() -> None:
    clock = ManualClock()
    rearmed: list[int] = []
    watchdog = Watchdog(clock, lambda: None, lambda: rearmed.append(clock.monotonic_ns()))
    for _ in range(20):
        clock.advance(1.0)
        watchdog.look([])
    assert len(rearmed) == 4
    assert limits.DRAIN_STALL_S > 5.0
