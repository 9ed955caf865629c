"""Whether new records find room: told once, counted, and told again when they do."""

import logging

import pytest

from wald.ingest.room import Room
from wald.testing import ManualClock


def test_a_full_disk_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    room = Room(clock)
    caplog.set_level(logging.INFO, "wald.ingest")
    assert not room.look("", 0, is_low=False)
    assert room.figures() is None
    began_ns = clock.wall_ns()
    assert room.look("no room on /x", 3, is_low=False)
    clock.advance(4)
    assert room.look("no room on /x", 5, is_low=False)
    last_ns = clock.wall_ns()
    clock.advance(1)
    assert not room.look("no room on /x", 5, is_low=False)  # nobody came: nothing more is wanted
    assert room.figures() == {
        "message": "no room on /x",
        "since_ns": began_ns,
        "last_ns": last_ns,
    }
    assert not room.look("", 5, is_low=False)
    assert room.figures() is None
    assert [record.getMessage() for record in caplog.records] == [
        "no new record is accepted: no room on /x; what is stored is delivered",
        "new records are accepted again, after 5.0 s",
    ]


def test_a_moment_without_room_between_two_looks_still_asks_for_it() -> None:
    room = Room(ManualClock())
    assert room.look("", 1, is_low=False)
    assert not room.look("", 1, is_low=False)
    assert room.figures() is None


def test_a_reserve_that_is_not_there_asks_for_room_as_long_as_it_lasts_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = Room(ManualClock())
    assert [room.look("", 0, is_low=low) for low in (True, True, False)] == [True, True, False]
    assert room.figures() is None
    assert len(caplog.records) == 1
    assert "what is kept for targets that go back" in caplog.text
