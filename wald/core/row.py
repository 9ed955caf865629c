"""The progress row of a transactional target as a labelled table: what it says, what follows.

Pure: facts in, decisions out. The row is the truth; the ledger is a cache of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from wald.core.delivery import Event, Parked
from wald.model import Checkpoint, Lsn, ProgressRow, RevisionId


class AnchorFinding(Enum):
    """What our log says of the row's ``hi_lsn`` and anchor."""

    MATCHES = "matches"
    DIFFERS = "differs"
    GONE = "gone"  # retired: our log begins behind it
    BEYOND = "beyond"  # our log ends before it


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What the row is judged by.

    Attributes:
        row: what the target remembers; None if nothing.
        checkpoint: n and prev of our ledger.
        open_revisions: the revisions of the open manifest, n + 1.
        owner: ours.
        lane_owner: who the lane was born under; another one if the directory was moved since.
        anchor: what our log says of the row's position.
        went_back: whether our log no longer holds what lies behind the checkpoint because it was
            delivered once: a gap that damage made is none, and what it took is declared lost.
    """

    row: ProgressRow | None
    checkpoint: Checkpoint
    open_revisions: tuple[RevisionId, ...]
    owner: int
    lane_owner: int
    anchor: AnchorFinding
    went_back: bool


class RowCase(NamedTuple):
    """A row of the table: what it is called, when it holds, what follows."""

    label: str
    when: str
    event: Event
    parked: Parked | None = None


ROW_CASES: tuple[RowCase, ...] = (
    RowCase(
        "directory-moved",
        "the data directory was moved or copied since the lane's birth; no row is touched",
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase("other-owner", "the row is another owner's", Event.ROW_STRANGE, Parked.DIVERGED),
    RowCase("applied", "n+1 with a revision of the open batch", Event.ROW_APPLIED),
    RowCase(
        "log-short",
        "(n, prev), or absent at n = 0, but what follows was delivered once and left our log",
        Event.ROW_STRANGE,
        Parked.TARGET_BEHIND,
    ),
    RowCase("at-checkpoint", "(n, prev)", Event.ROW_FITS),
    RowCase("at-birth", "absent at n = 0", Event.ROW_FITS),
    RowCase("row-lost", "absent with n > 0", Event.ROW_STRANGE, Parked.TARGET_BEHIND),
    RowCase(
        "other-anchor",
        "our log holds another block at the row's position",
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "beyond-the-log",
        "our log ends before the row's position",
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase("row-behind", "a number below n", Event.ROW_STRANGE, Parked.TARGET_BEHIND),
    RowCase(
        "row-ahead",
        "a number above n, not a revision of the open batch",
        Event.ROW_STRANGE,
        Parked.LEDGER_OLDER,
    ),
    RowCase("other-revision", "n with another revision", Event.ROW_STRANGE, Parked.LEDGER_OLDER),
)
_CASES = {case.label: case for case in ROW_CASES}


def judge_row(facts: RowFacts) -> RowCase:
    """Return the first row of the table that holds. The row is the truth; never guess past it."""
    return _CASES[_row_label(facts)]


def _row_label(facts: RowFacts) -> str:
    row, n = facts.row, facts.checkpoint.batch_no
    if facts.owner != facts.lane_owner:
        return "directory-moved"
    if row is None:
        fits = "log-short" if facts.went_back else "at-birth"
        return "row-lost" if n > 0 else fits
    if row.owner != facts.owner:
        return "other-owner"
    if row.batch_no == n + 1 and row.rev_id in facts.open_revisions:
        return "applied"
    return _unapplied_label(row, facts)


def _unapplied_label(row: ProgressRow, facts: RowFacts) -> str:
    n = facts.checkpoint.batch_no
    if (row.batch_no, row.rev_id) == (n, facts.checkpoint.rev_id):
        return "log-short" if facts.went_back else "at-checkpoint"
    return _stranger_label(row, n, facts.anchor)


def _stranger_label(row: ProgressRow, n: int, anchor: AnchorFinding) -> str:
    if anchor is AnchorFinding.DIFFERS:
        return "other-anchor"
    if anchor is AnchorFinding.BEYOND:
        return "beyond-the-log"
    if row.batch_no < n:
        return "row-behind"
    return "row-ahead" if row.batch_no > n else "other-revision"


def effective_dead_rev(
    checkpoint: Checkpoint, rev_id: RevisionId, excluded: Sequence[Lsn]
) -> bytes:
    """Return the chain's ``dead_rev`` once a revision took effect."""
    return rev_id if excluded else checkpoint.dead_rev
