"""Faults of the system, met by real processes: what is acknowledged stays, and wald goes on.

One of each kind; ``python -m tests.crash.run_faults`` meets all, n = 1, 2, 3, ...
"""

from pathlib import Path

import pytest

from tests.crash.expected import EXPECTED, WORDS, printed, row_of, unexpected
from tests.crash.faults import PLACES, Fault, Outcome, meet
from tests.crash.run_faults import families
from tests.servers.need import need_binary

FAULTS = {
    "a flush of the log that fails is never repeated": Fault("ingest", "fdatasync", "EIO", 9),
    "a flush of the log that fails for ever": Fault("ingest", "fdatasync", "EIO", 9, for_ever=True),
    "no room where the first segment is made": Fault("ingest", "fallocate", "ENOSPC", 1),
    "ingest dies inside a flush": Fault("ingest", "fdatasync", "kill", 9),
    "a flush that takes long": Fault("ingest", "fdatasync", "delay", 9),
    "the name of a first segment is not given": Fault("ingest", "renameat2", "EIO", 1),
    "no descriptor is left for a new client": Fault("ingest", "accept4", "EMFILE", 1),
    "an answer cannot be sent": Fault("ingest", "write", "EIO", 1),
    "the ledger's flush fails": Fault("drain", "fdatasync", "EIO", 6),
    "the ledger's meta page is not written": Fault("drain", "pwrite64", "EIO", 30),
    "drain dies inside a write": Fault("drain", "pwrite64", "kill", 12),
    "drain cannot open a file for ever": Fault("drain", "openat", "EMFILE", 1, for_ever=True),
    "the supervisor's answer cannot be sent": Fault("supervisor", "sendto", "EIO", 1),
}

_TRIES_MAX = 12


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_what_it_may_and_no_record(name: str) -> None:
    need_binary("strace", "apt install strace; it injects the faults")
    met = (meet(FAULTS[name]) for _ in range(_TRIES_MAX))
    # who was ready, and had opened all it needs, before it is traced is not struck
    outcome = next((each for each in met if each.hit), None)
    assert outcome is not None, "the fault did not strike"
    assert [*outcome.wrong, *unexpected(FAULTS[name], outcome)] == []


_SYNC = """
from wald.system import PosixFile
real = PosixFile.sync
def sync(file):
    try:
        real(file)
    except OSError:
        {planted}
PosixFile.sync = sync
"""
PLANTED = {
    "a flush that failed, and nobody looks": _SYNC.format(planted="pass"),
    "a flush that failed, and is tried again": _SYNC.format(planted="real(file)"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_table_finds_what_is_done_about_a_failed_flush(name: str) -> None:
    need_binary("strace", "apt install strace; it injects the faults")
    fault = FAULTS["a flush of the log that fails is never repeated"]
    outcome = meet(fault, PLANTED[name])
    assert outcome.hit, "the fault did not strike"
    assert outcome.wrong == []  # no power was cut, so that nothing is lost this time
    assert [*unexpected(fault, outcome)]


@pytest.mark.parametrize(
    ("fault", "struck", "seen", "alarmed"),
    [
        (Fault("ingest", "fdatasync", "EIO"), {"segment"}, set(), False),
        (Fault("ingest", "fdatasync", "EIO"), {"segment"}, {"fresh segment"}, False),
        (Fault("ingest", "fdatasync", "EIO"), {"page"}, {"restarted"}, False),
        (Fault("ingest", "pwritev2", "ENOSPC", 1, for_ever=True), {"segment"}, set(), False),
        (Fault("drain", "fdatasync", "EIO"), {"target", "ledger"}, set(), False),
        (Fault("drain", "fsync", "kill"), {"directory"}, set(), False),
    ],
)
def test_an_outcome_that_the_table_does_not_allow_is_found(
    fault: Fault, struck: set[str], seen: set[str], *, alarmed: bool
) -> None:
    assert [*unexpected(fault, Outcome(alarmed, hit=True, struck=struck, seen=seen))]


def test_every_row_of_the_table_can_be_met_and_uses_known_words() -> None:
    met = {row_of(family.fault(1), place) for family in families() for place in (*PLACES, "other")}
    assert met == set(EXPECTED)
    assert {word for row in EXPECTED for word in row.once | row.ever} == WORDS.keys()


def test_the_page_of_reliability_prints_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert "\n".join(printed()) in page
