"""A stream is read wherever it lies: packed, archived, in the log, and while it moves."""

import pytest

from tests.logtools import DATA
from tests.packtools import PackedLog
from wald.model import NO_ANCHOR, LostRange
from wald.storage.packed import delete_packed, packed_path
from wald.storage.stream import StreamReader, find_anchor
from wald.storage.tail import SEGMENT_GONE


@pytest.fixture
def held() -> PackedLog:
    made = PackedLog()
    made.fill(4)
    return made


def anchor(made: PackedLog, lsn: int, stream: int = 1):
    reader = StreamReader(
        made.fs,
        DATA,
        made.log.log_id,
        stream=stream,
        after=lsn - 1,
        files=lambda: made.of(stream),
        wants_block=lambda _: False,
    )
    return find_anchor(reader, lsn, made.frontier)


@pytest.mark.parametrize("packed", [0, 1, 2, 4])
def test_from_any_lsn_the_same_is_read_however_much_of_it_is_packed(held, packed):
    for segment in held.segments()[:packed]:
        for stream in (1, 2):
            held.pack(stream, segment)
    assert held.retire(held.segments()[packed].before_lsn + 1 if packed < 4 else 1 << 40) == packed
    for stream in (1, 2):
        for after in range(0, held.frontier.lsn, 3):
            assert held.read(stream, after) == (held.expected(stream, after), [])


def test_anchors_are_the_same_in_packed_files_as_in_the_log(held):
    lsns = list(held.values[1])
    before = {lsn: anchor(held, lsn) for lsn in lsns}
    assert None not in before.values()
    for segment in held.segments():
        held.pack(1, segment)
    held.retire(1 << 40)
    assert {lsn: anchor(held, lsn) for lsn in lsns} == before
    assert anchor(held, 0) == NO_ANCHOR


def test_an_anchor_that_is_gone_is_none(held):
    first = held.segments()[0]
    held.retire(first.last_lsn + 1)
    assert anchor(held, 3) is None
    held.pack(1, held.segments()[0])
    assert anchor(held, 3) is None


def test_packed_ranges_count_as_held(held):
    first, second = held.segments()[:2]
    reader = held.reader(1)
    assert reader.holds_after(0, held.frontier)
    held.retire(second.last_lsn + 1)
    assert not reader.holds_after(0, held.frontier)
    made = PackedLog()
    made.fill(4)
    for segment in (first, second):
        made.pack(1, segment, lo=max(segment.before_lsn, 9))
    made.retire(second.last_lsn + 1)
    again = made.reader(1)
    assert again.holds_after(9, made.frontier)
    assert again.holds_after(20, made.frontier)
    assert not again.holds_after(8, made.frontier)


def test_a_reader_in_the_middle_of_a_segment_goes_on_in_the_packed_file(held):
    first, second = held.segments()[:2]
    reader = held.reader(1)
    items = reader.read(held.frontier)
    seen = [next(items), next(items)]
    held.pack(1, first)
    held.pack(1, second)
    assert held.retire(second.last_lsn + 1) == 2
    held.fill(3, seed=9)  # what retired is written over
    seen += list(items)
    seen += list(reader.read(held.frontier))
    assert not [item for item in seen if isinstance(item, LostRange)]
    lsns = [lsn for item in seen for lsn, _ in item.sections]
    assert lsns == sorted(set(lsns))
    assert set(lsns) <= held.values[1].keys()
    assert max(lsns) > second.last_lsn
    reader.close()


def test_what_the_log_calls_lost_is_looked_for_in_packed_files_first(held):
    """The files are told while the log is read: between its list of segments and the loss."""
    first, second = held.segments()[:2]
    for segment in (first, second):
        held.pack(1, segment)
    held.retire(second.last_lsn + 1)
    told = list(held.files)
    held.files.clear()
    asked = []

    def files():
        asked.append(1)
        return told if len(asked) > 1 else []

    reader = StreamReader(held.fs, DATA, held.log.log_id, stream=1, after=0, files=files)
    items = list(reader.read(held.frontier))
    assert not isinstance(items[0], LostRange)
    assert items[0].header.first_lsn == 1
    assert not [item for item in items if isinstance(item, LostRange)]
    reader.close()


def test_a_loss_ends_where_a_packed_file_begins(held):
    first, second = held.segments()[:2]
    held.pack(1, second)
    held.retire(second.last_lsn + 1)
    values, lost = held.read(1)
    assert values == held.expected(1, first.last_lsn)
    assert [(item.first_lsn, item.last_lsn, item.reason, item.records) for item in lost] == [
        (1, first.last_lsn, SEGMENT_GONE, None)
    ]


def test_damage_in_the_log_is_healed_by_what_was_packed_before_it(held):
    segment = held.segments()[0]
    block = [item for item in held.reader(1).read(held.frontier) if item.sections][1]
    held.pack(1, segment)
    held.fs.damage(
        f"{DATA}/log/seg-{segment.number:010d}.wal", block.header.offset + 150, b"\xff" * 8
    )
    assert held.read(1) == (held.expected(1), [])


@pytest.mark.parametrize("after", [0, 5])
def test_what_a_packed_file_has_lost_is_read_from_the_log_while_it_holds_it(held, after):
    first, second = held.segments()[:2]
    held.pack(1, first)
    gone = held.pack(1, second)
    held.fs.unlink(packed_path(DATA, gone))
    path = packed_path(DATA, held.of(1)[0])
    held.fs.damage(path, 200, b"\xff" * 20)
    assert held.read(1, after) == (held.expected(1, after), [])
    assert held.retire(first.last_lsn + 1) == 1
    values, lost = held.read(1, after)
    assert [(item.first_lsn, item.last_lsn) for item in lost] == [(after + 1, first.last_lsn)]
    assert values == held.expected(1, first.last_lsn)
    assert held.retire(second.last_lsn + 1) == 1
    values, lost = held.read(1, after)
    assert lost[-1].last_lsn == second.last_lsn
    assert values == held.expected(1, second.last_lsn)


def test_a_file_that_another_took_in_meanwhile_is_no_loss(held):
    first, second = held.segments()[:2]
    old = held.pack(1, first)
    merged = held.pack(1, second, lo=0)
    delete_packed(held.fs, DATA, old)
    stale = iter([[old], [merged], [merged]])
    reader = StreamReader(
        held.fs,
        DATA,
        held.log.log_id,
        stream=1,
        after=0,
        files=lambda: next(stale, [merged]),
    )
    items = list(reader.read(held.frontier))
    assert not isinstance(items[0], LostRange)
    assert items[0].header.first_lsn == 1
    assert not [item for item in items if isinstance(item, LostRange)]
    reader.close()


def test_a_stream_that_is_not_in_a_range_is_passed_over(held):
    segment = held.segments()[0]
    held.pack(9, segment)
    reader = held.reader(9)
    items = [item for item in reader.read(held.frontier) if isinstance(item, LostRange)]
    assert items == []
    assert reader.cursor == held.frontier.lsn
    reader.close()


def test_closing_lets_go_of_every_file(held):
    segment = held.segments()[0]
    held.pack(1, segment)
    open_files = held.fs.open_files
    reader = held.reader(1)
    next(reader.read(held.frontier))
    assert held.fs.open_files == open_files + 1
    reader.close()
    reader.close()
    assert held.fs.open_files == open_files
    assert held.fs.stat(packed_path(DATA, held.of(1)[0])) is not None
