"""The simulated ledger's store: a crash leaves of it what LMDB documents, and nothing else."""

from random import Random

import pytest

from tests.model.planting import Patch, plant
from wald.errors import DiskFull, LedgerDamaged, LedgerFailed
from wald.testing import SimFileSystem, sim_store
from wald.testing.sim_store import SimStore, open_sim_ledger
from wald.testing.simfs import Stopped

DATA, LOG_ID = "/data", bytes(16)
NUMBERS = range(1, 9)


def new_fs(seed=1):
    return SimFileSystem(Random(seed), directories=[DATA])


def put(ledger, number):
    """One transaction that changes two tables."""

    def work(txn):
        txn.put("lanes", b"a", bytes([number]) * 3_000 * (number % 3 + 1))
        txn.put("dead", b"a", bytes([number]))

    ledger.store.write(work)


def held(fs):
    """Open it and return the number of the last transaction: the same in both tables, or none."""
    ledger = open_sim_ledger(fs, DATA, LOG_ID)

    def look(txn):
        return {(txn.get(table, b"a") or b"\0")[0] for table in ("lanes", "dead")}

    (number,) = ledger.store.read(look)
    ledger.close()
    return number


def test_what_was_committed_is_there_behind_a_power_cut():
    fs = new_fs()
    ledger = open_sim_ledger(fs, DATA, LOG_ID)
    for number in NUMBERS:
        put(ledger, number)
        image = fs.clone()
        image.crash(Random(number))
        assert held(image) == number


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_commit_cut_at_any_operation_is_there_whole_or_the_one_before_is(power):
    seen = set()
    for seed in range(40):
        for at in range(1, 5):
            fs = new_fs(seed)
            ledger = open_sim_ledger(fs, DATA, LOG_ID)
            put(ledger, 1)
            put(ledger, 2)
            fs.stop(at)
            with pytest.raises(Stopped):
                put(ledger, 3)
            if power:
                fs.crash()
            else:
                fs.kill()
            seen.add((at, held(fs)))
    assert {number for _, number in seen} == {2, 3}
    assert (1, 3) not in seen  # a prefix of the tables is no commit


def test_a_beginning_cut_at_any_operation_leaves_no_ledger_or_a_whole_one():
    for at in range(1, 30):
        fs = new_fs(at)
        fs.stop(at)
        try:
            open_sim_ledger(fs, DATA, LOG_ID)
        except Stopped:
            fs.crash()
        fs.kill()
        assert held(fs) == 0


def test_a_directory_that_was_not_synced_may_lose_the_file(monkeypatch):
    patch = Patch(
        sim_store,
        "_make",
        [("    fs.sync_directory(temporary)\n", "")],
    )
    plant(monkeypatch, patch)
    lost = 0
    for seed in range(40):
        fs = new_fs(seed)
        ledger = open_sim_ledger(fs, DATA, LOG_ID)
        put(ledger, 1)
        fs.crash()
        try:
            open_sim_ledger(fs, DATA, LOG_ID)
        except LedgerFailed:
            lost += 1
    assert lost


TABLES_SYNC = ("self._file.sync()\n    meta =", "meta =")
META_SYNC = ("self._file.sync()\n    self._why_useless = ", "self._why_useless = ")


@pytest.mark.parametrize(
    ("left_out", "leaves"),
    [([META_SYNC], {1, 2}), ([TABLES_SYNC, META_SYNC], {"damaged", 1, 2})],
    ids=["of the meta page", "both"],
)
def test_a_sync_that_is_left_out_undoes_a_commit_or_ruins_the_file(monkeypatch, left_out, leaves):
    plant(monkeypatch, Patch(SimStore, "_commit", left_out))
    seen = set()
    for seed in range(80):
        fs = new_fs(seed)
        ledger = open_sim_ledger(fs, DATA, LOG_ID)
        put(ledger, 1)
        fs.settle()
        put(ledger, 2)
        fs.crash()
        try:
            seen.add(held(fs))
        except LedgerDamaged:
            seen.add("damaged")
    assert seen == leaves


def test_behind_a_meta_page_that_could_not_be_synced_it_is_of_no_use_until_it_is_opened_anew():
    fs = new_fs()
    ledger = open_sim_ledger(fs, DATA, LOG_ID)
    put(ledger, 1)
    fs.fail(2, kind="sync")
    for _ in range(2):
        with pytest.raises(LedgerFailed):
            put(ledger, 2)
    with pytest.raises(LedgerFailed):
        ledger.births()
    ledger.close()
    assert held(fs) in {1, 2}


def test_a_sync_of_the_tables_that_failed_costs_that_transaction_alone():
    fs = new_fs()
    ledger = open_sim_ledger(fs, DATA, LOG_ID)
    put(ledger, 1)
    fs.fail(1, kind="sync")
    with pytest.raises(LedgerFailed):
        put(ledger, 2)
    put(ledger, 3)
    fs.crash()
    assert held(fs) == 3


def test_no_room_changes_nothing_and_passes():
    fs = new_fs()
    ledger = open_sim_ledger(fs, DATA, LOG_ID)
    put(ledger, 1)
    fs.capacity_bytes = 0
    with pytest.raises(DiskFull):
        put(ledger, 2)
    fs.capacity_bytes = None
    put(ledger, 3)
    ledger.close()
    assert held(fs) == 3


def test_meta_pages_that_are_both_damaged_are_told():
    fs = new_fs()
    open_sim_ledger(fs, DATA, LOG_ID).close()
    for page in (0, 4096):
        fs.damage(f"{DATA}/ledger/data", page, b"\0" * 8)
    with pytest.raises(LedgerDamaged):
        open_sim_ledger(fs, DATA, LOG_ID)
