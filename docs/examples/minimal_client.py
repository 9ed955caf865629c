#!/usr/bin/env python3
"""A minimal wald client: the wire protocol of docs/protocol.md with the standard library only.

    python minimal_client.py SOCKET STREAM < lines      appends each line, prints the LSNs

It is blocking and meant to be read. `append` stores records and waits; `send` and `wait` are its
two halves, for several requests in flight. `reconnect` goes on after a lost connection.
"""

import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

APPEND, HELLO, OPEN_STREAM, PING, GOODBYE = 1, 2, 3, 4, 5
ACK, WELCOME, STREAM, PONG, REFUSED, ERROR = 17, 18, 19, 20, 21, 22
CLOSING, NOT_STORED = 1, 2  # flags of ERROR
WHOLE_REQUEST = 0xFFFFFFFF  # an index in REFUSED
ANSWER_MAX_BYTES = 1 << 20  # the largest bound of a frame that the daemon sends
GONE = "the daemon closed the connection"

HEADER = struct.Struct("<IBBHIIQ")
HELLO_BODY = struct.Struct("<4sHHQQ")
WELCOME_BODY = struct.Struct("<HHIQQQ16sIIIIII")
ACK_BODY = struct.Struct("<QQQ")
REFUSED_ENTRY = struct.Struct("<IBBH")
ERROR_BODY = struct.Struct("<IBBHHH")

# Msgpack: the first code and the bound of the short form; then code and bytes of the length.
BIN = (0, 0, ((0xC4, 1), (0xC5, 2), (0xC6, 4)))
STR = (0xA0, 32, ((0xD9, 1), (0xDA, 2), (0xDB, 4)))
ARRAY = (0x90, 16, ((0xDC, 2), (0xDD, 4)))

Key = str | bytes | None
Transcript = Callable[[Literal["sent", "received"], bytes], None]


class ProtocolError(Exception):
    """The daemon sent what the protocol does not allow, or the caller asked for it."""


class ServerError(Exception):
    """An ERROR frame; `answers` is the type of the frame that it answers (0: none)."""

    def __init__(self, frame: "Frame") -> None:
        """Read the body of the frame."""
        self.retry_after_ms, code, _, message, hint, _ = ERROR_BODY.unpack_from(frame.body)
        text = frame.body[ERROR_BODY.size :]
        require(len(text) == code + message + hint, "an ERROR of another length than it says")
        self.code = text[:code].decode("ascii", "replace")
        self.message = text[code : code + message].decode("utf-8", "replace")
        self.hint = text[code + message :].decode("utf-8", "replace")
        self.answers, self.sequence = frame.lag, frame.sequence
        self.closing, self.not_stored = bool(frame.flags & CLOSING), bool(frame.flags & NOT_STORED)
        super().__init__(f"{self.code}: {self.message} {self.hint}".rstrip())


class RefusedError(Exception):
    """Records were not stored: `refusals` is code and message by index, `lsns` has None there."""

    def __init__(self, lsns: list[int | None], refusals: dict[int, tuple[str, str]]) -> None:
        """Keep both; the text shows the first refusal."""
        self.lsns, self.refusals = lsns, refusals
        index, (code, message) = min(refusals.items())
        super().__init__(f"{lsns.count(None)} records refused, first {index}: {code} {message}")


def require(condition: object, text: str) -> None:
    """Raise ProtocolError unless the condition holds."""
    if not condition:
        raise ProtocolError(text)


class Frame(NamedTuple):
    """One frame; what its type does not use is zero."""

    type: int
    body: bytes = b""
    flags: int = 0
    codec: int = 0
    stream: int = 0
    lag: int = 0
    sequence: int = 0

    def pack(self) -> bytes:
        """Return the header of 24 bytes and the body."""
        return HEADER.pack(len(self.body), self.type, *self[2:]) + self.body


@dataclass
class Request:
    """An APPEND that waits for its ACK, or for somebody to ask for its LSNs."""

    frame: Frame
    records: int
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    lsns: list[int | None] = field(default_factory=list)

    def settle(self, lsn: int) -> int:
        """Give the stored records their LSNs, from `lsn` on; return the next one."""
        for index in range(self.records):
            stored = not self.refusals.keys() & {index, WHOLE_REQUEST}
            self.lsns.append(lsn if stored else None)
            lsn += stored
        return lsn


def pack_head(length: int, form: tuple[int, int, tuple[tuple[int, int], ...]]) -> bytes:
    """Msgpack: what precedes the contents; unlike the rest of the protocol it is big-endian."""
    short, bound, forms = form
    if length < bound:
        return bytes([short | length])
    code, size = next((code, size) for code, size in forms if length < 1 << 8 * size)
    return bytes([code]) + length.to_bytes(size, "big")


def pack_array(items: Sequence[Key]) -> bytes:
    """Msgpack: an array of nil, str and bin."""
    parts = [pack_head(len(items), ARRAY)]
    for item in items:
        data = item.encode() if isinstance(item, str) else item
        if data is None:
            parts.append(b"\xc0")
        else:
            parts += pack_head(len(data), STR if isinstance(item, str) else BIN), data
    return b"".join(parts)


class MinimalClient:
    """One session, on one connection at a time; not for several threads at once."""

    def __init__(self, path: str, transcript: Transcript | None = None) -> None:
        """Keep the socket's path; `transcript` is called with each whole frame sent or received."""
        self.path, self.transcript = path, transcript
        self.session = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        self._request_id = 0  # of HELLO, OPEN_STREAM and PING; anew on each connection
        self._last = 0  # the last sequence that was used
        self._pending: dict[int, Request] = {}  # without ACK, in the order of the sequences
        self._done: dict[int, Request] = {}

    def __enter__(self) -> Self:
        """Connect and say HELLO without a name."""
        self.connect()
        self.hello()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close; say GOODBYE first unless an exception leaves the block."""
        self.close(goodbye=kind is None)

    def connect(self, timeout: float | None = 30) -> None:
        """Open the socket; `hello` has to follow within 5 seconds."""
        self._socket.close()
        self._buffer.clear()
        self._request_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._socket.connect(self.path)

    def hello(self, name: str = "") -> None:
        """Begin a session, or take over the one of `name`; forgets what was unanswered before."""
        self._pending.clear()
        self._done.clear()
        self._last = self._hello(name.encode(), 0)

    def reconnect(self) -> None:
        """Come back to the session on a new connection; send what is unanswered again."""
        require(self.session, "there is no session to come back to")
        self.connect()
        last = self._hello(b"", self.session)
        require(last <= self._last, "fenced: another client used this session")
        for request in list(self._pending.values()):
            self._send(request.frame)

    def open_stream(self, name: str) -> int:
        """Return the durable id of the stream."""
        return self._ask(OPEN_STREAM, name.encode(), STREAM).stream

    def ping(self, payload: bytes = b"") -> bytes:
        """Return what the PONG carries: the payload, at most 64 bytes."""
        return self._ask(PING, payload, PONG).body

    def append(
        self, stream: int, values: Sequence[bytes], keys: Sequence[Key] | None = None
    ) -> list[int]:
        """Store the values, in one request; return their LSNs when they are on stable storage."""
        return self.wait(self.send(stream, values, keys)) if values else []

    def send(
        self,
        stream: int,
        values: Sequence[bytes],
        keys: Sequence[Key] | None = None,
        content: int = 0,
    ) -> int:
        """Send one request without waiting for its ACK; return its sequence, for `wait`."""
        columns = pack_array(values) + (b"\xc0" if keys is None else pack_array(keys))
        body = b"\x95" + bytes([content]) + columns + b"\xc0\xc0"  # content: a positive fixint
        require(len(values) <= self._max_records, "too many records for one request")
        require(len(body) <= self._max_bytes, "too many bytes for one request")
        while self._pending and not self._has_room(len(body)):
            self._receive()
        lag, self._last = self._next_lag(), self._last + 1
        frame = Frame(APPEND, body, codec=1, stream=stream, lag=lag, sequence=self._last)
        self._pending[frame.sequence] = Request(frame, len(values))
        self._send(frame)
        return frame.sequence

    def wait(self, sequence: int) -> list[int]:
        """Wait for the ACK that covers the request; return the LSNs, or raise RefusedError."""
        while sequence in self._pending:
            self._receive()
        request = self._done.pop(sequence)
        if request.refusals:
            raise RefusedError(request.lsns, request.refusals)
        return [lsn for lsn in request.lsns if lsn is not None]

    def close(self, *, goodbye: bool = True) -> None:
        """Close; with GOODBYE when nobody comes back, after the answers of all that was sent."""
        try:
            if goodbye:
                self._send(Frame(GOODBYE))
                while True:
                    self._receive()
        except OSError:  # not connected, the daemon's GOODBYE, or the end of the connection
            pass
        finally:
            self._socket.close()

    def _hello(self, name: bytes, session: int) -> int:
        """Say HELLO, keep what WELCOME says, return the session's last sequence."""
        body = HELLO_BODY.pack(b"wald", 1, len(name), 0, session) + name
        fields = WELCOME_BODY.unpack(self._ask(HELLO, body, WELCOME).body)
        version, _, self._window, capabilities, self.session, last, _log_id, *limits = fields
        self._max_bytes, self._max_records, _, self._max_in_flight, _idle_s, _ = limits
        require((version, capabilities) == (1, 0), "another version or capability was granted")
        return int(last)

    def _next_lag(self) -> int:
        """Return the distance of the next sequence from answered_through."""
        return self._last + 2 - next(iter(self._pending), self._last + 1)

    def _has_room(self, size: int) -> bool:
        """Tell whether window and in-flight bytes allow one more request."""
        size += sum(len(request.frame.body) for request in self._pending.values())
        return bool(self._next_lag() <= self._window and size <= self._max_in_flight)

    def _ask(self, kind: int, body: bytes, answer: int) -> Frame:
        self._request_id += 1
        request_id = self._request_id
        self._send(Frame(kind, body, sequence=request_id))
        while True:
            frame = self._receive()
            if (frame.type, frame.sequence) == (answer, request_id):
                return frame

    def _send(self, frame: Frame) -> None:
        data = frame.pack()
        self._socket.sendall(data)
        if self.transcript:
            self.transcript("sent", data)

    def _fill(self, size: int) -> None:
        """Receive until the buffer has `size` bytes; after a timeout it can be called again."""
        while len(self._buffer) < size:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError(GONE)
            self._buffer += chunk

    def _receive(self) -> Frame:
        """Receive one frame and do what it says; ERROR and GOODBYE are raised."""
        self._fill(HEADER.size)
        length, kind, *fields = HEADER.unpack_from(self._buffer)
        require(length <= ANSWER_MAX_BYTES, "a frame exceeds every bound")
        self._fill(HEADER.size + length)
        data = bytes(self._buffer[: HEADER.size + length])
        del self._buffer[: len(data)]
        if self.transcript:
            self.transcript("received", data)
        frame = Frame(kind, data[HEADER.size :], *fields)
        if kind == ACK:
            self._acknowledge(frame)
        elif kind == REFUSED:
            self._refuse(frame)
        elif kind == ERROR:
            self._fail(ServerError(frame))
        elif kind == GOODBYE:
            raise ConnectionError(GONE)
        return frame

    def _acknowledge(self, frame: Frame) -> None:
        first, lsn, _durable = ACK_BODY.unpack(frame.body)
        covered = [sequence for sequence in self._pending if sequence <= frame.sequence]
        if covered:  # LSNs can be counted only if every request of the ACK is known
            require(covered == list(range(first, covered[-1] + 1)), "an ACK of unknown requests")
            require(covered[-1] == frame.sequence, "an ACK of requests that were not sent")
        for sequence in covered:
            request = self._done[sequence] = self._pending.pop(sequence)
            lsn = request.settle(lsn)

    def _refuse(self, frame: Frame) -> None:
        request, rest = self._pending.get(frame.sequence), frame.body
        while request and rest:
            index, code, _, message = REFUSED_ENTRY.unpack_from(rest)
            text, rest = rest[REFUSED_ENTRY.size :], rest[REFUSED_ENTRY.size + code + message :]
            request.refusals[index] = (
                text[:code].decode("ascii", "replace"),
                text[code : code + message].decode("utf-8", "replace"),
            )

    def _fail(self, error: ServerError) -> None:
        if error.answers == APPEND and error.not_stored:
            for sequence in [s for s in self._pending if s >= error.sequence]:
                del self._pending[sequence]
            self._last = error.sequence - 1  # not used: the next request takes it
        elif error.answers == APPEND:
            self._pending.pop(error.sequence, None)
        if error.closing:
            self._socket.close()
        raise error


def main(path: str, name: str) -> int:
    """Append the lines of stdin, without their ends; print an LSN, or `refused`, for each."""
    status = 0
    with MinimalClient(path) as client:
        stream = client.open_stream(name)
        while lines := sys.stdin.buffer.readlines(1 << 16):  # 64 KiB, thus at most 65,536 lines
            lsns: Sequence[int | None]
            try:
                lsns = client.append(stream, [line.removesuffix(b"\n") for line in lines])
            except RefusedError as error:
                lsns, status = error.lsns, 1
                sys.stderr.write(f"{error}\n")
            sys.stdout.writelines(f"{'refused' if lsn is None else lsn}\n" for lsn in lsns)
    return status


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python minimal_client.py SOCKET STREAM")
    sys.exit(main(*sys.argv[1:]))
