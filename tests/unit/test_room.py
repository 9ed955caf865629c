"""Whether new records find room: told once, counted, and told again when they do."""

import logging

import pytest

from wald.ingest.room import Room
from wald.testing import ManualClock


def test_a_full_disk_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    room = Room(clock)
    caplog.set_level(logging.INFO, "wald.ingest")
    assert not room.look("", 0)
    assert room.figures() is None
    began_ns = clock.wall_ns()
    assert room.look("no room on /x", 3)
    clock.advance(4)
    assert room.look("no room on /x", 5)
    last_ns = clock.wall_ns()
    clock.advance(1)
    assert not room.look("no room on /x", 5)  # nobody came: nothing more is wanted
    assert room.figures() == {
        "message": "no room on /x",
        "since_ns": began_ns,
        "last_ns": last_ns,
    }
    assert not room.look("", 5)
    assert room.figures() is None
    assert [record.getMessage() for record in caplog.records] == [
        "no new record is accepted: no room on /x; what is stored is delivered",
        "new records are accepted again, after 5.0 s",
    ]


def test_a_moment_without_room_between_two_looks_still_asks_for_it() -> None:
    room = Room(ManualClock())
    assert room.look("", 1)
    assert not room.look("", 1)
    assert room.figures() is None
