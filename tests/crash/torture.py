"""Crash safety at length, step by step: ``make torture``, or ``python -m tests.crash.torture``.

Each step says what it does before it begins and how it ended, and what it printed stands in a file
beside the notes. Stopped and begun again, the run leaves out the steps that were right, and the
long ones go on where they were. Exit code 1 if a step was wrong, or could not be done.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.crash.notebook import Notebook
from tests.crash.power import KINDS
from tests.fuzz.targets import TARGETS

_CUTS_AT_ONCE = 20
_KILL_RUNS = 5
_SWEEP_MINUTES = 300  # of a sweep through everything, where less than all is asked for
_PYTEST = ("pytest", "-q", "-s", "-o", "faulthandler_timeout=0")  # these take hours


class Step(NamedTuple):
    """What is done: a command of this interpreter's, and more of its environment."""

    name: str
    what: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def steps(directory: Path, seed: int, share: float) -> Iterator[Step]:
    """Yield all steps.

    Args:
        directory: where what is done is noted.
        seed: decides everything.
        share: how much of the full numbers.
    """

    def so_many(count: int) -> str:
        return str(max(1, round(count * share)))

    def noted(name: str) -> tuple[str, ...]:
        return ("--seed", str(seed), "--notes", str(directory / f"{name}.jsonl"))

    for kind in [kind for kind in KINDS if shutil.which(f"mkfs.{kind}")]:
        for first in range(0, max(1, round(100 * share)), _CUTS_AT_ONCE):
            cuts = min(_CUTS_AT_ONCE, max(1, round(100 * share)))
            cut = ("tests.crash.power", "--cuts", str(cuts), "--seed", str(seed + first))
            yield Step(f"cuts-{kind}-{first}", "power cuts under load", (*cut, "--kind", kind))
    yield Step(
        "ledger",
        "flipped bits of a ledger",
        (*_PYTEST, "tests/unit/test_ledger.py", "-k", "one_flipped_bit"),
        (("WALD_LEDGER_FLIPS", so_many(10_000)), ("WALD_TEST_SEED", str(seed))),
    )
    bounded = () if share >= 1 else ("--minutes", so_many(_SWEEP_MINUTES))
    flips = ("tests.crash.run_flips", "--flips", so_many(10_000), *bounded, *noted("flips"))
    yield Step("flips", "flipped bits of logs", flips)
    for number in range(max(1, round(_KILL_RUNS * share))):
        yield Step(
            f"kills-{number}",
            "some 235 kills with requests or a batch in flight",
            (*_PYTEST, "tests/crash/test_delivery_kills.py", "tests/crash/test_kills.py"),
            (("WALD_TEST_SEED", str(seed + number)),),
        )
    images = ("tests.crash.run_images", "--images", so_many(20_000), *noted("images"))
    yield Step("images", "crash images of recorded workloads", images)
    sparse = () if share >= 1 else ("--stride", "2")
    faults = (*sparse, *bounded, "--notes", str(directory / "faults.jsonl"))
    yield Step(
        "faults", "system-call faults, n = 1, 2, 3, ...", ("tests.crash.run_faults", *faults)
    )
    for target in TARGETS:
        fuzz = ("tests.fuzz.run", target, "--runs", so_many(1_000_000), "--seed", str(seed))
        yield Step(f"fuzz-{target}", f"bytes from outside: {target}", fuzz)


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where what is done is noted; may exist")
    parser.add_argument("--seed", type=int, help="by default that of the notes, or a new one")
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers: 0.01")
    parser.add_argument("--only", default="", help="steps with this in their name")
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    seed = _seed(chosen.directory / "seed", chosen.seed)
    notes = Notebook(chosen.directory / "steps.jsonl")
    todo = [
        step for step in steps(chosen.directory, seed, chosen.share) if chosen.only in step.name
    ]
    print(
        f"{len(todo)} steps, seed {seed}; what they print: {chosen.directory}/STEP.log", flush=True
    )
    failed = 0
    for number, step in enumerate(todo, 1):
        head = f"{number}/{len(todo)} {step.name}: {step.what}"
        unit = f"{step.name}, seed {seed}, share {chosen.share}"
        kept = notes.kept(unit)
        if kept is not None and not kept["wrong"]:
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head} ...", flush=True)
        code, seconds, last = _do(step, chosen.directory / f"{step.name}.log")
        wrong = [f"exit code {code}"] if code else []
        notes.note(unit, {"seconds": round(seconds), "said": last, "wrong": wrong})
        print(f"    {'; '.join(wrong) or 'right'}, {seconds:.0f} s: {last}", flush=True)
        failed += bool(code)
    return int(failed > 0)


def _seed(path: Path, seed: int | None) -> int:
    if seed is None:
        kept = path.read_text() if path.exists() else ""
        seed = int(kept or random.SystemRandom().randrange(1 << 31))
    path.write_text(str(seed))
    return seed


def _do(step: Step, log: Path) -> tuple[int, float, str]:
    began_s = time.monotonic()
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", *step.command],
            stdout=out,
            stderr=out,
            env=os.environ | dict(step.environment),
            check=False,
        )
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return done.returncode, time.monotonic() - began_s, lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
