"""Windows: whether a target still knows a batch, by clocks that jump."""

import pytest

from tests.documents import printed_table
from wald.core.window import WINDOW_CASES, Moment, Window, WindowFacts, judge_window
from wald.limits import CLOCK_NS_PER_S as S
from wald.testing.clock import ManualClock

WINDOW_S, TIMEOUT_S = 100.0, 10.0  # with the margin: open for 85 s
BEGAN = Moment("boot-1", 50 * S, 1_000 * S)


def facts(
    boot="boot-1", boot_s=50.0, wall_s=1_000.0, *, window_s=WINDOW_S, n=None, since=0, began=BEGAN
):
    now = Moment(boot, round(boot_s * S), round(wall_s * S))
    return WindowFacts(window_s, n, began, now, TIMEOUT_S, since)


def nameless(boot_s, wall_s):
    """Both moments are of a boot that the system does not name: of the same one, or not."""
    return facts("", boot_s, wall_s, began=BEGAN._replace(boot_id=""))


JUDGED = [
    ("nothing-stated", facts(window_s=None)),
    ("too-many-batches", facts(n=10, since=6)),
    ("too-many-batches", facts(n=1, since=1)),
    ("in-time", facts(n=10, since=5)),
    ("batches-alone", facts(window_s=None, n=10, since=5)),
    ("in-time", facts()),
    ("in-time", facts(boot_s=135)),
    ("over", facts(boot_s=135.1)),
    ("over", facts(boot_s=49)),
    ("in-time", facts(boot_s=60, wall_s=9e9)),
    ("in-time", facts(boot_s=60, wall_s=1)),
    ("over", facts(boot_s=140, wall_s=1)),
    ("clock-went-back", facts("boot-2", 60, 999.9)),
    ("in-time-by-the-wall-clock", facts("boot-2", 1, 1_085)),
    ("over-by-the-wall-clock", facts("boot-2", 60, 1_085.1)),
    ("in-time-by-the-wall-clock", nameless(60, 1_085)),
    ("over-by-the-wall-clock", nameless(60, 90_000)),
    ("clock-went-back", nameless(60, 999.9)),
]


@pytest.mark.parametrize(("label", "found"), JUDGED)
def test_the_window_is_judged_by_the_table(label, found):
    assert judge_window(found).label == label


def test_every_row_of_the_table_is_tested():
    assert {label for label, _ in JUDGED} == {case.label for case in WINDOW_CASES}


def test_the_document_prints_the_table_of_the_window():
    assert printed_table("Windows") == [
        (f"`{case.label}`", case.when, case.window.value) for case in WINDOW_CASES
    ]


def moment(clock):
    return Moment(clock.boot_id(), clock.boot_ns(), clock.wall_ns())


def jump(clock, what):
    match what:
        case ("pass", seconds):
            clock.advance(seconds)
        case ("wall", seconds):
            clock.set_wall(clock.wall_ns() + round(seconds * S))
        case _:
            clock.reboot()


DAY_S = 86_400.0
JUMPS = [
    # what happens to the clocks, and whether the target is sent to again
    ([("pass", 80.0)], Window.OPEN),
    ([("pass", 90.0)], Window.OVER),
    ([("pass", 80.0), ("wall", DAY_S)], Window.OPEN),  # the boot clock knows better
    ([("pass", 80.0), ("wall", -DAY_S)], Window.OPEN),
    ([("pass", 90.0), ("wall", -DAY_S)], Window.OVER),
    ([("pass", 90.0), ("wall", -60.0)], Window.OVER),
    ([("reboot",)], Window.OPEN),
    ([("pass", 40.0), ("reboot",), ("pass", 40.0)], Window.OPEN),
    ([("pass", 40.0), ("reboot",), ("pass", 50.0)], Window.OVER),
    ([("reboot",), ("wall", -1.0)], Window.OVER),  # nobody knows how long it took
    ([("reboot",), ("wall", -DAY_S), ("pass", 2 * DAY_S)], Window.OVER),
    ([("reboot",), ("wall", DAY_S)], Window.OVER),
]


@pytest.mark.parametrize(("jumps", "window"), JUMPS)
def test_a_clock_that_jumps_makes_a_window_longer_never(jumps, window):
    clock = ManualClock()
    began = moment(clock)
    for what in jumps:
        jump(clock, what)
    found = WindowFacts(WINDOW_S, None, began, moment(clock), TIMEOUT_S)
    assert judge_window(found).window is window
