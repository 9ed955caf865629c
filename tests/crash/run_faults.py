"""Every fault of the table, n = 1, 2, 3, ...: ``python -m tests.crash.run_faults``.

For each process, call and action the n-th call meets it, once and for ever after, until a run goes
by that it does not strike. Exit code 1 if a record was lost, doubled or reordered, or if what came
of a fault is not what ``EXPECTED`` allows.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.crash.faults import Fault, Outcome, meet

NAMES = ("renameat2", "rename", "link", "unlink", "mkdir")
WRITES = ("pwritev2", "pwrite64", "writev")
SYNCS = ("fdatasync", "fsync")
ROOM = ("fallocate", "ftruncate")
ANSWERS = ("write", "sendto")


class Family(NamedTuple):
    """Faults that differ in the number of the call only."""

    role: str
    call: str
    action: str
    for_ever: bool


def families() -> Iterator[Family]:
    """Yield every family of the table."""
    for role in ("ingest", "drain", "supervisor"):
        for call in (*SYNCS, *WRITES, *ROOM, *NAMES, "openat", "mmap", "accept4", *ANSWERS):
            if role == "supervisor" and call in {*SYNCS, *WRITES, *ROOM, *NAMES}:
                continue  # it writes nothing but its lock file
            for action in _actions(call):
                yield Family(role, call, action, for_ever=False)
                if action != "delay":
                    yield Family(role, call, action, for_ever=True)


def _actions(call: str) -> tuple[str, ...]:
    if call in {"openat", "accept4"}:
        return ("EMFILE", "EIO", "delay", "kill")
    if call == "mmap":
        return ("ENOMEM", "kill")
    if call in ANSWERS:
        return ("EIO", "delay", "kill")
    return ("EIO", "ENOSPC", "delay", "kill")


@dataclass(slots=True)
class Row:
    """What came of a family."""

    family: Family
    hit: int = 0
    acked: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def sweep(family: Family, stride: int, most: int) -> Row:
    """Meet a family's faults until one does not strike."""
    row, when = Row(family), 1
    while when <= most:
        fault = Fault(family.role, family.call, family.action, when, family.for_ever)
        try:
            outcome = meet(fault)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the fault's
            outcome = Outcome(hit=True, wrong=[f"{type(error).__name__}: {error}"[:2000]])
        row.wrong += [f"{fault}: {problem}" for problem in outcome.wrong]
        if not outcome.hit:
            break
        row.hit += 1
        row.acked += outcome.acked
        row.seen[", ".join(sorted(outcome.seen)) or "unharmed"] += 1
        when += max(1, when // stride) if stride else 1
    return row


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=0, help="skip: from n to n + n / STRIDE")
    parser.add_argument("--most", type=int, default=400, help="no n above this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="families with this in their name")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    failed = False
    todo = [each for each in families() if chosen.only in " ".join(map(str, each))]
    with ThreadPoolExecutor(chosen.workers) as pool:
        for row in pool.map(lambda each: sweep(each, chosen.stride, chosen.most), todo):
            failed = failed or bool(row.wrong)
            _tell(row, as_json=chosen.json)
    return int(failed)


def _tell(row: Row, *, as_json: bool) -> None:
    if as_json:
        said = {**row.family._asdict(), "faults": row.hit, "acked": row.acked}
        print(json.dumps({**said, "seen": row.seen, "wrong": row.wrong}), flush=True)
        return
    role, call, action, for_ever = row.family
    often = "for ever" if for_ever else "once"
    seen = "; ".join(f"{what} {count}" for what, count in row.seen.most_common()) or "not called"
    print(f"{role:10} {call:10} {action:7} {often:8} {row.hit:4} faults: {seen}", flush=True)
    for problem in row.wrong[:5]:
        print(f"        {problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
