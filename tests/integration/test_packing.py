"""Packing beside delivery: a stuck route pins only its own records, and loses none of them."""

import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backlog import CLOCK, FS, Backlog, eventually
from wald import limits
from wald.drainer import process
from wald.ingest.figures import Progress
from wald.model import Anchor, LaneKey, ProgressRow, Systemic, SystemicKind
from wald.storage.lmdb_store import open_ledger
from wald.storage.log import LogOptions
from wald.storage.packed import list_packed, packed_path, read_tail
from wald.storage.packed_index import PackedIndex
from wald.storage.progress import TwoSlotPage
from wald.storage.segment import read_header
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
SEGMENT_BYTES = 256 * limits.KIB
OPTIONS = LogOptions(
    segment_bytes=SEGMENT_BYTES,
    retain_after_delivery_s=0.0,
    retain_after_delivery_bytes=0,
    pool_max_segments=1,
    reserve_bytes=0,
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(limits, "PACK_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "PROGRESS_EVERY_S", 0.01)
    monkeypatch.setattr(limits, "ADVANCE_EVERY_S", 0.01)


@pytest.fixture
def two(place):
    opened = Backlog(place, "stuck", "healthy", options=OPTIONS)
    opened.settings = replace(
        opened.settings,
        repack_after_s=0.0,
        retain_after_delivery_s=0.0,
        retain_after_delivery_bytes=0,
        stop_deliver_for_s=0.0,
    )
    yield opened
    opened.close()


@contextmanager
def draining(backlog, targets):
    """The drain process's main thread, as a thread."""
    stop, ready = threading.Event(), threading.Event()

    def serve():
        process.run(
            backlog.settings,
            make_sink=lambda route, _: RecordingSink(targets[route.name]),
            fs=FS,
            clock=CLOCK,
            chance=backlog.chance,
            ready=lambda _: ready.set(),
            stop=stop,
        )

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60.0)
    try:
        yield
    finally:
        stop.set()
        thread.join(60.0)
        assert not thread.is_alive()


def fill(backlog, segments):
    """Append single records of both streams until so many segments are closed."""
    lsns: dict[int, list[int]] = {1: [], 2: []}
    until = backlog.log.frontier.segment + segments
    number = 0
    while backlog.log.frontier.segment < until:
        number += 1
        stream = 1 if number % 8 == 0 else 2
        lsns[stream] += backlog.append(b"%06d" % number, stream=stream)
        backlog.log.preallocator.step()
    lsns[1] += backlog.append(b"last", stream=1)
    lsns[2] += backlog.append(b"last", stream=2)
    return lsns


def floors(backlog):
    """What ingest reads of what the drainer tells."""
    progress = Progress(FS, backlog.data_dir)
    try:
        return progress.floors()
    finally:
        progress.close()


def retire(backlog):
    return backlog.log.retire(floors(backlog))


def log_segments(backlog):
    return list(Path(backlog.data_dir, "log").glob("*.wal"))


def disk_bytes(backlog):
    paths = [
        path for name in ("log", "packed") for path in Path(backlog.data_dir, name).glob("*.w*")
    ]
    return sum(path.stat().st_size for path in paths)


def page(backlog):
    drain = TwoSlotPage.open(
        FS, f"{backlog.data_dir}/drain.page", slot_bytes=limits.FIGURES_SLOT_BYTES, write=False
    )
    try:
        return drain.read() or {}
    finally:
        drain.close()


def figure(backlog, name, route="stuck"):
    return page(backlog).get("routes", {}).get(route, {}).get(name)


def packed_through(backlog, lsn):
    """Wait until no route needs what the log holds up to an LSN: it has passed it, or packed."""

    def holds():
        return min(floors(backlog).get(number, 0) for number in (1, 2)) > lsn

    eventually(holds, lambda: (floors(backlog), list_packed(FS, backlog.data_dir)))


def last_closed(backlog):
    """The last LSN before the frontier's segment."""
    name = f"{backlog.data_dir}/log/seg-{backlog.log.frontier.segment:010d}.wal"
    file = FS.open(name)
    try:
        header = read_header(file).header
    finally:
        file.close()
    assert header is not None
    return header.pred_last_lsn


def test_a_stuck_route_pins_only_its_own_records_and_delivers_them_when_its_target_is_back(two):
    lsns = fill(two, 5)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    before = disk_bytes(two)
    with draining(two, targets):
        assert targets["healthy"].wait_for(lambda: targets["healthy"].lsns == lsns[2])
        packed_through(two, last_closed(two))
        eventually(lambda: page(two).get("disk", {}).get("packed_files") == 1)
        assert retire(two) == 5
        assert len(log_segments(two)) <= 3  # the present one, the next one, an empty one
        assert disk_bytes(two) < before / 2
        (packed,) = list_packed(FS, two.data_dir)
        assert packed.records == sum(lsn <= packed.hi for lsn in lsns[1])
        eventually(lambda: page(two)["disk"]["pinned"] == {"stuck": packed.size_bytes})
        assert page(two)["disk"]["log_bytes"] > 0
        assert page(two)["disk"]["packed_bytes"] == packed.size_bytes < SEGMENT_BYTES / 4
        lsns[1] += two.append(b"new", stream=1)
        targets["stuck"].down = None
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns[1], 60.0)
        lsns[1] += two.append(b"one more", stream=1)
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns[1])
        eventually(lambda: list_packed(FS, two.data_dir) == [])
    assert targets["stuck"].lsns == lsns[1]
    assert targets["healthy"].lsns == lsns[2]


def test_what_was_packed_is_delivered_by_the_next_drainer(two):
    lsns = fill(two, 3)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 3
    targets["stuck"].down = None
    with draining(two, targets):
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns[1])
    assert targets["healthy"].lsns == lsns[2]


def test_replay_without_a_daemon_reads_packed_files(two):
    lsns = fill(two, 3)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 3
    targets["stuck"].down = None
    done = two.replay(lambda route, _: RecordingSink(targets[route.name]))
    assert done["pending"] == 0
    assert targets["stuck"].lsns == lsns[1]


def test_a_parked_route_is_packed_at_once_and_a_route_that_moves_is_not(two):
    two.settings = replace(two.settings, repack_after_s=3600.0)
    fill(two, 2)
    targets = {"stuck": RecordingTarget(), "healthy": RecordingTarget(down=DOWN)}
    key = LaneKey(two.log.log_id, 1, 0, 0)
    targets["stuck"].rows[key] = ProgressRow(7, b"x" * 16, 3, Anchor(0, 0), 12345, bytes(16))
    with draining(two, targets):
        eventually(lambda: figure(two, "parked"))
        eventually(lambda: page(two)["disk"]["pinned"].keys() == {"stuck", "healthy"})
        assert list_packed(FS, two.data_dir) == []  # the healthy one needs the log too
        targets["healthy"].down = None
        packed_through(two, last_closed(two))
    assert {packed.stream_id for packed in list_packed(FS, two.data_dir)} == {1}


def test_a_damaged_chunk_becomes_dead_letters_and_all_else_is_delivered(two, monkeypatch):
    monkeypatch.setattr(limits, "PACKED_CHUNK_BYTES", 512)
    lsns = fill(two, 2)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 2
    packed = list_packed(FS, two.data_dir)[0]  # on a busy machine there may be two
    path = Path(packed_path(two.data_dir, packed))
    file = FS.open(str(path))
    chunks = read_tail(file).chunks
    file.close()
    assert len(chunks) > 1
    data = bytearray(path.read_bytes())
    data[chunks[1].end - 1] ^= 1
    path.write_bytes(data)
    targets["stuck"].down = None
    with draining(two, targets):
        last = two.append(b"behind", stream=1)
        assert targets["stuck"].wait_for(lambda: last[0] in targets["stuck"].lsns)
        eventually(lambda: figure(two, "dead_letters"))
    figures = page(two)["routes"]["stuck"]
    got = targets["stuck"].lsns
    missing = [lsn for lsn in lsns[1] if lsn not in got]
    assert len(missing) == chunks[1].records
    assert figures["dead_letters"] == len(missing)
    assert figures["delivered"] == len(got)
    ledger = open_ledger(FS, two.data_dir, two.log.log_id)
    letters = ledger.dead_letters(1)
    ledger.close()
    assert [letter.code for letter in letters] == ["damaged"]
    assert "packed file pack-" in letters[0].message


def test_an_archive_keeps_all_records_of_its_stream_whoever_has_them(two):
    stuck = replace(two.settings.routes["stuck"], archive_bytes=1 << 30)
    two.settings = replace(two.settings, routes=two.settings.routes | {"stuck": stuck})
    lsns = fill(two, 3)
    targets = {"stuck": RecordingTarget(), "healthy": RecordingTarget()}
    with draining(two, targets):
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns[1])
        packed_through(two, last_closed(two) - 1)
        assert retire(two) == 3
        kept = list_packed(FS, two.data_dir)
    assert all(packed.archive for packed in kept)
    through = last_closed(two)
    assert sum(packed.records for packed in kept) == sum(lsn <= through for lsn in lsns[1])
    assert kept[0].lo == 0
    assert page(two)["disk"]["archive_bytes"] == sum(packed.size_bytes for packed in kept)


def test_a_lost_packed_file_is_declared_not_waited_for(two):
    lsns = fill(two, 2)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 2
    packed = list_packed(FS, two.data_dir)[0]
    Path(packed_path(two.data_dir, packed)).unlink()
    targets["stuck"].down = None
    with draining(two, targets):
        rest = [lsn for lsn in lsns[1] if lsn > packed.hi]
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == rest)
        eventually(lambda: figure(two, "dead_letters") == packed.records)


def test_an_older_ledger_takes_packed_files_in_that_it_does_not_know(two):
    lsns = fill(two, 2)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 2
    ledger = open_ledger(FS, two.data_dir, two.log.log_id)
    index = PackedIndex(ledger.store)
    index.replace(index.rows())
    assert index.rows() == []
    ledger.close()
    targets["stuck"].down = None
    with draining(two, targets):
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns[1])


def test_a_target_that_went_back_is_healed_from_packed_files(two):
    """Its row stands in the middle of what was packed: found there, and delivered from there."""
    two.settings = replace(
        two.settings, retain_after_delivery_s=900.0, retain_after_delivery_bytes=1 << 30
    )
    lsns = fill(two, 3)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 3
    target = targets["stuck"]
    target.down = None
    with draining(two, targets):
        assert target.wait_for(lambda: target.lsns == lsns[1])
    first = next(attempt for attempt in target.attempts if attempt.records)
    assert first.row.hi_lsn < lsns[1][-1]
    target.records[:] = first.records
    target.rows[first.key] = first.row
    with draining(two, targets):
        assert target.wait_for(lambda: target.lsns == lsns[1])
        eventually(lambda: figure(two, "delivered") == len(lsns[1]))
    assert figure(two, "parked") is None
    assert figure(two, "dead_letters") == 0


@pytest.mark.parametrize("lost", ["everything", "what followed the first batch"])
def test_a_target_that_goes_back_behind_files_that_were_just_deleted_waits_for_a_person(
    two, monkeypatch, lost
):
    """What was delivered and let go must not be taken for damage."""
    lsns = fill(two, 3)
    targets = {"stuck": RecordingTarget(down=DOWN), "healthy": RecordingTarget()}
    with draining(two, targets):
        packed_through(two, last_closed(two))
    assert retire(two) == 3
    monkeypatch.setattr(limits, "REREAD_S", 0.05)
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.05)
    target = targets["stuck"]
    with draining(two, targets):
        target.down = None
        assert target.wait_for(lambda: target.lsns == lsns[1])
        eventually(lambda: not list_packed(FS, two.data_dir))
        whole = list(target.records), dict(target.rows)
        first = next(attempt for attempt in target.attempts if attempt.records)
        assert first.row.hi_lsn < lsns[1][-1]
        target.rows.clear()
        target.records.clear()
        if lost != "everything":
            target.records += first.records
            target.rows[first.key] = first.row
        eventually(lambda: figure(two, "parked") == "target-behind")
        assert figure(two, "dead_letters") == 0
        target.records[:], target.rows = whole
        more = two.append(b"more", stream=1)
        assert target.wait_for(lambda: target.lsns == [*lsns[1], *more])
        eventually(lambda: figure(two, "parked") is None)
        assert figure(two, "dead_letters") == 0
