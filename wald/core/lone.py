"""A read that brings one plain request, as nearly every read of a client does that waits.

Such a request becomes a section of its own with one row and one record, the same bytes that a run
of one request gives (``core.commit.RunBuilder``), without the objects of a run: with many clients
that wait for each answer those cost more than all the rest. Whatever is not exactly that is left
to the run.
"""

from collections.abc import Sequence
from itertools import chain
from struct import Struct
from typing import Final, TypeAlias

from wald import limits
from wald.core.events import ACK_FRAME, ACK_LAYOUT, APPEND_CODEC, APPEND_KIND, HEADER, FrameType
from wald.core.frame import REQUEST_BYTES, SECTION_BYTES, SectionKind, crc32c
from wald.core.plain import PLAIN_END, PLAIN_MAX_BYTES, PLAIN_STARTS
from wald.model import Lsn, StreamId

# stream, session, sequence, answered through, body: a tuple, since each request makes one
Lone: TypeAlias = tuple[StreamId, int, int, int, bytes]

LONE_BYTES: Final = SECTION_BYTES + REQUEST_BYTES  # what one takes in a block beside its body
LONE_MAX_BYTES: Final = HEADER.size + PLAIN_MAX_BYTES  # of the read that brings one
_HEAD: Final = Struct("<BBHIQQQIIIIIIII")  # a section's head and its table of one row
_HEADER_BYTES: Final = HEADER.size
_unpack_header: Final = HEADER.unpack_from
_pack_head: Final = _HEAD.pack
_pack_ack: Final = ACK_FRAME.pack
_APPEND: Final = int(SectionKind.APPEND)
_ACK: Final = int(FrameType.ACK)
_ACK_BYTES: Final = ACK_LAYOUT.size
_WINDOW: Final = limits.WINDOW_REQUESTS

assert _HEAD.size == LONE_BYTES


def take_lone(
    received: memoryview, size: int, stream: StreamId, session: int, sequence: int
) -> Lone | None:
    """Return the request if the first ``size`` bytes are one and nothing else; None if not.

    Args:
        received: the receive buffer; it is longer than any header.
        size: how much a read brought into it.
        stream: of the connection's last request.
        session: of the connection.
        sequence: the next one.
    """
    length, kind, of_stream, lag, of_sequence = _unpack_header(received)
    if (
        size != length + _HEADER_BYTES
        or of_sequence != sequence
        or kind != APPEND_KIND
        or of_stream != stream
        or length > PLAIN_MAX_BYTES
        or not 0 < lag <= _WINDOW
        or lag > sequence
    ):
        return None
    body = received[_HEADER_BYTES:size].tobytes()
    if body.startswith(PLAIN_STARTS[length]) and body.endswith(PLAIN_END):
        return stream, session, sequence, sequence - lag, body
    return None


class LoneSections:
    """The lone requests of a group, each a packed section with one record."""

    __slots__ = ("heads", "requests")

    def __init__(self, requests: Sequence[Lone] = ()) -> None:
        self.requests = requests
        self.heads = [
            _pack_head(  # in the order of the drawings in core.frame: the section, then the row
                _APPEND,
                APPEND_CODEC,
                0,
                stream,
                session,
                sequence,
                answered,
                1,
                0,
                1,
                len(body),
                1,
                1,
                len(body),
                crc32c(body),
            )
            for stream, session, sequence, answered, body in requests
        ]

    def __len__(self) -> int:
        return len(self.requests)

    def parts(self) -> list[bytes]:
        """Return the packed sections, to be joined."""
        bodies = [request[4] for request in self.requests]
        return list(chain.from_iterable(zip(self.heads, bodies, strict=True)))

    def tables(self) -> list[bytes]:
        """Return the table of requests of each section: one row."""
        return [head[SECTION_BYTES:] for head in self.heads]

    def acks(self, first_lsn: Lsn, durable_lsn: Lsn) -> list[bytes]:
        """Return the answer to each, once the group is durable."""
        return [
            _pack_ack(_ACK_BYTES, _ACK, 0, 0, request[2], request[2], lsn, durable_lsn)
            for lsn, request in enumerate(self.requests, first_lsn)
        ]


NO_LONE: Final = LoneSections()
