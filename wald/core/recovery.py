"""What a start finds in the log, and what is done about it: scans and hints in, a plan out.

``wald.core.chain`` folds the blocks of a segment while they are read; ``decide`` looks at the
folded segments, the identity file and the hints. Nothing is read or written here; every step of a
plan is safe to repeat.

The table of cases is ``Case``; ARCHITECTURE.md prints the same table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from wald import limits
from wald.core.chain import SegmentScan
from wald.core.frame import BlockKind, SegmentHeader, SegmentKind
from wald.model import LostRange, Lsn


class Case(Enum):
    """A row of the recovery table: label, what is found, what is done; the last says "loss"."""

    FIRST_START = (
        "first-start",
        "no segment, and identity says that none was made",
        "the first segment is begun",
        False,
    )
    CLEAN = (
        "clean",
        "the last block is an idle-close",
        "LSNs go on without a jump",
        False,
    )
    IDLE = (
        "idle",
        "the last segment holds a snapshot and no group",
        "its place in the order is taken by the fresh segment",
        False,
    )
    PROVEN = (
        "proven",
        "the last block is a snapshot behind a group",
        "nothing is copied: it was written after the group was durable",
        False,
    )
    IN_DOUBT = (
        "in-doubt",
        "the last block is a group, with nothing behind it",
        "it is copied into the fresh segment: same LSNs, payload and commit time",
        False,
    )
    SEALED = (
        "sealed",
        "the last block is a seal, and the file it names is there, unused",
        "the roll is finished by the fresh segment",
        False,
    )
    TORN_TAIL = (
        "torn-tail",
        "behind the last whole block a header whose payload does not match, above every hint",
        "it is cut off; the LSNs it names are not used again",
        False,
    )
    TORN_HEADER = (
        "torn-header",
        "a segment header does not match its checksum, and whole blocks stand behind it",
        "the name gives the number, the first whole block the LSN before it; LSNs jump by 2^40",
        False,
    )
    UNUSED = (
        "unused",
        "a prepared segment, or a torn header with no whole block or only a roll's snapshot behind",
        "it goes back to the pool",
        False,
    )
    OLDER_SNAPSHOT = (
        "older-snapshot",
        "the newest segment holds no whole snapshot",
        "the state is rebuilt from an older one and every block behind it",
        False,
    )
    MOVED = (
        "moved",
        "the directory is on another machine, has another inode, or its identity file is damaged",
        "LSNs jump by 2^40, and an alarm is raised: two copies must not go on",
        False,
    )
    HOLE = (
        "hole",
        "between whole blocks the LSNs do not chain",
        "the LSNs between are lost: quarantine, loss report, sessions forgotten",
        True,
    )
    BROKEN_CHAIN = (
        "broken-chain",
        "the LSNs chain, the header checksums do not: a block without records is gone",
        "quarantine, loss report, sessions forgotten",
        True,
    )
    HINT_AHEAD = (
        "hint-ahead",
        "a hint or a checkpoint names an LSN above the end",
        "the LSNs up to it are lost: quarantine, loss report, sessions forgotten",
        True,
    )
    SEAL_WITHOUT_SUCCESSOR = (
        "seal-without-successor",
        "the last block is a seal, and the file it names is gone",
        "a segment is lost: loss report, sessions forgotten, LSNs jump by 2^40",
        True,
    )
    SEGMENT_MISSING = (
        "segment-missing",
        "the highest number is below the one in identity, or no segment is left",
        "segments are lost: loss report, sessions forgotten, LSNs jump by 2^40",
        True,
    )
    LOST_FILE = (
        "lost-file",
        "an older segment that a header names is gone, too short or unreadable, not told before",
        "the LSNs in it are lost: quarantine, loss report, sessions forgotten",
        True,
    )
    NO_SNAPSHOT = (
        "no-snapshot",
        "no whole snapshot is left, or a statement behind it cannot be read",
        (
            "streams and routes come from the figures, else nothing retires before the next start;"
            " loss report, sessions forgotten, ids of streams and routes jump"
        ),
        True,
    )

    def __init__(self, label: str, found: str, done: str, is_loss: bool) -> None:  # noqa: FBT001
        self.label = label
        self.found = found
        self.done = done
        self.is_loss = is_loss


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the decision is made of.

    Attributes:
        newest_made: the number in identity: the newest segment of a fresh path; 0 if none yet.
        moved: identity names another machine or inode, or cannot be read.
        highest_number: the highest number on any name, in pool and quarantine too, and in hints.
        present: the numbers of all files in the log directory.
        unused: those of them that are prepared, or torn and newer than the last used one.
        scans: the segment of the newest whole snapshot and every used one behind it, in order.
        newest_snapshot: whether the last of them has a whole snapshot itself.
        state_whole: whether a snapshot was found and every statement behind it could be read.
        hint_lsn: the highest LSN that a hint or a checkpoint names.
        lost_files: what is gone with segments before the scanned ones, by the headers behind them.
    """

    newest_made: int
    moved: bool
    highest_number: int
    present: tuple[int, ...]
    unused: tuple[int, ...]
    scans: tuple[SegmentScan, ...]
    newest_snapshot: bool
    state_whole: bool
    hint_lsn: Lsn
    lost_files: tuple[LostRange, ...] = ()


class Predecessor(NamedTuple):
    """What a FRESH or ROLL header says of the segment before: number, true end, last LSN."""

    segment: int
    end_bytes: int
    last_lsn: Lsn


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a start does, in this order.

    Attributes:
        cases: the rows of the table that apply.
        losses: LSN ranges below the frontier that are gone; a loss of unknown extent has
            ``last_lsn`` below ``first_lsn``.
        quarantine: segments to link into ``quarantine/`` before anything else.
        forget_sessions: no duplicate can be told from a lost record.
        skip_ids: the tables of streams and routes are gone: their ids must not be used again.
        number: the fresh segment's.
        predecessor: what its header names.
        copy: whether the last group is copied into it.
        last_lsn: the frontier's, once the fresh segment is durable.
        next_lsn: of the first new record.
        jumped: whether LSNs were skipped on purpose.
        clean: after a clean stop.
        cut: the LSNs named by a torn tail.
        unused: numbers that go back to the pool, afterwards.
        superseded: a segment without groups whose place the fresh one takes, afterwards.
        truncate_bytes: where the predecessor's file is cut off, afterwards; None to leave it. A
            group in doubt that is copied stays there too: readers that have not heard of this
            start yet were told that it is there.
    """

    cases: tuple[Case, ...]
    losses: tuple[LostRange, ...]
    quarantine: tuple[int, ...]
    number: int
    predecessor: Predecessor
    copy: bool
    last_lsn: Lsn
    next_lsn: Lsn
    jumped: bool
    cut: tuple[Lsn, Lsn] | None
    unused: tuple[int, ...]
    superseded: int | None
    truncate_bytes: int | None

    @property
    def forget_sessions(self) -> bool:
        """Whether what was read cannot answer for duplicates."""
        return any(case.is_loss for case in self.cases)

    @property
    def skip_ids(self) -> bool:
        """Whether ids of streams and routes may have been given that nobody remembers."""
        return Case.NO_SNAPSHOT in self.cases

    @property
    def clean(self) -> bool:
        """Whether the stop before was clean."""
        return Case.CLEAN in self.cases


def decide(facts: Facts) -> RecoveryPlan:
    """Return what to do about what was found."""
    if not facts.scans:
        return _decide_without_segments(facts)
    last = facts.scans[-1]
    losses = list(_losses(facts))
    cases = _cases(facts, last, losses)
    lost = any(case.is_loss for case in cases)
    last_lsn = max(last.last_lsn, facts.hint_lsn)
    copy = Case.IN_DOUBT in cases
    predecessor, superseded = _predecessor(last, last_lsn, copy=copy, lost=lost)
    base = max(last_lsn, *(block.last_lsn for block in last.torn), _first_lsn(last) - 1, 0)
    jump = _jump(cases)
    return RecoveryPlan(
        cases=tuple(cases),
        losses=tuple(loss for _, loss in losses),
        quarantine=tuple(sorted({loss.segment for _, loss in losses})),
        number=facts.highest_number + 1,
        predecessor=predecessor,
        copy=copy,
        last_lsn=last_lsn,
        next_lsn=base + 1 + jump,
        jumped=jump > 0,
        cut=_cut(last, facts.hint_lsn),
        unused=facts.unused,
        superseded=superseded,
        truncate_bytes=None if lost or superseded else last.end_bytes,
    )


def _decide_without_segments(facts: Facts) -> RecoveryPlan:
    first = facts.newest_made == 0 and facts.hint_lsn == 0
    cases = [Case.FIRST_START] if first else [Case.SEGMENT_MISSING, Case.NO_SNAPSHOT]
    cases += [Case.MOVED] * facts.moved + [Case.UNUSED] * bool(facts.unused)
    reason = "no segment is left, and identity says that one was made"
    lost = LostRange(1, facts.hint_lsn, facts.newest_made, 0, reason)
    jump = _jump(cases)
    return RecoveryPlan(
        cases=tuple(cases),
        losses=() if first else (lost,),
        quarantine=(),
        number=facts.highest_number + 1,
        predecessor=Predecessor(0, 0, facts.hint_lsn),
        copy=False,
        last_lsn=facts.hint_lsn,
        next_lsn=facts.hint_lsn + 1 + jump,
        jumped=jump > 0,
        cut=None,
        unused=facts.unused,
        superseded=None,
        truncate_bytes=None,
    )


def _losses(facts: Facts) -> Iterator[tuple[Case, LostRange]]:
    """Yield what is gone below the frontier."""
    for lost in facts.lost_files:
        yield Case.LOST_FILE, lost
    for scan in facts.scans:
        for hole in scan.holes:
            case = Case.BROKEN_CHAIN if hole.lsns_chain else Case.HOLE
            lost = LostRange(
                hole.first_lsn, hole.last_lsn, scan.number, hole.offset_bytes, case.found
            )
            yield case, lost
    for before, after in pairwise(facts.scans):
        # (an LSN below is a ghost's: the last block of the one before, written again since)
        if after.before_lsn > before.last_lsn:
            yield (
                Case.HOLE,
                LostRange(
                    before.last_lsn + 1,
                    after.before_lsn,
                    before.number,
                    before.end_bytes,
                    Case.HOLE.found,
                ),
            )
    last = facts.scans[-1]
    gone = _gone_behind(facts, last)
    if gone is not None:
        lost = LostRange(
            last.last_lsn + 1,
            max(facts.hint_lsn, last.last_lsn),
            last.number,
            last.end_bytes,
            gone.found,
        )
        yield gone, lost
    if not facts.state_whole:
        yield (
            Case.NO_SNAPSHOT,
            LostRange(last.last_lsn + 1, last.last_lsn, last.number, 0, Case.NO_SNAPSHOT.found),
        )


def _gone_behind(facts: Facts, last: SegmentScan) -> Case | None:
    """Tell whether something durable stood behind the last whole block."""
    if facts.newest_made > last.number:
        return Case.SEGMENT_MISSING
    block = last.last
    sealed = block is not None and block.kind is BlockKind.SEAL
    if block is not None and sealed and block.next_segment not in facts.present:
        return Case.SEAL_WITHOUT_SUCCESSOR
    if facts.hint_lsn > last.last_lsn:
        return Case.HINT_AHEAD
    return None


_ENDINGS = {
    BlockKind.IDLE_CLOSE: Case.CLEAN,
    BlockKind.RECORDS: Case.IN_DOUBT,
    BlockKind.CONTROL: Case.IN_DOUBT,
    BlockKind.SEAL: Case.SEALED,
}


_CLOSING = frozenset({BlockKind.IDLE_CLOSE, BlockKind.SEAL})


def _cases(facts: Facts, last: SegmentScan, losses: Sequence[tuple[Case, LostRange]]) -> list[Case]:
    cases = list(dict.fromkeys(case for case, _ in losses))
    if facts.moved:
        cases.append(Case.MOVED)
    if last.header is None:
        cases.append(Case.TORN_HEADER)
    if not facts.newest_snapshot and facts.state_whole:
        cases.append(Case.OLDER_SNAPSHOT)
    if facts.unused:
        cases.append(Case.UNUSED)
    if _cut(last, facts.hint_lsn) is not None:
        cases.append(Case.TORN_TAIL)
    other = Case.PROVEN if last.groups else Case.IDLE
    ending = other if last.last is None else _ENDINGS.get(last.last.kind, other)
    # after a loss no stop was clean; a group with lost LSNs behind it was durable before them
    if not losses or (ending is Case.IN_DOUBT and facts.hint_lsn <= last.last_lsn):
        cases.append(ending)
    return cases


def _predecessor(
    last: SegmentScan, last_lsn: Lsn, *, copy: bool, lost: bool
) -> tuple[Predecessor, int | None]:
    """Return what the fresh header names, and the segment that it makes superfluous.

    A segment without groups is taken out of the order, or each start of an idle daemon would
    leave one behind for ever. So is a rolled one whose only group is in doubt: its header was in
    the same write, and no durable header may name one that is not. After a loss nothing is taken
    away.
    """
    header = last.header
    if header is not None and _is_superseded(last, header, copy=copy) and not lost:
        before = Predecessor(header.pred_segment, header.pred_end, header.pred_last_lsn)
        return before, last.number
    if last.last is not None and copy:
        # in doubt: it is written again, and this copy of it is a ghost from then on
        return Predecessor(last.number, last.last.offset, last.last.prev_lsn), None
    if last.last is not None and last.last.kind in _CLOSING:
        # it may be in the page cache only, and says nothing that is not known from here on
        return Predecessor(last.number, last.last.offset, last_lsn), None
    return Predecessor(last.number, last.end_bytes, last_lsn), None


def _is_superseded(last: SegmentScan, header: SegmentHeader, *, copy: bool) -> bool:
    if copy and header.kind is SegmentKind.ROLL:
        return last.groups == 1
    return not last.groups and last.ends_with is not BlockKind.SEAL


def _first_lsn(last: SegmentScan) -> Lsn:
    return 0 if last.header is None else last.header.first_lsn


def _jump(cases: Sequence[Case]) -> int:
    """Return how many LSNs to skip: any that may have been used and cannot be seen."""
    # (the jump of the start before may have stood in the torn header alone)
    far = {
        Case.MOVED,
        Case.SEAL_WITHOUT_SUCCESSOR,
        Case.SEGMENT_MISSING,
        Case.TORN_HEADER,
    }
    if not far.isdisjoint(cases):
        return limits.LSN_JUMP_MOVED
    if Case.CLEAN in cases or Case.FIRST_START in cases:
        return 0
    return limits.LSN_JUMP_UNCLEAN


def _cut(last: SegmentScan, hint_lsn: Lsn) -> tuple[Lsn, Lsn] | None:
    """Return the LSNs that a torn tail names above every hint."""
    named = [
        (block.first_lsn, block.last_lsn)
        for block in last.torn
        if block.records and block.last_lsn > hint_lsn
    ]
    if not named:
        return None
    return min(first for first, _ in named), max(through for _, through in named)
