"""A past range before it is delivered again: whose records are meant, how many there are."""

from collections.abc import Sequence
from dataclasses import dataclass

from wald.core.lanes import Key, Share
from wald.errors import ReplayRefused
from wald.model import Lsn, ReplayClass


@dataclass(frozen=True, slots=True)
class KeyShare(Share):
    """The records of one key."""

    key: str = ""

    @property
    def is_whole(self) -> bool:
        """It never is."""
        return False

    def picks(self, first_lsn: Lsn, count: int, keys: Sequence[Key] | None) -> Sequence[int]:
        """Return which of ``count`` records in a row have the key."""
        del first_lsn
        if keys is None:
            return ()
        return [index for index in range(count) if self.has(keys[index])]

    def has(self, key: Key) -> bool:
        """Tell whether a record's key is the one; bytes are taken for UTF-8."""
        return key == self.key or (isinstance(key, bytes) and key == self.key.encode())


@dataclass(slots=True)
class Count:
    """What a range holds."""

    records: int = 0
    bytes: int = 0
    lost: int = 0  # ranges that damage took
    first_lsn: Lsn = 0
    last_lsn: Lsn = 0
    held: int | None = None  # records that the target has already; None: it cannot tell
    missing_lsn: Lsn = 0  # the first that it has not


def refusal_of_held(count: Count) -> ReplayRefused:
    """Say beforehand what would end as a refusal of nearly every record."""
    msg = (
        f"{count.held:,} of {count.records:,} records are at the target already, which takes none"
        " twice"
    )
    hint = "nothing is missing there; --sink names another target"
    if count.missing_lsn:
        hint = f"the first that is missing there has LSN {count.missing_lsn:,}: choose the range so"
    return ReplayRefused(msg, hint=hint)


def notes_of(replay_class: ReplayClass, count: Count) -> list[str]:
    """Return what a person should know before."""
    notes = []
    if replay_class in {ReplayClass.NONE, ReplayClass.WINDOW}:
        notes.append("the target cannot tell a record again: what it had before is there twice")
    if count.held:
        notes.append(
            f"{count.held:,} of {count.records:,} records are at the target already: it would"
            " refuse them as duplicates"
        )
    if count.lost:
        notes.append(f"{count.lost:,} damaged ranges lie in it, whose records are lost")
    return notes
