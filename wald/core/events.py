"""Wire protocol 1: every frame as an event that encodes itself. Drawn in docs/protocol.md.

``core.wire`` turns bytes back into these events.

    0         4      5       6        8          12        16                 24
    | length  | type | flags | codec  | stream   | lag     | sequence         | body
    | u32     | u8   | u8    | u16    | u32      | u32     | u64              |
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from wald import limits
from wald.model import Frontier, Lsn, StreamId

VERSION: Final = 1
MAGIC: Final = b"wald"
APPEND_CODEC: Final = 1
WHOLE_REQUEST: Final = 0xFFFFFFFF  # the index of a refusal of a request as a whole

HEADER: Final = Struct("<IIIIQ")
HELLO_LAYOUT = Struct("<4sHHQQ")
WELCOME_LAYOUT = Struct("<HHIQQQ16sIIIIII")
DUPLICATE_LAYOUT = Struct("<IQ")
ACK_LAYOUT = Struct("<QQQ")
ACK_FRAME = Struct("<IIIIQQQQ")  # header and body at once: one of each for every connection a group
FRONTIER_LAYOUT = Struct("<QQQ")
REFUSED_LAYOUT = Struct("<IBBH")
ERROR_LAYOUT = Struct("<IBBHHH")
THROTTLE_LAYOUT = Struct("<II")

HEADER_BYTES: Final = HEADER.size
assert HEADER_BYTES == 24
assert HELLO_LAYOUT.size == 24
assert WELCOME_LAYOUT.size == 72
assert ACK_LAYOUT.size == FRONTIER_LAYOUT.size == 24
assert REFUSED_LAYOUT.size == 8
assert DUPLICATE_LAYOUT.size == 12
assert ACK_FRAME.size == HEADER_BYTES + ACK_LAYOUT.size
assert ERROR_LAYOUT.size == 12
assert THROTTLE_LAYOUT.size == 8


class FrameType(IntEnum):
    """What a frame says; below 16 a client sends it, from 17 on the daemon; GOODBYE both."""

    APPEND = 1
    HELLO = 2
    OPEN_STREAM = 3
    PING = 4
    GOODBYE = 5
    SKIP = 6
    ACK = 17
    WELCOME = 18
    STREAM = 19
    PONG = 20
    REFUSED = 21
    ERROR = 22
    FRONTIER = 23
    THROTTLE = 24
    RECEIVED = 25
    DUPLICATES = 26


class Capability(IntFlag):
    """What a client may ask for in its HELLO.

    FRONTIER: it subscribes. THROTTLE: it hears of quotas. RECEIVED: it may ask to be answered
    before the flush. DUPLICATES: it may give dedup ids to streams that compare them. EPOCH: it says
    of which takeover it is.
    """

    FRONTIER = 1
    THROTTLE = 2
    RECEIVED = 4
    DUPLICATES = 8
    EPOCH = 16


CAPABILITIES: Final = sum(map(int, Capability))


class AppendFlag(IntFlag):
    """RECEIVED: the daemon answers as soon as it has the request, and again once it is durable."""

    RECEIVED = 1


class ErrorFlag(IntFlag):
    """CLOSING: the connection ends. NOT_STORED: this and every later append in flight is not."""

    CLOSING = 1
    NOT_STORED = 2


APPEND_KIND: Final = FrameType.APPEND | APPEND_CODEC << 16  # type, no flags, codec: as one u32
RECEIVED_KIND: Final = APPEND_KIND | AppendFlag.RECEIVED << 8


def pack_frame(
    kind: int,
    body: bytes = b"",
    *,
    flags: int = 0,
    stream: int = 0,
    lag: int = 0,
    sequence: int = 0,
) -> bytes:
    """Return one frame; ``kind`` is a type, or ``APPEND_KIND``."""
    return HEADER.pack(len(body), kind | flags << 8, stream, lag, sequence) + body


_ACK_FRAME_PACK = ACK_FRAME.pack
_ACK_FRAME_UNPACK = ACK_FRAME.unpack
_ACK_FRAME_BYTES: Final = ACK_FRAME.size
_ACK_TYPE = int(FrameType.ACK)


def pack_ack(first: int, through: int, first_lsn: Lsn, durable_lsn: Lsn) -> bytes:
    """Return an ACK frame without making an event of it: one for every connection a group."""
    return _ACK_FRAME_PACK(24, _ACK_TYPE, 0, 0, through, first, first_lsn, durable_lsn)


# --- what a client sends ------------------------------------------------------------------------


class Append(NamedTuple):
    """A request: its body is ``core.body``'s codec 1."""

    stream: StreamId
    sequence: int
    lag: int
    body: bytes
    flags: int = 0

    def encode(self) -> bytes:
        """Return the frame."""
        kind = APPEND_KIND | self.flags << 8
        return HEADER.pack(len(self.body), kind, self.stream, self.lag, self.sequence) + self.body


class Hello(NamedTuple):
    """The first frame: a new session (0), the one of a name, or one to come back to.

    ``epoch`` is what WELCOME said of the session that is come back to.
    """

    request: int
    name: str = ""
    session: int = 0
    capabilities: int = 0
    version: int = VERSION
    epoch: int = 0

    def encode(self) -> bytes:
        """Return the frame."""
        name = self.name.encode()
        body = HELLO_LAYOUT.pack(MAGIC, self.version, len(name), self.capabilities, self.session)
        return pack_frame(FrameType.HELLO, body + name, lag=self.epoch, sequence=self.request)


class OpenStream(NamedTuple):
    """Asks for the durable id of a stream, which is made if a route takes it."""

    request: int
    name: str

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.OPEN_STREAM, self.name.encode(), sequence=self.request)


class Ping(NamedTuple):
    """Answered at once with the same body."""

    request: int
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.PING, self.body, sequence=self.request)


class Skip(NamedTuple):
    """What was answered as received and is lost: sequences up to ``through`` never come."""

    through: int

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.SKIP, sequence=self.through)


class Goodbye(NamedTuple):
    """Nothing more will be sent; what was accepted is answered first."""

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.GOODBYE)


# --- what the daemon sends ----------------------------------------------------------------------


class Welcome(NamedTuple):
    """The answer to HELLO; session 0 for a subscriber of the frontier."""

    request: int
    session: int
    last_sequence: int
    log_id: bytes
    capabilities: int = 0
    window: int = limits.WINDOW_REQUESTS
    version: int = VERSION
    request_max_bytes: int = limits.REQUEST_MAX_BYTES
    request_max_records: int = limits.REQUEST_MAX_RECORDS
    record_max_bytes: int = limits.RECORD_MAX_BYTES
    in_flight_max_bytes: int = limits.GROUP_MAX_BYTES
    session_idle_s: int = int(limits.SESSION_IDLE_S)
    epoch: int = 0

    def encode(self) -> bytes:
        """Return the frame."""
        body = WELCOME_LAYOUT.pack(
            self.version,
            0,
            self.window,
            self.capabilities,
            self.session,
            self.last_sequence,
            self.log_id,
            self.request_max_bytes,
            self.request_max_records,
            self.record_max_bytes,
            self.in_flight_max_bytes,
            self.session_idle_s,
            self.epoch,
        )
        return pack_frame(FrameType.WELCOME, body, sequence=self.request)


class StreamOpened(NamedTuple):
    """The answer to OPEN_STREAM: the id is durable."""

    request: int
    stream: StreamId

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.STREAM, stream=self.stream, sequence=self.request)


class Ack(NamedTuple):
    """Requests first..through are durable; their stored records are counted from first_lsn."""

    first: int
    through: int
    first_lsn: Lsn
    durable_lsn: Lsn

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_ack(*self)


def read_ack(data: bytes) -> Ack | None:
    """Return the ACK if the bytes are one whole, valid ACK and nothing else; None: look closer.

    What a client that waits for one answer nearly always receives; ``core.wire`` reads the rest.
    """
    if len(data) != _ACK_FRAME_BYTES:
        return None
    length, kind, stream, lag, through, first, first_lsn, durable_lsn = _ACK_FRAME_UNPACK(data)
    if length != ACK_LAYOUT.size or kind != _ACK_TYPE or stream or lag or first > through:
        return None
    return Ack(first, through, first_lsn, durable_lsn)


class Pong(NamedTuple):
    """The answer to PING."""

    request: int
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.PONG, self.body, sequence=self.request)


class Refusal(NamedTuple):
    """One refused record of a request; ``WHOLE_REQUEST``: all of it."""

    record: int
    code: str
    message: str = ""


class RefusedRecords(NamedTuple):
    """What of a request was not stored; comes before the ACK that covers it."""

    sequence: int
    refusals: tuple[Refusal, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        parts: list[bytes] = []
        for record, code, message in self.refusals:
            text = _cut(message, _REFUSAL_MESSAGE_MAX_BYTES)
            parts += (
                REFUSED_LAYOUT.pack(record, len(code), 0, len(text)),
                code.encode("ascii"),
                text,
            )
        return pack_frame(FrameType.REFUSED, b"".join(parts), sequence=self.sequence)


class Failed(NamedTuple):
    """An ERROR: of the frame of type ``answers`` and number ``request``, or of the connection."""

    code: str
    message: str
    hint: str = ""
    retry_after_ms: int = 0
    flags: int = 0
    answers: int = 0
    request: int = 0

    @property
    def closing(self) -> bool:
        """Whether the connection ends with this frame."""
        return bool(self.flags & ErrorFlag.CLOSING)

    @property
    def not_stored(self) -> bool:
        """Whether this append and every later one in flight is not stored."""
        return bool(self.flags & ErrorFlag.NOT_STORED)

    def encode(self) -> bytes:
        """Return the frame."""
        code = self.code.encode("ascii")
        message = _cut(self.message, _MESSAGE_MAX_BYTES)
        hint = _cut(self.hint, _MESSAGE_MAX_BYTES)
        body = ERROR_LAYOUT.pack(self.retry_after_ms, len(code), 0, len(message), len(hint), 0)
        return pack_frame(
            FrameType.ERROR,
            body + code + message + hint,
            flags=self.flags,
            lag=self.answers,
            sequence=self.request,
        )


class Received(NamedTuple):
    """Requests up to ``through`` are taken in, and not durable yet; an ACK follows."""

    through: int

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.RECEIVED, sequence=self.through)


class Duplicate(NamedTuple):
    """A record of a request whose dedup id is that of an earlier record."""

    record: int
    lsn: Lsn


class DuplicateRecords(NamedTuple):
    """What of a request was stored before, under which LSN; comes before the ACK that covers it."""

    sequence: int
    duplicates: tuple[Duplicate, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        body = b"".join([DUPLICATE_LAYOUT.pack(*each) for each in self.duplicates])
        return pack_frame(FrameType.DUPLICATES, body, sequence=self.sequence)


class FrontierMoved(NamedTuple):
    """The end of what is durable, for subscribers."""

    frontier: Frontier

    def encode(self) -> bytes:
        """Return the frame."""
        return pack_frame(FrameType.FRONTIER, FRONTIER_LAYOUT.pack(*self.frontier))


class Throttle(NamedTuple):
    """Before the next request of a stream the client is to pause: its quota is nearly used."""

    stream: StreamId
    retry_after_ms: int
    used_permille: int

    def encode(self) -> bytes:
        """Return the frame."""
        body = THROTTLE_LAYOUT.pack(self.retry_after_ms, self.used_permille)
        return pack_frame(FrameType.THROTTLE, body, stream=self.stream)


Event: TypeAlias = (
    Append
    | Hello
    | OpenStream
    | Ping
    | Skip
    | Goodbye
    | Welcome
    | StreamOpened
    | Ack
    | Pong
    | RefusedRecords
    | Received
    | DuplicateRecords
    | Failed
    | FrontierMoved
    | Throttle
)

_REFUSAL_MESSAGE_MAX_BYTES = 512
_MESSAGE_MAX_BYTES = 1_024
_LONGEST_REFUSAL = REFUSED_LAYOUT.size + 23 + _REFUSAL_MESSAGE_MAX_BYTES
assert limits.REFUSALS_KEPT_PER_REQUEST * _LONGEST_REFUSAL <= limits.REFUSED_FRAME_MAX_BYTES
assert limits.REQUEST_MAX_RECORDS * DUPLICATE_LAYOUT.size <= limits.DUPLICATES_FRAME_MAX_BYTES
assert ERROR_LAYOUT.size + 255 + 2 * _MESSAGE_MAX_BYTES <= limits.ERROR_FRAME_MAX_BYTES


def _cut(text: str, max_bytes: int) -> bytes:
    data = text.encode("utf-8", "backslashreplace")
    return data if len(data) <= max_bytes else data[:max_bytes].decode("utf-8", "ignore").encode()
