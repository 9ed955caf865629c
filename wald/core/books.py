"""What a route's figures come to: accepted = delivered + pending + dead letters + purged + lost."""

from typing import NamedTuple

from wald.model import Lsn


class Balance(NamedTuple):
    """What of the accepted records is neither delivered nor a dead letter.

    ``lost`` are records that damage took together with the knowledge whose they were: they show
    once the route is through with its stream, since until then nobody can tell them from those
    that wait.
    """

    pending: int
    lost: int


def balance(rest: int, through_lsn: Lsn, last_lsn: Lsn) -> Balance:
    """Say what became of the ``rest`` of the accepted records.

    Args:
        rest: those that are neither delivered nor dead letters.
        through_lsn: up to where the route is finished.
        last_lsn: the stream's last LSN.
    """
    return Balance(0, rest) if through_lsn >= last_lsn else Balance(rest, 0)
