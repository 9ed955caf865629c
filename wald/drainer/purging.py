"""Forgetting dead letters for good: in the ledger, and beside it, should the ledger be lost.

The ledger first: what is told beside it was purged. A crash between the two, or a disk without
room, costs no more than that a lost ledger brings the letters back.
"""

import logging
from collections.abc import Sequence

from wald.errors import WaldError
from wald.model import NO_REVISION, REVISION_BYTES, DeadLetter, Purged, RouteId
from wald.ports import Chance, Ledger
from wald.storage.deadlog import DeadEntry, DeadLog, Purges

_log = logging.getLogger("wald.drain")


def purge(  # noqa: PLR0913 - the doors, and what is meant
    ledger: Ledger,
    dead_log: DeadLog,
    chance: Chance,
    route_id: RouteId,
    letters: Sequence[DeadLetter],
    now_ns: int,
    *,
    spare_asked: bool = False,
) -> Purged:
    """Purge letters of a route; what is being sent again is spared.

    Raises:
        WaldError: the ledger cannot be written; nothing is purged.
    """
    lsns = [letter.lsn for letter in letters]
    gone = ledger.purge(route_id, lsns, now_ns, spare_asked=spare_asked)
    if not gone.letters:
        return gone
    for key in ledger.lanes(route_id):
        rows = ledger.purged(key)
        ours = [each for each in letters if (each.layout, each.lane) == (key.layout, key.lane)]
        told = tuple((each.lsn, each.records, each.dead_file) for each in ours if each.lsn in rows)
        if told:
            _tell(dead_log, chance, Purges((route_id, key.layout, key.lane), now_ns, told))
    return gone


def _tell(dead_log: DeadLog, chance: Chance, purges: Purges) -> None:
    try:
        dead_log.append(DeadEntry(chance.randbytes(REVISION_BYTES), NO_REVISION, (), purges=purges))
    except WaldError as error:
        _log.warning("a purge is not told beside the ledger: %s", error.message)
