"""Whether a target still knows a batch by its id: the class ``window``, as a labelled table.

A window begins with the first attempt that may have taken effect. Within one boot it is measured
by the boot clock, which no one sets; behind a reboot by the wall clock, which may have been set:
if it went back nobody knows how much time has passed. "Not known" is always "over", and a boot
that the system does not name is none that two moments have in common.

Pure: clocks are arguments.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from wald import limits

_NS = limits.CLOCK_NS_PER_S


class Moment(NamedTuple):
    """A point in time by the clocks that outlive a process."""

    boot_id: str
    boot_clock_ns: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """What decides.

    Attributes:
        window_s: how long the target remembers an id; None if time does not count.
        window_batches: how many batches it remembers; None if they do not count.
        began: the first attempt that may have taken effect.
        now: before the attempt to come.
        timeout_s: how long that one may take to reach the target.
        batches_since: own batches that were sent to the target since ``began``.
    """

    window_s: float | None
    window_batches: int | None
    began: Moment
    now: Moment
    timeout_s: float
    batches_since: int = 0


class Window(Enum):
    """Whether the target still knows the batch."""

    OPEN = "open"
    OVER = "over"


class WindowCase(NamedTuple):
    """A row of the table: what it is called, when it holds, what the window is."""

    label: str
    when: str
    window: Window


WINDOW_CASES: tuple[WindowCase, ...] = (
    WindowCase(
        "nothing-stated", "the sink states neither a time nor a number of batches", Window.OVER
    ),
    WindowCase(
        "too-many-batches", "more than half of the batches that it remembers since", Window.OVER
    ),
    WindowCase("batches-alone", "it forgets by batches alone", Window.OPEN),
    WindowCase("in-time", "same boot, within by the boot clock", Window.OPEN),
    WindowCase("over", "same boot, not within", Window.OVER),
    WindowCase(
        "clock-went-back",
        "another boot, or one without a name, and the wall clock is earlier",
        Window.OVER,
    ),
    WindowCase(
        "in-time-by-the-wall-clock",
        "another boot, or one without a name, within by the wall clock",
        Window.OPEN,
    ),
    WindowCase(
        "over-by-the-wall-clock", "another boot, or one without a name, not within", Window.OVER
    ),
)
_CASES = {case.label: case for case in WINDOW_CASES}


def judge_window(facts: WindowFacts) -> WindowCase:
    """Return the first row of the table that holds."""
    return _CASES[_label(facts)]


def _label(facts: WindowFacts) -> str:
    if facts.window_s is None and facts.window_batches is None:
        return "nothing-stated"
    if facts.window_batches is not None and facts.batches_since > facts.window_batches // 2:
        return "too-many-batches"
    return "batches-alone" if facts.window_s is None else _label_in_time(facts)


def _label_in_time(facts: WindowFacts) -> str:
    if facts.began.boot_id and facts.began.boot_id == facts.now.boot_id:
        passed_ns = facts.now.boot_clock_ns - facts.began.boot_clock_ns
        return "in-time" if _is_within(passed_ns, facts) else "over"
    passed_ns = facts.now.time_ns - facts.began.time_ns
    if passed_ns < 0:
        return "clock-went-back"
    return "in-time-by-the-wall-clock" if _is_within(passed_ns, facts) else "over-by-the-wall-clock"


def _is_within(passed_ns: int, facts: WindowFacts) -> bool:
    """Tell whether an attempt from now on reaches the target while it remembers.

    The margin is for a clock at the target that runs faster than ours.
    """
    assert facts.window_s is not None
    margin_s = limits.WINDOW_MARGIN_SHARE * facts.window_s
    return passed_ns >= 0 and passed_ns / _NS + facts.timeout_s + margin_s <= facts.window_s
