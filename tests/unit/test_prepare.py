"""Zeros ahead of the log, beside it, never over it."""

import contextlib
import errno
import threading
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.logtools import DATA, SMALL, append, first_group, new_fs, open_log, records_on_disk
from wald import limits
from wald.storage import prepare
from wald.storage import segment as segments
from wald.storage.log import Log
from wald.storage.prepare import Place, Pool
from wald.system import PosixFileSystem, SystemClock
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem

LARGE = replace(SMALL, segment_bytes=12 * limits.MIB)


def big(sequence: int, size: int = 300_000):
    return [append(sequence, b"%d:" % sequence + b"x" * size)]


def sequences(fs, log: Log, data_dir: str = DATA) -> list[int]:
    found = records_on_disk(fs, log.log_id, log.frontier, data_dir)
    return [int(found[lsn].split(b":")[0]) for lsn in sorted(found)]


def tail_failed(log: Log) -> bool:
    return log.preallocator.tail_failed


def test_the_rest_of_a_fresh_segment_is_zeroed_from_its_end_down():
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    marks = []
    while log.preallocator.step() and log.preallocator.zeroing_from < LARGE.segment_bytes:
        marks.append(log.preallocator.zeroing_from)
    assert marks == [11 * limits.MIB, 10 * limits.MIB, 9 * limits.MIB]
    assert fs.stat(segments.segment_path(DATA, 2)) is None
    while log.preallocator.step():
        pass
    assert fs.stat(segments.segment_path(DATA, 2)) is not None


@pytest.mark.parametrize("every", [1, 3, 7])
def test_zeros_never_hit_what_was_written(every: int):
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    log.append_group(first_group())
    for sequence in range(1, 60):
        log.append_group(big(sequence, 1_000_000 if sequence % 5 == 0 else 200_000))
        if sequence % every == 0:
            log.preallocator.step()
    fs.crash()
    log = open_log(fs, options=LARGE)
    assert sequences(fs, log) == list(range(1, 60))
    assert not log.recovery.losses


def test_a_writer_that_needs_the_room_sends_the_zeros_away():
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    log.append_group(first_group())
    log.preallocator.step()
    mark = log.preallocator.zeroing_from
    assert mark < LARGE.segment_bytes
    sequence = 1
    while log.frontier.end_bytes < mark - limits.MIB:
        log.append_group(big(sequence, 900_000))
        assert log.preallocator.zeroing_from == mark
        sequence += 1
    log.append_group(big(sequence, 1_000_000))
    assert log.preallocator.zeroing_from > LARGE.segment_bytes


def test_a_snapshot_larger_than_a_group_sends_the_zeros_away(monkeypatch):
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    log.append_group(first_group())
    monkeypatch.setattr(prepare, "_CLEARANCE_BYTES", limits.MIB)  # what a snapshot may exceed
    flush, marks = log._writer.flush, []

    def step_beside():
        marks.append(log.preallocator.zeroing_from)
        flush()

    monkeypatch.setattr(log._writer, "flush", step_beside)
    for sequence, size in enumerate([500_000, 2_000_000], start=1):
        log.preallocator.step()
        log.append_group(big(sequence, size))
    assert marks[0] < LARGE.segment_bytes < marks[1]


def test_after_a_failed_sync_of_zeros_the_log_goes_on_in_a_fresh_segment():
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    log.append_group(first_group())
    log.append_group(big(1))
    fs.fail(1, errno.EIO, kind="sync")
    assert not log.preallocator.step()
    assert tail_failed(log)
    receipt = log.append_group(big(2))
    assert receipt.first_lsn == 2
    assert receipt.frontier.segment > 1
    assert not tail_failed(log)
    log.append_group(big(3))
    fs.crash()
    assert sequences(fs, open_log(fs, options=LARGE)) == [1, 2, 3]


def test_zeros_that_cannot_be_written_are_given_up():
    fs = new_fs()
    log = open_log(fs, options=LARGE)
    fs.fail(1, errno.EIO, kind="pwritev")
    assert not log.preallocator.step()
    assert not log.preallocator.tail_failed
    assert log.preallocator.last_error is not None
    while log.preallocator.step():
        pass
    log.append_group(first_group())


def test_a_thread_that_prepares_beside_the_log_harms_no_record(tmp_path: Path):
    """Real files, a thread that never rests, segments of which several fill."""
    fs, clock, data_dir = PosixFileSystem(), SystemClock(), str(tmp_path / "data")
    log = open_log(fs, clock=clock, options=LARGE, data_dir=data_dir)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            log.preallocator.step()

    thread = threading.Thread(target=work)
    thread.start()
    chance = Random(4)
    try:
        log.append_group(first_group())
        for sequence in range(1, 80):
            log.append_group(big(sequence, chance.choice((10, 5_000, 600_000))))
    finally:
        stopping.set()
        thread.join()
    assert sequences(fs, log, data_dir) == list(range(1, 80))
    log.close()
    log = open_log(fs, clock=clock, options=LARGE, data_dir=data_dir)
    assert log.recovery.clean
    assert log.state.streams[1].records == 79
    log.close()


# --- the pool -----------------------------------------------------------------------------------


def place_of(fs: SimFileSystem) -> Place:
    return Place(fs, ManualClock(), Random(1), DATA, bytes(16), 4096, 65_536, 0)


def pooled() -> tuple[SimFileSystem, Pool]:
    fs = new_fs()
    open_log(fs).close()
    fs.kill()
    return fs, Pool(place_of(fs), 2)


def put(fs: SimFileSystem, path: str) -> None:
    file = fs.create(f"{DATA}/{path}")
    file.pwritev([b"x"], 0)
    file.sync()
    file.close()


def test_a_file_under_two_names_is_used_once():
    fs, pool = pooled()
    fs.link(f"{DATA}/log/seg-0000000001.wal", f"{DATA}/log/pool/seg-0000000001.wal")
    put(fs, "log/pool/seg-0000000090.wal")
    fs.link(f"{DATA}/log/pool/seg-0000000090.wal", f"{DATA}/log/pool/seg-0000000091.wal")
    fs.link(f"{DATA}/log/seg-0000000001.wal", f"{DATA}/quarantine/seg-0000000001.wal")
    pool.load()
    assert pool.names == ("seg-0000000090.wal",)
    assert fs.list_directory(f"{DATA}/log/pool") == ["seg-0000000090.wal"]


def test_the_pool_is_bounded_and_strange_names_are_left_alone():
    fs, pool = pooled()
    for number in range(80, 85):
        put(fs, f"log/pool/seg-{number:010d}.wal")
    put(fs, "log/pool/notes.txt")
    pool.load()
    assert len(pool.names) == 2
    assert len(fs.list_directory(f"{DATA}/log/pool")) == 3
    pool.put(1, keep=True)
    assert fs.list_directory(f"{DATA}/log") == ["pool"]
    assert len(pool.names) == 2
    assert pool.release_one()
    assert pool.release_one()
    assert not pool.release_one()


def test_a_name_in_the_pool_is_never_written_over():
    fs, pool = pooled()
    pool.load()
    put(fs, "log/pool/seg-0000000001.wal")
    pool.put(1, keep=True)
    assert pool.names == ()
    assert fs.list_directory(f"{DATA}/log") == ["pool"]


def test_a_recycled_file_is_another_segment_with_another_salt():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    for sequence in range(1, 9):
        log.append_group(big(sequence, 20_000))
    salts = {header.salt for header in headers(fs)}
    log.retire({1: log.frontier.lsn})
    before = fs.list_directory(f"{DATA}/log/pool")
    assert before
    while log.preallocator.step():
        pass
    assert fs.list_directory(f"{DATA}/log/pool") == before[:-1]
    prepared = headers(fs)[-1]
    assert prepared.segment == log.frontier.segment + 1
    assert prepared.salt not in salts


def headers(fs: SimFileSystem):
    found = []
    for name in fs.list_directory(f"{DATA}/log"):
        if segments.segment_number(name) is not None:
            file = fs.open(f"{DATA}/log/{name}")
            header = segments.read_header(file).header
            assert header is not None
            found.append(header)
            file.close()
    return found


@pytest.mark.parametrize("kind", ["create", "allocate", "pwritev", "sync", "rename"])
def test_a_segment_that_cannot_be_prepared_leaves_nothing_behind(kind: str):
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    before = fs.list_directory(f"{DATA}/log")
    fs.fail(1, kind=kind)
    while log.preallocator.step():
        pass
    assert log.preallocator.last_error is not None
    assert fs.list_directory(f"{DATA}/log") == before
    fs.heal()
    while log.preallocator.step():
        pass
    assert len(fs.list_directory(f"{DATA}/log")) == len(before) + 1


def open_descriptors() -> int:
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else 0


def test_no_descriptor_is_left_open(tmp_path: Path):
    fs, clock, data_dir = PosixFileSystem(), SystemClock(), str(tmp_path / "data")
    before = open_descriptors()
    for stop in range(4):
        log = open_log(fs, clock=clock, options=LARGE, data_dir=data_dir)
        if not log.state.streams:
            log.append_group(first_group())
        for _ in range(stop * 5):
            with contextlib.suppress(OSError):
                log.preallocator.step()
        log.append_group(big(stop + 1))
        log.close()
    assert open_descriptors() == before
