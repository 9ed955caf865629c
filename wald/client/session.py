"""A producer's session over one socket at a time: connects, sends, reads, sends again.

All state is guarded by one lock. There is no thread of its own: whoever waits reads for all, and
lets the lock go while nothing arrives.
"""

import threading
from collections.abc import Callable, Sequence

from wald import limits
from wald.client.link import Deadline, Link
from wald.client.requests import Outgoing
from wald.core.events import (
    Ack,
    Event,
    Failed,
    FrameType,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    RefusedRecords,
    StreamOpened,
    Welcome,
)
from wald.core.outbox import Outbox, Request, error_of
from wald.errors import (
    Backpressure,
    Closed,
    Fenced,
    OutcomeUnknown,
    Unavailable,
    UnknownStream,
    WaldError,
)
from wald.model import StreamId
from wald.ports import Chance

_BACKOFF_BASE_S = 0.01
_BACKOFF_CAP_S = 0.5
_HINTS: dict[type[Exception], str] = {
    PermissionError: "the socket is for its owner and group: run as one of them",
    TimeoutError: "it runs and does not answer: see its log, and 'wald status'",
}
_WHY: dict[type[Exception], str] = {
    TimeoutError: "it does not answer",
    ConnectionResetError: "it closed the connection",
}
_SINGLE_HINT = "see what the target holds of it, and append the rest under another name"


class Session:
    """One producer's session; used from several threads, in one process.

    Args:
        path: the daemon's socket.
        name: the producer's name, or empty.
        patient: whether to wait for a daemon that was never there.
        chance: for the jitter between attempts to connect.
        single: whether it ends when the daemon loses the session, instead of beginning another:
            what follows would not be known to continue what was sent.
    """

    def __init__(
        self, path: str, name: str, *, patient: bool, chance: Chance, single: bool = False
    ) -> None:
        self.outbox = Outbox()
        self._path = path
        self._name = name
        self._patient = patient
        self._single = single
        self._chance = chance
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._link: Link | None = None
        self._reading = False
        self._waiting = 0  # threads that are to be told of a change; never too low
        self._closed = False
        self._ended: WaldError | None = None  # why this session is over for good
        self._log_id = b""
        self._streams: dict[str, StreamId] = {}
        self._last_call = 0
        self._answers: dict[int, Event] = {}

    # --- for the producer -----------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> None:
        """Connect, if there is no connection."""
        with self._changed:
            self._connected(deadline)

    def flush(self, deadline: Deadline) -> bool:
        """Wait until nothing is unanswered; False at the deadline."""
        with self._changed:
            return self._drive(lambda: not self.outbox, deadline)

    def ping(self, deadline: Deadline) -> None:
        """Wait for a sign of life."""
        with self._changed:
            self._call(lambda request: Ping(request).encode(), deadline)

    def close(self, deadline: Deadline) -> None:
        """Say goodbye if nothing is unanswered, and close; harmless to repeat."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            link = self._link
            if link is None:
                return
            try:
                if not self.outbox:
                    link.send(Goodbye().encode(), deadline)
            except OSError:
                pass  # it is gone already
            finally:
                self._lose(link)

    def drop(self) -> None:
        """In the child of a fork: close this process's copy of the parent's connection."""
        if self._link is not None:
            self._link.close()

    # --- requests on their way ------------------------------------------------------------------

    def append(self, stream: str, body: bytes, deadline: Deadline) -> Request:
        """Send a request of one record and wait for its answer: as ``send`` and ``finish`` do.

        The caller waits: where nothing is amiss, and no other thread reads, it takes the short way.
        """
        request = None
        with self._lock:
            link = self._link
            stream_id = self._streams.get(stream)
            if not (
                link is None
                or stream_id is None
                or self._reading
                or self._closed
                or not self.outbox.has_room
            ):
                request = self._put(link, stream_id, body, 1, deadline)
                if self._link is link:
                    self._read(link, deadline.left_s())
        if request is None:
            request = self.send(stream, Outgoing(body, range(1)), deadline)
        if not request.done:
            self.finish((request,), deadline)
        return request

    def send(
        self,
        stream: str,
        each: Outgoing,
        deadline: Deadline,
        *,
        sequence: int | None = None,
        behind: Request | None = None,
    ) -> Request:
        """Send a request as soon as the window has room; it is not yet answered.

        Args:
            stream: its name.
            each: the body.
            deadline: for finding room.
            sequence: to ask for an answer once more; else the next.
            behind: a request that this one must follow. If that one failed, also while this one
                waited for room, this one is not sent: it would take the place of that one.

        Raises:
            WaldError: the error of ``behind``, or why nothing could be sent.
        """
        with self._lock:
            link = self._link
            stream_id = self._streams.get(stream)
            if link is None or stream_id is None or self._closed or not self.outbox.has_room:
                stream_id = self._find_room(stream, deadline)
                link = self._connected(deadline)
            if behind is not None and behind.error is not None:
                raise behind.error
            return self._put(link, stream_id, each.body, len(each.indexes), deadline, sequence)

    def finish(self, requests: Sequence[Request], deadline: Deadline) -> None:
        """Wait for the answers; requests without one end as ``OutcomeUnknown``."""
        with self._lock:
            try:
                for each in requests:  # answers come in the order of the requests, or all at once
                    if not each.done and not self._drive(lambda: each.done, deadline):  # noqa: B023
                        why = f"not answered within {deadline.timeout_s:g} s"
                        break
                else:
                    return
            except (Unavailable, Backpressure) as error:
                why = error.message
            unknown = OutcomeUnknown(f"the request was sent: {why}")
            for each in requests:
                if not each.done:
                    each.error = unknown  # it stays in the outbox: its sequence is in use

    def _put(
        self,
        link: Link,
        stream_id: StreamId,
        body: bytes,
        records: int,
        deadline: Deadline,
        sequence: int | None = None,
    ) -> Request:
        outbox = self.outbox
        try:
            request = outbox.add(stream_id, body, records, sequence=sequence)
            try:
                outbox.sent(request)
                link.send(outbox.frame(request), deadline)
            except OSError:
                self._hear_out(link)  # it is sent again with the rest
        except BaseException:
            self._lose(link)  # a part of the frame may be out: nothing may follow it
            raise
        return request

    def _find_room(self, stream: str, deadline: Deadline) -> StreamId:
        """Wait for room in the window; return the stream's id on the connection that has it."""
        stream_id = self._open(stream, deadline)
        while not self.outbox.has_room:
            if not self._drive(lambda: self.outbox.has_room, deadline):
                msg = "the window is full of unanswered requests; nothing was sent"
                raise Backpressure(msg, retry_after_s=limits.RETRY_AFTER_MS / 1000)
            stream_id = self._open(stream, deadline)
        return stream_id

    def _open(self, stream: str, deadline: Deadline) -> StreamId:
        """Return the durable id of a stream."""
        self._connected(deadline)
        known = self._streams.get(stream)
        if known is not None:
            return known
        given: object = stream
        if not isinstance(given, str):
            msg = f"a stream's name is text, not {type(given).__name__}"
            raise UnknownStream(msg)
        if limits.STREAM_NAME.fullmatch(stream) is None:
            msg = f"{stream!r} is not a stream's name"
            raise UnknownStream(msg)
        answer = self._call(lambda request: OpenStream(request, stream).encode(), deadline)
        assert isinstance(answer, StreamOpened)
        self._streams[stream] = answer.stream
        return answer.stream

    def _call(self, frame_of: Callable[[int], bytes], deadline: Deadline) -> Event:
        """Send a frame that is answered by request id; ask again over a new connection."""
        while True:
            link = self._connected(deadline)
            self._last_call += 1
            number = self._last_call
            try:
                link.send(frame_of(number), deadline)
            except OSError:
                self._hear_out(link)
                continue
            except BaseException:
                self._lose(link)
                raise
            if not self._drive(
                lambda: number in self._answers or self._link is not link,  # noqa: B023 - used at once
                deadline,
            ):
                msg = f"the daemon did not answer within {deadline.timeout_s:g} s"
                raise Unavailable(msg)
            answer = self._answers.pop(number, None)
            if isinstance(answer, Failed):
                if answer.code == UnknownStream.code:
                    raise UnknownStream(answer.message, hint=answer.hint)
                raise error_of(answer)
            if answer is not None:
                return answer

    # --- reading for all ------------------------------------------------------------------------

    def _drive(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        """Read until ``done``; False at the deadline. One thread reads, the others wait for it."""
        while not done():
            if self._closed:
                msg = "the producer was closed while it waited"
                raise Closed(msg)
            left_s = deadline.left_s()
            if left_s <= 0:
                return False
            if self._link is None:
                self._connected(deadline)  # which may end what is waited for
            elif self._reading:
                self._wait(left_s)
            else:
                self._read(self._link, left_s)
        return True

    def _wait(self, timeout_s: float) -> None:
        """Wait until another thread has changed something."""
        self._waiting += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._waiting -= 1

    def _read(self, link: Link, timeout_s: float) -> None:
        self._reading = True
        self._lock.release()
        try:
            link.wait(timeout_s)
        except TimeoutError:
            return
        finally:
            self._lock.acquire()
            self._reading = False
            if self._waiting:
                self._changed.notify_all()
        if self._link is not link:
            link.close()  # another thread has given it up
            return
        try:
            for event in link.events():
                self._take(link, event)
        except OSError:
            self._lose(link)
        except BaseException:  # of the daemon, or a signal's: what was read may be lost
            self._lose(link)
            raise

    def _take(self, link: Link, event: Event) -> None:
        match event:
            case Ack() | RefusedRecords():
                self.outbox.take(event)
            case Failed() if event.closing:
                self._lose(link)
                error = error_of(event)
                if isinstance(error, Fenced):
                    self._ended = error
                if not error.retryable:
                    raise error
            case Failed() if event.answers == FrameType.APPEND:
                self.outbox.take(event)
            case Failed() | Pong() | StreamOpened():
                self._answers[event.request] = event
            case _:
                pass  # a goodbye: the end of the connection follows

    # --- the connection -------------------------------------------------------------------------

    def _connected(self, deadline: Deadline) -> Link:
        """Return the connection; make it anew, and send again what is unanswered."""
        failures = 0
        told: Backpressure | None = None
        while self._link is None:
            self._check_open()
            try:
                self._connect(deadline)
            except Backpressure as error:
                told = error
                failures += 1
                self._rest(error, failures, deadline)
            except OSError as error:
                failures += 1
                self._rest(told or error, failures, deadline)
        self._check_open()
        return self._link

    def _check_open(self) -> None:
        if self._closed:
            msg = "the producer is closed"
            raise Closed(msg)
        if self._ended is not None:
            raise self._ended

    def _rest(self, error: OSError | Backpressure, failures: int, deadline: Deadline) -> None:
        """Wait before the next attempt to connect, or give up."""
        hopeless = isinstance(error, FileNotFoundError | ConnectionRefusedError | PermissionError)
        left_s = deadline.left_s()
        if left_s <= 0 or (hopeless and not self._patient and not self.outbox.session):
            if isinstance(error, Backpressure):
                raise error
            why = error.strerror or _WHY.get(type(error), type(error).__name__)
            msg = f"no daemon answers at {self._path!r}: {why}"
            raise Unavailable(msg, hint=_HINTS.get(type(error), ""), path=self._path) from error
        cap_s = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures, 16))
        self._wait(min(self._chance.uniform(cap_s / 2, cap_s), left_s))

    def _connect(self, deadline: Deadline) -> None:
        link = Link.connect(self._path, min(deadline.left_s(), limits.CONNECT_TIMEOUT_S))
        try:
            self._greet(link, deadline)
            for request in self.outbox.unanswered():
                self.outbox.sent(request)
                link.send(self.outbox.frame(request), deadline)
        except BaseException:
            link.close()
            raise
        self._link = link

    def _greet(self, link: Link, deadline: Deadline) -> None:
        outbox = self.outbox
        welcome = self._hello(link, outbox.session, deadline)
        if welcome is None:
            self._lose_session("the daemon no longer knows the session")
            welcome = self._hello(link, 0, deadline)
            assert welcome is not None
        try:
            outbox.welcome(welcome)
        except Fenced as error:
            self._ended = error
            raise
        except OutcomeUnknown as error:
            self._lose_session(error.message)
            raise ConnectionResetError from error  # a new session begins with a new connection
        if welcome.log_id != self._log_id:
            self._log_id = welcome.log_id
            self._streams.clear()

    def _lose_session(self, why: str) -> None:
        hint = _SINGLE_HINT if self._single else ""
        self.outbox.lose_session(hint)
        self._streams.clear()  # a log that lost its sessions may have lost these ids too
        self._changed.notify_all()
        if self._single:
            msg = f"{why}: what was sent before may or may not be stored"
            self._ended = OutcomeUnknown(msg, hint=hint)
            raise self._ended

    def _hello(self, link: Link, session: int, deadline: Deadline) -> Welcome | None:
        """Greet; None if the session is not known any more."""
        self._last_call += 1
        link.send(Hello(self._last_call, self._name, session).encode(), deadline)
        while True:
            link.wait(deadline.left_s())
            for event in link.events():
                if isinstance(event, Welcome):
                    return event
                if isinstance(event, Failed):
                    error = error_of(event)
                    if session and isinstance(error, OutcomeUnknown):
                        return None
                    raise error
                if isinstance(event, Goodbye):
                    raise ConnectionResetError

    def _hear_out(self, link: Link) -> None:
        """Nothing can be sent any more: take the last words of the daemon; they may fence us."""
        try:
            while link.has_more():
                for event in link.events():
                    self._take(link, event)
        except OSError:
            pass
        finally:
            self._lose(link)

    def _lose(self, link: Link) -> None:
        """A connection is gone; what is unanswered is sent again over the next."""
        if self._link is link:
            self._link = None
            self._changed.notify_all()
        if self._reading:
            link.shut()  # a thread waits on it: it wakes, and closes it
        else:
            link.close()
