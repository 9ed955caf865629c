"""What a lane found when its target's row and its ledger differed, and what became of it.

Pure; a note of numbers that fits a page, and the words that people read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wald import limits
from wald.model import Lsn


@dataclass(frozen=True, slots=True)
class Healing:
    """The last time that a lane adopted its target's row.

    Attributes:
        time_ns: when, by the wall clock.
        held_batch: the number of the target's row; 0 if it held nothing of the lane.
        had_batch: the number of ours.
        until_lsn: up to where we had delivered.
        records: how many lie between that and the row, and are sent again; 0 where the target was
            ahead.
        base: the lane's count of delivered records when it began to send again.
        again: how many of the records were delivered since.
        done_ns: when all of them were delivered or set aside; 0 before.
        taken_over: 1 if a person decided that this directory goes on, and the row was moved to it.
        unsure_through: up to where the target, at which another history wrote, may lack what had
            been delivered, beside what was set aside; 0 for nothing.
    """

    time_ns: int
    held_batch: int
    had_batch: int
    until_lsn: Lsn = 0
    records: int = 0
    base: int = 0
    again: int = 0
    done_ns: int = 0
    taken_over: int = 0
    unsure_through: Lsn = 0

    @property
    def went_back(self) -> bool:
        """Whether the target held less than it did; else our ledger was the older one."""
        return self.held_batch < self.had_batch

    def at(self, lsn: Lsn, delivered: int, now_ns: int) -> "Healing":
        """Return the note once the lane has delivered so many records, up to an LSN."""
        if self.done_ns:
            return self
        again = max(0, min(self.records, delivered - self.base))
        return replace(self, again=again, done_ns=now_ns if lsn >= self.until_lsn else 0)

    def numbers(self) -> list[int]:
        """Return what ``from_numbers`` makes into an equal note."""
        return [getattr(self, name) for name in self.__slots__]

    def said(self) -> dict[str, Any]:
        """Return what ``status --json`` says."""
        names = (
            *("time_ns", "held_batch", "had_batch", "records", "again", "done_ns"),
            "unsure_through",
        )
        said = {name: getattr(self, name) for name in names}
        return said | {"taken_over": bool(self.taken_over)}


def of_lanes(notes: Sequence[Healing]) -> Healing:
    """Return the note of a route: the newest one, with the records of all lanes that met the same.

    Each lane looks by itself, so that what one restore did is found at slightly different times.
    """
    newest = max(notes, key=lambda note: note.time_ns)
    same = [
        note
        for note in notes
        if newest.time_ns - note.time_ns <= limits.HEALING_TOGETHER_S * limits.CLOCK_NS_PER_S
        and note.went_back is newest.went_back
    ]
    return replace(
        newest,
        records=sum(note.records for note in same),
        again=sum(note.again for note in same),
        done_ns=max(note.done_ns for note in same) if all(note.done_ns for note in same) else 0,
        unsure_through=max(note.unsure_through for note in same),
    )


def from_numbers(numbers: object) -> Healing | None:
    """Return the note of some numbers; None if they are none."""
    if not isinstance(numbers, Sequence) or not numbers:
        return None
    if not all(type(number) is int for number in numbers) or len(numbers) > len(Healing.__slots__):
        return None
    return Healing(*numbers) if len(numbers) > 2 else None


def words(said: Mapping[str, Any], clock: Callable[[int], str]) -> str:
    """Return the note in words.

    Args:
        said: what ``Healing.said`` returned.
        clock: the time of day of a wall clock, as hours, minutes, seconds.
    """
    held, had = said["held_batch"], said["had_batch"]
    when, holds = clock(said["time_ns"]), f"batch {held:,}" if held else "nothing of the route"
    if unsure := said.get("unsure_through"):
        return (
            f"taken over at {when}: this directory goes on behind {holds}. What was delivered up "
            f"to LSN {unsure} may be missing at the target, beside the dead letters 'diverged': "
            "the log does not tell any more; 'wald audit' compares what it holds"
        )
    if held >= had and said["taken_over"]:
        return f"taken over at {when}: this directory goes on behind {holds}"
    if held >= had:
        return (
            f"ledger was older than the target at {when}: {holds} had been delivered, "
            f"we knew of batch {had:,}. Nothing that is known to be delivered is sent again"
        )
    text = (
        f"target went back in time at {when}: it held {holds}, we had delivered up to batch "
        f"{had:,}. Redelivered {said['again']:,} records"
    )
    if said["done_ns"]:
        return f"{text}, done {clock(said['done_ns'])}"
    return f"{text} of {said['records']:,}"
