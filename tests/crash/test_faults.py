"""Faults of the system, met by real processes: what is acknowledged stays, and wald goes on.

A row for each kind of fault; ``python -m tests.crash.run_faults`` meets all, n = 1, 2, 3, ...
"""

from typing import NamedTuple

import pytest

from tests.crash.faults import Fault, meet
from tests.servers.need import need_binary


class Row(NamedTuple):
    """A fault, and what may be seen of it; nothing else."""

    fault: Fault
    seen: set[str]


ROWS = {
    "a flush of the log that fails is never repeated: a fresh segment": Row(
        Fault("ingest", "fdatasync", "EIO", 9), {"fresh segment"}
    ),
    "a flush of the log that fails for ever: nothing is acknowledged": Row(
        Fault("ingest", "fdatasync", "EIO", 9, for_ever=True),
        {"restarted", "refused", "unknown"},
    ),
    "no room where the next segment is prepared": Row(
        Fault("ingest", "fallocate", "ENOSPC", 1), {"fresh segment"}
    ),
    "ingest dies inside a flush": Row(Fault("ingest", "fdatasync", "kill", 9), {"restarted"}),
    "a flush that takes long": Row(Fault("ingest", "fdatasync", "delay", 9), set()),
    "the name of a first segment is not given": Row(
        Fault("ingest", "renameat2", "EIO", 1), {"restarted"}
    ),
    "no descriptor is left for a new client": Row(Fault("ingest", "accept4", "EMFILE", 1), set()),
    "an answer cannot be sent": Row(Fault("ingest", "write", "EIO", 1), set()),
    "the ledger's flush fails": Row(Fault("drain", "fdatasync", "EIO", 6), {"restarted"}),
    "drain dies inside a write": Row(Fault("drain", "pwrite64", "kill", 12), {"restarted"}),
    "drain cannot open a file for ever": Row(
        Fault("drain", "openat", "EMFILE", 1, for_ever=True), {"restarted"}
    ),
    "the supervisor's answer cannot be sent": Row(Fault("supervisor", "sendto", "EIO", 1), set()),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_fault_costs_what_it_may_and_no_record(name: str) -> None:
    need_binary("strace", "apt install strace; it injects the faults")
    row = ROWS[name]
    outcome = meet(row.fault)
    assert outcome.wrong == []
    assert outcome.hit, "the fault did not strike"
    assert outcome.seen <= row.seen
