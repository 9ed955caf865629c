"""Dead letters as pure decisions: which are meant, what is sent again, which files may go.

No rule here reads or writes anything; the ledger's index and the dead log carry them out.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from wald import limits
from wald.core.row import effective_dead_rev
from wald.model import (
    Checkpoint,
    DeadLetter,
    Lsn,
    Manifest,
    RejectedRecord,
    ReplayClass,
    RevisionId,
)

# --- which are meant ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters of a route are meant; an empty field leaves all in.

    Attributes:
        codes: reasons, exact.
        since_ns, until_ns: when it was set aside: from, and before.
        keys: the record's key, text or bytes.
        lsns: of a damaged range any LSN in it.
    """

    codes: frozenset[str] = frozenset()
    since_ns: int | None = None
    until_ns: int | None = None
    keys: frozenset[str | bytes] = frozenset()
    lsns: frozenset[Lsn] = frozenset()

    def has(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant."""
        return (
            (not self.codes or letter.code in self.codes)
            and (self.since_ns is None or letter.time_ns >= self.since_ns)
            and (self.until_ns is None or letter.time_ns < self.until_ns)
            and (not self.keys or _key_is_in(letter.key, self.keys))
            and (not self.lsns or _range_is_in(letter, self.lsns))
        )


def _key_is_in(key: str | bytes | None, wanted: Collection[str | bytes]) -> bool:
    return key in wanted or (isinstance(key, bytes) and _as_text(key) in wanted)


def _as_text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _range_is_in(letter: DeadLetter, wanted: Collection[Lsn]) -> bool:
    last = max(letter.lsn, letter.through_lsn)
    if last == letter.lsn:
        return letter.lsn in wanted
    return any(letter.lsn <= lsn <= last for lsn in wanted)


# --- redrive ------------------------------------------------------------------------------------

MONOTONE_WHY = (
    "its target takes only records newer than its newest: a dead letter would have to be appended "
    "anew, which redrive does not do"
)
OVERWRITES_WHY = (
    "its target keeps what is written last: a dead letter may replace a newer record of its key"
)


def why_no_redrive(replay: str, *, overwrites: bool, forced: bool) -> str:
    """Return why dead letters are not sent again to a target of a class; empty if they are."""
    if replay == ReplayClass.MONOTONE.value:
        return MONOTONE_WHY
    return OVERWRITES_WHY if overwrites and not forced else ""


def redriven_checkpoint(
    before: Checkpoint, manifest: Manifest, took_effect: RevisionId
) -> Checkpoint:
    """T8: return the checkpoint behind a redrive; its LSN stays, what was sent is delivered."""
    revision = manifest.revision(took_effect)
    sent = len(revision.redriven)
    return replace(
        before,
        batch_no=manifest.number,
        rev_id=took_effect,
        dead_rev=effective_dead_rev(before, revision),
        delivered=before.delivered + sent,
        dead_letters=before.dead_letters - sent,
        superseded=before.superseded + revision.superseded,
    )


def refused_again(letter: DeadLetter, refused: RejectedRecord, attempts: int) -> DeadLetter:
    """Return a letter whose redrive was refused: the newest words, all attempts.

    Since when it is dead, and the batch it fell out of, stay.
    """
    return replace(
        letter,
        code=refused.code[: limits.ERROR_TEXT_MAX_CHARS],
        message=refused.message[: limits.ERROR_TEXT_MAX_CHARS],
        attempts=letter.attempts + attempts,
    )


class Halt(NamedTuple):
    """A refused record at which a lane stops, and how many of its batch are refused with it."""

    record: RejectedRecord
    key: str | bytes | None
    refused: int


def text_of_halt(halt: Halt) -> str:
    """Return what status says of a lane that halted."""
    key = "" if halt.key is None else f", key {halt.key!r}"
    others = f" ({halt.refused - 1} more in the batch)" if halt.refused > 1 else ""
    return f"halted at LSN {halt.record.lsn}{key}: {halt.record.message}{others}"


def halting(
    found: Iterable[RejectedRecord], allowed: Collection[Lsn]
) -> tuple[RejectedRecord, ...]:
    """Return the refused records that nobody has allowed to be set aside."""
    return tuple(item for item in found if item.lsn not in allowed)


# --- the files of the dead log ------------------------------------------------------------------


class Steady(NamedTuple):
    """Since when the wall clock runs as the clock since boot does: only such a time is an age."""

    since_ns: int
    wall_ns: int
    boot_ns: int

    def has_held(self, max_age_s: float) -> bool:
        """Tell whether letters may go by an age: no jump forward ages one that was there."""
        held_ns = self.boot_ns - self.since_ns
        return held_ns >= min(limits.CLOCK_HELD_S, max_age_s) * limits.CLOCK_NS_PER_S


def steady(before: Steady | None, wall_ns: int, boot_ns: int) -> Steady:
    """Take in both clocks; where they went apart since the last look, it begins anew."""
    if before is None:
        return Steady(boot_ns, wall_ns, boot_ns)
    apart_ns = (wall_ns - before.wall_ns) - (boot_ns - before.boot_ns)
    jumped = abs(apart_ns) > limits.CLOCK_JUMP_S * limits.CLOCK_NS_PER_S
    return Steady(boot_ns if jumped else before.since_ns, wall_ns, boot_ns)


def is_worth_rewriting(total_bytes: int, living_bytes: int) -> bool:
    """Tell whether so much of the dead log is of letters that are gone that it is written anew."""
    return total_bytes - living_bytes > max(limits.DEAD_LOG_WASTE_BYTES, living_bytes)
