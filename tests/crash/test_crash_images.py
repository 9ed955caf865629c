"""A real daemon, recorded operation by operation: no power cut at any of them loses a record.

Log, ledger and target are rebuilt as they may be on the disk at one instant, unsynced sectors kept,
lost or torn, unsynced names kept or lost; wald is started on each image and delivers what is left.
``make torture`` does the same twenty thousand times.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.journal import build_recorder
from tests.crash.run_images import try_images
from tests.crash.workloads import WORKLOADS, Recorded, record
from tests.servers.need import absent, need_binary

IMAGES = int(os.environ.get("WALD_CRASH_IMAGES", "14"))
PLANTED_STEP, PLANTED_TRIES = 10, 40
PATIENCE_S = 1.0  # with a target that is damaged on purpose
STEADY = "one producer, small requests"
PICKY = "a target that refuses every seventeenth record"
PACKED = "a route that is held back, and packed"


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_binary("gcc", "apt install gcc libc6-dev; the recorder is built with it")
    return build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="session")
def seed() -> int:
    return int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.fixture(scope="session")
def recorded(recorder: Path, seed: int) -> Iterator[Callable[[str], Recorded]]:
    """Return what runs a workload, once however often it is asked for."""
    runs: dict[str, Recorded] = {}
    with ExitStack() as stack:

        def run_of(name: str) -> Recorded:
            if name not in runs:
                try:
                    runs[name] = stack.enter_context(record(WORKLOADS[name], recorder, seed))
                except PermissionError as error:
                    absent(str(error), "run the tests as root, where mount is allowed")
            return runs[name]

        yield run_of


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_power_cut_loses_doubles_or_invents_a_record(
    name: str, recorded: Callable[[str], Recorded], seed: int
) -> None:
    tally = try_images(recorded(name), IMAGES, seed, real_share=IMAGES)
    assert tally.wrong == [], f"WALD_TEST_SEED={seed}"
    assert tally.images == IMAGES


class Planted(NamedTuple):
    """A sync that lies, or an answer that comes too early, and where that is to be found."""

    workload: str
    believes: Callable[[str], bool] = lambda _: True
    ack_early: int = 0


PLANTED = {
    "an answer before the flush": Planted(STEADY, ack_early=40),
    "a log that is not flushed": Planted(STEADY, lambda path: not path.endswith(".wal")),
    "names in log/ that are not": Planted(STEADY, lambda path: not path.endswith("/log")),
    "names in the data directory that are not": Planted(
        STEADY, lambda path: not path.endswith("/data")
    ),
    "the data directory's own name that is not": Planted(
        STEADY, lambda path: not re.search(r"/wd[^/]*$", path)
    ),
    "an identity that is not": Planted(STEADY, lambda path: "identity" not in path),
    "a dead log that is not": Planted(PICKY, lambda path: "/dead" not in path),
    "a target that is not": Planted(STEADY, lambda path: "events.db" not in path),
    "packed files that are not": Planted(PACKED, lambda path: "/packed" not in path),
}


@pytest.mark.parametrize("name", PLANTED)
def test_images_show_what_is_not_made_durable(
    name: str,
    recorded: Callable[[str], Recorded],
    seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planted = PLANTED[name]
    run, tried, wrong = recorded(planted.workload), 0, list[str]()
    while not wrong and tried < PLANTED_STEP * PLANTED_TRIES:
        tally = try_images(
            run,
            PLANTED_STEP,
            seed + tried,
            believes=planted.believes,
            ack_early=planted.ack_early,
            patience_s=PATIENCE_S,
        )
        tried += tally.images
        wrong += tally.wrong
    with capsys.disabled():
        print(f"\n{name}: found within {tried} images, WALD_TEST_SEED={seed}", flush=True)
    assert wrong, f"not found in {tried} images, WALD_TEST_SEED={seed}"
