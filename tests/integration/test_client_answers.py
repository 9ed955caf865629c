"""The short way of one append and the long way of many end alike, whatever the daemon answers.

A daemon made of frames: what it sends is fed, piece by piece, whenever the client waits, over a
real socket; time is the test's. Every kind of answer is sent whole, cut at every byte, and cut off
at every byte by the end of the connection.
"""

import random
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import pytest

from wald import limits
from wald.client.link import Deadline, Link
from wald.client.requests import Outgoing
from wald.client.session import Session
from wald.core import body as bodies
from wald.core.events import (
    ACK_FRAME,
    WHOLE_REQUEST,
    Ack,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    FrontierMoved,
    Goodbye,
    Pong,
    Refusal,
    RefusedRecords,
    StreamOpened,
    Welcome,
)
from wald.core.outbox import Request
from wald.errors import WaldError
from wald.model import Frontier
from wald.testing import ManualClock

FIRST = bodies.encode_one(0, b"first")
SECOND = bodies.encode_one(0, b"second")
THIRD = bodies.encode_one(0, b"third")
LOG_ID = bytes(16)
SILENCE = b""  # time passes
GONE = b"gone"  # the end right behind the piece before, not at the next wait
Pieces: TypeAlias = list[bytes | None]


class Script:
    """What the daemon sends: for each connection pieces, None for its end."""

    def __init__(self, clock: ManualClock, connections: list[Pieces]) -> None:
        self.clock = clock
        self.received = b""
        self.links: list[ScriptedLink] = []
        self._connections = connections

    def connect(self, _path: str, _timeout_s: float) -> Link:
        if not self._connections:
            raise FileNotFoundError(2, "no daemon")
        link = ScriptedLink(self, self._connections.pop(0))
        self.links.append(link)
        return link

    def close(self) -> None:
        for link in self.links:
            link.end()
            link.close()


class ScriptedLink(Link):
    """A connection whose other end says the next piece whenever this end waits."""

    def __init__(self, script: Script, pieces: Pieces) -> None:
        mine, self._peer = socket.socketpair()
        self._peer.settimeout(0)
        self._script = script
        self._pieces = pieces
        super().__init__(mine)

    def wait(self, timeout_s: float, *, writes: bool = False) -> None:
        piece = self._pieces.pop(0) if self._pieces else SILENCE
        if piece is None:
            self.end()
        elif piece == SILENCE:
            self._script.clock.advance(timeout_s)
            timeout_s = 0
        else:
            self._peer.sendall(piece)
            if self._pieces[:1] == [GONE]:
                self.end()
        super().wait(timeout_s, writes=writes)

    def end(self) -> None:
        if self._peer.fileno() < 0:
            return
        try:
            while data := self._peer.recv(1 << 16):
                self._script.received += data
        except BlockingIOError:
            pass
        self._peer.close()


class End(NamedTuple):
    """How an append ended, and what the session is then."""

    outcome: Any
    outbox: Any
    session: Any
    sent: bytes


def ended(error: WaldError) -> tuple[Any, ...]:
    return type(error), error.message, error.hint


def state_of(request: Request) -> tuple[Any, ...]:
    error = ended(request.error) if request.error is not None else None
    answer = (request.first_lsn, request.durable_lsn, request.refusals)
    return request.sequence, request.records, request.done, answer, error


def played(connections: list[Pieces], monkeypatch: pytest.MonkeyPatch, *, short: bool) -> End:
    """Append once more on a session that has appended, the short or the long way; then again."""
    clock = ManualClock()
    script = Script(clock, [list(each) for each in connections])
    monkeypatch.setattr(Link, "connect", script.connect)
    session = Session("w", "", patient=False, chance=random.Random(5))
    monkeypatch.setattr(session, "_wait", clock.advance)  # between attempts to connect

    def append(body: bytes) -> Any:
        deadline = Deadline(clock, 30.0)
        try:
            if short:
                return state_of(session.append("s", body, deadline))
            request = session.send("s", Outgoing(body, range(1)), deadline)
            session.finish([request], deadline)
            return state_of(request)
        except WaldError as error:
            return ended(error)

    try:
        assert append(FIRST) == (1, 1, True, (1, 1, ()), None)
        outcomes = [append(SECOND), append(THIRD)]
        outbox = {**vars(session.outbox), "_waiting": [*map(state_of, session.outbox.unanswered())]}
        ending = session._dialogue.ended
        about = (
            session._link is None,
            session._reading,
            session._waiting,
            session._streams,
            session._dialogue._answers,
            ending and ended(ending),
        )
        assert session._lock.acquire(blocking=False)
        session._lock.release()
    finally:
        script.close()
    return End(outcomes, outbox, about, script.received)


def beginning() -> Pieces:
    """What comes before the answer in question."""
    return [
        Welcome(1, 5, 0, LOG_ID).encode(),
        StreamOpened(2, 3).encode(),
        Ack(1, 1, 1, 1).encode(),
    ]


def again(last: int, *events: Event) -> Pieces:
    """A connection that comes back to the session."""
    return [Welcome(3, 5, last, LOG_ID).encode(), *(event.encode() for event in events)]


ACKED = Ack(2, 2, 7, 9)
NEXT = Ack(3, 3, 10, 10)
REFUSED = RefusedRecords(2, (Refusal(0, "record.value", "no"),))
WHOLE = RefusedRecords(2, (Refusal(WHOLE_REQUEST, "request.malformed", "no"),))
NOT_STORED = Failed("disk-full", "full", "", 200, ErrorFlag.NOT_STORED, FrameType.APPEND, 2)
CONFLICT = Failed("sequence-conflict", "another body", "", 0, 0, FrameType.APPEND, 2)
FENCED = Failed("fenced", "another client", "", 0, ErrorFlag.CLOSING)
BUSY = Failed("backpressure", "full", "", 1, ErrorFlag.CLOSING)
UNKNOWN_SESSION = Failed("outcome-unknown", "gone", "", 0, 0, FrameType.HELLO, 3)
NEW_SESSION: Pieces = [
    UNKNOWN_SESSION.encode(),
    Welcome(4, 6, 0, LOG_ID).encode(),
    StreamOpened(5, 4).encode(),
    Ack(1, 1, 20, 20).encode(),
]
ANSWERED = (2, 1, True, (7, 9, ()), None)
MALFORMED = ACK_FRAME.pack(24, FrameType.ACK, 0, 0, 2, 3, 7, 9)  # its first is behind its last


class Row(NamedTuple):
    """The answer to the second append, what comes for the third, and how the second ends."""

    answer: bytes
    third: Pieces
    ends: Any
    more: tuple[Pieces, ...] = ()


def last_of(name: str) -> Any:
    """Whether the outcome is this error, raised or in the request."""

    def ends(outcome: Any) -> bool:
        error = outcome if isinstance(outcome[0], type) else outcome[-1]
        return error is not None and error[0].__name__ == name

    return ends


THEN: Pieces = [NEXT.encode()]
ANSWERS: dict[str, Row] = {
    "an ack": Row(ACKED.encode(), THEN, ANSWERED),
    "two acks": Row(ACKED.encode() + ACKED.encode(), THEN, ANSWERED),
    "a refused record": Row(
        REFUSED.encode() + ACKED.encode(), THEN, (2, 1, True, (7, 9, REFUSED.refusals), None)
    ),
    "a refused request": Row(
        WHOLE.encode() + ACKED.encode(), THEN, (2, 1, True, (7, 9, WHOLE.refusals), None)
    ),
    "no room": Row(NOT_STORED.encode(), [Ack(2, 2, 8, 8).encode()], last_of("DiskFull")),
    "another body": Row(CONFLICT.encode(), THEN, last_of("SequenceConflict")),
    "a pong first": Row(Pong(77).encode() + ACKED.encode(), THEN, ANSWERED),
    "the frontier first": Row(
        FrontierMoved(Frontier(1, 2, 3)).encode() + ACKED.encode(), THEN, ANSWERED
    ),
    "an ack of the one before": Row(Ack(1, 1, 1, 1).encode() + ACKED.encode(), THEN, ANSWERED),
    "an ack and a goodbye": Row(
        ACKED.encode() + Goodbye().encode(), [None], ANSWERED, (again(2, NEXT),)
    ),
    "silence": Row(b"", [], last_of("OutcomeUnknown")),
    "silence until the next": Row(
        b"", [SILENCE, Ack(2, 3, 7, 9).encode()], last_of("OutcomeUnknown")
    ),
    "fenced": Row(FENCED.encode(), [], last_of("Fenced")),
    "closed for lack of room": Row(BUSY.encode(), [], ANSWERED, (again(1, ACKED, NEXT),)),
    "a goodbye": Row(Goodbye().encode(), [None], ANSWERED, (again(1, ACKED, NEXT),)),
    "a pong that is none": Row(Pong(5, bytes(24)).encode() + ACKED.encode(), THEN, ANSWERED),
    "a pong that looks like an ack within": Row(
        Pong(5, Ack(2, 2, 666, 666).encode()).encode(), [ACKED.encode(), *THEN], ANSWERED
    ),
    "an ack that is malformed": Row(MALFORMED, [], last_of("BadFrame"), (again(2, ACKED, NEXT),)),
    "no protocol": Row(b"HTTP/1.1 400 Bad Request\r\n", [], last_of("BadFrame"), (again(1),)),
}


def both(connections: list[Pieces], monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    for short in (True, False):
        with monkeypatch.context() as patched:
            yield played(connections, patched, short=short)


def agrees(expected: Any, outcome: Any) -> bool:
    return bool(expected(outcome)) if callable(expected) else expected == outcome


@pytest.mark.parametrize("label", ANSWERS)
def test_both_ways_end_alike_whole_and_cut_at_every_byte(
    label: str, monkeypatch: pytest.MonkeyPatch
):
    row = ANSWERS[label]
    for cut in range(max(len(row.answer), 1)):
        pieces = [piece for piece in (row.answer[:cut], row.answer[cut:]) if piece]
        connections = [[*beginning(), *pieces, *row.third], *row.more]
        short, long = both(connections, monkeypatch)
        assert short == long, cut
        assert agrees(row.ends, short.outcome[0]), (cut, short.outcome)


@pytest.mark.parametrize("known", [1, 2], ids=["it never arrived", "it is stored"])
def test_both_ways_send_again_wherever_the_connection_ends(
    known: int, monkeypatch: pytest.MonkeyPatch
):
    answer = ACKED.encode()
    for cut in range(len(answer)):
        connections = [[*beginning(), answer[:cut] or None, None], again(known, ACKED, NEXT)]
        short, long = both(connections, monkeypatch)
        assert short == long, cut
        assert short.outcome == [ANSWERED, (3, 1, True, (10, 10, ()), None)]
        assert short.sent.count(SECOND) == 2, "under its old sequence, once a connection"


def test_both_ways_send_again_what_could_not_be_sent(monkeypatch: pytest.MonkeyPatch):
    short, long = both([[*beginning(), GONE], again(1, ACKED, NEXT)], monkeypatch)
    assert short == long
    assert short.outcome == [ANSWERED, (3, 1, True, (10, 10, ()), None)]


def test_both_ways_end_unknown_where_the_session_is_lost(monkeypatch: pytest.MonkeyPatch):
    short, long = both([[*beginning(), None], list(NEW_SESSION)], monkeypatch)
    assert short == long
    assert last_of("OutcomeUnknown")(short.outcome[0])
    assert short.outcome[1] == (1, 1, True, (20, 20, ()), None)


def test_both_ways_are_refused_where_the_daemon_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
):
    short, long = both([[*beginning(), None]], monkeypatch)
    assert short == long
    assert last_of("OutcomeUnknown")(short.outcome[0])


def test_the_short_way_is_one_send_one_wait_and_one_read(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    clock = ManualClock()
    script = Script(clock, [[*beginning(), ACKED.encode(), NEXT.encode()]])
    monkeypatch.setattr(Link, "connect", script.connect)
    session = Session("w", "", patient=False, chance=random.Random(5))
    deadline = Deadline(clock, limits.APPEND_TIMEOUT_S)
    session.append("s", FIRST, deadline)
    for name in ("send", "wait", "events"):
        method = getattr(ScriptedLink, name)

        def counted(*given: Any, name: str = name, method: Any = method, **options: Any) -> Any:
            calls.append(name)
            return method(*given, **options)

        monkeypatch.setattr(ScriptedLink, name, counted)
    session.append("s", SECOND, deadline)
    session.append("s", THIRD, deadline)
    script.close()
    assert calls == ["send", "wait", "events"] * 2
