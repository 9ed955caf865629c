"""The ledger's contract, over LMDB, on a simulated disk, in memory; and LMDB's own traps."""

import os
import random
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from tests.ledgers import KINDS, open_kind
from wald import limits
from wald.errors import DataDirectoryForeign, DiskFull, FormatNewer, LedgerDamaged, LedgerFailed
from wald.model import (
    NO_REVISION,
    Anchor,
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Manifest,
    Revision,
    RouteBirth,
)
from wald.storage import lmdb_store as module
from wald.storage.ledger_rows import pack
from wald.storage.lmdb_store import open_ledger
from wald.system import PosixFileSystem

LOG_ID = bytes(range(16))
LANE = LaneKey(LOG_ID, 1, 0, 0)
BIRTH = RouteBirth(1, "orders", 3, "orders", "db", 40, 2**64 - 1)
STAMP = AttemptStamp("boot", 5, 6, "it was down")
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
FS = PosixFileSystem()


def open_lmdb(path, **options):
    return open_ledger(FS, str(path), LOG_ID, **options)


@pytest.fixture(params=KINDS)
def ledger(request, tmp_path):
    opened = open_kind(request.param, tmp_path, LOG_ID)
    opened.birth(BIRTH)
    yield opened
    opened.close()


def first(rev_id=A):
    return Manifest(1, 41, NO_REVISION, 1, (Revision(rev_id, 60),), 20, 99)


def second(prev=A):
    return Manifest(2, 61, prev, 1, (Revision(C, 70),), 10, 100)


def checkpoint(rev_id=A, dead_letters=0):
    return Checkpoint(1, rev_id, 60, Anchor(7, 8), NO_REVISION, 20 - dead_letters, dead_letters)


def finished(number=1, rev_id=A):
    return FinishedBatch(number, rev_id, 41, 60, 20, 0, 1, 99, 101)


def letter(lsn, rev_id=B):
    return DeadLetter("orders", lsn, "refused", "why", 1, rev_id, 1, 98, 1, 16, 1, lsn)


def test_a_birth_puts_the_checkpoint_at_its_lsn_and_the_first_one_stands(ledger):
    assert ledger.lane(LANE) == LaneProgress(Checkpoint(lsn=40), None)
    assert ledger.birth(RouteBirth(1, "orders", 3, "orders", "db", 50, 9)) == BIRTH
    assert ledger.births() == [BIRTH]


def test_a_lane_that_was_never_born_is_at_zero(ledger):
    assert ledger.lane(LANE._replace(route_id=9)) == LaneProgress(Checkpoint(), None)


def test_a_sealed_manifest_is_read_back_whole(ledger):
    assert ledger.seal(LANE, first())
    assert ledger.lane(LANE) == LaneProgress(Checkpoint(lsn=40), first())


def test_a_second_manifest_is_not_sealed_beside_an_open_one(ledger):
    assert ledger.seal(LANE, first())
    assert not ledger.seal(LANE, first(B))
    assert ledger.lane(LANE).manifest == first()


@pytest.mark.parametrize("wrong", [second(), Manifest(1, 40, NO_REVISION, 1, (), 1, 1)])
def test_a_manifest_that_does_not_continue_the_lane_is_not_sealed(ledger, wrong):
    assert not ledger.seal(LANE, wrong)
    assert ledger.lane(LANE).manifest is None


def test_an_attempt_is_counted_with_its_clocks(ledger):
    ledger.seal(LANE, first())
    assert ledger.attempt(LANE, A, STAMP)
    manifest = ledger.lane(LANE).manifest
    assert (manifest.attempts, manifest.boot_id, manifest.boot_clock_ns) == (2, "boot", 5)
    assert (manifest.attempt_time_ns, manifest.last_error) == (6, "it was down")


def test_an_attempt_of_another_revision_counts_nothing(ledger):
    ledger.seal(LANE, first())
    assert not ledger.attempt(LANE, B, STAMP)
    assert not ledger.attempt(LANE._replace(lane=1), A, STAMP)
    assert ledger.lane(LANE).manifest.attempts == 1


def test_a_revision_becomes_the_current_one_and_keeps_what_it_set_aside(ledger):
    ledger.seal(LANE, first())
    assert ledger.revise(LANE, A, Revision(B, 60, (45,)), [letter(45)], STAMP)
    manifest = ledger.lane(LANE).manifest
    assert [item.rev_id for item in manifest.revisions] == [A, B]
    assert (manifest.current.excluded, manifest.attempts) == ((45,), 2)
    assert list(ledger.set_aside(LANE, B)) == [letter(45)]
    assert not ledger.set_aside(LANE, A)
    assert not ledger.dead_letters(1)


def test_a_revision_of_what_is_not_current_changes_nothing(ledger):
    ledger.seal(LANE, first())
    assert not ledger.revise(LANE, C, Revision(B, 60, (45,)), [letter(45)], STAMP)
    assert not ledger.set_aside(LANE, B)


def test_finishing_closes_seals_the_next_and_writes_history_in_one(ledger):
    ledger.seal(LANE, first())
    assert ledger.finish(LANE, A, checkpoint(), finished(), (), second())
    assert ledger.lane(LANE) == LaneProgress(checkpoint(), second())
    assert ledger.history(LANE) == [finished()]


def test_only_what_the_revision_that_took_effect_set_aside_becomes_dead_letters(ledger):
    ledger.seal(LANE, first())
    ledger.revise(LANE, A, Revision(B, 60, (45,)), [letter(45)], STAMP)
    assert ledger.finish(LANE, A, checkpoint(), finished())  # the first one had committed late
    assert not ledger.dead_letters(1)
    assert not ledger.set_aside(LANE, B)


def test_dead_letters_are_listed_in_order_and_in_pages(ledger):
    ledger.seal(LANE, first())
    aside = [letter(lsn) for lsn in (45, 50, 55)]
    ledger.revise(LANE, A, Revision(B, 60, (45, 50, 55)), aside, STAMP)
    lost = letter(42, A)
    assert ledger.finish(LANE, B, checkpoint(B, 3), finished(1, B), [lost])
    assert list(ledger.dead_letters(1)) == [lost, *aside]
    assert list(ledger.dead_letters(1, after=45, limit=1)) == [letter(50)]
    assert not ledger.dead_letters(2)
    assert not ledger.dead_letters(0)


@pytest.mark.parametrize(
    ("worked_on", "at", "following"),
    [
        (B, checkpoint(B), None),
        (A, checkpoint(B), None),
        (A, checkpoint(), first()),
        (A, Checkpoint(2, A, 60), None),
    ],
)
def test_what_was_not_worked_on_is_not_finished(ledger, worked_on, at, following):
    ledger.seal(LANE, first())
    assert not ledger.finish(LANE, worked_on, at, finished(), (), following)
    assert ledger.lane(LANE).manifest == first()
    assert not ledger.history(LANE)


def test_with_nothing_open_nothing_is_finished(ledger):
    assert not ledger.finish(LANE, A, checkpoint(), finished())
    assert not ledger.attempt(LANE, A, STAMP)
    assert not ledger.revise(LANE, A, Revision(B, 60), [], STAMP)


def test_an_idle_checkpoint_moves_forward_over_foreign_lsns(ledger):
    before, after = Checkpoint(lsn=40), Checkpoint(lsn=90, anchor=Anchor(1, 2), dead_letters=1)
    assert ledger.advance(LANE, before, after, [letter(70, NO_REVISION)])
    assert ledger.lane(LANE).checkpoint == after
    assert [item.lsn for item in ledger.dead_letters(1)] == [70]


@pytest.mark.parametrize(
    ("worked_on", "after"),
    [
        (Checkpoint(lsn=40), Checkpoint(lsn=39)),
        (Checkpoint(lsn=41), Checkpoint(lsn=90)),
        (Checkpoint(lsn=40), Checkpoint(1, A, 90)),
    ],
)
def test_a_checkpoint_neither_goes_back_nor_skips_a_batch(ledger, worked_on, after):
    assert not ledger.advance(LANE, worked_on, after, [letter(70)])
    assert ledger.lane(LANE).checkpoint == Checkpoint(lsn=40)
    assert not ledger.dead_letters(1)


def test_a_checkpoint_does_not_move_while_a_batch_is_open(ledger):
    ledger.seal(LANE, first())
    assert not ledger.advance(LANE, Checkpoint(lsn=40), Checkpoint(lsn=90))


def test_history_is_a_ring(ledger, monkeypatch):
    monkeypatch.setattr(limits, "HISTORY_BATCHES_PER_LANE", 3)
    prev, lsn = NO_REVISION, 40
    for number in range(1, 6):
        rev_id = bytes([number]) * 16
        lsn += 1
        ledger.seal(LANE, Manifest(number, lsn, prev, 1, (Revision(rev_id, lsn),), 1, 1))
        assert ledger.finish(LANE, rev_id, Checkpoint(number, rev_id, lsn), finished(number))
        prev = rev_id
    assert [line.number for line in ledger.history(LANE)] == [3, 4, 5]


# --- LMDB ---------------------------------------------------------------------------------------


def test_what_was_written_is_there_after_opening_again(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)
    opened.seal(LANE, first())
    opened.close()
    opened.close()
    again = open_lmdb(tmp_path)
    assert again.lane(LANE).manifest == first()
    again.close()
    with pytest.raises(LedgerFailed):
        again.lane(LANE)


def test_a_half_made_ledger_is_made_anew(tmp_path):
    (tmp_path / "ledger.new").mkdir()
    (tmp_path / "ledger.new" / "data.mdb").write_bytes(b"half")
    open_lmdb(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_the_ledger_of_another_log_is_refused(tmp_path):
    open_lmdb(tmp_path).close()
    with pytest.raises(DataDirectoryForeign):
        open_ledger(FS, str(tmp_path), bytes(16))


def test_a_newer_ledger_is_refused_as_newer(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.store.write(lambda txn: txn.put("meta", b"format", pack(2)))
    opened.close()
    with pytest.raises(FormatNewer):
        open_lmdb(tmp_path)


@pytest.mark.parametrize("keep_bytes", [0, 100, 4096, 3 * 4096])
def test_a_data_file_that_was_cut_is_refused_and_does_not_kill_the_process(tmp_path, keep_bytes):
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)
    opened.close()
    os.truncate(tmp_path / "ledger" / "data.mdb", keep_bytes)
    code = (
        "import sys\n"
        "from wald.errors import LedgerFailed\n"
        "from wald.storage.lmdb_store import open_ledger\n"
        "from wald.system import PosixFileSystem\n"
        "try:\n    open_ledger(PosixFileSystem(), sys.argv[1], bytes(range(16)))\n"
        "except LedgerFailed as error:\n    print(error.code, bool(error.hint))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout) == (0, "ledger.damaged True\n"), done.stderr


def test_a_ledger_that_is_slow_to_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    open_lmdb(tmp_path).close()
    monkeypatch.setattr(limits, "LEDGER_WALK_S", 0.01)  # no interpreter begins in that time
    open_lmdb(tmp_path).close()


def test_a_ledger_that_has_no_end_is_damaged(tmp_path, monkeypatch):
    open_lmdb(tmp_path).close()
    monkeypatch.setattr(limits, "LEDGER_WALK_S", 0.01)
    begin, read = module._WALK.split("try:", 1)
    monkeypatch.setattr(module, "_WALK", f"{begin}while True: pass\ntry:{read}")
    with pytest.raises(LedgerDamaged, match="to its end"):
        open_lmdb(tmp_path)


def raw(path):
    return lmdb.open(str(path / "ledger"), max_dbs=32, lib_version=0)


def test_a_ledger_from_before_there_were_checksums_gets_them(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)
    opened.close()
    environment = raw(tmp_path)
    with environment.begin(write=True) as txn:
        for name in (b"meta", b"routes", b"lanes"):
            table = environment.open_db(name, txn=txn)
            for key, value in list(txn.cursor(table)):
                txn.put(key, value[:-4], db=table)
    environment.close()
    for _ in range(2):
        again = open_lmdb(tmp_path)
        assert again.births() == [BIRTH]
        again.close()


def test_a_value_that_changed_at_rest_is_found_before_it_is_believed(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)
    opened.close()
    environment = raw(tmp_path)
    with environment.begin(write=True) as txn:
        table = environment.open_db(b"lanes", txn=txn)
        ((key, value),) = list(txn.cursor(table))
        txn.put(key, bytes([value[0] ^ 4]) + value[1:], db=table)
    environment.close()
    with pytest.raises(LedgerDamaged, match="lanes is not what was written"):
        open_lmdb(tmp_path)


def test_a_value_that_changed_while_it_was_open_is_found_too(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)

    def change(txn):
        ((key, value),) = txn.scan("lanes")
        txn._txn.put(key, value + b"\0\0\0\0", db=txn._tables["lanes"])

    opened.store.write(change)
    assert opened.store.is_usable
    with pytest.raises(LedgerDamaged):
        opened.lane(LANE)
    assert not opened.store.is_usable  # it is opened anew by another process, and set aside
    opened.close()


def test_one_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    flips = int(os.environ.get("WALD_LEDGER_FLIPS", "40"))
    chance, found = random.Random(seed), 0
    opened = open_lmdb(tmp_path)
    for route in range(1, 60):
        opened.birth(_birth(route))
    births, before = opened.births(), opened.lane(LANE)
    assert opened.seal(LANE, first())
    states = [before, opened.lane(LANE)]  # a flip in LMDB's newer meta page leaves the one before
    opened.close()
    path = tmp_path / "ledger" / "data.mdb"
    whole = path.read_bytes()
    for _ in range(flips):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            again = open_lmdb(tmp_path)
        except LedgerDamaged:
            found += 1
            continue
        try:
            assert again.births() == births, f"WALD_TEST_SEED={seed}"
            assert again.lane(LANE) in states, f"WALD_TEST_SEED={seed}"
        finally:
            again.close()
    print(f"{found} of {flips} flips found, WALD_TEST_SEED={seed}")


@pytest.mark.parametrize("table", ["routes", "lanes", "meta"])
def test_a_flipped_bit_in_the_name_of_a_table_is_no_empty_table(tmp_path, table):
    opened = open_lmdb(tmp_path)
    opened.birth(_birth(1))
    opened.close()
    path = tmp_path / "ledger" / "data.mdb"
    wrong = bytes([table.encode()[0] ^ 1]) + table.encode()[1:]
    path.write_bytes(path.read_bytes().replace(table.encode(), wrong))
    with pytest.raises(LedgerDamaged):
        open_lmdb(tmp_path)


def test_a_table_that_holds_less_than_was_written_is_damaged(tmp_path):
    opened = open_lmdb(tmp_path)
    for route in range(1, 9):
        opened.birth(_birth(route))
    opened.close()
    path = tmp_path / "ledger" / "data.mdb"
    whole = path.read_bytes()
    found = 0
    for page in range(2, len(whole) // 4096):
        at = page * 4096 + 12  # how far the pointers to its entries go
        (lower,) = struct.unpack_from("<H", whole, at)
        if lower <= 16:
            continue
        path.write_bytes(whole[:at] + struct.pack("<H", lower - 2) + whole[at + 2 :])
        try:
            again = open_lmdb(tmp_path)
        except LedgerDamaged:
            found += 1
            continue
        assert [each.route_id for each in again.births()] == list(range(1, 9))  # an older page
        again.close()
    assert found


def _birth(route):
    return RouteBirth(route, f"route-{route}", 3, "orders", "db", 40, 1)


def test_the_map_grows_when_it_is_full(tmp_path):
    opened = open_lmdb(tmp_path, map_bytes=128 * 1024)
    opened.birth(BIRTH)
    opened.seal(LANE, first())
    many = [letter(lsn) for lsn in range(41, 4_041)]
    excluded = tuple(range(41, 4_041))
    assert opened.revise(LANE, A, Revision(B, 60, excluded), many, STAMP)
    assert len(opened.set_aside(LANE, B)) == 4_000
    opened.close()


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (lmdb.DiskError("mdb_txn_commit: No space left on device"), DiskFull),
        (lmdb.CorruptedError("mdb_get"), LedgerFailed),
    ],
)
def test_errors_of_lmdb_become_ours(tmp_path, raised, error):
    opened = open_lmdb(tmp_path)

    def work(_txn):
        raise raised

    with pytest.raises(error):
        opened.store.write(work)
    with pytest.raises(error):
        opened.store.read(work)
    opened.close()


def test_a_ledger_that_the_system_refuses_is_a_typed_error(tmp_path):
    (tmp_path / "ledger").write_bytes(b"a file")
    with pytest.raises(LedgerFailed):
        open_lmdb(tmp_path)


def test_readers_left_behind_are_cleared_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_READER_CHECK_EVERY", 2)
    opened = open_lmdb(tmp_path)
    opened.birth(BIRTH)
    assert opened.seal(LANE, first())
    opened.close()


def test_an_environment_used_across_a_fork_is_caught(tmp_path):
    opened = open_lmdb(tmp_path)
    opened.store._pid += 1
    with pytest.raises(AssertionError):
        opened.lane(LANE)
    opened.store._pid -= 1
    opened.close()


# --- what damage took, where another lane set the record aside ----------------------------------


@pytest.mark.parametrize("body_first", [True, False])
@pytest.mark.parametrize(("through_lsn", "at"), [(47, 46), (45, None)])
def test_a_damaged_range_and_a_letter_of_another_lane_at_its_first_lsn_both_count(
    ledger, body_first, through_lsn, at
):
    """A lane set 45 aside; before the lane that tells losses came by, its block was damaged."""
    other = LANE._replace(lane=1)
    body = replace(letter(45), lane=1)
    records = through_lsn - 44
    lost = replace(
        letter(45), code="damaged", records=records, dead_file=0, through_lsn=through_lsn
    )

    def set_aside():
        held = ledger.lane(other).checkpoint
        assert ledger.advance(other, held, replace(held, lsn=50, dead_letters=1), [body])

    def tell_loss():
        held = ledger.lane(LANE).checkpoint
        assert ledger.advance(LANE, held, replace(held, lsn=50, dead_letters=records), [lost])

    for step in (set_aside, tell_loss) if body_first else (tell_loss, set_aside):
        step()
    moved = [] if at is None else [replace(lost, lsn=at)]
    assert ledger.dead_letters(1) == [body, *moved]
    assert ledger.lane(other).checkpoint.dead_letters == 1
    after = ledger.lane(LANE).checkpoint
    assert (after.dead_letters, after.purged) == ((records, 0) if moved else (0, records))
    gone = ledger.purge(1, [each.lsn for each in ledger.dead_letters(1)], 7)
    assert gone.letters == len([body, *moved])
    assert [ledger.lane(key).checkpoint.dead_letters for key in (LANE, other)] == [0, 0]


def test_a_batch_that_is_closed_counts_what_was_no_loss_as_purged(ledger):
    other = LANE._replace(lane=1)
    held = ledger.lane(other).checkpoint
    body = replace(letter(45), lane=1)
    ledger.advance(other, held, replace(held, lsn=50, dead_letters=1), [body])
    ledger.seal(LANE, first())
    lost = replace(letter(45), code="damaged", dead_file=0)
    assert ledger.finish(LANE, A, checkpoint(dead_letters=1), finished(), [lost], second())
    after = ledger.lane(LANE)
    assert (after.checkpoint.dead_letters, after.checkpoint.purged) == (0, 1)
    assert after.manifest == second()
    assert ledger.dead_letters(1) == [body]
