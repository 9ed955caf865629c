"""The records of a past range: from packed files, the archive and the log, in order, bounded."""

import pytest

from tests.logtools import DATA, SESSION
from tests.packtools import PackedLog
from wald import limits
from wald.core.batching import Bounds
from wald.drainer import records as records_room
from wald.drainer.records import open_records
from wald.model import LostRange, Record
from wald.storage.lookup import Owned, owner_of
from wald.storage.packed import packed_path
from wald.testing import ManualClock


@pytest.fixture
def held() -> PackedLog:
    """Segment 1 is archived, segment 2 packed, the rest in the log."""
    made = PackedLog()
    made.fill(4)
    first, second = made.segments()[:2]
    made.pack(1, first, archive=True)
    made.pack(1, second)
    assert made.retire(second.last_lsn + 1) == 2
    return made


def records(made: PackedLog, after: int = 0, until: int = limits.LSN_MAX, stream: int = 1):
    return open_records(
        made.fs,
        DATA,
        made.log.log_id,
        ManualClock(),
        stream_id=stream,
        after=after,
        until=until,
        frontier=made.frontier,
    )


def test_all_records_of_a_stream_come_once_and_in_order_wherever_they_lie(held):
    found = list(records(held))
    assert [(item.lsn, item.value) for item in found] == list(held.values[1].items())


@pytest.mark.parametrize("batch", [1, 3, 2_000])
def test_from_any_lsn_to_any_other(held, batch, monkeypatch):
    monkeypatch.setattr(records_room, "_BOUNDS", Bounds(batch, 1 << 20, 0.0))
    last = held.frontier.lsn
    for after in range(0, last, 7):
        for until in range(after, last + 5, 11):
            found = [item.lsn for item in records(held, after, until)]
            assert found == [lsn for lsn in held.values[1] if after < lsn <= until]


def test_what_is_gone_is_a_loss_in_its_place(held):
    packed = held.of(1)[1]
    held.fs.unlink(packed_path(DATA, packed))
    found = list(records(held))
    lost = [item for item in found if isinstance(item, LostRange)]
    assert [(item.first_lsn, item.last_lsn) for item in lost] == [(packed.lo + 1, packed.hi)]
    firsts = [item.lsn if isinstance(item, Record) else item.first_lsn for item in found]
    assert firsts == sorted(firsts)
    kept = {item.lsn for item in found if isinstance(item, Record)}
    assert kept == {lsn for lsn in held.values[1] if not packed.lo < lsn <= packed.hi}


def test_a_stream_of_which_nothing_was_kept_is_lost_up_to_the_log(held):
    found = list(records(held, stream=2))
    assert isinstance(found[0], LostRange)
    assert found[0].last_lsn == held.of(1)[1].hi
    assert all(isinstance(item, Record) for item in found[1:])


def test_whose_a_packed_record_is_can_still_be_told(held):
    first, second = held.of(1)
    for lsn in (*held.values[1], *held.values[2]):
        owner = owner_of(held.fs, DATA, held.log.log_id, lsn, held.frontier)
        if lsn in held.values[1]:
            assert owner == Owned(1, SESSION), lsn
        elif lsn <= second.hi:
            assert isinstance(owner, LostRange), "the other stream was not packed"
        else:
            assert owner == Owned(2, SESSION)
    assert first.hi == second.lo


def test_leaving_early_closes_every_file(held):
    open_files = held.fs.open_files
    reading = records(held)
    next(reading)
    assert held.fs.open_files > open_files
    reading.close()
    assert held.fs.open_files == open_files
