"""Reading a log at a start: which segments count, where they end, what of the state is believed."""

import pytest

from tests.logtools import DATA, append, first_group, new_fs, open_log
from wald.core.frame import SegmentHeader, SegmentKind
from wald.core.state import LogState
from wald.storage import recover
from wald.storage import segment as segments
from wald.storage.recover import FoundSegment, Hints, lineage_of


def found(
    number: int, before: int | None, *, kind: SegmentKind = SegmentKind.FRESH, used: bool = True
) -> FoundSegment:
    header = (
        None
        if before is None
        else SegmentHeader(kind, 4096, bytes(16), number, 1, 1, before, 8192, 0, 0)
    )
    return FoundSegment(number, header, 0, 65_536, used)


@pytest.mark.parametrize(
    ("segments_found", "numbers"),
    [
        pytest.param([], [], id="none"),
        pytest.param([found(1, 0)], [1], id="the first"),
        pytest.param([found(4, 3), found(5, 4)], [4, 5], id="the oldest one's has retired"),
        pytest.param(
            [found(1, 0), found(2, 1), found(3, 1)], [1, 3], id="nobody names a superseded one"
        ),
        pytest.param(
            [found(15, 14), found(17, 14), found(18, 17)],
            [17, 18],
            id="nor when what it stood on has retired",
        ),
        pytest.param(
            [found(1, 0), found(2, None), found(3, 2)], [1, 2, 3], id="an unreadable header"
        ),
        pytest.param([found(2, None), found(3, 2)], [2, 3], id="the oldest one's"),
        pytest.param(
            [found(1, 0), found(4, 3)], [1, 4], id="a lost one: what stood before it goes on"
        ),
        pytest.param(
            [found(1, 0), found(2, 0, kind=SegmentKind.PREP, used=False)], [1], id="a prepared one"
        ),
        pytest.param([found(1, 0), found(3, 0)], [3], id="a first one again, after a loss of all"),
    ],
)
def test_the_lineage_is_what_the_newest_segment_stands_on(
    segments_found: list[FoundSegment], numbers: list[int]
):
    assert [item.number for item in lineage_of(segments_found)] == numbers


def test_a_finished_segment_ends_where_its_successor_says():
    lineage = [found(1, 0), found(2, 1), found(3, None), found(5, 4)]
    assert recover.limit_of(lineage, 0) == 8192
    assert recover.limit_of(lineage, 1) is None  # the successor's header cannot be read
    assert recover.limit_of(lineage, 2) is None  # it names another one, which is lost
    assert recover.limit_of(lineage, 3) is None  # the last one ends with the file


def test_hints_of_pages_that_are_not_there_say_nothing():
    fs = new_fs()
    assert recover.read_hints(fs, "/var") == Hints(0, 0)


def test_a_group_that_was_written_again_is_applied_once():
    """The successor's header says that the last group of the segment before is a ghost."""
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    log.append_group([append(1, b"a")])
    log.append_group([append(2, b"b")])
    fs.kill()
    ghost = fs.clone()
    log = open_log(fs)  # copies the last group into segment 2
    lineage = [
        recover.find_segments(ghost, DATA, [1], log.log_id)[0],
        recover.find_segments(fs, DATA, [2], log.log_id)[0],
    ]
    torn = lineage[1]._replace(header=None)  # so that nobody says where segment 1 ends
    one, two = segments.segment_path(DATA, 1), segments.segment_path(DATA, 2)
    file = ghost.create(two)
    file.pwritev([fs.open(two).pread(1 << 17, 0)], 0)
    ghost.damage(two, 0, bytes(100))
    ghost.damage(two, 4096, bytes(100))  # the newer snapshot is gone too
    assert ghost.open(one).size() == 65_536  # its tail was not cut
    rebuilt = recover.rebuild(ghost, DATA, log.log_id, [lineage[0], torn])
    rebuilt.settle()
    assert rebuilt.whole
    assert rebuilt.state.streams[1].records == 2


def test_what_cannot_be_applied_is_noted_and_the_rest_is_kept():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    log.append_group([append(1, b"a"), append(2, b"b")._replace(stream=1)])
    fs.kill()
    (item,) = recover.find_segments(fs, DATA, [1], log.log_id)
    rebuilt = recover.rebuild(fs, DATA, log.log_id, [item])
    assert rebuilt.held is not None
    assert rebuilt.state.streams[1].records == 0  # the state before the group in doubt
    rebuilt.state = LogState()  # as if the catalogue were lost
    rebuilt.settle()
    assert not rebuilt.whole
    assert rebuilt.state.next_stream_id == 2
    nonsense = segments.SeenBlock(item_header(fs, log.log_id), b"\xff" * 10)
    rebuilt.take_in(nonsense)
    assert not rebuilt.whole


def item_header(fs, log_id: bytes):
    file = fs.open(segments.segment_path(DATA, 1))
    header = segments.read_header(file).header
    *_, last = segments.BlockReader(file, 1, log_id, header)
    return last.header
