"""Every fault of the table, n = 1, 2, 3, ...: ``python -m tests.crash.run_faults``.

For each process, call and action the n-th call meets it, once and for ever after, until a run goes
by that it does not strike. Exit code 1 if a record was lost, doubled or reordered, or if what came
of a fault is not what the table in ``tests.crash.expected`` allows. With ``--notes FILE`` a run
that was stopped goes on where it was.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.crash.expected import unexpected
from tests.crash.faults import NAMES, ROOM, SYNCS, WRITES, Fault, Outcome, meet
from tests.crash.notebook import Unit, add_options, work_off

ANSWERS = ("write", "sendto")


class Family(NamedTuple):
    """Faults that differ in the number of the call only."""

    role: str
    call: str
    action: str
    for_ever: bool

    def __str__(self) -> str:
        """Say it."""
        often = "for ever" if self.for_ever else "once"
        return f"{self.role} {self.call} {self.action} {often}"

    def fault(self, when: int) -> Fault:
        """Return the one that meets the call of that number."""
        return Fault(self.role, self.call, self.action, when, self.for_ever)


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


def sweep(family: Family, stride: int, most: int) -> dict[str, Any]:
    """Meet a family's faults until one does not strike; return what came of each."""
    met, acked, wrong, when = list[Any](), 0, list[str](), 1
    while when <= most:
        fault = family.fault(when)
        try:
            outcome = meet(fault)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the fault's
            outcome = Outcome(hit=True, wrong=[f"{type(error).__name__}: {error}"[:2000]])
        wrong += [f"{fault}: {problem}" for problem in outcome.wrong]
        if not outcome.hit:
            break
        acked += outcome.acked
        met.append([when, sorted(outcome.struck), sorted(outcome.seen), outcome.alarmed])
        when += max(1, when // stride) if stride else 1
    return {"met": met, "acked": acked, "wrong": wrong}


def judged(family: Family, said: dict[str, Any]) -> tuple[Counter[str], list[str]]:
    """Return what was seen of a family's faults, and what is wrong or not in the table."""
    seen, wrong = Counter[str](), list(said["wrong"])
    for when, struck, found, alarmed in said.get("met", ()):
        outcome = Outcome(hit=True, struck=set(struck), seen=set(found), alarmed=alarmed)
        fault = family.fault(when)
        wrong += [f"{fault}: {problem}" for problem in unexpected(fault, outcome)]
        seen[f"{', '.join(struck) or 'at the end'}: {', '.join(found) or 'unharmed'}"] += 1
    return seen, wrong


@dataclass(slots=True)
class Tally:
    """What came of all faults."""

    families: int = 0
    faults: int = 0
    acked: int = 0
    wrong: int = 0
    left: int = 0

    def take(self, family: Family, said: dict[str, Any]) -> tuple[Counter[str], list[str]]:
        """Count what came of a family; return what was seen, and what is wrong."""
        seen, wrong = judged(family, said)
        self.families += 1
        self.faults += seen.total()
        self.acked += said.get("acked", 0)
        self.wrong += len(wrong)
        return seen, wrong


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=0, help="skip: from n to n + n / STRIDE")
    parser.add_argument("--most", type=int, default=400, help="no n above this")
    parser.add_argument("--only", default="", help="families with this in their name")
    parser.add_argument("--json", action="store_true", help="a line of JSON a family")
    add_options(parser, workers=2)
    chosen = parser.parse_args()
    todo = {
        Unit(f"{each}, stride {chosen.stride}", sweep, (each, chosen.stride, chosen.most)): each
        for each in families()
        if chosen.only in str(each)
    }
    tally = Tally()
    for unit, said in work_off(todo, chosen, lambda unit, said: not judged(todo[unit], said)[1]):
        if said is None:
            tally.left += 1
        else:
            seen, wrong = tally.take(todo[unit], said)
            _tell(todo[unit], seen, wrong, f"{tally.families}/{len(todo)}", as_json=chosen.json)
    print(
        f"{tally.faults:,} faults of {tally.families} families, {tally.acked:,} acknowledged "
        f"records, {tally.wrong} wrong; {tally.left} families not begun",
        file=sys.stderr,
    )
    return int(tally.wrong > 0)


def _tell(
    family: Family, seen: Counter[str], wrong: list[str], progress: str, *, as_json: bool
) -> None:
    if as_json:
        said = {**family._asdict(), "faults": seen.total(), "seen": seen, "wrong": wrong}
        print(json.dumps(said), flush=True)
        return
    words = "; ".join(f"{what} {count}" for what, count in seen.most_common()) or "not called"
    print(f"{progress:>7} {family!s:42} {seen.total():4} faults: {words}", flush=True)
    for problem in wrong[:5]:
        print(f"        {problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
