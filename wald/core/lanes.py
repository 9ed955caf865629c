"""Which lane a record belongs to, and how the number of lanes changes. Pure.

The lane of a record is part of the disk and target format: every release must give the same
answer, or the order of a key and the chain of a lane would break.

    with a key      crc32c(key as bytes; text as UTF-8) mod lanes      (an empty key is a key)
    without a key   LSN mod lanes

A **layout** is one division of a route into lanes; its number is part of what a target knows a
lane by. Another number of lanes is another layout: the lanes of the one before seal only up to a
barrier, the new ones begin there.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, TypeAlias

from wald.core import frame
from wald.model import Lsn

Key: TypeAlias = str | bytes | None


def lane_of(key: Key, lsn: Lsn, lanes: int) -> int:
    """Return the lane of a record."""
    if key is None:
        return lsn % lanes
    return frame.crc32c(key.encode() if isinstance(key, str) else key) % lanes


@dataclass(frozen=True, slots=True)
class Share:
    """The records of a stream that are one lane's.

    Attributes:
        lanes: of the layout.
        lane: which of them.
        until: the last LSN that is the layout's; None while it has no end.
    """

    lanes: int = 1
    lane: int = 0
    until: Lsn | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every record up to the end is in it."""
        return self.lanes == 1

    @property
    def tells_losses(self) -> bool:
        """Whether this lane tells of what damage took: nobody can say whose it was, so one does."""
        return self.lane == 0

    def picks(self, first_lsn: Lsn, count: int, keys: Sequence[Key] | None) -> Sequence[int]:
        """Return which of ``count`` records in a row, from ``first_lsn`` on, are in it."""
        if keys is None:
            return range((self.lane - first_lsn) % self.lanes, count, self.lanes)
        lanes, lane = self.lanes, self.lane
        return [
            index
            for index, key in enumerate(keys)
            if lane_of(key, first_lsn + index, lanes) == lane
        ]


WHOLE = Share()


# --- layouts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How a route is divided, and into what it is to be.

    Attributes:
        number: of the layout at work; grows by one with each change.
        lanes: how many it has.
        since: its records have a higher LSN.
        next_lanes: how many the following one has; 0 if no change is under way.
        barrier: the last LSN of this layout, if a change is under way.
        sink: where its lanes deliver; empty: the route's own sink, else its fallback.
    """

    number: int = 0
    lanes: int = 1
    since: Lsn = 0
    next_lanes: int = 0
    barrier: Lsn = 0
    sink: str = ""

    @property
    def is_changing(self) -> bool:
        """Whether a change is under way."""
        return self.next_lanes != 0

    def share(self, lane: int) -> Share:
        """Return what is a lane's."""
        return Share(self.lanes, lane, self.barrier if self.is_changing else None)

    def following(self) -> "Layout":
        """Return the layout behind the change that is under way."""
        assert self.is_changing
        return Layout(self.number + 1, self.next_lanes, self.barrier, sink=self.sink)

    def turned(self, sink: str, sealed: Lsn) -> "Layout":
        """Return the layout that delivers to another sink what lies behind all that was sealed.

        A change of lanes that was under way is begun anew by the next start.
        """
        return Layout(self.number + 1, self.lanes, sealed, sink=sink)


class Change(Enum):
    """What is done about the number of lanes when a drainer begins."""

    NONE = "none"
    BEGIN = "begin"
    GO_ON = "go on"
    RETARGET = "retarget"
    CALL_OFF = "call off"


class ChangeCase(NamedTuple):
    """A row of the table; the first that holds counts. ``done`` is for people."""

    label: str
    when: str
    holds: Callable[[Layout, int], bool]
    change: Change
    done: str


LANE_CHANGES: tuple[ChangeCase, ...] = (
    ChangeCase(
        "called-off",
        "a change is under way, and the settings want the number at work",
        lambda layout, wanted: layout.is_changing and wanted == layout.lanes,
        Change.CALL_OFF,
        "the barrier is taken away: nothing was sealed beyond it",
    ),
    ChangeCase(
        "goes-on",
        "a change to the number wanted is under way",
        lambda layout, wanted: layout.is_changing and wanted == layout.next_lanes,
        Change.GO_ON,
        "the lanes seal up to the barrier",
    ),
    ChangeCase(
        "retargeted",
        "a change to another number is under way",
        lambda layout, _: layout.is_changing,
        Change.RETARGET,
        "the number wanted is noted; the barrier stays",
    ),
    ChangeCase(
        "fits",
        "the number at work is the one wanted",
        lambda layout, wanted: wanted == layout.lanes,
        Change.NONE,
        "nothing",
    ),
    ChangeCase(
        "begun",
        "the settings want another number",
        lambda _layout, _wanted: True,
        Change.BEGIN,
        "the barrier is the frontier; the lanes seal up to it",
    ),
)


def decide(layout: Layout, wanted: int) -> ChangeCase:
    """Return what is done about a wanted number of lanes."""
    return next(case for case in LANE_CHANGES if case.holds(layout, wanted))


def changed(layout: Layout, wanted: int, frontier_lsn: Lsn) -> Layout:
    """Return the layout with the change that ``decide`` says (T9).

    Args:
        layout: what the ledger holds.
        wanted: how many lanes the settings want.
        frontier_lsn: the barrier of a change that begins; no lane has sealed beyond it.
    """
    match decide(layout, wanted).change:
        case Change.BEGIN:
            return replace(layout, next_lanes=wanted, barrier=max(frontier_lsn, layout.since))
        case Change.RETARGET:
            return replace(layout, next_lanes=wanted)
        case Change.CALL_OFF:
            return replace(layout, next_lanes=0, barrier=0)
        case _:
            return layout


# --- the fallback -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outage:
    """How the own target of a route stands: for how long it has been down, or has been well.

    ``word`` is for figures: down, well, or parked where a lane of it waits for a person with what
    comes first.
    """

    down_s: float = 0.0
    well_s: float = 0.0
    word: str = "well"


def wanted_sink(
    layout: Layout, fallback: str | None, own: Outage, after_s: float, back_s: float
) -> str:
    """Return where the lanes are to deliver: the fallback's name, or empty for the own sink.

    Args:
        layout: at work.
        fallback: what the settings name; None: the own sink, whatever it is like.
        own: how the own target stands.
        after_s: so long it is down before the fallback takes over.
        back_s: so long it is well before it takes over again.
    """
    if fallback is None:
        return ""
    if layout.sink:
        return "" if own.well_s >= back_s else layout.sink
    return fallback if own.down_s >= after_s else ""


_UNNAMED = "*1"  # as an older release told it; a number beyond that is a name's


def told_sink(name: str) -> str:
    """Return what stands for the name of a fallback where a layout is told: no sink's name."""
    return f"*{frame.crc32c(name.encode()) + 2}"


def named_sink(told: str, sinks: Collection[str], fallback: str | None) -> str:
    """Return which of the sinks was told; what was told itself if it is none of them.

    An older release did not tell which: then it is taken for the route's ``fallback``.
    """
    if told == _UNNAMED:
        return fallback or told
    return next((name for name in sinks if told_sink(name) == told), told)


# --- a route as the sum of its lanes ------------------------------------------------------------

WORST_FIRST = (
    "parked", "failed", "waiting", "checking", "starting", "delivering", "idle",
)  # fmt: skip


def badness(state: str) -> int:
    """Return how bad a lane's state is: the route's state is that of its worst lane."""
    return len(WORST_FIRST) - WORST_FIRST.index(state) if state in WORST_FIRST else 0
