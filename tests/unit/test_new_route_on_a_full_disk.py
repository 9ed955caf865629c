"""A new route while the disk is full: the start says so, and succeeds once there is room."""

from collections import Counter

import pytest

from tests.logtools import DATA, append, first_group, new_fs, open_log
from wald import limits
from wald.config import RouteSettings, Settings, SinkSettings
from wald.errors import DiskFull
from wald.ingest.server import _agree_with_settings
from wald.storage.log import LogOptions
from wald.testing.simfs import SimFileSystem

OPTIONS = LogOptions(
    segment_bytes=256 * limits.KIB, reserve_bytes=64 * limits.KIB, pool_max_segments=2
)
SINKS = {"to": SinkSettings("to", "sqlite", {"path": "/x"})}
ROUTES = {"new": RouteSettings("new", "another", "to")}
SETTINGS = Settings(DATA, "/s", sinks=SINKS, routes=ROUTES)


def with_records() -> SimFileSystem:
    fs = new_fs()
    log = open_log(fs, options=OPTIONS)
    log.append_group(first_group())
    for sequence in range(1, 20):
        log.append_group([append(sequence, bytes(20_000))])
    log.close()
    return fs


def start(fs: SimFileSystem, told: list[DiskFull]) -> str:
    """Start as ingest does; say how it went."""
    try:
        log = open_log(fs, options=OPTIONS)
    except DiskFull:
        return "no room for the log"
    try:
        _agree_with_settings(log, SETTINGS, fs)
    except DiskFull as error:
        told.append(error)
        with pytest.raises(DiskFull):  # for a record there is no more room than for the route
            log.append_group([append(20, b"x")])
        return "no room for the route"
    finally:
        log.close()
    assert "another" in log.state.streams_by_name
    return "started"


def test_a_start_without_room_for_a_new_route_is_a_typed_error_until_there_is_room():
    seen: Counter[str] = Counter()
    told: list[DiskFull] = []
    for capacity_bytes in range(0, 1_500 * limits.KIB, 16 * limits.KIB):
        fs = with_records()
        fs.capacity_bytes = capacity_bytes
        outcome = start(fs, told)
        seen[outcome] += 1
        if outcome != "started":
            fs.capacity_bytes = None
            assert start(fs, told) == "started"
    assert set(seen) == {"no room for the log", "no room for the route", "started"}
    assert all(error.retryable and "routes" in error.message for error in told)
