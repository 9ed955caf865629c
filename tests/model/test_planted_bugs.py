"""The machine finds the bugs that systems like this one had: each is planted in the real code.

For each bug seeds are tried in order until a promise breaks; the number of runs that it took is
printed. The same seed holds without the bug, so that it is the bug that was found.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.model.lives import RECYCLING, run
from tests.model.log_machine import LogMachine
from tests.model.planting import Patch, plant
from tests.model.promises import Violation
from wald.core import recovery, retention
from wald.core.recovery import decide
from wald.storage import fresh, start
from wald.storage.log import Log
from wald.storage.prepare import Pool, Preallocator
from wald.storage.segment import BlockReader, SegmentWriter
from wald.storage.tail import TailReader

RUNS_MAX = 600
STEPS = 40
BASE_SEED = int(os.environ.get("WALD_PLANTED_SEED", "0"))


def lives(machine: LogMachine) -> None:
    run(machine, STEPS)


def recycles(machine: LogMachine) -> None:
    run(machine, STEPS, RECYCLING)


def ends_in_damage(machine: LogMachine) -> None:
    run(machine, 12)
    machine.damage_and_start()


@dataclass(frozen=True)
class Bug:
    """A bug: what is changed, and what a run of the machine is."""

    name: str
    patches: tuple[Patch, ...]
    drive: Callable[[LogMachine], None] = lives


BUGS = (
    Bug(
        "acknowledgement before the sync",
        (
            Patch(
                SegmentWriter,
                "flush",
                [
                    (
                        "    self._file.pwritev(parts, self.end_bytes)\n    self._file.sync()\n",
                        (
                            "    if self.end_bytes:\n"
                            "        self._file.sync()  # of the group before: this one waits\n"
                            "    self._file.pwritev(parts, self.end_bytes)\n"
                            "    if not self.end_bytes:\n"
                            "        self._file.sync()\n"
                        ),
                    ),
                ],
            ),
        ),
    ),
    Bug(
        "a missing directory sync: the fresh segment's name",
        (
            Patch(
                fresh,
                "make_fresh",
                [("        fs.sync_directory(place.log_dir)\n", "")],
            ),
        ),
    ),
    Bug(
        "a missing directory sync: the prepared segment's name",
        (
            Patch(
                Preallocator,
                "_finish",
                [
                    ("    place.fs.sync_directory(place.log_dir)\n", ""),
                    ("    place.fs.sync_directory(place.pool_dir)\n", ""),
                ],
            ),
        ),
    ),
    Bug(
        "a retried fsync",
        (
            Patch(
                SegmentWriter,
                "flush",
                [
                    (
                        "    self._file.sync()\n",
                        (
                            "    try:\n        self._file.sync()\n"
                            "    except OSError:\n        self._file.sync()\n"
                        ),
                    )
                ],
            ),
        ),
    ),
    Bug(
        "overwriting before the rename is durable",
        (
            Patch(
                Pool,
                "put",
                [
                    (
                        (
                            "        fs.sync_directory(place.log_dir)\n"
                            "        fs.sync_directory(place.pool_dir)\n"
                        ),
                        "",
                    )
                ],
            ),
        ),
        recycles,
    ),
    Bug(
        "a recovery that trusts the page cache",
        (
            Patch(
                recovery,
                "decide",
                [("copy = Case.IN_DOUBT in cases", "copy = False")],
                also=(start,),
            ),
        ),
    ),
    Bug(
        "a copied group cut away while a drainer holds a frontier behind it",
        (
            Patch(
                recovery,
                "decide",
                [("superseded else last.end_bytes", "superseded else predecessor.end_bytes")],
                also=(start,),
            ),
            Patch(
                TailReader,
                "_must_be_there",
                [("newest and self._file.size() < extent.end_bytes", "False")],
            ),
        ),
    ),
    Bug(
        "a fresh header that names the copied group's LSN, not the next one",
        (
            Patch(
                start,
                "_go_on",
                [
                    (
                        "plan.predecessor, plan.next_lsn)",
                        "plan.predecessor, group.first_lsn if group else plan.next_lsn)",
                    )
                ],
            ),
        ),
    ),
    Bug(
        "a recovery that stops at the first bad magic",
        (
            Patch(
                BlockReader,
                "__iter__",
                [
                    (
                        "            at += self._alignment\n            continue\n",
                        "            return\n",
                    )
                ],
            ),
        ),
        ends_in_damage,
    ),
    Bug(
        "a segment retired before its successor is durable",
        (
            Patch(
                retention,
                "is_drained",
                [("segment.last_lsn < floor", "segment.last_lsn <= floor")],
            ),
            Patch(
                Log,
                "retire",
                [
                    (
                        "    self._check_usable()\n",
                        "    self._check_usable()\n    self._through = dict(through)\n",
                    )
                ],
            ),
            Patch(
                Log,
                "_roll",
                [
                    (
                        "    assert old.end_bytes == end_bytes\n",
                        (
                            "    self._finished.append(FinishedSegment(\n"
                            "        old.number, old.header.pred_last_lsn, self.frontier.lsn, 0))\n"
                            "    self.retire(getattr(self, '_through', {}))\n"
                        ),
                    )
                ],
            ),
        ),
        recycles,
    ),
    Bug(
        "a prepared segment renamed over a live one",
        (
            Patch(Preallocator, "_finish", [("place.fs.rename(", "place.fs.replace(")]),
            Patch(fresh, "make_fresh", [("fs.rename(", "fs.replace(")]),
            Patch(
                Log,
                "_take_fresh_path",
                [("self.preallocator.give_up()", "None"), ("old.number + 2", "old.number + 1")],
            ),
        ),
    ),
)


def breaks(bug: Bug, seed: int) -> str:
    """Return what broke in the run of this seed; empty if nothing did."""
    try:
        bug.drive(LogMachine(seed))
    except Violation as violation:
        return str(violation)
    except AssertionError:  # one of the log's own: the process ends, and nothing is shown by it
        return ""
    return ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_machine_finds(bug: Bug, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as planted:
        for patch in bug.patches:
            plant(planted, patch)
        for seed in range(BASE_SEED, BASE_SEED + RUNS_MAX):
            broken = breaks(bug, seed)
            if broken:
                break
        else:
            pytest.fail(f"{bug.name}: not found in {RUNS_MAX} runs from seed {BASE_SEED}")
    print(f"{bug.name}: found in run {seed - BASE_SEED + 1} (seed {seed}): {broken}")
    assert recovery.decide is decide, "the bug is still planted"
    bug.drive(LogMachine(seed))  # holds without the bug
