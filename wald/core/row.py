"""The progress row of a transactional target as a labelled table: what it says, what follows.

Pure: facts in, decisions out. The row is the truth; the ledger is a cache of it: where the two
differ the lane adopts the row, if our log can tell what follows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from wald.core.delivery import Event, Parked
from wald.model import Checkpoint, Lsn, ProgressRow, Revision, RevisionId


class LogFinding(Enum):
    """What our log says of the row's ``hi_lsn`` and anchor."""

    HOLDS = "holds"  # the same block, and all that follows it
    DIFFERS = "differs"  # another block
    GONE = "gone"  # the block, or what follows it, is not in our log any more
    BEYOND = "beyond"  # our log ends before it


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What the row is judged by.

    Attributes:
        row: what the target remembers; None if nothing.
        checkpoint: n and prev of our ledger.
        open_revisions: the revisions of the open manifest, n + 1.
        owner: ours.
        lane_owner: who may touch the lane's rows: who it was born under, or who took it over;
            another one if the directory was moved since.
        log: what our log says of the row's position; of the route's birth where there is no row.
        log_short: whether our log no longer holds what lies behind the checkpoint because it was
            delivered once: a gap that damage made is none, and what it took is declared lost.
        chain: whether every entry that the row's ``dead_rev`` leads to is in our dead log.
        ask_first: ``on_rewind = "park"``.
        decided: whether a person said that this directory goes on (``wald route takeover``).
        moved: whether the row was made by that: what it says was found out then.
    """

    row: ProgressRow | None
    checkpoint: Checkpoint
    open_revisions: tuple[RevisionId, ...]
    owner: int
    lane_owner: int
    log: LogFinding = LogFinding.HOLDS
    log_short: bool = False
    chain: bool = True
    ask_first: bool = False
    decided: bool = False
    moved: bool = False

    @property
    def fits(self) -> bool:
        """Whether the row is the one that our checkpoint stands on."""
        if self.row is None:
            return self.checkpoint.batch_no == 0
        at = (self.checkpoint.batch_no, self.checkpoint.rev_id)
        return (self.row.batch_no, self.row.rev_id) == at

    @property
    def is_behind(self) -> bool:
        """Whether the target holds less than it did."""
        return self.row is None or self.row.batch_no < self.checkpoint.batch_no

    @property
    def is_applied(self) -> bool:
        """Whether the row is a revision of the open batch."""
        row, n = self.row, self.checkpoint.batch_no
        return row is not None and row.batch_no == n + 1 and row.rev_id in self.open_revisions

    @property
    def has_other_owner(self) -> bool:
        """Whether the row is another owner's."""
        return self.row is not None and self.row.owner != self.owner

    @property
    def is_doubtful(self) -> bool:
        """Whether the row is of another history than our log's, or nothing says that it is not."""
        unlike = self.row is not None and self.log is not LogFinding.HOLDS
        return self.has_other_owner or ((unlike or not self.chain) and not self.fits)


class RowCase(NamedTuple):
    """A row of the table: what it is called, when it holds, what follows.

    ``parked`` is why the lane waits for a person, if it does.
    """

    label: str
    when: str
    holds: Callable[[RowFacts], bool]
    event: Event
    parked: Parked | None = None


ROW_CASES: tuple[RowCase, ...] = (
    RowCase(
        "directory-moved",
        "the data directory was moved or copied since the lane's birth; no row is touched",
        lambda facts: facts.owner != facts.lane_owner,
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "taken-over",
        "another owner's, or not known to be of our history; a person decided that we go on",
        lambda facts: facts.decided and not facts.moved and facts.is_doubtful,
        Event.TAKE_OVER,
    ),
    RowCase(
        "other-owner",
        "another owner's",
        lambda facts: facts.has_other_owner,
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "applied",
        "n+1 with a revision of the open batch, which our log still holds",
        lambda facts: facts.is_applied and not facts.log_short,
        Event.ROW_APPLIED,
    ),
    RowCase(
        "log-short",
        "(n, prev), or absent at n = 0, but what follows was delivered once and left our log",
        lambda facts: facts.fits and facts.log_short and not facts.decided,
        Event.ROW_STRANGE,
        Parked.TARGET_BEHIND,
    ),
    RowCase(
        "at-checkpoint",
        "(n, prev)",
        lambda facts: facts.fits and facts.row is not None,
        Event.ROW_FITS,
    ),
    RowCase("at-birth", "absent at n = 0", lambda facts: facts.fits, Event.ROW_FITS),
    RowCase(
        "other-anchor",
        "any other, and our log holds another block at its position",
        lambda facts: facts.log is LogFinding.DIFFERS,
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "beyond-the-log",
        "any other, and our log ends before its position",
        lambda facts: facts.log is LogFinding.BEYOND,
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "log-gone",
        "any other, and our log no longer holds its block, or what follows it",
        lambda facts: facts.log is LogFinding.GONE and not facts.decided,
        Event.ROW_STRANGE,
        Parked.TARGET_BEHIND,
    ),
    RowCase(
        "broken-chain",
        "any other, and our dead log does not hold what its `dead_rev` leads to",
        lambda facts: not facts.chain,
        Event.ROW_STRANGE,
        Parked.DIVERGED,
    ),
    RowCase(
        "ask-first",
        'a number below n, or absent, and `on_rewind = "park"`',
        lambda facts: facts.is_behind and facts.ask_first and not facts.decided,
        Event.ROW_STRANGE,
        Parked.WENT_BACK,
    ),
    RowCase("row-lost", "absent with n > 0", lambda facts: facts.row is None, Event.ADOPTED),
    RowCase("row-behind", "a number below n", lambda facts: facts.is_behind, Event.ADOPTED),
    RowCase(
        "row-ahead",
        "a number above n",
        lambda facts: facts.row is not None and facts.row.batch_no > facts.checkpoint.batch_no,
        Event.ADOPTED,
    ),
    RowCase("other-revision", "n with another revision", lambda _: True, Event.ADOPTED),
)


def judge_row(facts: RowFacts) -> RowCase:
    """Return the first row of the table that holds. The row is the truth; never guess past it."""
    return next(case for case in ROW_CASES if case.holds(facts))


def effective_dead_rev(checkpoint: Checkpoint, revision: Revision) -> RevisionId:
    """Return the chain's ``dead_rev`` once a revision took effect."""
    changes = revision.excluded or revision.redriven
    return revision.rev_id if changes else checkpoint.dead_rev


# --- adopting the row ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Between:
    """What was accepted for the lane between its checkpoint and the row, whichever is further.

    Attributes:
        records: how many, by what the log still holds of them, and by its letters of lost ones.
        accepted: how many since the route's birth up to the row, where the log no longer holds
            all that lies between, and its counts say it; None where ``records`` does.
    """

    records: int = 0
    accepted: int | None = None


def adopted(before: Checkpoint, at: Checkpoint, between: Between, dead: int) -> Checkpoint:
    """Return the lane's checkpoint at the row: every record up to it is delivered, or dead.

    Args:
        before: what the ledger held.
        at: where the row stands; its ``purged`` are those that nothing names any more, its
            ``superseded`` those up to it.
        between: what lies between.
        dead: how many records the dead letters up to the row stand for, purged ones among them.
    """
    accepted = between.accepted
    if accepted is None:
        forward = 1 if at.lsn > before.lsn else -1
        finished = before.delivered + before.dead_letters + before.purged
        accepted = finished + forward * between.records
    delivered = max(0, accepted - dead - at.purged)
    return Checkpoint(
        at.batch_no,
        at.rev_id,
        at.lsn,
        at.anchor,
        at.dead_rev,
        delivered,
        dead,
        min(at.superseded, delivered),
        at.purged,
    )


def lies_within(lsn: Lsn, one: Lsn, other: Lsn) -> bool:
    """Tell whether an LSN lies behind the lower of two and not beyond the higher."""
    return min(one, other) < lsn <= max(one, other)
