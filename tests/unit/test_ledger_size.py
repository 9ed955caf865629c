"""However many batches a lane delivers, its ledger keeps its size."""

import pytest

from benchmarks.compare.ledger import LANE, LOG_ID, batches, finish, sizes
from wald import limits
from wald.model import RouteBirth
from wald.testing.memory_ledger import MemoryLedger


def test_the_file_does_not_grow_once_the_history_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "HISTORY_BATCHES_PER_LANE", 40)
    full, later, last = sizes(tmp_path, 45, 150, 400)
    assert last == later
    assert later <= 1.25 * full


def rows(ledger):
    tables = ("lanes", "aside", "dead", "history", "redrives", "allowed", "purged")
    return ledger.store.read(lambda txn: sum(len(list(txn.scan(table, b""))) for table in tables))


@pytest.mark.parametrize("history", [1, 7])
def test_as_many_rows_stay_as_the_history_has_and_one_for_the_lane(history, monkeypatch):
    monkeypatch.setattr(limits, "HISTORY_BATCHES_PER_LANE", history)
    ledger = MemoryLedger(LOG_ID)
    ledger.birth(RouteBirth(1, "orders", 1, "orders", "db", 0, 1))
    sealed = batches()
    batch = next(sealed)
    ledger.seal(LANE, batch)
    for _ in range(50):
        following = next(sealed)
        finish(ledger, batch, following)
        batch = following
    assert rows(ledger) == history + 1
