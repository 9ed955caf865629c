"""The recovery table, row by row: facts in, plan out."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from tests.documents import printed_table
from wald import limits
from wald.core.chain import Chain, SegmentScan
from wald.core.frame import BlockFlag, BlockHeader, BlockKind, SegmentHeader, SegmentKind
from wald.core.recovery import Case, Facts, Predecessor, RecoveryPlan, decide
from wald.model import LostRange

ALIGNMENT = 4096
LOG_ID = bytes(range(16))
FIRST = 100  # the last LSN before segment 5


def segment_header(number: int = 5, *, before: int = FIRST, first: int = 0) -> SegmentHeader:
    return SegmentHeader(
        SegmentKind.FRESH,
        ALIGNMENT,
        LOG_ID,
        number,
        1,
        first or before + 1,
        number - 1,
        8192,
        before,
        0,
    )


class Segment:
    """Builds the blocks of a segment that chain, and leaves out what a test wants to be lost."""

    def __init__(
        self,
        number: int = 5,
        *,
        before: int = FIRST,
        header: bool = True,
        kind: SegmentKind = SegmentKind.FRESH,
    ) -> None:
        self.header = segment_header(number, before=before)._replace(kind=kind)
        self.chain = Chain(number, self.header if header else None, 77)
        self.crc = 77
        self.lsn = before
        self.offset = ALIGNMENT

    def block(self, kind: BlockKind, records: int = 0, **fields: int) -> BlockHeader:
        block = BlockHeader(
            kind,
            fields.get("flags", 0),
            0,
            self.header.segment,
            1,
            self.offset,
            self.lsn + 1,
            self.lsn,
            records,
            1,
            10,
            self.crc,
            0,
            fields.get("next_segment", 0),
            0,
            self.crc + 1,
        )
        self.crc += 1
        self.lsn = block.last_lsn
        self.offset += ALIGNMENT
        return block

    def snapshot(self) -> "Segment":
        flags = BlockFlag.SNAPSHOT_FIRST | BlockFlag.SNAPSHOT_LAST
        self.chain.add(self.block(BlockKind.SNAPSHOT, flags=flags))
        return self

    def group(self, records: int = 10) -> "Segment":
        kind = BlockKind.RECORDS if records else BlockKind.CONTROL
        self.chain.add(self.block(kind, records))
        return self

    def lose(self, records: int = 10) -> "Segment":
        self.block(BlockKind.RECORDS, records)
        return self

    def tear(self, records: int = 10) -> "Segment":
        self.chain.add_torn(self.block(BlockKind.RECORDS, records))
        return self

    def end(self, kind: BlockKind, next_segment: int = 0) -> "Segment":
        self.chain.add(self.block(kind, next_segment=next_segment))
        return self

    def scan(self) -> SegmentScan:
        return self.chain.scan()


def facts(*built: Segment, **changes) -> Facts:
    scans = tuple(segment.scan() for segment in built)
    numbers = tuple(scan.number for scan in scans)
    found = Facts(
        newest_made=numbers[-1] if numbers else 0,
        moved=False,
        highest_number=max(numbers, default=0),
        present=numbers,
        unused=(),
        scans=scans,
        newest_snapshot=bool(scans) and scans[-1].snapshot,
        state_whole=any(scan.snapshot for scan in scans),
        hint_lsn=0,
    )
    return replace(found, **changes)


def plain() -> Segment:
    return Segment().snapshot().group()


def labels(plan: RecoveryPlan) -> list[str]:
    return [case.label for case in plan.cases]


GROUP_AT = 2 * ALIGNMENT
END = 3 * ALIGNMENT
UNCLEAN, FAR = limits.LSN_JUMP_UNCLEAN, limits.LSN_JUMP_MOVED
LAST = FIRST + 10


class Row(NamedTuple):
    """What is found, and what the plan must say; ``following`` is the next LSN without its jump."""

    found: Facts
    cases: list[str]
    predecessor: tuple[int, int, int]
    last: int
    following: int
    jump: int
    lost: list[tuple[int, int]]
    name: str


ROWS = [
    Row(facts(), ["first-start"], (0, 0, 0), 0, 1, 0, [], name="first start"),
    Row(
        facts(Segment().snapshot().group().end(BlockKind.IDLE_CLOSE)),
        ["clean"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        0,
        [],
        name="clean",
    ),
    Row(
        facts(plain()),
        ["in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="in doubt",
    ),
    Row(
        facts(Segment().snapshot().group(0)),
        ["in-doubt"],
        (5, GROUP_AT, FIRST),
        FIRST,
        FIRST + 1,
        UNCLEAN,
        [],
        name="a control group in doubt",
    ),
    Row(
        facts(plain().snapshot()),
        ["proven"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="a snapshot behind a group",
    ),
    Row(
        facts(plain().snapshot().group(5)),
        ["in-doubt"],
        (5, 4 * ALIGNMENT, LAST),
        LAST + 5,
        LAST + 6,
        UNCLEAN,
        [],
        name="a group behind a snapshot behind a group",
    ),
    Row(
        facts(Segment(kind=SegmentKind.ROLL).snapshot().group()),
        ["in-doubt"],
        (4, 8192, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="in doubt, and with it the rolled segment's header: its place is taken",
    ),
    Row(
        facts(Segment(kind=SegmentKind.ROLL).snapshot().group().group(5)),
        ["in-doubt"],
        (5, END, LAST),
        LAST + 5,
        LAST + 6,
        UNCLEAN,
        [],
        name="in doubt behind a proven group of a rolled segment",
    ),
    Row(
        facts(Segment(kind=SegmentKind.ROLL).lose().group()),
        ["hole", "no-snapshot", "in-doubt"],
        (5, GROUP_AT, LAST),
        LAST + 10,
        LAST + 11,
        UNCLEAN,
        [(FIRST + 1, LAST), (LAST + 11, LAST + 10)],
        name="after a loss no place is taken",
    ),
    Row(
        facts(Segment().snapshot()),
        ["idle"],
        (4, 8192, FIRST),
        FIRST,
        FIRST + 1,
        UNCLEAN,
        [],
        name="idle: its place is taken",
    ),
    Row(
        facts(Segment().snapshot().end(BlockKind.IDLE_CLOSE)),
        ["clean"],
        (4, 8192, FIRST),
        FIRST,
        FIRST + 1,
        0,
        [],
        name="clean and idle: its place is taken",
    ),
    Row(
        facts(Segment(header=False).snapshot()),
        ["torn-header", "idle"],
        (5, 2 * ALIGNMENT, FIRST),
        FIRST,
        FIRST + 1,
        FAR,
        [],
        name="idle with a torn header: kept",
    ),
    Row(
        facts(plain().end(BlockKind.SEAL, 6), present=(5, 6), unused=(6,), highest_number=6),
        ["unused", "sealed"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="sealed",
    ),
    Row(
        facts(plain().tear(3)),
        ["torn-tail", "in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 4,
        UNCLEAN,
        [],
        name="torn tail that names its LSNs",
    ),
    Row(
        facts(plain().tear(0)),
        ["in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="torn tail without records",
    ),
    Row(
        facts(Segment(header=False).snapshot().group()),
        ["torn-header", "in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        FAR,
        [],
        name="torn header",
    ),
    Row(
        facts(plain(), present=(5, 6), unused=(6,), highest_number=6),
        ["unused", "in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="a prepared segment",
    ),
    Row(
        facts(plain(), Segment(6, before=LAST).group()),
        ["older-snapshot", "in-doubt"],
        (6, ALIGNMENT, LAST),
        LAST + 10,
        LAST + 11,
        UNCLEAN,
        [],
        name="older snapshot",
    ),
    Row(
        facts(plain(), moved=True),
        ["moved", "in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        FAR,
        [],
        name="moved",
    ),
    Row(
        facts(Segment().snapshot().group().end(BlockKind.IDLE_CLOSE), moved=True),
        ["moved", "clean"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        FAR,
        [],
        name="moved after a clean stop",
    ),
    Row(
        facts(Segment().snapshot().group().lose().group()),
        ["hole", "in-doubt"],
        (5, 4 * ALIGNMENT, FIRST + 20),
        FIRST + 30,
        FIRST + 31,
        UNCLEAN,
        [(FIRST + 11, FIRST + 20)],
        name="hole",
    ),
    Row(
        facts(Segment().snapshot().group().tear().group()),
        ["hole", "in-doubt"],
        (5, 4 * ALIGNMENT, FIRST + 20),
        FIRST + 30,
        FIRST + 31,
        UNCLEAN,
        [(FIRST + 11, FIRST + 20)],
        name="hole with a readable header",
    ),
    Row(
        facts(Segment().snapshot().lose().group().end(BlockKind.IDLE_CLOSE)),
        ["hole"],
        (5, 4 * ALIGNMENT, FIRST + 20),
        FIRST + 20,
        FIRST + 21,
        UNCLEAN,
        [(FIRST + 1, FIRST + 10)],
        name="a hole makes no stop clean",
    ),
    Row(
        facts(plain(), Segment(6, before=LAST + 5).snapshot().group()),
        ["hole", "in-doubt"],
        (6, GROUP_AT, LAST + 5),
        LAST + 15,
        LAST + 16,
        UNCLEAN,
        [(LAST + 1, LAST + 5)],
        name="hole between segments",
    ),
    Row(
        facts(plain(), Segment(6, before=FIRST).snapshot().group()),
        ["in-doubt"],
        (6, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="a ghost at the end of an older segment",
    ),
    Row(
        facts(Segment().snapshot().group().lose(0).group()),
        ["broken-chain", "in-doubt"],
        (5, 4 * ALIGNMENT, LAST),
        LAST + 10,
        LAST + 11,
        UNCLEAN,
        [(LAST + 1, LAST)],
        name="broken chain",
    ),
    Row(
        facts(plain(), hint_lsn=LAST + 7),
        ["hint-ahead"],
        (5, END, LAST + 7),
        LAST + 7,
        LAST + 8,
        UNCLEAN,
        [(LAST + 1, LAST + 7)],
        name="hint ahead",
    ),
    Row(
        facts(plain().tear(), hint_lsn=LAST + 10),
        ["hint-ahead"],
        (5, END, LAST + 10),
        LAST + 10,
        LAST + 11,
        UNCLEAN,
        [(LAST + 1, LAST + 10)],
        name="a torn tail below the hint is damage",
    ),
    Row(
        facts(plain(), hint_lsn=LAST),
        ["in-doubt"],
        (5, GROUP_AT, FIRST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [],
        name="hint at the end",
    ),
    Row(
        facts(plain().end(BlockKind.SEAL, 6), highest_number=6),
        ["seal-without-successor"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        FAR,
        [(LAST + 1, LAST)],
        name="seal without successor",
    ),
    Row(
        facts(plain(), newest_made=8, highest_number=8, hint_lsn=LAST + 3),
        ["segment-missing"],
        (5, END, LAST + 3),
        LAST + 3,
        LAST + 4,
        FAR,
        [(LAST + 1, LAST + 3)],
        name="highest number below identity",
    ),
    Row(
        facts(
            Segment().snapshot().group().end(BlockKind.IDLE_CLOSE),
            lost_files=(LostRange(20, 30, 3, 0, "gone"),),
        ),
        ["lost-file"],
        (5, END, LAST),
        LAST,
        LAST + 1,
        UNCLEAN,
        [(20, 30)],
        name="an older file is gone",
    ),
    Row(
        facts(newest_made=8, highest_number=8, hint_lsn=50),
        ["segment-missing", "no-snapshot"],
        (0, 0, 50),
        50,
        51,
        FAR,
        [(1, 50)],
        name="no segment left",
    ),
    Row(
        facts(Segment().group().group()),
        ["no-snapshot", "in-doubt"],
        (5, 2 * ALIGNMENT, LAST),
        LAST + 10,
        LAST + 11,
        UNCLEAN,
        [(LAST + 11, LAST + 10)],
        name="no snapshot",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_each_row_of_the_table(row: Row):
    plan = decide(row.found)
    assert labels(plan) == row.cases
    assert plan.copy == ("in-doubt" in row.cases)
    assert plan.predecessor == Predecessor(*row.predecessor)
    assert plan.last_lsn == row.last
    assert plan.next_lsn == row.following + row.jump
    assert plan.jumped == (row.jump > 0)
    assert [(loss.first_lsn, loss.last_lsn) for loss in plan.losses] == row.lost
    assert plan.number == row.found.highest_number + 1
    assert plan.unused == row.found.unused
    assert plan.forget_sessions == bool(row.lost)
    assert plan.clean == ("clean" in row.cases)
    assert plan.skip_ids == ("no-snapshot" in row.cases)
    if row.lost:
        assert plan.truncate_bytes is None
        assert plan.superseded is None
    known = (*plan.quarantine, row.found.newest_made)
    assert all(loss.segment in known for loss in plan.losses)


def test_every_row_of_the_table_has_a_test():
    tested = {label for row in ROWS for label in row.cases}
    assert tested == {case.label for case in Case}


def test_what_is_in_the_plan_of_a_torn_tail():
    assert decide(facts(plain().tear(3))).cut == (LAST + 1, LAST + 3)
    assert decide(facts(plain().tear(3), hint_lsn=LAST + 3)).cut is None
    assert decide(facts(plain())).cut is None


def test_a_segment_without_groups_is_superseded_unless_something_is_lost():
    assert decide(facts(Segment().snapshot())).superseded == 5
    assert decide(facts(Segment().snapshot(), hint_lsn=FIRST + 1)).superseded is None
    assert decide(facts(plain())).superseded is None


def test_a_finished_segment_is_cut_behind_its_last_whole_block_copied_or_not():
    assert decide(facts(plain())).truncate_bytes == END
    assert decide(facts(plain().tear(3))).truncate_bytes == END
    assert decide(facts(plain().end(BlockKind.IDLE_CLOSE))).truncate_bytes == 4 * ALIGNMENT
    assert decide(facts(Segment().snapshot())).truncate_bytes is None  # its place is taken


def test_a_jump_is_not_taken_back_by_the_next_start():
    segment = Segment()
    segment.header = segment_header(first=FIRST + 5_000)
    segment.chain = Chain(5, segment.header, 77)
    segment.snapshot().end(BlockKind.IDLE_CLOSE)
    assert decide(facts(segment)).next_lsn == FIRST + 5_000


def test_a_snapshot_of_several_blocks_is_whole_only_unbroken():
    def chain_of(*flags: int, lost: int = -1) -> Chain:
        segment = Segment()
        for index, flag in enumerate(flags):
            block = segment.block(BlockKind.SNAPSHOT, flags=flag)
            if index != lost:
                segment.chain.add(block)
        segment.chain.add(segment.block(BlockKind.RECORDS, 1))
        return segment.chain

    first, last = BlockFlag.SNAPSHOT_FIRST, BlockFlag.SNAPSHOT_LAST
    assert chain_of(first, 0, last).snapshot
    assert chain_of(first | last).snapshot
    for lost in range(3):
        assert not chain_of(first, 0, last, lost=lost).snapshot
    headless = Segment(header=False)
    headless.block(BlockKind.SNAPSHOT, flags=first)
    headless.chain.add(headless.block(BlockKind.SNAPSHOT, flags=last))
    assert not headless.chain.snapshot


@pytest.mark.parametrize(
    ("kind", "lost", "torn", "holes"),
    [
        (SegmentKind.ROLL, 1, 0, 0),
        (SegmentKind.ROLL, 2, 0, 1),  # there was room for a group without records
        (SegmentKind.ROLL, 0, 2, 0),  # the headers say what it was
        (SegmentKind.FRESH, 1, 0, 1),  # what a start states stands there only
    ],
)
def test_a_rolls_snapshot_that_a_power_cut_did_not_keep_is_no_loss(
    kind: SegmentKind, lost: int, torn: int, holes: int
):
    segment = Segment(kind=kind)
    for _ in range(lost):
        segment.block(BlockKind.SNAPSHOT)
    for _ in range(torn):
        segment.chain.add_torn(segment.block(BlockKind.SNAPSHOT))
    found = segment.group().scan()
    assert (len(found.holes), found.snapshot, found.groups) == (holes, False, 1)


def test_the_newest_whole_snapshot_counts():
    segment = plain().snapshot()
    assert segment.scan().snapshot_at == 3 * ALIGNMENT
    segment.chain.add(segment.block(BlockKind.SNAPSHOT, flags=BlockFlag.SNAPSHOT_FIRST))
    assert segment.scan().snapshot_at == 3 * ALIGNMENT  # half of one
    assert segment.group().snapshot().scan().snapshot_at == 6 * ALIGNMENT


def test_an_empty_file_folds_to_nothing():
    scan = Chain(5, None).scan()
    assert (scan.last, scan.last_lsn, scan.before_lsn, scan.groups) == (None, 0, 0, 0)


def test_the_architecture_prints_the_same_table():
    assert printed_table("Recovery") == [
        (f"`{case.label}`", case.found, case.done, "yes" if case.is_loss else "no") for case in Case
    ]
