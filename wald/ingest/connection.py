"""One client's connection: bytes from its socket become runs of the next group.

The receive buffer is shared by all connections: what a read brings is taken at once, and only an
unfinished rest is kept. Everything here runs in the one loop; nothing waits.
"""

import asyncio
import logging
from enum import Enum
from typing import Final, cast

from wald import limits
from wald.core import sessions
from wald.core.commit import READ_SLACK_BYTES, Contribution, RunBuilder
from wald.core.events import (
    Append,
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
    RefusedRecords,
    Welcome,
)
from wald.core.frame import Section, crc32c
from wald.core.lone import LONE_MAX_BYTES, take_lone
from wald.core.sessions import Verdict
from wald.core.wire import Side, frame_end, next_frame
from wald.errors import Backpressure, BadFrame
from wald.ingest.house import House
from wald.model import Frontier, StreamId

_log = logging.getLogger("wald.ingest")


class Phase(Enum):
    """Where a connection is in its life."""

    GREETING = "waits for HELLO"
    ISSUING = "its new session is not durable yet"
    OPEN = "may append"
    SUBSCRIBED = "receives the frontier"
    CLOSING = "nothing more is read"


_OPEN: Final = Phase.OPEN  # a member is looked up slowly
_CLOSING: Final = Phase.CLOSING


class Connection(asyncio.BufferedProtocol):
    """One client's connection, in the loop of ingest."""

    def __init__(self, house: "House[Connection]") -> None:
        self._house = house
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._charged_bytes = 0
        self._large: bytearray | None = None
        self._large_filled = 0
        self._progress_tick = house.ticks  # of HELLO, or of the first byte of an unfinished frame
        self._closing_frames = b""
        self._frontier_due = False
        self._paused = False
        self.phase = Phase.GREETING
        self.armed = False
        self.session = 0
        self._stream: StreamId = 0  # of the last append; known to the log
        self._expected = 1
        self._accepted = 0  # the first sequence since the last commit; 0: none
        self._refusing = False  # NOT_STORED was said: what is in flight behind it is thrown away
        self._run: RunBuilder | None = None
        self._sections: list[Section] = []
        self._refused: list[RefusedRecords] = []

    # --- the transport's calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register, or refuse at the bound."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=limits.SEND_BUFFER_MAX_BYTES)
        house = self._house
        house.connections.add(self)
        if house.stopping:  # accepted in the last turn of the loop: the client comes again
            self.abort()
            return
        if len(house.connections) > limits.CONNECTIONS_MAX + limits.CONNECTIONS_SPARE_COUNT:
            self.close_with("backpressure", "too many connections", retry=True)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's interface
        """Return where the next bytes go: the shared buffer, or the rest of a large frame."""
        if self._large is not None:
            return memoryview(self._large)[self._large_filled :]
        return self._house.receive_view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what a read brought."""
        house = self._house
        if (
            nbytes <= LONE_MAX_BYTES
            and self._stream
            and not self._rest
            and self._large is None
            and self.phase is _OPEN
        ):
            expected = self._expected
            lone = take_lone(house.receive_view, nbytes, self._stream, self.session, expected)
            if lone is not None and house.committer.accept_lone(self, lone):
                self._expected = expected + 1
                self._refusing = False
                return
        self.take_read(nbytes)

    def take_read(self, nbytes: int) -> None:
        """Take what a read brought; ``buffer_updated`` comes to the same, faster."""
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
        try:
            at = self._process(data)
            if at < len(data) and self.phase is not _CLOSING:
                if len(data) == nbytes and self.phase is not Phase.GREETING:
                    self._progress_tick = self._house.ticks  # this read brought its first byte
                self._keep(data, at)
        except BadFrame as error:
            _log.warning("a client broke the protocol: %s: %r", error.reason, error.message)
            self.close_with(error.reason, error.message, hint=error.hint)

    def eof_received(self) -> bool:
        """Answer what was accepted, then close: keep the sending half open until then."""
        self.finish(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's interface
        """Forget the connection; what was accepted stays in its group."""
        self.phase = Phase.CLOSING
        self._transport = None
        self._large = None
        self._rest = b""
        self._release()
        self._house.forget(self)

    def pause_writing(self) -> None:
        """A client does not read its answers: it must not cost memory, nor stall the others."""
        self._paused = True
        if self.phase is not Phase.SUBSCRIBED:
            _log.warning("a client does not read its answers: closed")
            self.abort()

    def resume_writing(self) -> None:
        """Send the newest frontier to a subscriber that fell behind."""
        self._paused = False
        if self._frontier_due:
            self.notify(self._house.log.frontier)

    # --- bytes to frames ------------------------------------------------------------------------

    def _process(self, data: bytes) -> int:
        """Take the complete frames; return where the unfinished rest begins."""
        self._take_back()
        at, end = 0, len(data)
        while self.phase is not _CLOSING:
            if self._stream:
                at = self._take(data, at)
            if at == end:
                break
            found = next_frame(data, at, Side.DAEMON)
            if found is None:
                break
            event, behind = found
            if self._handle(event):
                at = behind
        if at:
            self._progress_tick = self._house.ticks
        return at

    def _take(self, data: bytes, at: int) -> int:
        """Let the run take what it can: the hot path."""
        committer = self._house.committer
        if committer.size_bytes + len(data) - at + READ_SLACK_BYTES > limits.GROUP_MAX_BYTES:
            committer.commit()
        run = self._run
        if run is None:
            run = self._run = RunBuilder(self._stream, self._expected)
            before = 0
        else:
            before = run.size_bytes
        end = run.take(data, at)
        if end != at:
            if not self._accepted:
                self._accepted = self._expected
            self._expected = run.next_sequence
            self._refusing = False
            committer.accept(self, run.size_bytes - before)
        elif not before:
            self._run = None  # it took nothing: what a section costs is counted when one begins
        return end

    def _take_back(self) -> None:
        """Begin a run with the request that was alone since the last commit."""
        lone = self._house.committer.take_back(self)
        if lone is None:
            return
        stream, _, sequence, answered, body = lone
        self._run = run = RunBuilder(stream, sequence)
        run.add(body, lag=sequence - answered)
        self._accepted = sequence
        self._house.committer.accept(self, run.size_bytes)

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

    # --- frames ---------------------------------------------------------------------------------

    def _handle(self, event: Event) -> bool:
        """Act on one frame; False if it is left for the run that was begun with it."""
        match event:
            case Append() if self.phase is _OPEN:
                return self._append(event)
            case Hello() if self.phase is Phase.GREETING:
                self._house.greet(self, event)
            case OpenStream() if self.phase is _OPEN:
                self._house.open_stream(self, event)
            case Ping() if self.phase in {Phase.OPEN, Phase.SUBSCRIBED}:
                self.send(Pong(event.request, event.body).encode())
            case Goodbye():
                self._house.leave(self)
                self.finish(Goodbye().encode())
            case _:
                msg = f"{type(event).__name__} is not expected now"
                raise BadFrame(msg, reason="frame.unexpected")
        return True

    def _append(self, event: Append) -> bool:
        """Decide on an append that the run did not take."""
        if event.sequence == self._expected:
            if event.stream not in self._house.log.state.streams:
                msg = f"stream {event.stream} was never opened"
                raise BadFrame(msg, reason="frame.stream")
            self._seal()
            self._stream = event.stream
            return False
        if self._refusing and event.sequence > self._expected:
            return True
        self._answer_again(event)
        return True

    def _answer_again(self, event: Append) -> None:
        house = self._house
        crc = crc32c(event.body)
        decision = self._decide(event, crc)
        if decision.verdict is Verdict.WAIT:
            house.committer.commit()
            if self._refusing:
                return  # the original found no room: NOT_STORED was said of this one too
            decision = self._decide(event, crc)
        if decision.run is not None:
            durable_lsn = house.log.frontier.lsn
            self.send(sessions.repeat_answer(decision.run, event.sequence, durable_lsn))
            return
        code = _CODES.get(decision.verdict)
        if code is None:  # the log failed: nobody is answered
            return
        house.count_refused(code)
        self.fail(Failed(code, f"sequence {event.sequence}: {decision.verdict.value}"), event)

    def _decide(self, event: Append, crc: int) -> sessions.Decision:
        self._seal()
        state = self._house.log.state.sessions.get(self.session)
        return sessions.decide(state, self._sections, event.stream, event.sequence, crc)

    # --- the group ------------------------------------------------------------------------------

    def _seal(self) -> None:
        self._take_back()
        run = self._run
        if run is not None and run.next_sequence > run.first_sequence:
            self._sections.append(run.section(self.session))
            if run.refused:
                self._refused += run.refused
        self._run = None

    def contribution(self) -> "Contribution[Connection]":
        """Hand over what was accepted since the last commit."""
        self._seal()
        mine = Contribution(self, self._sections, self._refused, self._accepted, self._expected - 1)
        self._sections = []
        if self._refused:
            self._refused = []
        self._accepted = 0
        self.armed = False
        return mine

    def answer(self, frames: bytes) -> None:
        """Send the answer to a contribution; then the end, if the connection is to end."""
        if self._transport is None:
            return
        self._transport.write(frames)
        if self.phase is _CLOSING:
            self._close()

    def refuse_from(self, first_sequence: int, error: Backpressure) -> None:
        """Say that what was accepted is not stored; its sequences are not used."""
        self._expected = first_sequence
        self._refusing = True
        self.answer(_failed_for_room(error, FrameType.APPEND, first_sequence).encode())

    # --- greeting -------------------------------------------------------------------------------

    @property
    def issuing(self) -> bool:
        """Whether the connection waits for its new session to be durable."""
        return self.phase is Phase.ISSUING

    def await_session(self) -> None:
        """The session of this connection's HELLO is in the next group."""
        self.phase = Phase.ISSUING

    def welcome(self, request: int, session: int, last_sequence: int) -> None:
        """Open the connection for a session."""
        self.session = session
        self._expected = last_sequence + 1
        self.phase = Phase.OPEN
        log_id = self._house.log.log_id
        self.send(Welcome(request, session, last_sequence, log_id).encode())

    def subscribe(self, hello: Hello) -> None:
        """Make the connection a subscriber of the frontier."""
        assert self._transport is not None
        self.phase = Phase.SUBSCRIBED
        self._transport.set_write_buffer_limits(high=0)
        log = self._house.log
        welcome = Welcome(hello.request, 0, 0, log.log_id, capabilities=hello.capabilities)
        self.send(welcome.encode())
        self.notify(log.frontier)

    def notify(self, frontier: Frontier) -> None:
        """Tell a subscriber where the frontier is; only the newest, if it does not read."""
        self._frontier_due = self._paused
        if not self._paused:
            self.send(FrontierMoved(frontier).encode())

    # --- sending and ending ---------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """Send, if there is still somebody to send to."""
        if self._transport is not None:
            self._transport.write(frames)

    def fail(self, failed: Failed, event: Append | Hello | OpenStream) -> None:
        """Answer one frame with an error; the connection goes on."""
        if isinstance(event, Append):
            answers, request = FrameType.APPEND, event.sequence
        else:
            answers = FrameType.HELLO if isinstance(event, Hello) else FrameType.OPEN_STREAM
            request = event.request
        self.send(failed._replace(answers=answers, request=request).encode())

    def fail_for_room(self, error: Backpressure, event: Hello | OpenStream) -> None:
        """Answer a HELLO or OPEN_STREAM whose statement found no room; it may be sent again."""
        if self.phase is Phase.ISSUING:
            self.phase = Phase.GREETING
        self.fail(_failed_for_room(error, 0, 0)._replace(flags=0), event)

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
        self._seal()
        self.phase = Phase.CLOSING
        self._progress_tick = self._house.ticks
        self._closing_frames = last_frames
        self._transport.pause_reading()
        if not self._sections:
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
        if self.phase is Phase.GREETING and waited_s > limits.HELLO_TIMEOUT_S:
            self.close_with("frame.slow", "no HELLO came in time")
        elif waited_s > limits.FRAME_TIMEOUT_S:
            if self.phase is _CLOSING:
                self.abort()
            elif self._rest or self._large is not None:
                self.close_with("frame.slow", "a frame was not finished in time")


_CODES = {
    Verdict.CONFLICT: "sequence-conflict",
    Verdict.UNKNOWN: "outcome-unknown",
    Verdict.GAP: "sequence-gap",
}


def _failed_for_room(error: Backpressure, answers: int, request: int) -> Failed:
    retry_after_ms = int(error.retry_after_s * 1000)
    flags = ErrorFlag.NOT_STORED
    return Failed(error.code, error.message, error.hint, retry_after_ms, flags, answers, request)
