"""The tail reader over a real log on a simulated disk: exactly what lies up to the frontier."""

import errno
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logtools import DATA, append, first_group, new_fs, open_log
from wald.core import frame
from wald.core.frame import BlockKind, SegmentKind
from wald.drainer.reader import LaneReader
from wald.model import NO_ANCHOR, Frontier, LostRange
from wald.storage.tail import TailBlock, TailReader, find_anchor, records_of_stream, segment_path
from wald.testing.clock import ManualClock


@pytest.fixture
def fs():
    return new_fs()


@pytest.fixture
def log(fs):
    opened = open_log(fs)
    opened.append_group(first_group())
    return opened


def reader(fs, log, after=0, **options):
    return TailReader(fs, DATA, log.log_id, after=after, **options)


def fill(log, groups, size=1, start=1, pad=b""):
    lsns: list[int] = []
    for sequence in range(start, start + groups):
        values = [b"%d.%d" % (sequence, index) + pad for index in range(size)]
        first = log.append_group([append(sequence, *values)]).first_lsn
        lsns += range(first, first + size)
    return lsns


def lsns_of(items):
    found: list[int] = []
    for item in items:
        assert isinstance(item, TailBlock), item
        for first, section in item.sections:
            found += range(first, first + section.records)
    return found


def test_everything_up_to_the_frontier_is_read_once(fs, log):
    lsns = fill(log, 5, size=3)
    tail = reader(fs, log)
    assert lsns_of(tail.read(log.frontier)) == lsns
    assert lsns_of(tail.read(log.frontier)) == []
    lsns = fill(log, 2, start=6)
    assert lsns_of(tail.read(log.frontier)) == lsns
    tail.close()
    tail.close()


def test_nothing_beyond_the_frontier_is_read(fs, log):
    lsns = fill(log, 2)
    frontier = log.frontier
    fill(log, 3, start=3)
    tail = reader(fs, log)
    assert lsns_of(tail.read(frontier)) == lsns
    assert tail.cursor == frontier.lsn
    tail.close()


@pytest.mark.parametrize("after", range(7))
def test_reading_begins_behind_any_lsn(fs, log, after):
    lsns = fill(log, 3, size=2)
    tail = reader(fs, log, after=after)
    found = lsns_of(tail.read(log.frontier))
    assert [lsn for lsn in found if lsn > after] == [lsn for lsn in lsns if lsn > after]
    tail.close()


def test_a_dropped_iterator_is_gone_on_from(fs, log):
    lsns = fill(log, 6)
    tail = reader(fs, log)
    found = []
    for _ in range(6):
        for item in tail.read(log.frontier):
            got = lsns_of([item])
            if got:
                found += got
                break
    assert found == lsns
    tail.close()


def test_segments_are_followed_over_rolls(fs, log):
    lsns = []
    tail = reader(fs, log)
    found = []
    for sequence in range(1, 60):
        while log.preallocator.step():
            pass
        lsns += fill(log, 1, start=sequence, pad=b"x" * 5_000)
        if sequence % 7 == 0:
            found += lsns_of(tail.read(log.frontier))
    found += lsns_of(tail.read(log.frontier))
    assert log.frontier.segment > 3
    assert found == lsns
    tail.close()
    behind = reader(fs, log)
    assert lsns_of(behind.read(log.frontier)) == lsns
    behind.close()


@pytest.mark.parametrize("clean", [False, True])
def test_a_restart_s_fresh_segment_is_followed_and_nothing_comes_twice(fs, log, clean):
    lsns = fill(log, 4)
    tail = reader(fs, log)
    assert lsns_of(tail.read(log.frontier)) == lsns
    if clean:
        log.close()
    else:
        fs.kill()
    again = open_log(fs)
    later = fill(again, 3, start=5)
    assert lsns_of(tail.read(again.frontier)) == later
    new = reader(fs, again)
    assert lsns_of(new.read(again.frontier)) == lsns + later
    for each in (tail, new):
        each.close()
    again.close()


@pytest.mark.parametrize("stop", ["close", "kill"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_frontier_of_before_a_restart_still_leads_to_all_that_was_acknowledged(
    fs, log, stop, groups
):
    """The drainer hears of a restart up to a second later; what it holds stays true."""
    lsns = fill(log, groups)
    stale = log.frontier
    log.close() if stop == "close" else fs.kill()
    again = open_log(fs)
    tail = reader(fs, log)
    assert lsns_of(tail.read(stale)) == lsns
    later = fill(again, 1, start=groups + 1)
    assert lsns_of(tail.read(again.frontier)) == later
    tail.close()
    again.close()


def test_a_rolled_segment_whose_place_was_taken_is_waited_for_not_lost(fs, log):
    lsns: list[int] = []
    while log._writer.header.kind is not SegmentKind.ROLL:
        lsns += fill(log, 1, start=len(lsns) + 1, pad=b"x" * 5_000)
    stale = log.frontier
    fs.kill()
    again = open_log(fs)
    tail = reader(fs, log)
    assert list(tail.read(stale)) == []
    assert tail.holds_after(0, stale)
    assert lsns_of(tail.read(again.frontier)) == lsns
    tail.close()
    again.close()


def test_a_file_recycled_under_the_reader_is_no_damage(fs, log):
    fill(log, 1, pad=b"x" * 5_000)
    tail = reader(fs, log)
    list(tail.read(log.frontier))
    fill(log, 3, start=2, pad=b"x" * 5_000)
    stale = log.frontier
    assert stale.segment == 1
    sequence = 5
    while not log.retire({1: log.frontier.lsn}):
        fill(log, 1, start=sequence, pad=b"x" * 5_000)
        sequence += 1
    while fs.stat(segment_path(DATA, stale.segment)) or log.frontier.segment < 4:
        while log.preallocator.step():
            pass
        fill(log, 1, start=sequence, pad=b"x" * 5_000)
        sequence += 1
    assert not [item for item in tail.read(stale) if isinstance(item, LostRange)]
    tail.close()


def test_a_file_shorter_than_the_frontier_says_is_waited_for_while_it_is_the_newest(fs, log):
    lsns = fill(log, 3)
    stale = log.frontier
    file = fs.open(segment_path(DATA, stale.segment), write=True)
    file.truncate(stale.end_bytes - 4096)
    file.close()
    tail = reader(fs, log)
    assert lsns_of(tail.read(stale)) == lsns[:-1]
    assert tail.cursor == lsns[-2]
    later: list[int] = []
    while log.frontier.segment == stale.segment:
        later += fill(log, 1, start=4 + len(later), pad=b"x" * 5_000)
    items = list(tail.read(log.frontier))
    (hole,) = [item for item in items if isinstance(item, LostRange)]
    assert (hole.first_lsn, hole.last_lsn) == (lsns[-1], lsns[-1])
    assert [lsn for lsn in lsns_of(item for item in items if item is not hole) if lsn in later]
    tail.close()


def test_a_sealed_batch_is_not_taken_in_part_while_the_frontier_is_old(fs, log):
    lsns = fill(log, 3)
    stale = log.frontier
    file = fs.open(segment_path(DATA, stale.segment), write=True)
    whole = file.pread(stale.end_bytes, 0)
    file.truncate(stale.end_bytes - 4096)
    lane = LaneReader(fs, DATA, log.log_id, ManualClock(), stream=1, after=0)
    assert lane.take_through(lsns[-1], stale) is None
    file.pwritev([whole], 0)
    file.close()
    batch = lane.take_through(lsns[-1], stale)
    assert batch is not None
    assert [record.lsn for record in batch.records] == lsns
    assert not batch.lost
    lane.close()


def test_only_the_asked_for_sections_are_handed_out(fs, log):
    lsns = fill(log, 2)
    everything = reader(fs, log)
    kinds = {section.kind for item in everything.read(log.frontier) for _, section in item.sections}
    assert len(kinds) == 4
    mine = reader(fs, log, wants_section=records_of_stream(1))
    assert lsns_of(mine.read(log.frontier)) == lsns
    other = reader(fs, log, wants_section=records_of_stream(2))
    assert lsns_of(other.read(log.frontier)) == []
    assert other.cursor == lsns[-1]
    for each in (everything, mine, other):
        each.close()


def spoil(fs, segment, offset, data=b"\xff\xff\xff"):
    file = fs.open(segment_path(DATA, segment), write=True)
    file.pwritev([data], offset)
    file.close()


@pytest.mark.parametrize("at", [0, 20, frame.BLOCK_HEADER_BYTES + 5])
def test_a_damaged_block_is_a_lost_range_and_the_rest_is_read(fs, log, at):
    before = fill(log, 2)
    place = log.frontier
    lost = fill(log, 1, size=4, start=3)
    after = fill(log, 2, start=4)
    spoil(fs, place.segment, place.end_bytes + at)
    tail = reader(fs, log)
    items = list(tail.read(log.frontier))
    (hole,) = [item for item in items if isinstance(item, LostRange)]
    assert (hole.first_lsn, hole.last_lsn, hole.segment) == (lost[0], lost[-1], place.segment)
    assert hole.offset_bytes == place.end_bytes
    assert lsns_of(item for item in items if item is not hole) == before + after
    tail.close()


def test_lsns_that_a_start_skipped_are_not_lost_with_the_first_block_behind_them(fs, log):
    before = fill(log, 2)
    fs.kill()
    again = open_log(fs)
    copied = again.frontier
    lost = fill(again, 1, size=3, start=3)
    after = fill(again, 1, start=4)
    spoil(fs, copied.segment, copied.end_bytes)
    for cursor in (0, before[-1]):
        tail = reader(fs, again, after=cursor)
        items = list(tail.read(again.frontier))
        (hole,) = [item for item in items if isinstance(item, LostRange)]
        assert (hole.first_lsn, hole.last_lsn) == (lost[0], lost[-1])
        read = lsns_of(item for item in items if item is not hole)
        assert [lsn for lsn in read if lsn > cursor] == [*before[cursor:], *after]
        tail.close()
    spoil(fs, copied.segment, copied.end_bytes - 4096)  # the copied group is gone as well
    tail = reader(fs, again)
    items = list(tail.read(again.frontier))
    holes = [item for item in items if isinstance(item, LostRange)]
    assert [(hole.first_lsn, hole.last_lsn) for hole in holes] == [
        (before[-1], lost[0] - 1),
        (lost[0], lost[-1]),
    ]
    tail.close()
    again.close()


def holes_of(items):
    return [(each.first_lsn, each.last_lsn) for each in items if isinstance(each, LostRange)]


@pytest.mark.parametrize("done", [0, 3])
def test_a_reader_in_the_middle_of_a_lost_copied_group_loses_the_rest_of_it(fs, log, done):
    fill(log, 1)
    group = fill(log, 1, size=10, start=2)
    through = log.frontier
    followed = reader(fs, log)
    list(followed.read(through))
    fs.kill()
    again = open_log(fs)
    copied = again.frontier
    lost = fill(again, 1, start=3)
    fill(again, 1, start=4)
    spoil(fs, copied.segment, copied.end_bytes - 4096)
    spoil(fs, copied.segment, copied.end_bytes)
    cursor = group[0] - 1 + done
    tail = reader(fs, again, after=cursor)
    assert holes_of(tail.read(again.frontier)) == [(cursor + 1, lost[0] - 1), (lost[0], lost[0])]
    assert holes_of(followed.read(again.frontier)) == [(lost[0], lost[0])]  # it has read the group
    for each in (tail, followed):
        each.close()
    again.close()


@pytest.mark.parametrize("at", [0, frame.BLOCK_HEADER_BYTES + 5])
def test_damage_of_the_last_block_is_lost_up_to_the_frontier(fs, log, at):
    before = fill(log, 2)
    place = log.frontier
    lost = fill(log, 1, size=4, start=3)
    spoil(fs, place.segment, place.end_bytes + at)
    tail = reader(fs, log)
    *good, hole = tail.read(log.frontier)
    assert lsns_of(good) == before
    assert isinstance(hole, LostRange)
    assert (hole.first_lsn, hole.last_lsn) == (lost[0], lost[-1])
    assert tail.cursor == lost[-1]
    tail.close()


class BadSectors:
    """A file system over another, in one of whose files some pages cannot be read."""

    def __init__(self, fs, path, *offsets, error=errno.EIO):
        self.fs, self.path, self.offsets, self.error = fs, path, offsets, error

    def open(self, path, **options):
        file = self.fs.open(path, **options)
        return BadFile(file, self) if path == self.path else file

    def __getattr__(self, name):
        return getattr(self.fs, name)


class BadFile:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def pread(self, length, offset):
        if any(offset < bad + 4096 and bad < offset + length for bad in self.disk.offsets):
            raise OSError(self.disk.error, "cannot be read")
        return self.file.pread(length, offset)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("page", [0, 1, 2])
@pytest.mark.parametrize("follow", [False, True])
def test_a_page_that_cannot_be_read_loses_its_block_and_no_other(fs, log, page, follow):
    before = fill(log, 2)
    place = log.frontier
    lost = fill(log, 1, start=3, pad=b"x" * 9_000)
    after = fill(log, 2, start=4)
    bad = place.end_bytes + page * 4096
    disk = BadSectors(fs, segment_path(DATA, place.segment), bad)
    tail = reader(disk, log)
    items = list(tail.read(place)) if follow else []
    items += tail.read(log.frontier)
    assert holes_of(items) == [(lost[0], lost[0])]
    good = [item for item in items if isinstance(item, TailBlock)]
    assert lsns_of(good) == before + after
    tail.close()


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("known", [False, True])
def test_a_header_page_that_cannot_be_read_loses_only_what_is_lost_beside_it(fs, log, which, known):
    lsns = rolled(log)
    number = sorted(lsns)[which]
    disk = BadSectors(fs, segment_path(DATA, number), *(() if known else (0,)))
    tail = reader(disk, log)
    everything = [lsn for segment in sorted(lsns) for lsn in lsns[segment]]
    if known:
        found = []
        for item in tail.read(log.frontier):
            found += lsns_of([item])
            if found and found[-1] == lsns[number][0]:
                break
        disk.offsets = (0,)
        found += lsns_of(tail.read(log.frontier))
    else:
        found = lsns_of(tail.read(log.frontier))
    assert found == everything
    tail.close()


def test_another_error_of_the_disk_is_no_damage(fs, log):
    fill(log, 2)
    path = segment_path(DATA, log.frontier.segment)
    disk = BadSectors(fs, path, log.frontier.end_bytes - 4096, error=errno.ENOMEM)
    tail = reader(disk, log)
    with pytest.raises(OSError, match="cannot be read"):
        list(tail.read(log.frontier))
    tail.close()


def rolled(log, count=30):
    lsns: dict[int, list[int]] = {}
    for sequence in range(1, count):
        while log.preallocator.step():
            pass
        (lsn,) = fill(log, 1, start=sequence, pad=b"x" * 5_000)
        lsns.setdefault(log.frontier.segment, []).append(lsn)
    return lsns


def test_a_missing_segment_is_a_lost_range(fs, log):
    lsns = rolled(log)
    first, second, *_ = sorted(lsns)
    fs.unlink(segment_path(DATA, second))
    tail = reader(fs, log)
    items = list(tail.read(log.frontier))
    (hole,) = [item for item in items if isinstance(item, LostRange)]
    assert (hole.first_lsn, hole.last_lsn) == (lsns[second][0], lsns[second][-1])
    expected = [lsn for number in sorted(lsns) if number != second for lsn in lsns[number]]
    assert lsns_of(item for item in items if item is not hole) == expected
    assert not tail.holds_after(lsns[first][0], log.frontier)
    assert tail.holds_after(lsns[second][-1], log.frontier)
    tail.close()


def test_a_missing_first_segment_is_a_lost_range_too(fs, log):
    lsns = rolled(log)
    first, *others = sorted(lsns)
    fs.unlink(segment_path(DATA, first))
    tail = reader(fs, log)
    hole, *rest = tail.read(log.frontier)
    assert isinstance(hole, LostRange)
    assert (hole.first_lsn, hole.last_lsn) == (1, lsns[first][-1])
    assert lsns_of(rest) == [lsn for number in others for lsn in lsns[number]]
    tail.close()


@pytest.mark.parametrize("restart", [False, True])
def test_a_segment_lost_behind_a_reader_s_place_takes_only_its_own_records(fs, log, restart):
    lsns = fill(log, 2)
    tail = reader(fs, log)
    assert lsns_of(tail.read(log.frontier)) == lsns
    place = log.frontier.segment
    if restart:
        fs.kill()
        log = open_log(fs)
    lost = rolled(log)
    second = min(number for number in lost if number > place)
    lost[place] = lost.get(place, [])
    fs.unlink(segment_path(DATA, second))
    items = list(tail.read(log.frontier))
    (hole,) = [item for item in items if isinstance(item, LostRange)]
    assert hole.last_lsn == lost[second][-1]
    assert lost[second][0] - hole.first_lsn in ({0, 1 << 24} if restart else {0})
    rest = [lsn for number in sorted(lost) if number != second for lsn in lost[number]]
    assert lsns_of(item for item in items if item is not hole) == rest
    tail.close()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_segment_with_a_damaged_header_page_is_still_read(fs, log, which):
    lsns = rolled(log)
    number = sorted(lsns)[which]
    spoil(fs, number, 40)
    tail = reader(fs, log)
    assert lsns_of(tail.read(log.frontier)) == [
        lsn for segment in sorted(lsns) for lsn in lsns[segment]
    ]
    tail.close()


def test_whether_the_log_holds_what_follows(fs, log):
    lsns = fill(log, 3)
    tail = reader(fs, log)
    assert tail.holds_after(0, log.frontier)
    assert tail.holds_after(lsns[-1], log.frontier)
    assert tail.holds_after(10**9, log.frontier)
    assert tail.cursor == 0
    tail.close()


def test_the_anchor_of_an_lsn_is_its_block_s_and_survives_a_restart(fs, log):
    lsns = fill(log, 3, size=2)
    anchors = [find_anchor(fs, DATA, log.log_id, lsn, log.frontier) for lsn in lsns]
    assert None not in anchors
    assert anchors[0] == anchors[1] != anchors[2] == anchors[3]
    fs.kill()
    again = open_log(fs, clock=ManualClock(1))
    assert [find_anchor(fs, DATA, again.log_id, lsn, again.frontier) for lsn in lsns] == anchors
    assert find_anchor(fs, DATA, again.log_id, 0, again.frontier) == NO_ANCHOR
    fill(again, 1, start=9)
    assert find_anchor(fs, DATA, again.log_id, lsns[-1] + 5, again.frontier) is None
    again.close()


def test_the_anchor_of_a_lost_block_is_none(fs, log):
    fill(log, 1)
    place = log.frontier
    lost = fill(log, 1, start=2)
    fill(log, 1, start=3)
    spoil(fs, place.segment, place.end_bytes)
    assert find_anchor(fs, DATA, log.log_id, lost[0], log.frontier) is None
    assert find_anchor(fs, DATA, log.log_id, lost[0], Frontier(99, 0, lost[0])) is None


def test_a_reader_may_begin_at_the_head_of_the_frontier_s_segment(fs, log):
    lsns = rolled(log)
    tail = reader(fs, log, wants_block=lambda header: header.kind is BlockKind.SNAPSHOT)
    tail.begin_at_head(log.frontier)
    blocks = [item for item in tail.read(log.frontier) if item.sections]
    assert {item.header.segment for item in blocks} == {log.frontier.segment}
    assert {item.header.kind for item in blocks} == {BlockKind.SNAPSHOT}
    assert tail.cursor == lsns[log.frontier.segment][-1]
    tail.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_no_flipped_bit_yields_a_wrong_record(seed):
    chance = Random(seed)
    fs = new_fs(seed)
    log = open_log(fs)
    log.append_group(first_group())
    lsns = fill(log, 6, size=2)
    mine = records_of_stream(1)
    tail = reader(fs, log, wants_section=mine)
    written = dict(pair for item in tail.read(log.frontier) for pair in item.sections)
    tail.close()
    offset = chance.randrange(log.frontier.end_bytes)
    file = fs.open(segment_path(DATA, log.frontier.segment), write=True)
    byte = file.pread(1, offset)[0] ^ (1 << chance.randrange(8))
    file.pwritev([bytes([byte])], offset)
    file.close()
    tail = reader(fs, log, wants_section=mine)
    lost: set[int] = set()
    found: set[int] = set()
    for item in tail.read(log.frontier):
        if isinstance(item, LostRange):
            lost |= set(range(item.first_lsn, item.last_lsn + 1))
            continue
        for first, section in item.sections:
            assert written[first] == section
            found |= set(range(first, first + section.records))
    tail.close()
    assert found | lost >= set(lsns)
    assert not found & lost
