"""What status says of quotas, refusals and connections."""

from typing import Any

import pytest

from wald.cli import door
from wald.limits import CLOCK_NS_PER_S
from wald.system import SystemClock

QUOTA: dict[str, Any] = {
    "used": 0.93,
    "pending_records": 93,
    "pending_bytes": 9,
    "pending_age_s": 1.0,
    "slowest": "s-db",
    "pause_s": 0.25,
    "full": False,
    "refused": 0,
    "throttled": 3,
    "says": "93 of 100 records",
}


def said(quota: dict[str, Any], *, verbose: bool = False) -> list[str]:
    answer = {
        "quotas": {"s": quota},
        "refused": {"backpressure": 1_200},
        "connections": 2,
        "no_room": None,
    }
    return list(door.lines(answer, verbose=verbose))


def test_a_quota_that_slows_producers_down_is_said() -> None:
    (line,) = said(QUOTA)
    assert line.startswith("s: quota 93% used (93 of 100 records pending at s-db)")
    assert "asked to pause" in line
    (line,) = said(QUOTA | {"full": True, "pause_s": 1.0, "used": 1.0})
    assert "FULL: producers are refused" in line


def test_one_with_room_is_said_only_if_asked() -> None:
    room = QUOTA | {"pause_s": 0.0, "used": 0.1, "slowest": ""}
    assert said(room) == []
    quota, rest = said(room, verbose=True)
    assert quota == "s: quota 10% used (93 of 100 records pending)"
    assert rest == "door: 2 connections; refused: backpressure 1,200"


def test_nothing_refused_is_said_so() -> None:
    answer: dict[str, Any] = {"quotas": {}, "refused": {}, "connections": 1, "no_room": None}
    assert list(door.lines(answer, verbose=True)) == ["door: 1 connection; refused: nothing"]


@pytest.mark.parametrize(
    ("ago_s", "begins"),
    [
        (1, "ALARM: the disk is full, new records are refused: no room on /x; free space there"),
        (7_200, "new records were refused, the last 2 h ago: no room on /x"),
    ],
)
def test_a_full_disk_is_said_without_being_asked(ago_s: int, begins: str) -> None:
    last_ns = SystemClock().wall_ns() - ago_s * CLOCK_NS_PER_S
    no_room = {"message": "no room on /x", "since_ns": last_ns, "last_ns": last_ns}
    (line,) = door.lines({"quotas": {}, "no_room": no_room}, verbose=False)
    assert line.startswith(begins)
