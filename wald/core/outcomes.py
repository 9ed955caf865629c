"""What an attempt came to, as labelled tables: (outcome, class of the target) -> what follows.

Pure: facts in, decisions out; the lane carries them out. A sink is anybody's code: what it returns
is read before it is believed, and what cannot be is ``Unknown``, never a success.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, cast

from wald import limits
from wald.core.delivery import Event
from wald.model import (
    Delivered,
    Lsn,
    Outcome,
    Partial,
    ProgressRow,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)

SETTLING = (Delivered, Partial, TooLarge)  # outcomes that a T3 or T5 follows at once
EVERY_CLASS = frozenset(ReplayClass)
_ROW = frozenset({ReplayClass.TRANSACTIONAL})
_NO_ROW = EVERY_CLASS - _ROW
_WINDOW = frozenset({ReplayClass.WINDOW})
_NONE = frozenset({ReplayClass.NONE})
_IDEMPOTENT = frozenset({ReplayClass.MONOTONE, ReplayClass.KEYED})

PASSED_OVER = "passed-over"  # codes of dead letters that we give
RETRIES_EXHAUSTED = "retries-exhausted"
TOO_LARGE = "too-large"
UNCERTAIN = "uncertain"  # a person gave up a batch of which nobody knows
RESENT = "resent-without-an-answer"  # notes: sent again where that may double
UNREADABLE_NOTES = "unreadable-notes"


# --- sending again ------------------------------------------------------------------------------


class Again(Enum):
    """What sending a batch again depends on."""

    ALWAYS = "-"
    NOT_IN_DOUBT = "no attempt before may have taken effect"
    WINDOW_OPEN = "its window is open"
    RESEND_CHOSEN = 'on_unknown = "resend"'


class Resend(NamedTuple):
    """A row of the table: at ``classes``, if ``when`` holds, send (or hold for a person)."""

    label: str
    classes: frozenset[ReplayClass]
    when: Again
    send: bool


RESENDS: tuple[Resend, ...] = (
    Resend("no-doubt", EVERY_CLASS, Again.NOT_IN_DOUBT, send=True),
    Resend("row-was-asked", _ROW, Again.ALWAYS, send=True),
    Resend("idempotent", _IDEMPOTENT, Again.ALWAYS, send=True),
    Resend("in-window", _WINDOW, Again.WINDOW_OPEN, send=True),
    Resend("window-over", _WINDOW, Again.ALWAYS, send=False),
    Resend("may-double", _NONE, Again.RESEND_CHOSEN, send=True),
    Resend("held", _NONE, Again.ALWAYS, send=False),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides beside the outcome itself.

    Attributes:
        replay: the class of the target.
        in_doubt: an attempt before may have taken effect; at a target with a row nobody asks.
        window_open: of the class ``window``: the target still knows the batch's id.
        resend: of the class ``none``: ``on_unknown`` says so.
    """

    replay: ReplayClass
    in_doubt: bool = False
    window_open: bool = False
    resend: bool = True


def resend_of(facts: Facts) -> Resend:
    """Return the first row of the table that holds: whether the batch may be sent (again)."""
    holds = {
        Again.ALWAYS: True,
        Again.NOT_IN_DOUBT: not facts.in_doubt,
        Again.WINDOW_OPEN: facts.window_open,
        Again.RESEND_CHOSEN: facts.resend,
    }
    return next(row for row in RESENDS if facts.replay in row.classes and holds[row.when])


# --- outcomes -----------------------------------------------------------------------------------


class When(Enum):
    """What an outcome's meaning depends on."""

    ALWAYS = "-"
    CHANGE_MAY_DOUBLE = "an earlier attempt may have taken effect"
    MAY_RESEND = "it may be sent again"


class Judgement(NamedTuple):
    """A row of the table: an outcome at ``classes``, if ``when`` holds, is ``event``."""

    label: str
    outcome: type[Outcome]
    classes: frozenset[ReplayClass]
    when: When
    event: Event


OUTCOMES: tuple[Judgement, ...] = (
    Judgement("took-effect", Delivered, EVERY_CLASS, When.ALWAYS, Event.DELIVERED),
    Judgement("taken-in-part", Partial, _NO_ROW, When.ALWAYS, Event.PARTIAL),
    Judgement(
        "refused-in-doubt", Rejected, _WINDOW | _NONE, When.CHANGE_MAY_DOUBLE, Event.UNCERTAIN
    ),
    Judgement("refused", Rejected, EVERY_CLASS, When.ALWAYS, Event.REJECTED),
    Judgement(
        "too-large-in-doubt", TooLarge, _WINDOW | _NONE, When.CHANGE_MAY_DOUBLE, Event.UNCERTAIN
    ),
    Judgement("too-large", TooLarge, EVERY_CLASS, When.ALWAYS, Event.TOO_LARGE),
    Judgement("target-fails", Systemic, EVERY_CLASS, When.ALWAYS, Event.SYSTEMIC),
    Judgement("row-moved", RowMoved, _ROW, When.ALWAYS, Event.ROW_MOVED),
    Judgement("no-answer", Unknown, EVERY_CLASS, When.MAY_RESEND, Event.UNKNOWN),
    Judgement("no-answer-held", Unknown, EVERY_CLASS, When.ALWAYS, Event.UNCERTAIN),
)


def judge(outcome: Outcome, facts: Facts) -> Judgement:
    """Return the first row of the table that holds; ``facts`` are those before this attempt.

    With ``on_unknown = "resend"`` a change of what is sent doubles no more than sending it again.
    """
    may_double = facts.in_doubt and not (facts.replay in _NONE and facts.resend)
    holds = {
        When.ALWAYS: True,
        When.CHANGE_MAY_DOUBLE: may_double,
        When.MAY_RESEND: resend_of(replace(facts, in_doubt=True)).send,
    }
    return next(
        row
        for row in OUTCOMES
        if isinstance(outcome, row.outcome) and facts.replay in row.classes and holds[row.when]
    )


def leaves_no_doubt(outcome: Outcome, *, in_doubt: bool) -> bool:
    """Tell whether, behind this outcome, it is known what of the batch took effect.

    An answer for each record says it; an attempt that had no effect says nothing of those before.
    """
    if isinstance(outcome, Unknown):
        return False
    return not in_doubt or isinstance(outcome, Partial | Delivered)


# --- reading what a sink returned ---------------------------------------------------------------


def read_outcome(said: object, sent: Collection[Lsn], replay: ReplayClass) -> Outcome:
    """Return what a sink returned if it can be believed, else ``Unknown`` that says why not."""
    trouble = _trouble(said, sent, replay)
    if trouble:
        return Unknown(f"the sink is wrong: {trouble}")
    outcome = cast("Outcome", said)
    if isinstance(outcome, Partial) and not (outcome.rejected or outcome.retry):
        return Delivered()
    if isinstance(outcome, Delivered) and not _are_counts(outcome.notes):
        return Delivered({UNREADABLE_NOTES: 1})  # it is clear in what matters
    if isinstance(outcome, Systemic | Partial | Unknown) and not _is_pause(outcome.retry_after_s):
        return replace(outcome, retry_after_s=None)
    return outcome


def _trouble(said: object, sent: Collection[Lsn], replay: ReplayClass) -> str:
    trouble = ""
    match said:
        case Delivered():
            pass
        case Partial() if replay in _ROW:
            trouble = "a target with a progress row takes a batch whole or not at all"
        case Partial(rejected=rejected, retry=retry, message=message):
            trouble = _text_trouble(message) or _names_trouble((rejected, retry), sent)
        case Rejected(records=records, message=message, code=code):
            trouble = _text_trouble(message, code) or _names_trouble((records,), sent)
        case RowMoved(row=row):
            trouble = _row_trouble(row, replay)
        case Systemic(kind=kind, message=message, hint=hint):
            trouble = _text_trouble(message, hint) or _kind_trouble(kind)
        case TooLarge(message=message) | Unknown(message=message):
            trouble = _text_trouble(message)
        case _:
            trouble = f"it returned {_shown(said)}, which is no outcome"
    return trouble


def _kind_trouble(kind: object) -> str:
    return "" if isinstance(kind, SystemicKind) else f"{_shown(kind)} is no kind"


def _row_trouble(row: object, replay: ReplayClass) -> str:
    if replay not in _ROW:
        return f"a target of the class {replay.value} has no progress row that could move"
    return "" if row is None or isinstance(row, ProgressRow) else f"{_shown(row)} is no row"


def _text_trouble(*texts: object) -> str:
    return next((f"{_shown(text)} is no text" for text in texts if not isinstance(text, str)), "")


def _names_trouble(groups: Sequence[object], sent: Collection[Lsn]) -> str:
    named: list[Lsn] = []
    for group in groups:
        if not isinstance(group, Sequence) or not all(
            isinstance(item, RejectedRecord)
            and not _text_trouble(item.code, item.message)
            and isinstance(item.lsn, int)
            for item in group
        ):
            return f"it names records by {_shown(group)}"
        named += [item.lsn for item in group]
    foreign = sorted(set(named) - set(sent))
    if foreign:
        return f"it names LSN {foreign[0]}, which was not sent"
    twice = [lsn for lsn, count in Counter(named).items() if count > 1]
    return f"it names LSN {min(twice)} twice" if twice else ""


def _are_counts(notes: object) -> bool:
    return isinstance(notes, Mapping) and all(
        isinstance(name, str) and isinstance(count, int) for name, count in notes.items()
    )


def _is_pause(pause_s: object) -> bool:
    if isinstance(pause_s, bool) or not isinstance(pause_s, int | float):
        return pause_s is None
    return math.isfinite(pause_s) and pause_s >= 0


def _shown(value: object) -> str:
    return repr(value)[:100]


# --- what a part leaves -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a ``Partial`` leaves: what took effect, what never will, what is sent again."""

    taken: tuple[Lsn, ...]
    refused: tuple[RejectedRecord, ...]
    rest: tuple[Lsn, ...]
    retries: int


def settle(
    part: Partial,
    sent: Sequence[Lsn],
    replay: ReplayClass,
    retries: int,
    bound: int = limits.RECORD_ATTEMPTS_MAX,
) -> Settlement:
    """Return what becomes of each record that was sent, in order, with a part of them taken.

    A monotone target that took a record takes none before it any more: it would say "known" and
    lose it. What is wanted again after ``bound`` attempts in a row is refused for good; they are
    counted from the last one that took something: a target that takes little at a time is slow.
    """
    wanted = {item.lsn: item for item in part.retry}
    named = wanted.keys() | {item.lsn for item in part.rejected}
    assert named <= set(sent)  # else what was not sent would count as settled
    taken = tuple(lsn for lsn in sent if lsn not in named)
    refused = {item.lsn: item for item in part.rejected}
    if replay is ReplayClass.MONOTONE and taken:
        passed = [item for item in part.retry if item.lsn < max(taken)]
        refused |= {item.lsn: replace(item, code=PASSED_OVER) for item in passed}
    retries = 1 if taken else retries + 1
    if retries >= bound:
        late = [item for lsn, item in wanted.items() if lsn not in refused]
        refused |= {item.lsn: _exhausted(item, retries) for item in late}
    rest = tuple(lsn for lsn in sent if lsn in wanted and lsn not in refused)
    by_lsn = tuple(refused[lsn] for lsn in sent if lsn in refused)
    return Settlement(taken, by_lsn, rest, retries)


def _exhausted(item: RejectedRecord, attempts: int) -> RejectedRecord:
    words = f"not taken in {attempts} attempts in a row; the last: {item.code}: {item.message}"
    return replace(item, code=RETRIES_EXHAUSTED, message=words)


def cut_at(sent: Sequence[Lsn], settled: Collection[Lsn]) -> Lsn | None:
    """Return the LSN up to which a batch that is too large is sent: the rest is the next batch.

    The first half, or more if what took effect already stands higher: it belongs to this batch.
    None if that leaves nothing for the next one.
    """
    if not sent:
        return None
    hi = max(sent[(len(sent) + 1) // 2 - 1], max(settled, default=0))
    return hi if hi < sent[-1] else None
