"""A daemon in memory, for producers in tests: the protocol on any system, without a socket.

It stores what a real one stores and refuses what a real one refuses; sessions and duplicates are as
in docs/protocol.md. What goes wrong is said beforehand.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from wald import limits
from wald.client.encoding import decode_value
from wald.client.link import NO_REST, Deadline, NothingSent, Rest
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Append,
    AppendFlag,
    Duplicate,
    DuplicateRecords,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
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
    Welcome,
)
from wald.core.wire import FrameReader, Side
from wald.errors import Backpressure, DiskFull, FormatDamaged, OutcomeUnknown
from wald.model import Lsn
from wald.testing.clock import ManualClock

_LOG_ID = b"in memory of us\0"


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A record that was stored; its value as it was given, but tuples are lists."""

    stream: str
    lsn: Lsn
    value: object
    key: str | bytes | None = None
    headers: Mapping[str, str | bytes] | None = None
    dedup_id: str | bytes | None = None


@dataclass(slots=True)
class _Session:
    name: str
    epoch: int = 1
    last: int = 0
    bodies: dict[int, bytes] = field(default_factory=dict)
    answers: dict[int, list[Event]] = field(default_factory=dict)


class MemoryDaemon:
    """What a producer in a test talks to.

    Attributes:
        records: what is stored, in order.
        running: whether anybody answers.
        compares_ids: whether dedup ids are compared, in all streams and for good.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.records: list[MemoryRecord] = []
        self.running = True
        self.refusals: deque[Refusal] = deque()  # of the records to come
        self.no_room: deque[Failed] = deque()  # for the requests to come
        self.lost_answers = 0  # of the requests to come
        self.unknown_streams: set[str] = set()
        self.compares_ids = False
        self._streams: list[str] = []
        self._sessions: dict[int, _Session] = {}
        self._links: list[MemoryLink] = []

    def connect(self) -> "MemoryLink":
        """Return a new connection.

        Raises:
            ConnectionRefusedError: it does not run.
        """
        if not self.running:
            msg = "nobody listens"
            raise ConnectionRefusedError(msg)
        link = MemoryLink(self)
        self._links.append(link)
        return link

    def stop(self) -> None:
        """End all connections, and answer no new one."""
        self.running = False
        for link in self._links:
            link.end()
        self._links.clear()

    @property
    def is_quiet(self) -> bool:
        """Whether an answer is lost, or the next one will be: who waits for it waits in vain."""
        return self.lost_answers > 0 or any(link.silent and not link.broken for link in self._links)

    def end_silence(self) -> None:
        """End the connections over which an answer was lost: who comes back gets it."""
        for link in self._links:
            if link.silent:
                link.end()

    def start(self) -> None:
        """Answer again, with everything that was stored."""
        self.running = True

    def forget_sessions(self) -> None:
        """Lose the sessions, as damage may."""
        self.stop()
        self._sessions.clear()
        self.start()

    def answer(self, link: "MemoryLink", event: Event) -> Iterable[Event]:
        """Return what an event is answered."""
        match event:
            case Hello():
                return self._greet(link, event)
            case OpenStream():
                return [self._open(event)]
            case Append():
                return self._append(link, event)
            case Skip():
                session = self._sessions[link.session]
                session.last = max(session.last, event.through)
                return []
            case _:
                return [Pong(event.request, event.body) if isinstance(event, Ping) else Goodbye()]

    def _greet(self, link: "MemoryLink", hello: Hello) -> list[Event]:
        found = hello.session
        if not found:
            named = [
                n for n, each in self._sessions.items() if hello.name and each.name == hello.name
            ]
            found = named[0] if named else len(self._sessions) + 1
            session = self._sessions.setdefault(found, _Session(hello.name, epoch=0))
            session.epoch += 1  # a takeover; the first is the session's own
            for other in self._links:
                if other.session == found and other is not link:
                    other.give(
                        Failed("fenced", "another client took the name", flags=ErrorFlag.CLOSING)
                    )
        elif found not in self._sessions:
            kind = int(FrameType.HELLO)
            return [Failed(OutcomeUnknown.code, "no such session", "", 0, 0, kind, hello.request)]
        elif hello.epoch != self._sessions[found].epoch:
            return [Failed("fenced", "another client took the name", flags=ErrorFlag.CLOSING)]
        link.session = found
        session = self._sessions[found]
        return [
            Welcome(
                hello.request, found, session.last, _LOG_ID, hello.capabilities, epoch=session.epoch
            )
        ]

    def _open(self, asked: OpenStream) -> Event:
        known = limits.STREAM_NAME.fullmatch(asked.name) and asked.name not in self.unknown_streams
        if not known:
            kind = int(FrameType.OPEN_STREAM)
            msg = f"no route takes {asked.name!r}"
            return Failed("unknown-stream", msg, "", 0, 0, kind, asked.request)
        if asked.name not in self._streams:
            self._streams.append(asked.name)
        return StreamOpened(asked.request, self._streams.index(asked.name) + 1)

    def _append(self, link: "MemoryLink", append: Append) -> list[Event]:
        session = self._sessions[link.session]
        if append.sequence <= session.last:
            return self._repeat(session, append)
        if append.sequence > session.last + 1:
            return []  # behind one that was not stored: dropped
        if self.no_room:
            return [self.no_room.popleft()._replace(request=append.sequence)]
        session.last = append.sequence
        answer = self._stored(self._streams[append.stream - 1], append)
        session.bodies[append.sequence] = append.body
        session.answers[append.sequence] = answer
        if self.lost_answers:
            self.lost_answers -= 1
            link.silent = True
            return []
        return answer

    def _repeat(self, session: _Session, append: Append) -> list[Event]:
        if session.bodies.get(append.sequence) == append.body:
            return session.answers[append.sequence]
        kind = int(FrameType.APPEND)
        return [Failed("sequence-conflict", "another body", "", 0, 0, kind, append.sequence)]

    def _stored(self, stream: str, append: Append) -> list[Event]:
        first = len(self.records) + 1
        try:
            body = bodies.decode(append.body)
        except FormatDamaged as error:
            whole = Refusal(WHOLE_REQUEST, "request.malformed", error.message)
            return [RefusedRecords(append.sequence, (whole,)), self._ack(append, first)]
        refused = {
            bad.index: Refusal(bad.index, bad.code, bad.message)
            for bad in bodies.find_bad_records(body)
        }
        duplicates: list[Duplicate] = []
        for at in range(len(body.values)):
            known = self._known_id(stream, body, at)
            if at not in refused and self.refusals:
                refused[at] = self.refusals.popleft()._replace(record=at)
            if at in refused:
                continue
            if known is not None:
                duplicates.append(Duplicate(at, known))
                continue
            self.records.append(_record(stream, len(self.records) + 1, body, at))
        return self._said(append, first, [refused[at] for at in sorted(refused)], duplicates)

    def _known_id(self, stream: str, body: Body, at: int) -> Lsn | None:
        """Return which record had this one's dedup id first, if the daemon compares them."""
        own = None if body.dedup_ids is None else body.dedup_ids[at]
        if own is None or not self.compares_ids:
            return None
        found = [r.lsn for r in self.records if r.stream == stream and r.dedup_id == own]
        return found[0] if found else None

    def _said(
        self, append: Append, first: Lsn, refused: list[Refusal], duplicates: list[Duplicate]
    ) -> list[Event]:
        said: list[Event] = []
        if refused:
            said.append(RefusedRecords(append.sequence, tuple(refused)))
        if duplicates:
            said.append(DuplicateRecords(append.sequence, tuple(duplicates)))
        if append.flags & AppendFlag.RECEIVED:
            said.append(Received(append.sequence))
        return [*said, self._ack(append, first)]

    def _ack(self, append: Append, first: Lsn) -> Ack:
        return Ack(append.sequence, append.sequence, first, len(self.records))


class MemoryLink:
    """One connection to it, as ``wald.client.link.Link`` is one to a real daemon.

    Nothing arrives later than at once: a wait for more takes all of its time, by the clock of the
    daemon, and no time of the test.
    """

    def __init__(self, daemon: MemoryDaemon) -> None:
        self.session = 0
        self.broken = False
        self.silent = False  # an answer was lost: nothing more comes over this connection
        self._daemon = daemon
        self._reader = FrameReader(Side.DAEMON)
        self._events: deque[Event] = deque()
        self.told: Callable[[], None] = _tell_nobody  # called when there is something to read

    def give(self, event: Event) -> None:
        """Let an event arrive."""
        self._events.append(event)
        self.told()

    def end(self) -> None:
        """The daemon ends it."""
        self.broken = True
        self.told()

    def send(self, data: bytes) -> Rest:
        """Send all of it; it is answered at once."""
        if self.broken:
            raise NothingSent
        self._reader.receive_data(data)
        while (event := self._reader.next_event()) is not None:
            for answer in self._daemon.answer(self, event):
                if not self.silent:
                    self._events.append(answer)
        return NO_REST

    def send_rest(self, rest: Rest, deadline: Deadline) -> None:
        """Send the rest; there is never one."""

    def send_more(self, rest: Rest) -> Rest:  # noqa: ARG002 - as above
        """Send more; there is never more."""
        return NO_REST

    def wait_for_room(self, timeout_s: float) -> None:
        """There is always room."""

    def wait(self, timeout_s: float, *, writes: bool = False) -> None:  # noqa: ARG002 - as above
        """Wait until something can be read."""
        if self._events or self.broken:
            return
        if self.silent:
            self.broken = True  # who waits again finds out, and comes back
        self._daemon.clock.advance(timeout_s)
        raise TimeoutError

    def has_more(self) -> bool:
        """Whether there is something to read, if only the end."""
        return bool(self._events) or self.broken

    @property
    def has_events(self) -> bool:
        """Whether there is something to read, and not only the end."""
        return bool(self._events)

    def events(self) -> Iterator[Event]:
        """Return what is there."""
        if not self._events:
            raise ConnectionResetError
        while self._events:
            yield self._events.popleft()

    def shut(self) -> None:
        """End it."""
        self.broken = True

    def close(self) -> None:
        """End it."""
        self.broken = True


def _tell_nobody() -> None:
    pass


def _record(stream: str, lsn: Lsn, body: Body, at: int) -> MemoryRecord:
    content = body.content if isinstance(body.content, int) else body.content[at]
    return MemoryRecord(
        stream,
        lsn,
        decode_value(content, body.values[at]),
        None if body.keys is None else body.keys[at],
        None if body.headers is None else body.headers[at],
        None if body.dedup_ids is None else body.dedup_ids[at],
    )


def no_room(kind: type[Backpressure], retry_after_s: float) -> Failed:
    """Return the answer to a request for which there is no room."""
    word = "the log has no room" if kind is DiskFull else "a bound is reached"
    flags, append = int(ErrorFlag.NOT_STORED), int(FrameType.APPEND)
    return Failed(kind.code, word, "", round(retry_after_s * 1000), flags, append)
