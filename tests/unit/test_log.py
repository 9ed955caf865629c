"""The log on a simulated disk: what each kind of stop leaves, and what the next start does."""

import errno
import json
import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from tests.logtools import (
    DATA,
    SESSION,
    SMALL,
    STREAM,
    append,
    first_group,
    new_fs,
    open_log,
    records_on_disk,
)
from wald import limits
from wald.core import frame, state
from wald.core.frame import SectionKind, SegmentKind
from wald.errors import (
    DataDirectoryForeign,
    DataDirectoryHeld,
    DataDirectoryUnusable,
    DiskFull,
    FormatDamaged,
    FormatNewer,
    LogFailed,
    StartFailed,
)
from wald.ingest.figures import Figures
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.inspect import inspect_log
from wald.storage.log import Log
from wald.storage.progress import TwoSlotPage
from wald.storage.recover import PROGRESS_SLOT_BYTES
from wald.supervisor.children import is_final
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem, Stopped

KEEP = replace(SMALL, retain_after_delivery_s=1e9, retain_after_delivery_bytes=1 << 40)


def fill(log: Log, groups: int, *, first: int = 1, size: int = 20) -> None:
    if not log.state.streams:
        log.append_group(first_group())
    for sequence in range(first, first + groups):
        log.append_group([append(sequence, b"%d:" % sequence + b"x" * size)])


def values(fs: SimFileSystem, log: Log) -> list[int]:
    found = records_on_disk(fs, log.log_id, log.frontier)
    return [int(found[lsn].split(b":")[0]) for lsn in sorted(found)]


def numbers(fs: SimFileSystem, directory: str = "log") -> list[int]:
    names = fs.list_directory(f"{DATA}/{directory}")
    return [number for number in map(segments.segment_number, names) if number is not None]


def flip(fs: SimFileSystem, path: str, offset: int) -> None:
    file = fs.open(path)
    byte = file.pread(1, offset)
    file.close()
    fs.damage(path, offset, bytes([byte[0] ^ 1]))


def header_of(fs: SimFileSystem, number: int) -> frame.SegmentHeader:
    file = fs.open(segments.segment_path(DATA, number))
    found = segments.read_header(file).header
    file.close()
    assert found is not None
    return found


# --- appending ----------------------------------------------------------------------------------


def test_a_group_is_durable_when_append_returns():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    receipt = log.append_group([append(1, b"1:a", b"1:b"), append(2, b"2:c")])
    assert receipt.first_lsn == 1
    assert receipt.frontier == log.frontier
    assert log.frontier.lsn == 3
    assert log.next_lsn == 4
    fs.crash()
    log = open_log(fs)
    assert values(fs, log) == [1, 1, 2]
    assert log.state.sessions[SESSION].last_sequence == 2
    assert log.state.streams[STREAM].records == 3


def test_a_control_group_uses_no_lsn():
    fs = new_fs()
    log = open_log(fs)
    receipt = log.append_group(first_group())
    assert (receipt.first_lsn, receipt.frontier.lsn, log.next_lsn) == (1, 0, 1)
    log.append_group([append(1, b"1:")])
    log.append_group([state.session_issued(9, "")])
    assert log.append_group([append(2, b"2:")]).first_lsn == 2


def test_a_group_of_records_with_a_control_statement_says_so():
    fs = new_fs()
    log = open_log(fs)
    log.append_group([*first_group(), append(1, b"1:a")])
    file = fs.open(segments.segment_path(DATA, 1))
    *_, last = segments.BlockReader(file, 1, log.log_id, header_of(fs, 1))
    assert last.header.kind is frame.BlockKind.RECORDS
    assert last.header.flags == frame.BlockFlag.HAS_CONTROL


def test_one_write_and_one_sync_make_a_group_durable():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    before = fs.operations
    log.append_group([append(2, b"2:")])
    kinds = [line.split()[1] for line in list(fs.log)[-(fs.operations - before) :]]
    assert kinds == ["pwritev", "sync", "pwritev"]  # the last is the hint


def test_a_closed_log_takes_nothing():
    log = open_log(new_fs())
    log.close()
    log.close()
    with pytest.raises(LogFailed):
        log.append_group(first_group())
    with pytest.raises(LogFailed):
        log.retire({})


# --- rolling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "on the spot"])
def test_a_full_segment_is_sealed_and_the_next_one_begun(prepared: bool):  # noqa: FBT001
    fs = new_fs()
    log = open_log(fs, options=KEEP)
    for sequence in range(1, 30):
        while prepared and log.preallocator.step():
            pass
        fill(log, 1, first=sequence, size=5000)
    assert len(numbers(fs)) > 2
    assert values(fs, log) == list(range(1, 30))
    for number in numbers(fs)[1:]:
        header = header_of(fs, number)
        if header.kind is SegmentKind.ROLL:
            assert header.pred_segment == number - 1
    fs.crash()
    log = open_log(fs, options=KEEP)
    assert values(fs, log) == list(range(1, 30))
    assert log.state.streams[STREAM].records == 29


def test_a_group_larger_than_a_segment_gets_a_larger_one():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    fill(log, 1, first=2, size=500_000)
    fill(log, 1, first=3)
    fs.crash()
    log = open_log(fs)
    assert values(fs, log) == [1, 2, 3]


def test_preparing_is_paced_and_ends():
    fs = new_fs()
    log = open_log(fs, options=replace(SMALL, segment_bytes=4 * limits.MIB))
    steps = 1
    while log.preallocator.step():
        steps += 1
    assert 4 <= steps <= 8
    assert numbers(fs) == [1, 2]
    assert header_of(fs, 2).kind is SegmentKind.PREP
    assert not log.preallocator.step()


def test_a_prepared_segment_goes_back_to_the_pool_and_is_used_again():
    fs = new_fs()
    log = open_log(fs)
    while log.preallocator.step():
        pass
    log.close()
    fs.kill()
    log = open_log(fs)
    assert "unused" in log.recovery.cases
    assert numbers(fs, "log/pool")
    while log.preallocator.step():
        pass
    assert len(numbers(fs, "log/pool")) == 1  # of two: the prepared one and the superseded first
    fill(log, 10, size=20_000)
    fs.crash()
    assert values(fs, open_log(fs)) == list(range(1, 11))


# --- snapshots behind groups --------------------------------------------------------------------

OFTEN = replace(KEEP, segment_bytes=512 * 1024, snapshot_every_sections=5)


def snapshots_in(fs: SimFileSystem, number: int, log_id: bytes) -> list[int]:
    file = fs.open(segments.segment_path(DATA, number))
    blocks = list(segments.BlockReader(file, number, log_id, header_of(fs, number)))
    file.close()
    return [b.header.offset for b in blocks if b.header.kind is frame.BlockKind.SNAPSHOT]


@pytest.mark.parametrize("stop", ["close", "kill", "crash"])
def test_the_state_is_written_again_now_and_then_and_a_start_begins_there(stop: str):
    for groups in range(18, 32):
        fs = new_fs()
        log = open_log(fs, options=OFTEN)
        fill(log, groups, size=3000)
        assert 2 <= len(snapshots_in(fs, 1, log.log_id)) <= 1 + groups // 4
        if stop == "close":
            log.close()
        fs.crash() if stop == "crash" else fs.kill()
        log = open_log(fs, options=OFTEN)
        assert not log.recovery.losses
        assert log.state.streams[STREAM].records == groups
        assert log.state.sessions[SESSION].last_sequence == groups
        assert values(fs, log) == list(range(1, groups + 1))


def test_a_snapshot_may_be_the_last_block():
    fs = new_fs()
    log = open_log(fs, options=OFTEN)
    log.append_group(first_group())
    sequence = 1
    while len(snapshots_in(fs, 1, log.log_id)) == 1:
        fill(log, 1, first=sequence)
        sequence += 1
    end = snapshots_in(fs, 1, log.log_id)[-1]
    fs.kill()
    file = fs.open(segments.segment_path(DATA, 1), write=True)
    file.truncate(log.frontier.end_bytes - 4096)  # the group behind it is gone
    file.close()
    fs.unlink(f"{DATA}/ingest.page")
    log = open_log(fs, options=OFTEN)
    assert log.recovery.cases == ("proven",)
    assert log.state.sessions[SESSION].last_sequence == sequence - 2
    assert header_of(fs, 2).pred_end == end
    assert values(fs, log) == list(range(1, sequence - 1))


def test_a_snapshot_that_cannot_be_written_sends_the_group_to_a_fresh_segment():
    for at in range(1, 44):
        fs = new_fs()
        log = open_log(fs, options=OFTEN)
        log.append_group(first_group())
        fs.fail(at, kind="sync")
        fill(log, 40, size=3000)
        fs.crash()
        log = open_log(fs, options=OFTEN)
        assert not log.recovery.losses
        assert values(fs, log) == list(range(1, 41))
        assert log.state.streams[STREAM].records == 40


def test_a_damaged_snapshot_behind_groups_is_replaced_by_the_one_before():
    fs = new_fs()
    log = open_log(fs, options=OFTEN)
    fill(log, 18, size=3000)
    newest = snapshots_in(fs, 1, log.log_id)[-1]
    fs.kill()
    flip(fs, segments.segment_path(DATA, 1), newest + 100)
    log = open_log(fs, options=OFTEN)
    assert log.state.streams[STREAM].records == 18
    assert values(fs, log) == list(range(1, 19))


def test_a_segment_without_room_for_a_snapshot_goes_on_without():
    fs = new_fs()
    log = open_log(fs, options=replace(OFTEN, segment_bytes=10 * 4096))
    fill(log, 30)
    fs.crash()
    log = open_log(fs, options=OFTEN)
    assert values(fs, log) == list(range(1, 31))


# --- retiring -----------------------------------------------------------------------------------


def test_what_every_route_has_delivered_is_retired_to_the_pool_and_used_again():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 12, size=20_000)
    before = len(numbers(fs))
    assert before > 3
    assert log.retire({}) == 0
    assert log.retire({1: log.frontier.lsn}) > 0
    assert len(numbers(fs)) < before
    assert len(numbers(fs, "log/pool")) == SMALL.pool_max_segments
    while log.preallocator.step():
        pass
    fill(log, 6, first=13, size=20_000)
    fs.crash()
    log = open_log(fs)
    assert values(fs, log)[-6:] == list(range(13, 19))
    assert not log.recovery.losses


def test_what_is_delivered_stays_for_a_while():
    fs, clock = new_fs(), ManualClock()
    options = replace(KEEP, retain_after_delivery_s=60.0)
    log = open_log(fs, clock=clock, options=options)
    fill(log, 12, size=20_000)
    through = {1: log.frontier.lsn}
    assert log.retire(through) == 0
    clock.advance(59)
    assert log.retire(through) == 0
    assert log.retire({1: 0}, at_least=1) == 0  # a route needs it
    assert log.retire(through, at_least=1) == 1
    assert log.retire(through) == 0
    clock.advance(2)
    assert log.retire(through) > 0


@pytest.mark.parametrize("at", range(1, 9))
def test_a_segment_that_cannot_be_retired_is_tried_again_before_younger_ones(at: int):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 12, size=20_000)
    fs.fail(at)
    through = {1: log.frontier.lsn}
    log.retire(through)
    fs.heal()
    left = numbers(fs)
    assert left == list(range(left[0], left[-1] + 1))
    log.retire(through)
    fill(log, 1, first=13)
    fs.kill()
    assert inspect_log(fs, DATA).damages == ()
    log = open_log(fs)
    assert not log.recovery.losses
    assert log.state.sessions[SESSION].last_sequence == 13
    assert len(numbers(fs)) <= 3


def test_idle_starts_leave_no_files_behind():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    for stop in ("close", "kill", "crash") * 4:
        if stop == "close":
            log.close()
        fs.crash() if stop == "crash" else fs.kill()
        log = open_log(fs)
        assert values(fs, log) == [1, 2]
    assert len(numbers(fs)) <= 3
    assert len(numbers(fs, "log/pool")) <= SMALL.pool_max_segments


# --- starting -----------------------------------------------------------------------------------


def test_after_a_clean_stop_lsns_go_on():
    fs = new_fs()
    log = open_log(fs)
    assert log.recovery.cases == ("first-start",)
    fill(log, 3)
    log.close()
    fs.crash()
    log = open_log(fs)
    assert log.recovery.clean
    assert log.recovery.jumped_to is None
    assert log.append_group([append(4, b"4:")]).first_lsn == 4


@pytest.mark.parametrize("stop", ["kill", "crash"])
def test_after_an_unclean_stop_lsns_jump_and_the_last_group_is_copied(stop: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    getattr(fs, stop)()
    log = open_log(fs)
    assert log.recovery.cases == ("in-doubt",)
    assert log.recovery.jumped_to == 3 + 1 + limits.LSN_JUMP_UNCLEAN
    assert log.frontier.lsn == 3
    receipt = log.append_group([append(4, b"4:")])
    assert receipt.first_lsn == 4 + limits.LSN_JUMP_UNCLEAN
    assert values(fs, log) == [1, 2, 3, 4]


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("stops", [["close"], ["close", "close"], ["kill", "close"], ["crash"]])
def test_lsns_that_were_skipped_are_not_given_after_idle_restarts_either(
    moved: bool,  # noqa: FBT001
    stops: list[str],
):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    fs.kill()
    if moved:
        fs.machine = "another"
    log = open_log(fs)
    jumped_to = log.recovery.jumped_to
    assert jumped_to == 4 + (limits.LSN_JUMP_MOVED if moved else limits.LSN_JUMP_UNCLEAN)
    for stop in stops:
        log.close() if stop == "close" else getattr(fs, stop)()
        log = open_log(fs)
        assert log.next_lsn >= jumped_to
    assert log.append_group([append(4, b"4:")]).first_lsn >= jumped_to
    log.close()
    assert values(fs, open_log(fs)) == [1, 2, 3, 4]


def test_a_copied_group_keeps_lsns_payload_and_commit_time():
    fs, clock = new_fs(), ManualClock()
    log = open_log(fs, clock=clock)
    fill(log, 2)
    fs.kill()

    def last_group(number: int):
        file = fs.open(segments.segment_path(DATA, number))
        *_, last = segments.BlockReader(file, number, log.log_id, header_of(fs, number))
        file.close()
        return last

    before = last_group(1)
    clock.advance(100)
    open_log(fs, clock=clock)
    after = last_group(2)
    assert after.payload == before.payload
    for name in ("first_lsn", "prev_lsn", "records", "payload_crc", "commit_time_ns", "kind"):
        assert getattr(after.header, name) == getattr(before.header, name)
    assert after.header.salt != before.header.salt


def test_the_tail_of_a_finished_segment_is_given_back():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    log.close()
    fs.kill()
    open_log(fs)
    found = fs.stat(segments.segment_path(DATA, 1))
    assert found is not None
    # the idle-close block is left there, and not named: it may be in the page cache only
    assert found.size_bytes == header_of(fs, 2).pred_end + 4096 < SMALL.segment_bytes


def test_a_written_group_that_was_not_synced_is_made_durable_before_it_is_believed():
    """Written, killed before the sync, read back from the cache, then the power fails."""
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    fs.stop(1, kind="sync")
    with pytest.raises(Stopped):
        log.append_group([append(2, b"2:")])
    fs.kill()
    log = open_log(fs)
    assert log.state.sessions[SESSION].last_sequence == 2  # a resend is answered "duplicate"
    fs.crash()
    log = open_log(fs)
    assert values(fs, log) == [1, 2]


def test_an_idle_close_that_was_not_synced_is_not_named_as_the_end():
    """Killed in the sync of a clean stop, read back from the cache, then the power fails."""
    fs = new_fs(write_back=0.0)
    log = open_log(fs)
    fill(log, 2)
    end = log.frontier.end_bytes
    fs.stop(1, kind="sync")
    with pytest.raises(Stopped):
        log.close()
    fs.kill()
    log = open_log(fs)
    assert log.recovery.clean
    assert header_of(fs, 2).pred_end == end
    fs.crash()
    log = open_log(fs)
    assert values(fs, log) == [1, 2]
    assert not inspect_log(fs, DATA).damages


def test_a_second_writer_waits_and_is_told_who_holds_the_log():
    fs, clock = new_fs(), ManualClock()
    open_log(fs)
    before = clock.monotonic_ns()
    with pytest.raises(DataDirectoryHeld) as caught:
        open_log(fs, clock=clock)
    assert (clock.monotonic_ns() - before) / 1e9 == pytest.approx(limits.LOCK_WAIT_S, abs=0.1)
    assert str(caught.value.facts["pid"]) in caught.value.hint
    fs.kill()
    open_log(fs)


def test_temporary_files_are_deleted_and_strange_ones_left_alone():
    fs = new_fs()
    open_log(fs).close()
    for name in ("fresh-0000000009.tmp", "notes.txt"):
        fs.create(f"{DATA}/log/{name}").close()
    fs.kill()
    log = open_log(fs)
    assert "notes.txt" in fs.list_directory(f"{DATA}/log")
    assert "fresh-0000000009.tmp" not in fs.list_directory(f"{DATA}/log")
    assert any("strange" in note for note in log.recovery.notes)


# --- refusals of a start ------------------------------------------------------------------------


def test_log_files_without_an_identity_are_foreign():
    fs = new_fs()
    open_log(fs).close()
    fs.unlink(f"{DATA}/identity")
    before = fs.list_directory(f"{DATA}/log")
    with pytest.raises(DataDirectoryForeign):
        open_log(fs)
    assert fs.list_directory(f"{DATA}/log") == before


def test_a_segment_of_another_log_is_foreign():
    fs = new_fs()
    open_log(fs, chance=Random(1)).close()
    open_log(fs, chance=Random(2), data_dir="/var/other").close()
    fs.rename("/var/other/log/seg-0000000001.wal", f"{DATA}/log/seg-0000000007.wal")
    with pytest.raises(DataDirectoryForeign):
        open_log(fs)


def test_a_segment_under_another_name_is_refused():
    fs = new_fs()
    open_log(fs).close()
    fs.rename(f"{DATA}/log/seg-0000000001.wal", f"{DATA}/log/seg-0000000007.wal")
    with pytest.raises(DataDirectoryForeign, match="is segment 1"):
        open_log(fs)


def newer(data: bytes, crc_at: int, versions_at: int) -> bytes:
    page = bytearray(data)
    page[versions_at : versions_at + 4] = b"\x02\0\x02\0"
    page[crc_at : crc_at + 4] = frame.crc32c(bytes(page[:crc_at])).to_bytes(4, "little")
    return bytes(page)


@pytest.mark.parametrize("which", ["identity", "segment"])
def test_a_newer_format_is_refused_and_nothing_is_touched(which: str):
    fs = new_fs()
    fill(log := open_log(fs), 2)
    log.close()
    path = f"{DATA}/identity" if which == "identity" else segments.segment_path(DATA, 1)
    file = fs.open(path)
    data = file.pread(4096, 0)
    fs.damage(path, 0, newer(data, len(data) - 4 if which == "identity" else 96, 8))
    before = fs.list_directory(f"{DATA}/log")
    with pytest.raises(FormatNewer):
        open_log(fs)
    assert fs.list_directory(f"{DATA}/log") == before
    assert fs.open_files == 1  # ours


def test_an_unsafe_data_directory_is_refused():
    fs = new_fs()
    fs.make_directory("/var/real")
    fs.symlink("/var/real", "/var/link")
    fs.create("/var/file").close()
    fs.make_directory("/var/open", mode=0o777)
    for path in ("/var/link", "/var/file", "/var/open"):
        with pytest.raises(DataDirectoryUnusable):
            open_log(fs, data_dir=path)
    fs.uid += 1
    with pytest.raises(DataDirectoryUnusable, match="belongs to user"):
        open_log(fs, data_dir="/var/real")
    with pytest.raises(DataDirectoryUnusable):
        open_log(fs, data_dir="/nowhere/at/all")
    assert fs.open_files == 0


def test_the_data_directory_is_made_and_its_name_is_durable():
    fs = new_fs()
    open_log(fs)
    fs.crash()
    assert fs.stat(DATA) is not None


# --- damage -------------------------------------------------------------------------------------


def last_block_at(log: Log, length: int = 1) -> int:
    return log.frontier.end_bytes - length * 4096


def test_a_hole_is_quarantined_reported_and_answers_no_duplicates():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    at = log.frontier.end_bytes
    fill(log, 2, first=2)
    fs.kill()
    flip(fs, segments.segment_path(DATA, 1), at + 100)
    log = open_log(fs)
    assert "hole" in log.recovery.cases
    (loss,) = log.recovery.losses
    assert (loss.first_lsn, loss.last_lsn, loss.segment, loss.offset_bytes) == (2, 2, 1, at)
    assert not log.state.sessions
    assert log.state.streams[STREAM].name == "orders"
    assert numbers(fs, "quarantine") == [1]
    (name,) = fs.list_directory(f"{DATA}/reports")
    file = fs.open(f"{DATA}/reports/{name}")
    report = json.loads(file.pread(1 << 16, 0))
    assert report["lost"][0]["first_lsn"] == report["lost"][0]["last_lsn"] == 2
    assert report["log_id"] == log.log_id.hex()
    assert values(fs, log) == [1, 3]
    # it is told once
    fs.kill()
    assert not open_log(fs).recovery.losses


def test_a_quarantined_segment_is_not_written_over_when_it_retires():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    at = log.frontier.end_bytes
    fill(log, 2, first=2)
    fs.kill()
    path = segments.segment_path(DATA, 1)
    flip(fs, path, at + 100)
    log = open_log(fs)
    kept = fs.open(f"{DATA}/quarantine/seg-0000000001.wal").pread(1 << 20, 0)
    fill(log, 12, first=4, size=20_000)
    log.retire({1: log.frontier.lsn})
    while log.preallocator.step():
        pass
    fill(log, 6, first=20, size=20_000)
    assert fs.stat(path) is None
    assert fs.open(f"{DATA}/quarantine/seg-0000000001.wal").pread(1 << 20, 0) == kept


def test_an_end_below_the_hint_is_a_loss_and_above_it_a_tail():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    at = last_block_at(log)
    fs.kill()
    flip(fs, segments.segment_path(DATA, 1), at + 100)
    copy = fs.clone()
    log = open_log(fs)
    assert log.recovery.cases[0] == "hint-ahead"
    assert [(loss.first_lsn, loss.last_lsn) for loss in log.recovery.losses] == [(3, 3)]
    assert log.frontier.lsn == 3
    assert log.next_lsn > 3
    copy.unlink(f"{DATA}/ingest.page")
    log = open_log(copy)
    assert not log.recovery.losses
    assert log.recovery.cut_lsns == (3, 3)
    assert log.next_lsn > 3
    assert values(copy, log) == [1, 2]


def hinted_lsn(fs: SimFileSystem) -> object:
    page = TwoSlotPage.open(
        fs, f"{DATA}/ingest.page", slot_bytes=limits.PAGE_SLOT_BYTES, write=False
    )
    said = page.read()
    page.close()
    assert said is not None
    return said["lsn"]


@pytest.mark.parametrize("kinds", [["pwritev"], ["pwritev", "open"]])
def test_a_hint_that_could_not_be_written_once_is_written_again(kinds: list[str]):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    files = fs.open_files
    sequence = 2
    for kind in kinds:
        fs.fail(2 if kind == "pwritev" else 1, kind=kind)  # the first is the group's
        fill(log, 1, first=sequence)
        assert hinted_lsn(fs) == 1
        fs.heal()
        sequence += 1
    fill(log, 1, first=sequence)
    assert hinted_lsn(fs) == sequence
    assert fs.open_files == files
    log.close()
    assert fs.open_files == 0


def test_a_checkpoint_above_the_end_is_a_loss_too():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    log.close()
    page = TwoSlotPage.open(fs, f"{DATA}/progress", slot_bytes=PROGRESS_SLOT_BYTES, write=True)
    page.write({"routes": {"1": 55}}, sync=True)
    page.close()
    log = open_log(fs)
    assert [(loss.first_lsn, loss.last_lsn) for loss in log.recovery.losses] == [(2, 55)]
    assert log.next_lsn > 55


@pytest.mark.parametrize(
    "statement",
    [{}, {"routes": 5}, {"routes": {"1": "x"}}, {"routes": {"1": -1}}, {"routes": {"1": 1 << 70}}],
)
def test_a_page_that_says_nonsense_is_no_hint(statement: dict[str, object]):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    log.close()
    try:
        page = TwoSlotPage.open(fs, f"{DATA}/progress", slot_bytes=PROGRESS_SLOT_BYTES, write=True)
        page.write(statement, sync=True)
        page.close()
    except OverflowError:
        return
    assert open_log(fs).recovery.clean


def test_a_torn_segment_header_costs_nothing():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    fs.kill()
    fs.damage(segments.segment_path(DATA, 1), 0, b"\xff" * 100)
    log = open_log(fs)
    assert "torn-header" in log.recovery.cases
    assert not log.recovery.losses
    assert values(fs, log) == [1, 2, 3]
    assert log.state.sessions[SESSION].last_sequence == 3


@pytest.mark.parametrize("page", ["header", "snapshot", "group", "behind"])
@pytest.mark.parametrize("stop", ["close", "kill"])
def test_a_sector_that_cannot_be_read_is_damage_at_a_start(page: str, stop: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 5)
    path = segments.segment_path(DATA, 1)
    end = log.frontier.end_bytes
    bad = {"header": 0, "snapshot": 4096, "group": end - 3 * 4096, "behind": end + 4096}[page]
    log.close() if stop == "close" else fs.kill()
    fs.spoil_sectors(path, bad, 512)
    log = open_log(fs)
    assert log.recovery.losses == () or page in {"snapshot", "group"}
    if page == "group":
        assert [(each.first_lsn, each.last_lsn) for each in log.recovery.losses] == [(3, 3)]
        assert fs.stat(f"{DATA}/quarantine/{segments.segment_name(1)}") is not None
    assert log.append_group([append(6, b"6:")]).first_lsn > 5
    assert values(fs, log) == [each for each in range(1, 7) if page != "group" or each != 3]


@pytest.mark.parametrize("page", ["header", "group", "last"])
def test_a_disk_that_gives_a_page_a_moment_later_has_lost_nothing(page: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 5)
    end = log.frontier.end_bytes
    bad = {"header": 0, "group": end - 3 * 4096, "last": end - 4096}[page]
    fs.kill()
    fs.spoil_sectors(segments.segment_path(DATA, 1), bad, 512)

    class Waits(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            fs.heal_sectors()

    log = open_log(fs, clock=Waits())
    assert log.recovery.losses == ()
    assert values(fs, log) == [1, 2, 3, 4, 5]


def test_hints_that_cannot_be_read_say_nothing():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    log.close()
    fs.spoil_sectors(f"{DATA}/ingest.page", 0, 512)
    log = open_log(fs)
    assert log.recovery.clean
    assert values(fs, log) == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOMEM, True),
        (errno.EIO, True),
        (errno.EACCES, False),
        (errno.EROFS, False),
    ],
)
def test_a_start_that_the_system_refuses_for_now_may_be_tried_again(error: int, again: bool):  # noqa: FBT001
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    log.close()
    fs.fail(3, error, kind="open")
    with pytest.raises(StartFailed if again else DataDirectoryUnusable) as caught:
        open_log(fs)
    assert is_final(caught.value, "ingest") is not again
    assert caught.value.retryable is again
    assert caught.value.facts["errno"] == error
    assert values(fs, open_log(fs)) == [1, 2, 3]


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("stop", ["close", "kill"])
def test_a_jump_is_not_forgotten_with_a_torn_segment_header(moved: bool, stop: str):  # noqa: FBT001
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    fs.kill()
    if moved:
        fs.machine = "another"
    log = open_log(fs)
    jumped_to = log.recovery.jumped_to
    assert jumped_to is not None
    newest = log.frontier.segment
    log.close() if stop == "close" else fs.kill()
    fs.damage(segments.segment_path(DATA, newest), 8, b"\xff\xff\xff")
    log = open_log(fs)
    assert "torn-header" in log.recovery.cases
    assert log.next_lsn >= jumped_to
    assert log.append_group([append(4, b"4:")]).first_lsn >= jumped_to


@pytest.mark.parametrize("which", [0, 1, -2, -1])
@pytest.mark.parametrize("stop", ["close", "kill"])
def test_what_stands_behind_or_before_a_torn_header_is_retired_when_it_is_delivered_not_before(
    which: int, stop: str
):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 14, size=20_000)
    number = numbers(fs)[which]
    log.close() if stop == "close" else fs.kill()
    flip(fs, segments.segment_path(DATA, number), 40)
    log = open_log(fs)
    fill(log, 2, first=15, size=20_000)
    found = records_on_disk(fs, log.log_id, log.frontier)
    for lsn in sorted(found):
        log.retire({1: lsn - 1})
        left = records_on_disk(fs, log.log_id, log.frontier)
        assert {each for each in found if each >= lsn} <= set(left)
    log.retire({1: log.frontier.lsn})
    assert len(records_on_disk(fs, log.log_id, log.frontier)) < 5


def test_a_rolled_segment_of_which_only_the_snapshot_was_written_goes_to_the_pool():
    """A power cut in a roll: its header, its snapshot and its first group are one write."""
    fs = new_fs()
    log = open_log(fs, options=KEEP)
    fill(log, 1, size=20_000)
    with pytest.raises(Stopped):  # noqa: PT012
        for sequence in range(2, 9):
            fs.heal()
            while log.preallocator.step():
                pass
            fs.stop(2, kind="sync")  # a roll: of the seal, of the new segment
            fill(log, 1, first=sequence, size=20_000)
    fs.kill()
    number = numbers(fs)[-1]
    path = segments.segment_path(DATA, number)
    file = fs.open(path)
    page = segments.read_header(file)
    kinds = [block.header for block in segments.BlockReader(file, number, log.log_id, page.header)]
    file.close()
    assert [each.kind.name for each in kinds] == ["SNAPSHOT", "RECORDS"]
    flip(fs, path, 40)
    fs.damage(path, kinds[1].offset, bytes(4096))
    log = open_log(fs, options=KEEP)
    assert set(log.recovery.cases) == {"unused", "sealed"}
    assert not log.recovery.losses
    assert numbers(fs, "log/pool") == [number]
    assert values(fs, log) == list(range(1, sequence))
    assert log.state.streams[STREAM].records == sequence - 1
    assert inspect_log(fs, DATA).damages == ()


def test_a_started_segment_with_a_torn_header_and_no_group_is_not_taken_for_unused():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    log.close()
    open_log(fs)
    fs.kill()
    flip(fs, segments.segment_path(DATA, 2), 40)
    log = open_log(fs)
    assert set(log.recovery.cases) == {"torn-header", "idle"}
    assert values(fs, log) == [1, 2]


def remove(fs: SimFileSystem, path: str) -> None:
    fs.unlink(path)


def shorten(fs: SimFileSystem, path: str) -> None:
    file = fs.open(path, write=True)
    file.truncate(4096)
    file.close()


def spoil_all(fs: SimFileSystem, path: str) -> None:
    found = fs.stat(path)
    assert found is not None
    fs.damage(path, 0, b"\xff" * found.size_bytes)


@pytest.mark.parametrize("stop", ["close", "kill"])
@pytest.mark.parametrize("harm", [remove, shorten, spoil_all])
def test_a_lost_file_between_older_ones_is_told_once_with_its_lsns(harm, stop: str):
    fs = new_fs()
    log = open_log(fs, options=KEEP)
    fill(log, 9, size=20_000)
    header = header_of(fs, 3)
    log.close() if stop == "close" else fs.kill()
    harm(fs, segments.segment_path(DATA, 2))
    log = open_log(fs, options=KEEP)
    assert "lost-file" in log.recovery.cases
    assert not log.recovery.clean
    (loss,) = log.recovery.losses
    first = header_of(fs, 1).pred_last_lsn + len(
        [lsn for lsn in records_on_disk(fs, log.log_id, log.frontier) if lsn <= 2]
    )
    assert (loss.first_lsn, loss.last_lsn) == (first + 1, header.pred_last_lsn)
    assert loss.segment == 2
    assert not log.state.sessions
    (name,) = fs.list_directory(f"{DATA}/reports")
    if harm is not remove:
        assert numbers(fs, "quarantine") == [2]
        assert 2 not in numbers(fs, "log/pool")
    log.append_group([state.session_issued(9, ""), append(1, b"10:", session=9)])
    for _ in range(2):  # it is told once
        fs.kill()
        log = open_log(fs, options=KEEP)
        assert not log.recovery.losses
        assert set(log.state.sessions) == {9}
        assert fs.list_directory(f"{DATA}/reports") == [name]
    fs.kill()
    fs.unlink(segments.segment_path(DATA, 4))  # another one
    log = open_log(fs, options=KEEP)
    assert [each.segment for each in log.recovery.losses] == [4]


def rolled(fs: SimFileSystem) -> Log:
    log = open_log(fs, options=KEEP)
    fill(log, 5, size=20_000)
    assert len(numbers(fs)) >= 2
    return log


def test_a_damaged_snapshot_is_replaced_by_an_older_one():
    fs = new_fs()
    log = rolled(fs)
    newest = log.frontier.segment
    fs.kill()
    flip(fs, segments.segment_path(DATA, newest), 4096 + 100)
    log = open_log(fs, options=KEEP)
    assert "older-snapshot" in log.recovery.cases
    assert log.state.streams[STREAM].records == 5
    assert values(fs, log) == [1, 2, 3, 4, 5]


def test_without_any_snapshot_the_ids_are_not_given_again():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    log.close()
    log = open_log(fs)
    fill(log, 2, first=4)
    for number in numbers(fs):
        flip(fs, segments.segment_path(DATA, number), 4096 + 100)
    fs.kill()
    log = open_log(fs)
    assert "no-snapshot" in log.recovery.cases
    assert log.recovery.losses
    assert log.state.next_stream_id > limits.CATALOGUE_JUMP
    assert log.state.next_route_id > limits.CATALOGUE_JUMP
    assert not log.state.sessions


def tell_figures(fs: SimFileSystem, log: Log) -> None:
    figures = Figures(fs, DATA, log, pid=1, started_ns=1)
    figures.write(groups=1, connections=0, refused=Counter())
    figures.close()


@pytest.mark.parametrize("stale", [0, 1, 2])
@pytest.mark.parametrize("stop", ["close", "kill"])
def test_without_any_snapshot_streams_and_routes_are_taken_from_the_figures(stop: str, stale: int):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    log.close()
    log = open_log(fs)
    for sequence in range(4, 9):
        if sequence == 9 - stale:
            tell_figures(fs, log)
        fill(log, 1, first=sequence)
    assert log.retire({1: 4}) == 1  # with the births in it
    if not stale:
        tell_figures(fs, log)
    stream, routes = replace(log.state.streams[STREAM]), log.state.routes
    log.close() if stop == "close" else fs.kill()
    for number in numbers(fs):
        flip(fs, segments.segment_path(DATA, number), 4096 + 100)
    for _ in range(2):
        log = open_log(fs)
        assert log.state.streams[STREAM] == stream
        assert log.state.routes == routes
        assert log.retire({}) == 0
        assert values(fs, log) == [4, 5, 6, 7, 8]
        fs.kill()
    assert log.state.next_route_id > limits.CATALOGUE_JUMP
    log = open_log(fs)
    fill(log, 1, first=9)
    assert log.retire({1: log.frontier.lsn})


@pytest.mark.parametrize("page", ["none", "of another log"])
def test_without_any_snapshot_and_figures_nothing_is_retired_in_this_life(page: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 3)
    log.close()
    log = open_log(fs)
    fill(log, 2, first=4)
    assert log.retire({1: 4}) == 1
    if page == "of another log":
        log.log_id, ours = bytes(16), log.log_id
        tell_figures(fs, log)
        log.log_id = ours
    for number in numbers(fs):
        flip(fs, segments.segment_path(DATA, number), 4096 + 100)
    fs.kill()
    log = open_log(fs)
    assert "no-snapshot" in log.recovery.cases
    assert any("no segment retires" in note for note in log.recovery.notes)
    assert log.retire({}) == 0
    assert values(fs, log) == [4, 5]


def test_a_lost_last_segment_is_found_by_the_seal_before_it():
    fs = new_fs()
    log = rolled(fs)
    lost = log.frontier.segment
    fs.kill()
    fs.unlink(segments.segment_path(DATA, lost))
    log = open_log(fs, options=KEEP)
    assert "seal-without-successor" in log.recovery.cases
    assert log.next_lsn > limits.LSN_JUMP_MOVED
    assert log.frontier.segment > lost


def test_a_lost_fresh_segment_is_found_by_identity():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    log.close()
    log = open_log(fs)
    fill(log, 2, first=3)
    fs.kill()
    fs.unlink(segments.segment_path(DATA, 2))
    log = open_log(fs)
    assert "segment-missing" in log.recovery.cases
    assert [(loss.first_lsn, loss.last_lsn) for loss in log.recovery.losses] == [(3, 4)]
    assert log.frontier.segment == 3


def test_no_segment_left_is_a_loss_of_all():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    fs.kill()
    fs.unlink(segments.segment_path(DATA, 1))
    log = open_log(fs)
    assert set(log.recovery.cases) == {"segment-missing", "no-snapshot"}
    assert [(loss.first_lsn, loss.last_lsn) for loss in log.recovery.losses] == [(1, 2)]
    assert log.next_lsn > limits.LSN_JUMP_MOVED


def test_a_full_disk_does_not_keep_a_loss_from_being_told():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    at = log.frontier.end_bytes
    fill(log, 2, first=2)
    fs.kill()
    flip(fs, segments.segment_path(DATA, 1), at + 100)
    fs.fail(1, errno.ENOSPC, kind="link")
    log = open_log(fs)
    assert log.recovery.losses
    assert any("could not be quarantined" in note for note in log.recovery.notes)


# --- identity -----------------------------------------------------------------------------------


def test_a_copied_directory_is_an_alarm_and_a_far_jump():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    log.close()
    fs.machine = "another"
    log = open_log(fs)
    assert log.recovery.moved
    assert log.recovery.jumped_to == 3 + limits.LSN_JUMP_MOVED
    log.close()
    assert not open_log(fs).recovery.moved


def test_a_damaged_identity_is_taken_from_a_header():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    log.close()
    flip(fs, f"{DATA}/identity", 30)
    again = open_log(fs)
    assert again.log_id == log.log_id
    assert again.recovery.moved
    assert values(fs, again) == [1, 2]


def test_a_damaged_identity_without_a_readable_header_is_refused():
    fs = new_fs()
    open_log(fs).close()
    flip(fs, f"{DATA}/identity", 30)
    flip(fs, segments.segment_path(DATA, 1), 30)
    with pytest.raises(FormatDamaged):
        open_log(fs)


def test_no_changed_byte_in_identity_is_overlooked():
    packed = identities.encode(identities.Identity(bytes(16), 3, "machine", 5))
    assert identities.decode(packed).segment == 3
    for at in range(len(packed)):
        with pytest.raises(FormatDamaged):
            identities.decode(packed[:at])
        with pytest.raises(FormatDamaged):
            identities.decode(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
    body = frame.pack_statement({"log_id": bytes(16)})
    page = identities._HEAD.pack(identities.MAGIC, 1, 1, len(body)) + body
    with pytest.raises(FormatDamaged, match="lacks a field"):
        identities.decode(page + frame.crc32c(page).to_bytes(4, "little"))


# --- a failing disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pwritev", "sync"])
def test_a_failed_group_goes_to_a_fresh_segment_with_the_same_lsns(kind: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    while log.preallocator.step():
        pass
    fs.fail(1, kind=kind)
    receipt = log.append_group([append(3, b"3:")])
    assert receipt.first_lsn == 3
    assert receipt.frontier.segment == 3  # above the prepared one
    assert numbers(fs) == [1, 3]
    assert log.write_failures == 1
    assert re.fullmatch(
        r"seg-0000000001.wal: .+; the log goes on in seg-0000000003.wal", log.last_write_failure
    )
    fs.drop_caches()
    assert values(fs, log) == [1, 2, 3]
    fill(log, 1, first=4)
    fs.crash()
    assert values(fs, open_log(fs)) == [1, 2, 3, 4]


def test_every_single_failure_while_rolling_is_survived_or_fatal_and_loses_nothing():
    fates = set()
    for at in range(1, 60):
        fs = new_fs(at)
        log = open_log(fs, options=KEEP)
        fill(log, 2, size=20_000)
        acked = 2
        fs.fail(at)
        try:
            for sequence in range(3, 6):
                fill(log, 1, first=sequence, size=20_000)
                acked = sequence
            fates.add("survived")
        except LogFailed:
            fates.add("fatal")
        fs.crash()
        log = open_log(fs, options=KEEP)
        assert values(fs, log)[:acked] == list(range(1, acked + 1)), at
        assert not log.recovery.losses, at
    assert "survived" in fates


def test_a_disk_that_fails_for_ever_ends_the_log():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 2)
    fs.fail(1, for_ever=True)
    with pytest.raises(LogFailed):
        log.append_group([append(3, b"3:")])
    with pytest.raises(LogFailed, match="before"):
        log.append_group([append(3, b"3:")])
    fs.heal()
    log.close()
    fs.crash()
    assert values(fs, open_log(fs))[:2] == [1, 2]


def test_preparing_that_fails_stops_nothing():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    for at in range(1, 8):
        fs.fail(at)
        while log.preallocator.step():
            pass
        fs.heal()
    fs.fail(1)
    log.preallocator.step()
    assert log.preallocator.last_error is not None or numbers(fs)
    fs.heal()
    fill(log, 6, first=2, size=20_000)
    fs.crash()
    assert values(fs, open_log(fs)) == list(range(1, 8))


# --- a full disk --------------------------------------------------------------------------------


def test_a_full_disk_is_met_before_the_first_byte_and_acceptance_resumes():
    fs = new_fs(capacity_bytes=40 * 4096)
    log = open_log(fs)
    fill(log, 1)
    sequence = 2
    with pytest.raises(DiskFull) as caught:  # noqa: PT012
        while sequence < 100:
            fill(log, 1, first=sequence, size=15_000)
            sequence += 1
    assert caught.value.retry_after_s > 0
    before = (log.frontier, log.next_lsn, log.state.sessions[SESSION].last_sequence)
    with pytest.raises(DiskFull):
        fill(log, 1, first=sequence, size=15_000)
    assert (log.frontier, log.next_lsn, log.state.sessions[SESSION].last_sequence) == before
    fs.capacity_bytes = None
    fill(log, 3, first=sequence, size=15_000)
    fs.crash()
    assert values(fs, open_log(fs)) == list(range(1, sequence + 3))


def test_the_reserve_is_left_free():
    fs = new_fs(capacity_bytes=64 * 4096)
    log = open_log(fs, options=replace(SMALL, reserve_bytes=60 * 4096))
    assert not log.preallocator.step()
    fill(log, 2, size=15_000)
    with pytest.raises(DiskFull):
        fill(log, 4, first=3, size=15_000)


def test_a_start_on_a_full_disk_gives_up_the_pool_and_takes_a_small_segment():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 9, size=20_000)
    log.retire({1: log.frontier.lsn})
    log.close()
    fs.kill()
    assert numbers(fs, "log/pool")
    used = sum(
        found.size_bytes
        for directory in ("log", "log/pool")
        for name in fs.list_directory(f"{DATA}/{directory}")
        if (found := fs.stat(f"{DATA}/{directory}/{name}")) is not None and not found.is_directory
    )
    fs.capacity_bytes = used + 8 * 4096
    log = open_log(fs)
    assert log.recovery.clean
    fill(log, 1, first=10)
    fs.crash()
    assert log.state.sessions[SESSION].last_sequence == 10


def test_a_start_without_any_room_says_so():
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    log.close()
    fs.fail(1, errno.ENOSPC, kind="allocate", for_ever=True)
    with pytest.raises(DiskFull):
        open_log(fs)
    assert fs.open_files == 0
    fs.heal()
    assert open_log(fs).recovery.clean


@pytest.mark.parametrize("stop", ["close", "kill", "crash"])
def test_a_session_that_ended_does_not_come_back_at_a_start(stop: str):
    fs = new_fs()
    log = open_log(fs)
    fill(log, 1)
    log.append_group([state.session_issued(8, ""), state.session_issued(9, "")])
    log.append_group([append(1, b"1:", session=8), append(1, b"1:", session=9)])
    log.append_group([state.session_ended(8)])
    log.append_group([state.session_ended(9), append(2, b"2:")])
    for _ in range(2):
        assert set(log.state.sessions) == {SESSION}
        log.close() if stop == "close" else getattr(fs, stop)()
        log = open_log(fs)
        assert not log.recovery.losses
    assert set(log.state.sessions) == {SESSION}
    assert log.state.streams[STREAM].records == 4


def test_statements_survive_as_they_were():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    log.append_group([state.route_death(1)])
    log.close()
    log = open_log(fs)
    assert log.state.routes == {}
    assert log.state.next_route_id == 2
    assert SectionKind.SNAPSHOT in {section.kind for section in log.state.snapshot()}
