"""Nothing is doubled, lost or told wrongly at the door, whatever ends when; planted bugs are found.

``WALD_MODEL_SEED=N`` runs one seed again, with its story; ``WALD_MODEL_PROFILE=long`` many more.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.model.door_machine import DoorMachine, run
from tests.model.planting import Patch, plant
from tests.model.promises import Violation
from wald import limits
from wald.core import dedup, sessions
from wald.ingest.connection import Connection
from wald.storage import log, start
from wald.storage.ids import IdStore
from wald.storage.log import Log

LONG = os.environ.get("WALD_MODEL_PROFILE") == "long"
SEED = os.environ.get("WALD_MODEL_SEED")
RUNS = 5_000 if LONG else 40
STEPS = 150
PLANTED_RUNS_MAX = 400
PAGE_CACHE_SEED = 280  # it takes a kill between two operations, and a power cut soon after


@pytest.fixture(autouse=True)
def _frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)


def test_the_door_keeps_its_promises_over_many_random_lives():
    first = int(SEED) if SEED else random.SystemRandom().getrandbits(32)
    print(f"seeds {first} to {first + RUNS - 1}; one again: WALD_MODEL_SEED={first}")
    counts: Counter[str] = Counter()
    for seed in range(first, first + (1 if SEED else RUNS)):
        machine = DoorMachine(seed)
        try:
            run(machine, STEPS)
        except BaseException:
            print(f"WALD_MODEL_SEED={seed}\n{machine.story()}")
            raise
        counts += machine.counts
    print(dict(counts))
    if not SEED:  # the driver does what it is for
        for what in (
            *("starts", "kills", "power cuts", "failed logs", "takeovers", "fenced"),
            *("acknowledged", "duplicates", "asked again", "skipped"),
        ):
            assert counts[what] > 0, f"no run had: {what}"


@dataclass(frozen=True)
class Bug:
    name: str
    patches: tuple[Patch, ...]
    first_seed: int = 0


BUGS = (
    Bug(
        "an id counts as seen before its record is durable",
        (
            Patch(
                Log,
                "append_group",
                [
                    (
                        "    draft = self._draft(sections, lone)\n",
                        (
                            "    draft = self._draft(sections, lone)\n"
                            "    self.ids.add(ids, draft.time_ns)\n"
                        ),
                    ),
                    (
                        "    if ids:\n        self.ids.add(ids, draft.time_ns)\n",
                        "",
                    ),
                ],
            ),
        ),
    ),
    Bug(
        "a snapshot that stands for ids that are nowhere",
        (Patch(Log, "_write_snapshot", [("        self.ids.persist()\n", "        pass\n")]),),
    ),
    Bug(
        "a start that leaves the ids of what it read to the next snapshot",
        (Patch(start, "_ids", [("    ids.persist()\n", "")]),),
    ),
    Bug(
        "the ids of the group in doubt are forgotten",
        (
            Patch(
                start,
                "start",
                [("    _take_ids(ids, found)  # of the last group\n", "")],
                also=(log,),
            ),
        ),
    ),
    Bug(
        "ids that are written and not flushed",
        (Patch(IdStore, "_write", [("    file.sync()\n", "")]),),
    ),
    Bug(
        "a start that trusts the page cache for ids",
        (
            Patch(
                IdStore,
                "add",
                [
                    (
                        "        stream.add(each.lsns, each.ids, time_ns)\n",
                        (
                            "        if stream.get(each.ids[-1]) is not None:\n"
                            "            continue\n"
                            "        stream.add(each.lsns, each.ids, time_ns)\n"
                        ),
                    )
                ],
            ),
        ),
        first_seed=PAGE_CACHE_SEED,
    ),
    Bug(
        "a file of ids whose name is not durable",
        (
            Patch(
                IdStore,
                "_begin",
                [("    fs.sync_directory(self._directory)\n    return", "    return")],
            ),
        ),
    ),
    Bug(
        "an id of the same group is not looked at",
        (
            Patch(
                dedup._Seen,
                "claim",
                [("self.new.get(dedup_id) or self._known", "self._known")],
            ),
        ),
    ),
    Bug(
        "a skip that leaves a gap",
        (Patch(Connection, "_skip", [("        self._expected = event.through + 1\n", "")]),),
    ),
    Bug(
        "an epoch that nobody looks at",
        (
            Patch(
                sessions,
                "_come_back",
                [("if epoch is None or epoch == session.epoch", "if True")],
            ),
        ),
    ),
)


def breaks(seed: int) -> str:
    try:
        run(DoorMachine(seed), STEPS)
    except Violation as violation:
        return str(violation)
    return ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_machine_finds(bug: Bug, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as planted:
        for patch in bug.patches:
            plant(planted, patch)
        for seed in range(bug.first_seed, bug.first_seed + PLANTED_RUNS_MAX):
            broken = breaks(seed)
            if broken:
                break
        else:
            pytest.fail(f"{bug.name}: not found in {PLANTED_RUNS_MAX} runs")
    print(f"{bug.name}: found in run {seed - bug.first_seed + 1}: {broken}")
    assert breaks(seed) == ""  # holds without the bug
