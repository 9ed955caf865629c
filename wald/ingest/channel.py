"""The socket's side of a connection: memory for what is unfinished, flow, time.

The receive buffer is shared by all connections: what a read brings is taken at once, and only an
unfinished rest is kept. Who leaves its answers unread is not read from; who brings much waits for
the next group, so that the others come first. Everything runs in the one loop; nothing waits.
"""

import asyncio
from abc import abstractmethod
from enum import Enum
from typing import Any, Final, cast

from wald import limits
from wald.core.events import ErrorFlag, Failed, Goodbye
from wald.core.wire import Side, frame_end
from wald.errors import BadFrame
from wald.ingest.house import House


class Phase(Enum):
    """Where a connection is in its life."""

    GREETING = "waits for HELLO"
    ISSUING = "its new session is not durable yet"
    OPEN = "may append"
    SUBSCRIBED = "receives the frontier"
    CLOSING = "nothing more is read"


_CLOSING: Final = Phase.CLOSING  # a member is looked up slowly


class Channel(asyncio.BufferedProtocol):
    """Reads from a socket as fast as is fair, sends what is read, and ends.

    A subclass makes frames of bytes (``_process``), and says whether something that was accepted
    is unanswered (``_is_owed``).
    """

    armed: bool

    def __init__(self, house: "House[Any]") -> None:
        self._house = house
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._charged_bytes = 0
        self._large: bytearray | None = None
        self._large_filled = 0
        self._progress_tick = house.ticks  # of HELLO, or of the first byte of an unfinished frame
        self._closing_frames = b""
        self._clogged = False  # it leaves its answers unread, and is not read from
        self._held = False  # it is not read from before the next commit
        self._turn_bytes = 0  # read since the last commit
        self._unread = b""  # of a read that brought too much for one turn
        self._pauses = False  # for one of these reasons nothing is read
        self.phase = Phase.GREETING

    @abstractmethod
    def _process(self, data: bytes) -> int:
        """Take the complete frames; return where the unfinished rest begins."""

    @abstractmethod
    def _is_owed(self) -> bool:
        """Close the run; tell whether something that was accepted is to be answered."""

    @abstractmethod
    def _caught_up(self) -> None:
        """The other side reads again."""

    # --- the transport's calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; whether there is room was asked before."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=limits.CLOGGED_BYTES)
        house = self._house
        house.connections.add(self)
        if house.stopping:  # accepted in the last turn of the loop: the client comes again
            self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's interface
        """Return where the next bytes go: the shared buffer, or the rest of a large frame."""
        if self._large is not None:
            return memoryview(self._large)[self._large_filled :]
        return self._house.receive_view

    def take_read(self, nbytes: int) -> None:
        """Take what a read brought; ``buffer_updated`` comes to the same, faster."""
        self._turn_bytes += nbytes
        if self._large is not None:
            self._large_filled += nbytes
            if self._large_filled < len(self._large):
                return
            data = bytes(self._large)
            self._large = None
            self._release()
        else:
            data = bytes(self._house.receive_view[:nbytes])
            if self._rest:
                data = self._rest + data
                self._rest = b""
                self._release()
        if len(data) == nbytes and self.phase is not Phase.GREETING:
            self._progress_tick = self._house.ticks  # this read brought its first byte
        self._take_data(data)

    def _take_data(self, data: bytes) -> None:
        try:
            at = self._process(data)
            if at < len(data) and self.phase is not _CLOSING and not self._unread:
                self._keep(data, at)
        except BadFrame as error:
            self._house.tell("protocol", f"a client broke it: {error.reason}: {error.message!r}")
            self.close_with(error.reason, error.message, hint=error.hint)
        if self.armed and self._turn_bytes > limits.TURN_MAX_BYTES:
            self._held = True  # the others come first
        self._read_or_not()

    def _go_on(self) -> None:
        """Take what a read brought and one turn had no time for."""
        data, self._unread = self._unread, b""
        if self._transport is not None and self.phase is not _CLOSING:
            self._take_data(data)

    def _read_or_not(self) -> None:
        """Read on unless something speaks against it."""
        transport = self._transport
        if transport is None or self.phase is _CLOSING:
            return
        pauses = bool(self._clogged or self._held or self._unread)
        if pauses is not self._pauses:
            self._pauses = pauses
            (transport.pause_reading if pauses else transport.resume_reading)()

    def eof_received(self) -> bool:
        """Answer what was accepted, then close: keep the sending half open until then."""
        self.finish(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's interface
        """Forget the connection; what was accepted stays in its group."""
        self.phase = Phase.CLOSING
        self._transport = None
        self._large = None
        self._rest = self._unread = b""
        self._release()
        self._house.forget(self)

    def pause_writing(self) -> None:
        """A client does not read its answers: it must not cost memory, nor stall the others."""
        self._clogged = True
        if self.phase is Phase.SUBSCRIBED:
            return
        self._house.clogged.add(self)
        self._progress_tick = self._house.ticks
        self._read_or_not()
        self._bound_answers()

    def resume_writing(self) -> None:
        """Read on."""
        self._clogged = False
        self._house.clogged.discard(self)
        self._caught_up()
        self._read_or_not()

    @property
    def unread_bytes(self) -> int:
        """How much of its answers the client has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _bound_answers(self) -> None:
        """End the connection when it, or all like it, keep too many answers waiting."""
        if (
            self.unread_bytes > limits.SEND_BUFFER_MAX_BYTES
            or sum(each.unread_bytes for each in self._house.clogged)
            > limits.SEND_BUFFERS_MAX_BYTES
        ):
            self._house.tell("unread", "a client does not read its answers: closed")
            self._house.count_refused("answers-unread")
            self.abort()

    def _keep(self, data: bytes, at: int) -> None:
        """Keep an unfinished frame; memory for it is charged before it is taken."""
        end = frame_end(data, at, Side.DAEMON)
        size = 0 if end is None else end - at
        if size > limits.SMALL_REST_BYTES:
            if not self._house.charge(size):
                self.close_with("backpressure", "no memory for unfinished frames", retry=True)
                return
            self._charged_bytes = size
        if size > limits.RECEIVE_BUFFER_BYTES:
            self._large = bytearray(size)
            self._large_filled = len(data) - at
            self._large[: self._large_filled] = data[at:]
        else:
            self._rest = data[at:]

    def _release(self) -> None:
        self._house.release(self._charged_bytes)
        self._charged_bytes = 0

    # --- sending and ending ---------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """Send, if there is still somebody to send to."""
        if self._transport is not None:
            self._transport.write(frames)

    def close_with(self, code: str, message: str, *, hint: str = "", retry: bool = False) -> None:
        """Answer what was accepted, send an error of the connection, close."""
        self._house.count_refused(code)
        retry_after_ms = limits.RETRY_AFTER_MS if retry else 0
        failed = Failed(code, message, hint, retry_after_ms, ErrorFlag.CLOSING)
        self.finish(failed.encode())

    def finish(self, last_frames: bytes) -> None:
        """Read no more; send these frames behind the answers to what was accepted, and close."""
        if self.phase is _CLOSING or self._transport is None:
            return
        owed = self._is_owed()
        self.phase = Phase.CLOSING
        self._progress_tick = self._house.ticks
        self._closing_frames = last_frames
        self._transport.pause_reading()
        if not owed:
            self._close()

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.write(self._closing_frames)
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.phase = Phase.CLOSING
        if self._transport is not None:
            self._transport.abort()

    def check_time(self, ticks: int) -> None:
        """Close a connection that is too slow; a tick is a second."""
        waited_s = ticks - self._progress_tick
        may = self._house.allowed
        if self.phase is Phase.GREETING and waited_s > may.hello_timeout_s:
            self.close_with("frame.slow", "no HELLO came in time")
        elif waited_s > may.frame_timeout_s:
            if self.phase is _CLOSING:
                self.abort()
            elif self._clogged and self.phase is not Phase.SUBSCRIBED:
                self._house.count_refused("answers-unread")
                self.abort()
            elif self._rest or self._large is not None:
                self.close_with("frame.slow", "a frame was not finished in time")
            elif waited_s > may.idle_s and self.phase is Phase.OPEN:
                self.finish(Goodbye().encode())  # its client comes back when it has something
