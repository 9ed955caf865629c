"""What the connections of ingest share: log, committer, sessions in use, budgets, counts."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from wald import limits
from wald.config import Settings
from wald.core.access import Verb
from wald.core.events import Capability, Failed, Hello, OpenStream, StreamOpened
from wald.core.sessions import Greeting, plan_greeting
from wald.core.state import SessionState, session_ended, session_issued, session_taken
from wald.errors import AccessDenied, Backpressure, Fenced, UnknownStream
from wald.ingest.catalogue import plan_stream
from wald.ingest.committer import Committer, Contributor, Statement
from wald.ingest.doorway import Doorway, Rules
from wald.model import Frontier
from wald.ports import Chance, Clock
from wald.storage.log import Log


class Guest(Contributor, Protocol):
    """What the house asks of a connection."""

    session: int
    doorway: Doorway

    @property
    def unread_bytes(self) -> int:
        """How much of its answers the client has not taken."""
        ...

    @property
    def issuing(self) -> bool:
        """Whether the connection waits for its new session to be durable."""
        ...

    def await_session(self) -> None:
        """The session of its HELLO is in the next group."""
        ...

    def send(self, frames: bytes, /) -> None:
        """Send, if there is still somebody to send to."""
        ...

    def welcome(self, hello: Hello, session: SessionState) -> None:
        """Open the connection for a session."""
        ...

    def subscribe(self, hello: Hello) -> None:
        """Make the connection a subscriber of the frontier."""
        ...

    def notify(self, frontier: Frontier) -> None:
        """Tell a subscriber where the frontier is."""
        ...

    def fail(self, failed: Failed, event: Hello | OpenStream, /) -> None:
        """Answer one frame with an error."""
        ...

    def fail_for_room(self, error: Backpressure, event: Hello | OpenStream) -> None:
        """Answer a frame whose statement found no room."""
        ...

    def close_with(self, code: str, message: str, *, hint: str = "", retry: bool = False) -> None:
        """Answer what was accepted, send an error of the connection, close."""
        ...

    def check_time(self, ticks: int) -> None:
        """Close a connection that is too slow."""
        ...


Peer = TypeVar("Peer", bound=Guest)
_log = logging.getLogger("wald.ingest")
_NOBODYS: Final = (1 << 64) - 1  # a session id that is not issued
_FENCED = "another connection took this producer's session"
_LOST_HINT = "see what the target holds of it, and append the rest under another name"


class _Told(NamedTuple):
    tick: int
    unsaid: int


class House(Generic[Peer]):
    """What the connections share; one loop, one thread.

    Args:
        log: the open log.
        settings: which streams are taken.
        committer: makes what is accepted durable.
        clock: for the age of sessions.
        chance: for the ids of sessions.
        empty: called when the last connection is gone.
        rules: rights and quotas.

    Attributes:
        allowed: what a connection may cost.
        clogged: the connections whose answers wait to be read.
    """

    def __init__(  # noqa: PLR0913 - what connections share
        self,
        log: Log,
        settings: Settings,
        committer: Committer[Peer],
        clock: Clock,
        chance: Chance,
        empty: Callable[[], object],
        *,
        rules: Rules | None = None,
    ) -> None:
        self.log = log
        self.rules = rules or Rules(log.state)
        self.allowed = settings.clients
        self.clogged: set[Peer] = set()
        self._told: dict[str, _Told] = {}
        self.committer = committer
        self.connections: set[Peer] = set()
        self.stopping = False
        self.ticks = 0  # seconds, for time-outs: no clock is asked on the hot path
        self.receive_view = memoryview(bytearray(limits.RECEIVE_BUFFER_BYTES))
        self.refused: Counter[str] = Counter()
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._empty = empty
        self._by_session: dict[int, Peer] = {}
        # sessions without a connection, and since when; of those before this start their last
        # group is known. The longest first, since each is added at the end.
        sessions = sorted(log.state.sessions.values(), key=lambda each: each.active_ns)
        self._idle = {each.session_id: each.active_ns for each in sessions}
        self._producers: set[Peer] = set()
        self._subscribers: set[Peer] = set()
        self._charged_bytes = 0

    # --- budgets and counts ---------------------------------------------------------------------

    def charge(self, size_bytes: int) -> bool:
        """Take memory for an unfinished frame from the budget, if it has as much."""
        if self._charged_bytes + size_bytes > limits.LARGE_FRAMES_MAX_BYTES:
            return False
        self._charged_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give back what was charged."""
        self._charged_bytes -= size_bytes

    def count_refused(self, code: str, count: int = 1) -> None:
        """Count an error that a client was told."""
        self.refused[code] += count

    def tell(self, kind: str, message: str) -> None:
        """Log what a client does wrong: seldom, however often it does."""
        told = self._told.get(kind)
        if told is not None and self.ticks - told.tick < limits.TOLD_EVERY_S:
            self._told[kind] = told._replace(unsaid=told.unsaid + 1)
            return
        more = (
            f" (and {told.unsaid:,} times since it was said last)" if told and told.unsaid else ""
        )
        self._told[kind] = _Told(self.ticks, 0)
        _log.warning("%s: %s%s", kind, message, more)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Do something in the next turn of the loop."""
        self.committer.call_soon(action)

    def tick(self) -> None:
        """A second has passed."""
        self.ticks += 1
        for connection in list(self.connections):
            connection.check_time(self.ticks)

    # --- who is there ---------------------------------------------------------------------------

    def forget(self, connection: Peer) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._producers.discard(connection)
        self._subscribers.discard(connection)
        self.clogged.discard(connection)
        if self._by_session.get(connection.session) is connection:
            del self._by_session[connection.session]
            if connection.session in self.log.state.sessions:
                self._idle[connection.session] = self._clock.wall_ns()
        if not self.connections:
            self._empty()

    def leave(self, connection: Peer) -> None:
        """A producer said goodbye: nobody comes back for a session without a name."""
        self.committer.commit()
        session = self.log.state.sessions.get(connection.session)
        if session is not None and not session.name:
            self._end(connection.session)

    def _end(self, session_id: int) -> None:
        """Forget a session now, and with the next group in the log too."""
        self.log.state.forget_session(session_id)
        self._idle.pop(session_id, None)
        self.committer.mention(session_ended(session_id))

    def _put_to(self, session_id: int, connection: Peer) -> None:
        self._by_session[session_id] = connection
        self._idle.pop(session_id, None)

    def notify(self) -> None:
        """Tell the subscribers where the frontier is."""
        for subscriber in self._subscribers:
            subscriber.notify(self.log.frontier)

    def greet(self, connection: Peer, hello: Hello) -> None:
        """Answer a HELLO."""
        subscribes = bool(hello.capabilities & Capability.FRONTIER)
        if not self._has_place(connection, subscribes=subscribes):
            return
        if subscribes:
            connection.subscribe(hello)
        else:
            self._greet_producer(connection, hello)

    def _greet_producer(self, connection: Peer, hello: Hello) -> None:
        state = self.log.state
        name = connection.doorway.own_name(hello.name)
        if hello.session or name in state.sessions_by_name:
            # what an older connection was promised is answered first, and counts; so does a
            # takeover that is under way
            self.committer.commit()
        known = state.sessions.get(hello.session)
        if known is not None and not connection.doorway.may_resume(known):
            hello = hello._replace(session=_NOBODYS)  # as if there were no such session
        epoch = hello.epoch if hello.capabilities & Capability.EPOCH else None
        now_ns = self._clock.wall_ns()
        plan = plan_greeting(state, hello.session, name, self._idle, now_ns, epoch=epoch)
        for session_id in plan.evict:
            self._end(session_id)
        match plan.greeting:
            case Greeting.RESUME:
                self._fence(plan.session)
                self._put_to(plan.session, connection)
                connection.welcome(hello, state.sessions[plan.session])
            case Greeting.TAKE:
                self._fence(plan.session)
                self._take_over(connection, hello, plan.session)
            case Greeting.ISSUE:
                self._issue(connection, hello)
            case _:
                self._say_no(connection, hello, plan.greeting)

    def _say_no(self, connection: Peer, hello: Hello, greeting: Greeting) -> None:
        if greeting is Greeting.FENCED:
            connection.close_with("fenced", _FENCED, hint=Fenced.default_hint)
            return
        if greeting is Greeting.FULL:
            self.count_refused(Backpressure.code)
            message = f"there are {len(self.log.state.sessions):,} sessions already"
            error = Backpressure(message, retry_after_s=limits.RETRY_AFTER_MS / 1000)
            connection.fail_for_room(error, hello)
            return
        self.count_refused("outcome-unknown")
        message = f"{greeting.value}: what was sent may or may not be stored"
        hint = _LOST_HINT if greeting is Greeting.LOST else ""
        connection.fail(Failed("outcome-unknown", message, hint), hello)

    def _has_place(self, connection: Peer, *, subscribes: bool) -> bool:
        """Give a connection that greets its place among its like, or close it."""
        # each has a bound of its own: however many producers there are, the drainer gets in
        peers = self._subscribers if subscribes else self._producers
        most = limits.SUBSCRIBERS_MAX if subscribes else self.allowed.connections
        if connection not in peers and len(peers) >= most:
            connection.close_with("backpressure", "too many connections", retry=True)
            return False
        try:
            connection.doorway.check(Verb.READ if subscribes else Verb.APPEND)
        except AccessDenied as denied:
            self.tell("access", denied.message)
            connection.close_with(denied.code, denied.message, hint=denied.hint)
            return False
        peers.add(connection)
        return True

    def _fence(self, session_id: int) -> None:
        """Close the connection that a session has: another one takes it."""
        older = self._by_session.pop(session_id, None)
        if older is not None:
            self._idle[session_id] = self._clock.wall_ns()
            older.close_with("fenced", _FENCED, hint=Fenced.default_hint)

    def _take_over(self, connection: Peer, hello: Hello, session_id: int) -> None:
        """Begin the session's next epoch; whoever comes back with an older one is fenced."""
        state = self.log.state

        def durable() -> None:
            session = state.sessions.get(session_id)
            if not connection.issuing:
                return  # the connection ended meanwhile
            if session is None:
                connection.close_with("backpressure", "the session was ended", retry=True)
                return
            self._put_to(session_id, connection)
            connection.welcome(hello, session)

        def refused(error: Backpressure) -> None:
            connection.fail_for_room(error, hello)

        connection.await_session()
        taken = session_taken(state.sessions[session_id])
        self.committer.state(Statement(taken, durable, refused))

    def _issue(self, connection: Peer, hello: Hello) -> None:
        state = self.log.state
        session_id = 0
        while session_id in (0, _NOBODYS) or session_id in state.sessions:
            session_id = int.from_bytes(self._chance.randbytes(8), "little")

        def durable() -> None:
            if not connection.issuing:
                self._end(session_id)  # the connection ended meanwhile
            elif session_id not in state.sessions:
                connection.close_with("fenced", "another client took this producer's name")
            else:
                self._put_to(session_id, connection)
                connection.welcome(hello, state.sessions[session_id])

        def refused(error: Backpressure) -> None:
            connection.fail_for_room(error, hello)

        connection.await_session()
        name = connection.doorway.own_name(hello.name)
        self.committer.state(Statement(session_issued(session_id, name), durable, refused))

    def open_stream(self, connection: Peer, event: OpenStream) -> None:
        """Answer an OPEN_STREAM; a new stream and its route are durable before the answer."""
        state = self.log.state
        try:
            connection.doorway.check(Verb.APPEND, event.name)
            sections = plan_stream(state, self._settings, event.name, self.log.frontier.lsn)
        except (UnknownStream, AccessDenied) as error:
            self.count_refused(error.code)
            connection.fail(Failed(error.code, error.message, error.hint), event)
            return

        def durable() -> None:
            stream = state.streams_by_name[event.name]
            connection.send(StreamOpened(event.request, stream.stream_id).encode())

        def refused(error: Backpressure) -> None:
            connection.fail_for_room(error, event)

        if not sections:
            durable()
            return
        before = (Statement(section, _nothing, _no_room) for section in sections[:-1])
        self.committer.state(*before, Statement(sections[-1], durable, refused))
        self.committer.commit()  # the next one to open a stream must see this one


def _nothing() -> None:
    """Nobody waits for this statement alone."""


def _no_room(_error: Backpressure) -> None:
    """Nobody waits for this statement alone."""
