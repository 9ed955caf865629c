"""Who a producer is: its name, its session, the socket of its daemon."""

import os
import socket
from typing import NamedTuple

from wald import limits
from wald.client.link import default_socket
from wald.errors import InputError, Unavailable


class SessionInfo(NamedTuple):
    """A producer's session with the daemon."""

    session_id: int
    name: str
    last_sequence: int  # the last request that was assigned, by this or an earlier process
    lost_records: int = 0  # that were answered as received, and are not stored, or nobody knows


def check_name(name: str) -> None:
    """Refuse what is not a producer's name.

    Raises:
        InputError: it is too long, or not printable.
    """
    if not (name.isprintable() and len(name.encode()) <= limits.PRODUCER_NAME_MAX_BYTES):
        msg = f"a producer's name is printable text of at most 128 bytes, not {name[:200]!r}"
        raise InputError(msg)


def socket_of(path: str | os.PathLike[str] | None) -> str:
    """Return the socket that is meant: as said, or the default of this process.

    Raises:
        Unavailable: the system has none; ``wald.testing.FakeProducer`` works there.
    """
    if not hasattr(socket, "AF_UNIX"):
        msg = "this system has no Unix sockets: the daemon runs on Linux"
        raise Unavailable(msg, hint="in tests, use wald.testing.FakeProducer")
    return os.fspath(path) if path is not None else default_socket(os.environ, os.geteuid())
