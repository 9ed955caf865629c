"""Folding the blocks of one segment while they are read: its end, its holes, its snapshot."""

from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.core.frame import BlockFlag, BlockHeader, BlockKind, SegmentHeader, SegmentKind
from wald.model import Lsn

GROUPS = (BlockKind.RECORDS, BlockKind.CONTROL)


class Hole(NamedTuple):
    """LSNs that a segment should hold and does not; none if ``last_lsn`` is below ``first_lsn``."""

    first_lsn: Lsn
    last_lsn: Lsn
    offset_bytes: int
    lsns_chain: bool  # only header checksums do not


@dataclass(frozen=True, slots=True)
class SegmentScan:
    """What the blocks of a segment come to.

    Attributes:
        number: by the header, or by the name where the header cannot be read.
        header: None where it cannot be read.
        before_lsn: the last LSN before the segment.
        last: the last whole block.
        groups: how many whole blocks are groups.
        records: how many records they hold.
        end_bytes: the end of the last whole block, or of the header page; a snapshot behind groups
            is not counted: nothing rests on its being durable.
        last_lsn: the last LSN up to the end.
        holes: what is missing between whole blocks.
        torn: headers behind the last whole block whose payload does not match.
        snapshot_at: where the newest whole snapshot begins.
    """

    number: int
    header: SegmentHeader | None
    before_lsn: Lsn
    last: BlockHeader | None
    groups: int
    records: int
    end_bytes: int
    last_lsn: Lsn
    holes: tuple[Hole, ...]
    torn: tuple[BlockHeader, ...]
    snapshot_at: int | None

    @property
    def snapshot(self) -> bool:
        """Whether the segment holds a whole snapshot."""
        return self.snapshot_at is not None

    @property
    def ends_with(self) -> BlockKind | None:
        """The kind of the last whole block."""
        return None if self.last is None else self.last.kind


class Chain:
    """Folds the blocks of one segment in the order of their offsets.

    Each block names the last LSN before it and the CRC of the header before it, the segment's
    own for the first; behind an unreadable header the first whole block is believed.
    """

    def __init__(self, number: int, header: SegmentHeader | None, header_crc: int = 0) -> None:
        self._number = number
        self._header = header
        self._alignment = limits.ALIGNMENT_MIN_BYTES if header is None else header.alignment
        self._before: Lsn | None = None if header is None else header.pred_last_lsn
        self._lsn = self._before
        self._crc: int | None = None if header is None else header_crc
        self._last: BlockHeader | None = None
        self._groups = 0
        self._records = 0
        self._end = self._alignment
        self._holes: list[Hole] = []
        self._torn: list[BlockHeader] = []
        self._begun_at: int | None = None
        self._snapshot_at: int | None = None

    @property
    def snapshot(self) -> bool:
        """Whether a whole snapshot has been seen."""
        return self._snapshot_at is not None

    def add_torn(self, block: BlockHeader) -> None:
        """Take in a block whose header is whole and whose payload is not."""
        self._torn.append(block)

    def add(self, block: BlockHeader) -> None:
        """Take in a whole block."""
        broken = self._check(block)
        self._fold_snapshot(block, broken=broken)
        self._torn.clear()  # what stood between whole blocks is the hole's, not the tail's
        self._last = block
        self._lsn = block.last_lsn
        self._crc = block.header_crc
        if block.kind is not BlockKind.SNAPSHOT or not self._groups:
            self._end = block.end(self._alignment)
        self._groups += block.kind in GROUPS
        self._records += block.records

    def _check(self, block: BlockHeader) -> bool:
        if self._lsn is None:
            self._before = self._lsn = block.prev_lsn
            return False
        if block.prev_lsn != self._lsn:
            self._holes.append(Hole(self._lsn + 1, block.prev_lsn, self._end, lsns_chain=False))
            return True
        if block.prev_header_crc != self._crc and self._crc is not None:
            if self._lacks_snapshot_only(block):
                return True
            self._holes.append(Hole(self._lsn + 1, self._lsn, self._end, lsns_chain=True))
            return True
        return False

    def _lacks_snapshot_only(self, block: BlockHeader) -> bool:
        """Tell whether nothing but a roll's snapshot is missing before a segment's first block.

        A roll flushes header, snapshot and first group at once: a power cut may keep the last
        without the second, which repeats what older segments hold. It is known by its header, or
        by there being no room for anything beside it.
        """
        if self._last is not None or self._header is None:
            return False
        if self._header.kind is not SegmentKind.ROLL or block.kind not in GROUPS:
            return False
        crc = self._crc
        for torn in self._torn:
            if torn.kind is BlockKind.SNAPSHOT and torn.prev_header_crc == crc:
                crc = torn.header_crc
        return crc == block.prev_header_crc or block.offset == 2 * self._alignment

    def _fold_snapshot(self, block: BlockHeader, *, broken: bool) -> None:
        if block.kind is not BlockKind.SNAPSHOT:
            self._begun_at = None
        elif block.flags & BlockFlag.SNAPSHOT_FIRST:
            self._begun_at = block.offset
        elif broken:
            self._begun_at = None
        if block.flags & BlockFlag.SNAPSHOT_LAST and self._begun_at is not None:
            self._snapshot_at = self._begun_at

    def scan(self) -> SegmentScan:
        """Return what has been folded so far."""
        lsn = self._lsn or 0
        return SegmentScan(
            self._number,
            self._header,
            lsn if self._before is None else self._before,
            self._last,
            self._groups,
            self._records,
            self._end,
            lsn,
            tuple(self._holes),
            tuple(self._torn),
            self._snapshot_at,
        )
