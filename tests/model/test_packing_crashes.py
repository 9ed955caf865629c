"""Packing cut at every operation: by a kill or a power cut, whatever is read after it is whole.

The order is: the new file, its directory, the ledger, the floor, the retirement. The ledger is one
that keeps its word; a stop just before and just behind each of its transactions counts as an
operation like any other.
"""

import re
from collections.abc import Callable
from random import Random

import pytest

from tests.logtools import DATA, open_log
from tests.packtools import ROUTES, PackedLog
from wald import limits
from wald.core.packing import RepackPolicy
from wald.core.retention import RetentionPolicy
from wald.drainer.packed_files import PackedFiles
from wald.drainer.packing import Packing, PackingDoors
from wald.drainer.released import ProgressPage
from wald.errors import LedgerFailed
from wald.ingest.figures import Progress
from wald.storage.packed import list_packed
from wald.storage.packed_index import PackedIndex
from wald.testing import ManualClock, SimFileSystem
from wald.testing.memory_ledger import MemoryStore
from wald.testing.simfs import Stopped

POLICY = RepackPolicy(after_s=0.0)
AT_ONCE = RetentionPolicy(0.0, 0)
STEPS = 10  # so many rounds make all the files that there are to make
CHANGES = re.compile(
    r"(\d+) (create|make_directory|pwritev|sync|sync_directory|truncate|allocate|link|unlink"
    r"|rename|replace|ledger begin|ledger committed)\b"
)  # what lies between two of them changes nothing


class StoppingStore(MemoryStore):
    """A ledger's store; its machine may stop around each transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.fs: SimFileSystem | None = None

    def write(self, work):
        self._operation("ledger begin")
        result = super().write(work)
        self._operation("ledger committed")
        return result

    def _operation(self, kind: str) -> None:
        fault = None if self.fs is None else self.fs.strike(kind)
        if fault is None:
            return
        if fault.error is None:
            raise Stopped
        raise LedgerFailed(kind)


class Life:
    """One life of ingest and drainer on a disk, driven by hand."""

    def __init__(self, base: PackedLog, fs: SimFileSystem, store: StoppingStore) -> None:
        self.fs = fs
        self.base = base
        self.store = store
        store.fs = None
        self.log = open_log(fs)
        store.fs = fs
        self.clock = ManualClock()
        self.files = PackedFiles(PackedIndex(store))
        self.files.settle(fs, DATA, self.log.log_id)
        doors = PackingDoors(fs, DATA, self.log.log_id, self.clock, self.files)
        self.packing = Packing(doors, POLICY, AT_ONCE)
        self.progress = ProgressPage(fs, DATA)

    def pack_all(self, checkpoints: dict[int, int], steps: int = STEPS) -> None:
        """Pack, tell ingest, retire: until nothing is left to do."""
        said = {str(route): lsn for route, lsn in checkpoints.items()}
        ingest = Progress(self.fs, DATA)
        for _ in range(steps):
            self.clock.advance(limits.PACK_EVERY_S)
            self.packing.step(self.log.frontier, self.log.state.routes, checkpoints, ())
            self.progress.write(said, ROUTES.values(), self.packing.floors(said))
            self.log.retire(ingest.floors())
        assert self.packing.trouble == ""

    def check(self, after: int = 0) -> None:
        """All records of both streams are read, once and in order, and nothing is lost."""
        made = object.__new__(PackedLog)
        made.__dict__.update(self.base.__dict__)
        made.fs, made.log, made.files = self.fs, self.log, list(self.files.all)
        for stream in (1, 2):
            assert made.read(stream, after) == (made.expected(stream, after), [])


@pytest.fixture(scope="module")
def base() -> PackedLog:
    made = PackedLog()
    made.fill(2)
    made.fs.kill()
    made.fs.settle()
    return made


def closed_segments(fs: SimFileSystem) -> int:
    return len([name for name in fs.list_directory(f"{DATA}/log") if name.endswith(".wal")])


def test_undisturbed_the_log_behind_packed_files_retires(base):
    life = Life(base, base.fs.clone(), StoppingStore())
    before = closed_segments(life.fs)
    life.pack_all(dict.fromkeys(ROUTES.values(), 0))
    assert closed_segments(life.fs) <= before - 2
    assert {file.stream_id for file in life.files.all} == {1, 2}
    life.check()


def test_what_all_routes_have_passed_is_deleted_and_forgotten(base):
    store = StoppingStore()
    life = Life(base, base.fs.clone(), store)
    life.pack_all(dict.fromkeys(ROUTES.values(), 0))
    assert life.files.all
    life.pack_all(dict.fromkeys(ROUTES.values(), life.log.frontier.lsn))
    assert list(life.files.all) == list(PackedIndex(store).rows()) == []
    assert list_packed(life.fs, DATA) == []


def changes_of(life: Life, run: Callable[[Life], None]) -> list[int]:
    """Return at which operations an undisturbed run changes the disk or the ledger."""
    before = life.fs.operations
    run(life)
    found = (CHANGES.match(line) for line in life.fs.log)
    numbers = [int(match[1]) - before for match in found if match]
    return [number for number in numbers if number > 0]


def pack(life: Life) -> None:
    life.pack_all(dict.fromkeys(ROUTES.values(), 0))


def pass_all(life: Life) -> None:
    life.pack_all(dict.fromkeys(ROUTES.values(), life.log.frontier.lsn), steps=3)


def end(fs: SimFileSystem, at: int, *, power: bool) -> None:
    if power:
        fs.crash(Random(at))
    else:
        fs.kill()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_cut_at_every_change_all_records_are_still_there(base, power):
    changes = changes_of(Life(base, base.fs.clone(), StoppingStore()), pack)
    assert len(changes) > 50
    for at in changes:
        fs, store = base.fs.clone(), StoppingStore()
        life = Life(base, fs, store)
        fs.stop(at)
        with pytest.raises(Stopped):
            pack(life)
        end(fs, at, power=power)
        again = Life(base, fs, store)
        again.check()
        pack(again)
        again.check()
        named = {(file.stream_id, file.lo, file.hi) for file in again.files.all}
        assert {(f.stream_id, f.lo, f.hi) for f in list_packed(fs, DATA)} == named, at
        fs.kill()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_cut_at_every_change_of_a_deletion_what_is_left_is_deleted_later(base, power):
    packed_fs, packed_store = base.fs.clone(), StoppingStore()
    pack(Life(base, packed_fs, packed_store))
    packed_fs.kill()
    packed_fs.settle()

    def begin() -> Life:
        store = StoppingStore()
        store._tables = packed_store._tables
        return Life(base, packed_fs.clone(), store)

    for at in changes_of(begin(), pass_all):
        life = begin()
        through = life.log.frontier.lsn
        life.fs.stop(at)
        with pytest.raises(Stopped):
            pass_all(life)
        end(life.fs, at, power=power)
        again = Life(base, life.fs, life.store)
        again.check(through)
        pass_all(again)
        assert list_packed(life.fs, DATA) == []
        life.fs.kill()


def test_a_disk_that_fails_at_any_change_harms_nothing(base):
    for at in changes_of(Life(base, base.fs.clone(), StoppingStore()), try_to_pack):
        life = Life(base, base.fs.clone(), StoppingStore())
        life.fs.fail(at)
        try_to_pack(life)
        assert life.packing.trouble
        life.fs.heal()
        life.check()
        life.clock.advance(limits.RETRY_CAP_S)
        pack(life)
        life.check()
        life.fs.kill()


def try_to_pack(life: Life) -> None:
    """Pack without telling ingest."""
    checkpoints = dict.fromkeys(ROUTES.values(), 0)
    for _ in range(4):
        life.clock.advance(limits.PACK_EVERY_S)
        life.packing.step(life.log.frontier, life.log.state.routes, checkpoints, ())


def test_a_full_disk_leaves_everything_as_it_was_and_says_so(base):
    fs = base.fs.clone()
    life = Life(base, fs, StoppingStore())
    checkpoints = dict.fromkeys(ROUTES.values(), 0)
    capacity, fs.capacity_bytes = fs.capacity_bytes, limits.PACK_SPARE_BYTES
    life.clock.advance(limits.PACK_EVERY_S)
    for _ in range(3):
        life.clock.advance(0.5)
        life.packing.step(life.log.frontier, life.log.state.routes, checkpoints, ())
    assert "bytes are free" in life.packing.trouble
    assert life.packing.figures()["trouble"] == life.packing.trouble
    assert list_packed(fs, DATA) == []
    assert life.files.all == ()
    life.check()
    fs.capacity_bytes = capacity
    life.clock.advance(limits.RETRY_CAP_S)
    life.pack_all(checkpoints)
    life.check()
