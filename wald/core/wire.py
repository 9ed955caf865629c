"""Wire protocol 1: bytes to events. Drawn in docs/protocol.md.

Bytes in, events out: ``FrameReader`` and ``next_frame`` turn bytes into the events of
``core.events``, whose ``encode`` turns them into bytes. Neither side's socket code knows a layout.
The daemon's hot path, which takes consecutive appends without making an event of each, is
``core.commit.RunBuilder``, and ``core.lone`` for a read that brings one; they leave everything
unusual to ``next_frame``.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple, cast

from wald import limits
from wald.core.events import (
    ACK_LAYOUT,
    APPEND_CODEC,
    CAPABILITIES,
    DUPLICATE_LAYOUT,
    ERROR_LAYOUT,
    FRONTIER_LAYOUT,
    HEADER,
    HEADER_BYTES,
    HELLO_LAYOUT,
    MAGIC,
    REFUSED_LAYOUT,
    THROTTLE_LAYOUT,
    VERSION,
    WELCOME_LAYOUT,
    Ack,
    Append,
    AppendFlag,
    Capability,
    Duplicate,
    DuplicateRecords,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    FrontierMoved,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    Received,
    Refusal,
    RefusedRecords,
    Skip,
    StreamOpened,
    Throttle,
    Welcome,
)
from wald.errors import BadFrame
from wald.model import Frontier


class Side(Enum):
    """Who reads: each side understands only what the other may send."""

    CLIENT = "client"
    DAEMON = "daemon"


FROM_CLIENT: Final = {
    FrameType.APPEND: limits.REQUEST_MAX_BYTES,
    FrameType.HELLO: HELLO_LAYOUT.size + limits.PRODUCER_NAME_MAX_BYTES,
    FrameType.OPEN_STREAM: limits.STREAM_FRAME_MAX_BYTES,
    FrameType.PING: limits.PING_MAX_BYTES,
    FrameType.GOODBYE: 0,
    FrameType.SKIP: 0,
}
FROM_DAEMON: Final = {
    FrameType.GOODBYE: 0,
    FrameType.ACK: ACK_LAYOUT.size,
    FrameType.WELCOME: WELCOME_LAYOUT.size,
    FrameType.STREAM: 0,
    FrameType.PONG: limits.PING_MAX_BYTES,
    FrameType.REFUSED: limits.REFUSED_FRAME_MAX_BYTES,
    FrameType.ERROR: limits.ERROR_FRAME_MAX_BYTES,
    FrameType.FRONTIER: FRONTIER_LAYOUT.size,
    FrameType.THROTTLE: THROTTLE_LAYOUT.size,
    FrameType.RECEIVED: 0,
    FrameType.DUPLICATES: limits.DUPLICATES_FRAME_MAX_BYTES,
}
_BOUNDS = {
    Side.DAEMON: {int(kind): bound for kind, bound in FROM_CLIENT.items()},
    Side.CLIENT: {int(kind): bound for kind, bound in FROM_DAEMON.items()},
}
_FLAGS_ALLOWED = {
    FrameType.ERROR: int(ErrorFlag.CLOSING | ErrorFlag.NOT_STORED),
    FrameType.APPEND: int(AppendFlag.RECEIVED),
}


# --- bytes to events ----------------------------------------------------------------------------


def frame_end(data: bytes, at: int, side: Side) -> int | None:
    """Return where the frame at ``at`` ends; None while its header is not complete.

    The length meets its bound here, before anybody takes memory for it.

    Raises:
        BadFrame: the header cannot be one that the other side sends.
    """
    if len(data) - at < HEADER_BYTES:
        return None
    length, kind, _, _, _ = cast("tuple[int, int, int, int, int]", HEADER.unpack_from(data, at))
    bound = _BOUNDS[side].get(kind & 0xFF)
    if bound is None:
        msg = f"no frame has type {kind & 0xFF} here"
        raise BadFrame(msg, reason="frame.unknown")
    if length > bound:
        msg = f"a {FrameType(kind & 0xFF).name} of {length:,} bytes; the bound is {bound:,}"
        raise BadFrame(msg, reason="frame.too-large")
    return at + HEADER_BYTES + length


def next_frame(data: bytes, at: int, side: Side) -> tuple[Event, int] | None:
    """Return the frame at ``at`` as an event, and where the next begins; None: more bytes needed.

    Raises:
        BadFrame: the other side broke the protocol; the connection cannot go on.
    """
    end = frame_end(data, at, side)
    if end is None or end > len(data):
        return None
    _, kind, stream, lag, sequence = HEADER.unpack_from(data, at)
    kind, flags, codec = FrameType(kind & 0xFF), kind >> 8 & 0xFF, kind >> 16
    if codec != (APPEND_CODEC if kind is FrameType.APPEND else 0):
        msg = f"a {kind.name} with codec {codec}"
        raise BadFrame(msg, reason="protocol-mismatch")
    if flags & ~_FLAGS_ALLOWED.get(kind, 0):
        msg = f"a {kind.name} with flags {flags:#04x}"
        raise BadFrame(msg, reason="protocol-mismatch")
    fields = _Fields(kind, flags, stream, lag, sequence)
    if (
        not _USES_STREAM.get(kind, stream == 0)
        or not _USES_LAG.get(kind, lag == 0)
        or (kind in _NO_SEQUENCE and sequence)
    ):
        msg = f"a {kind.name} with a field set that must be zero"
        raise BadFrame(msg, reason="frame.malformed")
    try:
        event = _DECODERS[kind](fields, bytes(data[at + HEADER_BYTES : end]))
    except (ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        msg = f"the body of a {kind.name} has not its shape"
        raise BadFrame(msg, reason="frame.malformed") from error
    return event, end


class FrameReader:
    """Reads one side of a connection: ``receive_data``, then ``next_event`` until None."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._data = b""
        self._at = 0

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the socket."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def next_event(self) -> Event | None:
        """Return the next complete frame, or None while there is none.

        Raises:
            BadFrame: the other side broke the protocol; the connection cannot go on.
        """
        found = next_frame(self._data, self._at, self._side)
        if found is None:
            return None
        event, self._at = found
        return event


class _Fields(NamedTuple):
    kind: FrameType
    flags: int
    stream: int
    lag: int
    sequence: int


_USES_STREAM = {FrameType.APPEND: True, FrameType.STREAM: True, FrameType.THROTTLE: True}
_USES_LAG = {FrameType.APPEND: True, FrameType.ERROR: True, FrameType.HELLO: True}
_NO_SEQUENCE = frozenset({FrameType.GOODBYE, FrameType.FRONTIER, FrameType.THROTTLE})


def _decode_append(fields: _Fields, body: bytes) -> Append:
    return Append(fields.stream, fields.sequence, fields.lag, body, fields.flags)


def _decode_hello(fields: _Fields, body: bytes) -> Hello:
    magic, version, length, capabilities, session = _exactly(
        HELLO_LAYOUT, body[: HELLO_LAYOUT.size]
    )
    if magic != MAGIC or version != VERSION:
        msg = f"this daemon speaks version {VERSION}, the client version {version}"
        raise BadFrame(msg, reason="protocol-mismatch")
    unknown = capabilities & ~CAPABILITIES
    if unknown:
        msg = f"unknown capability bits {unknown:#x}"
        raise BadFrame(msg, reason="protocol-mismatch")
    if fields.lag and not capabilities & Capability.EPOCH:
        raise ValueError
    name = body[HELLO_LAYOUT.size :].decode()
    if len(body) != HELLO_LAYOUT.size + length or not (name.isprintable() or not name):
        raise ValueError
    return Hello(fields.sequence, name, session, capabilities, version, fields.lag)


def _decode_open_stream(fields: _Fields, body: bytes) -> OpenStream:
    return OpenStream(fields.sequence, body.decode())


def _decode_ping(fields: _Fields, body: bytes) -> Ping:
    return Ping(fields.sequence, body)


def _decode_skip(fields: _Fields, _body: bytes) -> Skip:
    return Skip(fields.sequence)


def _decode_goodbye(_fields: _Fields, _body: bytes) -> Goodbye:
    return Goodbye()


def _decode_welcome(fields: _Fields, body: bytes) -> Welcome:
    version, _, window, capabilities, session, last, log_id, *rest = _exactly(WELCOME_LAYOUT, body)
    return Welcome(fields.sequence, session, last, log_id, capabilities, window, version, *rest)


def _decode_stream(fields: _Fields, _body: bytes) -> StreamOpened:
    return StreamOpened(fields.sequence, fields.stream)


def _decode_ack(fields: _Fields, body: bytes) -> Ack:
    first, first_lsn, durable_lsn = _exactly(ACK_LAYOUT, body)
    if not first <= fields.sequence:
        raise ValueError
    return Ack(first, fields.sequence, first_lsn, durable_lsn)


def _decode_pong(fields: _Fields, body: bytes) -> Pong:
    return Pong(fields.sequence, body)


def _decode_refused(fields: _Fields, body: bytes) -> RefusedRecords:
    return RefusedRecords(fields.sequence, tuple(_refusals(body)))


def _refusals(body: bytes) -> Iterator[Refusal]:
    at = 0
    while at < len(body):
        record, code_length, _, length = _exactly(
            REFUSED_LAYOUT, body[at : at + REFUSED_LAYOUT.size]
        )
        code, message, at = _texts(body, at + REFUSED_LAYOUT.size, (code_length, length))
        yield Refusal(record, code, message)


def _decode_received(fields: _Fields, _body: bytes) -> Received:
    return Received(fields.sequence)


def _decode_duplicates(fields: _Fields, body: bytes) -> DuplicateRecords:
    if len(body) % DUPLICATE_LAYOUT.size:
        raise ValueError
    rows = DUPLICATE_LAYOUT.iter_unpack(body)
    return DuplicateRecords(fields.sequence, tuple(map(Duplicate._make, rows)))


def _decode_error(fields: _Fields, body: bytes) -> Failed:
    retry, code_length, _, length, hint_length, _ = _exactly(
        ERROR_LAYOUT, body[: ERROR_LAYOUT.size]
    )
    code, message, hint, end = _texts(body, ERROR_LAYOUT.size, (code_length, length, hint_length))
    if end != len(body):
        raise ValueError
    return Failed(code, message, hint, retry, fields.flags, fields.lag, fields.sequence)


def _decode_frontier(_fields: _Fields, body: bytes) -> FrontierMoved:
    return FrontierMoved(Frontier(*_exactly(FRONTIER_LAYOUT, body)))


def _decode_throttle(fields: _Fields, body: bytes) -> Throttle:
    return Throttle(fields.stream, *_exactly(THROTTLE_LAYOUT, body))


def _exactly(layout: Struct, body: bytes) -> tuple:  # type: ignore[type-arg]
    if len(body) != layout.size:
        raise ValueError
    return layout.unpack(body)


def _texts(body: bytes, at: int, lengths: Sequence[int]) -> tuple:  # type: ignore[type-arg]
    texts: list[object] = []
    for length in lengths:
        if at + length > len(body):
            raise ValueError
        texts.append(body[at : at + length].decode())
        at += length
    return (*texts, at)


_DECODERS: dict[FrameType, Callable[[_Fields, bytes], Event]] = {
    FrameType.APPEND: _decode_append,
    FrameType.HELLO: _decode_hello,
    FrameType.OPEN_STREAM: _decode_open_stream,
    FrameType.PING: _decode_ping,
    FrameType.GOODBYE: _decode_goodbye,
    FrameType.ACK: _decode_ack,
    FrameType.WELCOME: _decode_welcome,
    FrameType.STREAM: _decode_stream,
    FrameType.PONG: _decode_pong,
    FrameType.REFUSED: _decode_refused,
    FrameType.ERROR: _decode_error,
    FrameType.FRONTIER: _decode_frontier,
    FrameType.THROTTLE: _decode_throttle,
    FrameType.SKIP: _decode_skip,
    FrameType.RECEIVED: _decode_received,
    FrameType.DUPLICATES: _decode_duplicates,
}
