"""What status says of quotas, refusals and connections."""

from typing import Any

from wald.cli import door

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
    answer = {"quotas": {"s": quota}, "refused": {"backpressure": 1_200}, "connections": 2}
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
    answer: dict[str, Any] = {"quotas": {}, "refused": {}, "connections": 1}
    assert list(door.lines(answer, verbose=True)) == ["door: 1 connection; refused: nothing"]
