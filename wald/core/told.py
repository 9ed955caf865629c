"""What was told beside the ledger of lanes at targets without a progress row.

Such a target cannot be asked what it holds, so a ledger that is lost, or was brought back from a
copy, must learn elsewhere what is done: from what its drainer told while it was at work. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from wald.model import Lsn, ReplayClass, RouteId


class Stand(NamedTuple):
    """How far a lane was: everything of it up to ``lsn`` is finished."""

    layout: int
    lane: int
    lsn: Lsn
    batch_no: int = 0


class ToldRoute(NamedTuple):
    """What was told of a route.

    ``released`` is where every lane was at least, ``sealed`` the LSN beyond which no batch was
    sealed that may double, ``stands`` the lanes at work and those of former layouts that were not
    through; None if that was never told.
    """

    released: Lsn = 0
    sealed: Lsn | None = None
    stands: tuple[Stand, ...] | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What a ledger that went back does not know.

    Attributes:
        life: the drainer that told it, by its number.
        through: where the log ended when that was found.
        routes: what it told of each.
        bounded: whether it told beyond what no batch was sealed, of every route that sealed one.
    """

    life: int
    through: Lsn
    routes: Mapping[RouteId, ToldRoute] = field(default_factory=dict)
    bounded: bool = True

    @property
    def sealed_through(self) -> Lsn:
        """Beyond which LSN no lane of a told layout had sealed; 0 if nothing was told at all.

        Then ``progress`` was lost as well, and that no layout was told of a route says nothing.
        """
        return self.through if self.life or self.routes else 0

    def stand(self, route_id: RouteId, layout: int, lane: int, since: Lsn, until: Lsn) -> Stand:
        """Return how far a lane surely was; one that begins behind ``since`` ends at ``until``."""
        told = self.routes.get(route_id, ToldRoute())
        lsn, batch_no = told.released, 0
        if told.stands is not None:
            mine = [each for each in told.stands if (each.layout, each.lane) == (layout, lane)]
            newest = max((each.layout for each in told.stands), default=layout)
            if mine:
                lsn, batch_no = max(lsn, mine[0].lsn), mine[0].batch_no
            elif layout < newest:  # of former lanes only those are told that are not through
                lsn = until
        return Stand(layout, lane, max(since, min(lsn, until)), batch_no)

    def unsure_through(self, route_id: RouteId, until: Lsn) -> Lsn:
        """Return up to where batches of a lane may have been sent; nobody knows which."""
        told = self.routes.get(route_id, ToldRoute())
        sealed = told.sealed
        if sealed is None:
            sealed = 0 if self.bounded else self.through
        return min(sealed, self.through, until)

    def packed(self) -> list[object]:
        """Return what ``unpacked`` makes into an equal one."""
        routes = [[route_id, *told] for route_id, told in self.routes.items()]
        return [self.life, self.through, self.bounded, routes]


def unpacked(said: object) -> Told | None:
    """Return what ``Told.packed`` said; None if it is nothing."""
    if not isinstance(said, Sequence) or not said:
        return None
    life, through, bounded, routes = said
    found = {
        route_id: ToldRoute(released, sealed, stands_of(stands))
        for route_id, released, sealed, stands in routes
    }
    return Told(life, through, found, bounded)


def stands_of(rows: object) -> tuple[Stand, ...] | None:
    """Return the stands of some rows; None if there are none."""
    if not isinstance(rows, Sequence):
        return None
    return tuple(Stand(*cast("Sequence[int]", row)) for row in rows)


def is_held(replay: ReplayClass, on_unknown: str) -> bool:
    """Tell whether a batch that may have been sent waits for a person at a target of this class."""
    if replay is ReplayClass.NONE:
        return on_unknown == "hold"
    return replay is ReplayClass.WINDOW
