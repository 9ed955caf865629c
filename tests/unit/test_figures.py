"""The figures page of ingest: what has no room in it costs no more than itself."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest

from tests.logtools import DATA, first_group, new_fs, open_log
from wald import limits
from wald.core import state
from wald.ingest.figures import Figures
from wald.model import LostRange
from wald.ports import FileSystem
from wald.storage.log import Log
from wald.storage.progress import TwoSlotPage


def written(fs: FileSystem, log: Log, refused: Counter[str]) -> Mapping[str, object] | None:
    figures = Figures(fs, DATA, log, pid=1, started_ns=1)
    figures.write(groups=1, connections=1, refused=refused)
    figures.close()
    slot_bytes = limits.FIGURES_SLOT_BYTES
    page = TwoSlotPage.open(
        fs,
        f"{DATA}/ingest.page",
        offset=limits.FIGURES_OFFSET_BYTES,
        slot_bytes=slot_bytes,
        write=False,
    )
    said = page.read()
    page.close()
    return said


def test_thousands_of_losses_do_not_keep_the_figures_from_being_written():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    losses = tuple(LostRange(at, at + 1, 1, at, "hole" * 20, None) for at in range(20_000))
    notes = tuple(f"note {at} " + "x" * 500 for at in range(2_000))
    log.recovery = replace(log.recovery, losses=losses, notes=notes)
    said = written(fs, log, Counter())
    assert said is not None
    recovery = said["recovery"]
    assert isinstance(recovery, dict)
    assert len(recovery["losses"]) == len(recovery["notes"]) == limits.RECOVERY_LISTED_MAX
    assert recovery["losses_count"] == 20_000
    log.close()


def test_as_many_streams_and_routes_as_there_may_be_fit_the_page():
    fs = new_fs()
    log = open_log(fs)
    for number in range(1, limits.STREAMS_MAX + 1):
        name = f"{number:0{limits.STREAM_NAME_MAX_BYTES}}"
        log.state.apply(state.stream_opened(number, name), 0, 0)
        big = (1 << 62) + number
        log.state.streams[number].records = log.state.streams[number].bytes = big
        route = state.RouteState(number, name, number, name, "0" * 64, big, big, big)
        log.state.apply(state.route_birth(route), 0, 0)
    said = written(fs, log, Counter())
    assert said is not None
    assert isinstance(said["streams"], list)
    assert len(said["streams"]) == limits.STREAMS_MAX
    log.close()


def test_figures_without_room_are_told_once_and_harm_nothing_else(
    caplog: pytest.LogCaptureFixture,
):
    fs = new_fs()
    log = open_log(fs)
    figures = Figures(fs, DATA, log, pid=1, started_ns=1)
    chance = Random(1)
    huge = Counter({chance.randbytes(50).hex(): 1 for _ in range(30_000)})
    for refused in (huge, huge, Counter({"ok": 1}), huge):
        figures.write(groups=1, connections=1, refused=refused)
    figures.close()
    told = [record for record in caplog.records if "figures" in record.message]
    assert len(told) == 2
    log.close()
