"""A route whose target changes: no accepted record is given up without a word."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.doorkeeper import Door, short_directory
from wald import limits
from wald.app import make_sink
from wald.config import RouteSettings, Settings, SinkSettings
from wald.core.state import RouteState
from wald.drainer.replay import replay
from wald.errors import ConfigError
from wald.storage.log import Log, LogOptions
from wald.storage.progress import TwoSlotPage
from wald.system import PosixFileSystem, SystemClock

FS, CLOCK = PosixFileSystem(), SystemClock()


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def settings(
    directory: Path,
    path: str,
    *,
    start: str | None = None,
    abandon: int = 0,
    stream: str = "s",
    table: str | None = None,
) -> Settings:
    options = {} if table is None else {"table": table}
    route = RouteSettings("r", stream, "to", start=start, abandon=abandon, options=options)
    return Settings(
        str(directory / "data"),
        str(directory / "s"),
        sinks={"to": SinkSettings("to", "sqlite", {"path": path})},
        routes={"r": route},
        segment_bytes=16 << 20,
    )


def opened(said: Settings) -> Log:
    options = LogOptions(segment_bytes=said.segment_bytes)
    return Log.open(FS, said.data_dir, CLOCK, random.Random(2), options)


def delivered(said: Settings) -> dict[str, object]:
    """Deliver everything, as ``wald replay`` does."""
    log = opened(said)
    try:
        result = replay(said, log, make_sink=make_sink, fs=FS, clock=CLOCK, chance=random.Random(3))
    finally:
        log.close()
    figures: dict[str, object] = result["routes"]["r"]
    return figures


def only_route(said: Settings) -> RouteState:
    log = opened(said)
    (route,) = log.state.routes.values()
    log.close()
    return route


@pytest.fixture
def door(directory: Path) -> Iterator[Door]:
    """Ingest that has stopped, with ten records of which none is delivered."""
    with Door(directory, settings=settings(directory, str(directory / "a.db"))) as made:
        with wald.connect(made.path) as producer:
            producer.append_many("s", [b"v%d" % n for n in range(10)])
        made.stop()
        yield made
        made._stop = -1


def restart(door: Door, said: Settings) -> None:
    door.settings = said
    door.start()
    door.stop()


@pytest.mark.parametrize("start", [None, "now"])
@pytest.mark.parametrize("abandon", [0, 9])
def test_a_changed_target_with_pending_records_is_refused_with_their_number(
    directory: Path, door: Door, start: str | None, abandon: int
):
    with pytest.raises(ConfigError) as caught:
        restart(door, settings(directory, "b.db", start=start, abandon=abandon))
    assert "10 records" in caught.value.message
    for way_out in ("wald wait", 'start = "oldest"', "abandon = 10"):
        assert way_out in caught.value.hint
    same = settings(directory, str(directory / "a.db"))  # and nothing has changed
    restart(door, same)
    assert delivered(same)["delivered"] == 10


def test_once_all_is_delivered_the_target_may_change(directory: Path, door: Door):
    delivered(settings(directory, str(directory / "a.db")))
    changed = settings(directory, str(directory / "b.db"), start="now")
    restart(door, changed)
    assert only_route(changed).birth_records == 10


def test_with_start_oldest_the_new_target_gets_the_pending_records(directory: Path, door: Door):
    changed = settings(directory, str(directory / "b.db"), start="oldest")
    restart(door, changed)
    assert delivered(changed)["delivered"] == 10


def test_records_are_given_up_by_their_number_alone(directory: Path, door: Door):
    changed = settings(directory, str(directory / "b.db"), start="now", abandon=10)
    restart(door, changed)
    assert only_route(changed).birth_records == 10


def test_another_stream_leaves_the_records_of_the_one_before_behind(directory: Path, door: Door):
    other = settings(directory, str(directory / "a.db"), stream="other", start="oldest")
    with pytest.raises(ConfigError) as caught:
        restart(door, other)
    assert "oldest" not in caught.value.hint
    assert "abandon = 10" in caught.value.hint


def test_what_the_drainer_has_finished_of_them_is_not_counted(directory: Path, door: Door):
    route_id = only_route(door.settings).route_id
    path, slot_bytes = f"{door.data_dir}/drain.page", limits.FIGURES_SLOT_BYTES
    page = TwoSlotPage.open(FS, path, slot_bytes=slot_bytes, write=True)
    row = {"route_id": route_id, "delivered": 6, "dead_letters": 1, "through_lsn": 7}
    page.write({"routes": {"r": row, "odd": {}}}, sync=False)
    page.close()
    with pytest.raises(ConfigError, match="up to 3 records"):
        restart(door, settings(directory, "b.db", start="now"))


def test_the_same_file_spelled_otherwise_is_the_same_target(directory: Path, door: Door):
    before = only_route(door.settings)
    (directory / "link").symlink_to(directory)
    for path in (f"{directory}/./a.db", f"{directory}/data/../a.db", f"{directory}/link/a.db"):
        restart(door, settings(directory, path))
        assert only_route(door.settings) == before
    restart(door, settings(directory, os.path.relpath(directory / "a.db"), table="s"))
    assert only_route(door.settings) == before
    with pytest.raises(ConfigError):
        restart(door, settings(directory, f"{directory}/a.db", table="another"))
