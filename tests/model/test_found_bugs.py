"""What the machine once found in the log, each as the shortest story of it."""

import pytest

from tests.model.log_machine import DATA, LogMachine
from wald.model import LostRange
from wald.storage.tail import TailReader


def roll_stopped_in_its_sync(seed: int) -> LogMachine:
    """Stop a process in the sync of a new segment's header, snapshot and first group."""
    machine = LogMachine(seed, write_back=0.0)
    assert machine.start()
    machine.cut = False
    while machine.log is not None:
        machine.prepare(3)
        machine.fs.heal()
        machine.fs.stop(2, kind="sync")  # a roll: of the seal, of the new segment
        machine.append(big=True)
    return machine


@pytest.mark.parametrize("seed", range(25))
def test_a_segment_whose_header_is_in_doubt_is_not_named_as_a_predecessor(seed: int):
    """Header, snapshot and first group of a rolled segment are one write.

    Killed before its sync, all three are read back from the page cache. The group is copied into
    a fresh segment; if that named the rolled segment as its predecessor, and then the power
    failed, the chain of segments led to a file that is not one, and the drainer took every older
    record for lost.
    """
    machine = roll_stopped_in_its_sync(seed)
    assert machine.start()
    machine.end(cut=True)
    assert machine.start()
    log = machine.log
    assert log is not None
    reader = TailReader(machine.fs, DATA, log.log_id, after=0)
    read = list(reader.read(log.frontier))
    reader.close()
    assert not [item for item in read if isinstance(item, LostRange)]
    lsns = {item.header.last_lsn for item in read if not isinstance(item, LostRange)}
    assert max(lsns) == machine.model.highest_lsn


@pytest.mark.parametrize("kind", ["rename", "sync_directory", "stat"])
def test_a_segment_that_cannot_be_retired_now_holds_back_the_newer_ones(kind: str):
    """Oldest first, always: a gap in the chain of segments looks like a lost one."""
    machine = LogMachine(1, write_back=0.0)
    assert machine.start()
    for _ in range(4):
        machine.fill()
    machine.drain(fully=True)
    machine.append()
    machine.fail_soon(1, kind)
    machine.retire()
    assert machine.counts["segments retired"] == 0
    machine._check_inspection()
    machine.retire()
    assert machine.counts["segments retired"] >= 3
    machine.end(cut=True)
    assert machine.start()
