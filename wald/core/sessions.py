"""Duplicates at the door: what a request with a sequence number is answered.

The table of docs/protocol.md ("Sequences and duplicates"), over what the log knows of a session
and what was accepted for it but is not durable yet. Pure: the state is read, never changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from struct import Struct
from typing import NamedTuple, TypeAlias

from wald import limits
from wald.core.events import Ack, Refusal, RefusedRecords
from wald.core.frame import REQUEST_BYTES, RefusedRecord, RequestEntry, Section
from wald.core.state import LogState, Run, SessionState
from wald.model import Lsn, StreamId

_REQUEST = Struct("<IIII")
assert _REQUEST.size == REQUEST_BYTES


class Verdict(Enum):
    """What becomes of an append."""

    APPEND = "last + 1: store it"
    REPEAT = "in the window, same stream and body, durable: the original answer"
    WAIT = "in the window, same stream and body, not durable yet: the original answer once it is"
    CONFLICT = "in the window, another stream or body"
    UNKNOWN = "older than the window, or the session is not known"
    GAP = "above last + 1"


class Decision(NamedTuple):
    """A verdict; for ``REPEAT`` the run that holds the original."""

    verdict: Verdict
    run: Run | None = None


Requests: TypeAlias = Run | Section  # a run of requests, durable or accepted


def last_accepted(session: SessionState | None, pending: Sequence[Section]) -> int:
    """Return the last sequence that was assigned, durable or not."""
    if pending:
        return pending[-1].last_sequence
    return 0 if session is None else session.last_sequence


def decide(
    session: SessionState | None,
    pending: Sequence[Section],
    stream: StreamId,
    sequence: int,
    body_crc: int,
    *,
    skipped_through: int = 0,
) -> Decision:
    """Say what an append is answered.

    Args:
        session: what is durable of the session; None if it is not in the table.
        pending: what was accepted of it and is not durable, in order.
        stream: the request's stream.
        sequence: its sequence.
        body_crc: the CRC-32C of its body as received.
        skipped_through: up to where the client has said that its requests never come.
    """
    if session is None:
        return Decision(Verdict.UNKNOWN)
    last = max(last_accepted(session, pending), skipped_through)
    if sequence > last:
        return Decision(Verdict.APPEND if sequence == last + 1 else Verdict.GAP)
    horizon = max(session.answered_through, last - limits.WINDOW_REQUESTS)
    held: Requests | None = None
    if sequence > horizon:
        held = _find(pending, sequence) or _find(session.runs, sequence)
    if held is None:
        return Decision(Verdict.UNKNOWN)
    held_stream = held.stream_id if isinstance(held, Run) else held.stream
    if held_stream != stream or _entry(held, sequence).body_crc != body_crc:
        return Decision(Verdict.CONFLICT)
    return Decision(Verdict.REPEAT, held) if isinstance(held, Run) else Decision(Verdict.WAIT)


def _find(runs: Iterable[Requests], sequence: int) -> Requests | None:
    for run in runs:
        if run.first_sequence <= sequence <= run.last_sequence:
            return run
    return None


def _entry(held: Requests, sequence: int) -> RequestEntry:
    at = (sequence - held.first_sequence) * REQUEST_BYTES
    return RequestEntry._make(_REQUEST.unpack_from(held.requests, at))


def repeat_answer(run: Run, sequence: int, durable_lsn: Lsn) -> bytes:
    """Return the frames that answer a request of a durable run once more.

    The stored refusals have codes and no messages.
    """
    at = sequence - run.first_sequence
    entries = list(_REQUEST.iter_unpack(run.requests[: at * REQUEST_BYTES]))
    first_lsn = run.first_lsn + sum(stored for _, stored, _, _ in entries)
    refusals = tuple(_refusals_of(run.refusals, at))
    refused = RefusedRecords(sequence, refusals).encode() if refusals else b""
    return refused + Ack(sequence, sequence, first_lsn, durable_lsn).encode()


def _refusals_of(refusals: Sequence[RefusedRecord], request: int) -> Iterator[Refusal]:
    for each in refusals:
        if each.request == request:
            yield Refusal(each.record, each.code)


# --- hello --------------------------------------------------------------------------------------


class Greeting(Enum):
    """What becomes of a HELLO."""

    RESUME = "the session is known: its last sequence"
    TAKE = "the name has a session: its next epoch, durable before the answer; its last sequence"
    FENCED = "the session is known, and another client has taken it since"
    ISSUE = "a new session, durable before the answer"
    UNKNOWN = "the session it names is not in the table"
    LOST = "damage has made the daemon forget what the session of the name had stored"
    FULL = "the table is at its bound"


class GreetingPlan(NamedTuple):
    """What a HELLO is answered, and which sessions go."""

    greeting: Greeting
    session: int = 0
    evict: tuple[int, ...] = ()


def plan_greeting(
    state: LogState,
    session: int,
    name: str,
    idle: Mapping[int, int],
    now_ns: int,
    *,
    epoch: int | None = None,
) -> GreetingPlan:
    """Decide on a HELLO. A session with a connection is never evicted.

    Args:
        state: the durable state.
        session: the session to come back to, or 0.
        name: the producer's name, or empty.
        idle: the sessions without a connection, and since when; the longest first.
        now_ns: the wall clock.
        epoch: which takeover the client is of; None if it does not tell.
    """
    if session:
        return GreetingPlan(_come_back(state.sessions.get(session), epoch), session)
    named = state.sessions_by_name.get(name) if name else None
    if named is not None:
        return GreetingPlan(Greeting.TAKE, named.session_id)
    if now_ns - state.lost_names.get(name, now_ns - _ONCE_IDLE_NS - 1) <= _ONCE_IDLE_NS:
        return GreetingPlan(Greeting.LOST)
    lacking = _lacking(state)
    evict: list[int] = []
    if max(lacking) > 0:
        for each in _expendable(state, idle, now_ns):
            entries = _entries(each)
            if lacking.sessions > 0 or entries:  # an empty window makes no room for another one
                evict.append(each.session_id)
                lacking = Room(lacking.sessions - 1, lacking.entries - entries)
            if max(lacking) <= 0:
                break
        else:
            return GreetingPlan(Greeting.FULL)
    return GreetingPlan(Greeting.ISSUE, evict=tuple(evict))


def _come_back(session: SessionState | None, epoch: int | None) -> Greeting:
    """Decide on a client that names its session."""
    if session is None:
        return Greeting.UNKNOWN
    if epoch is None or epoch == session.epoch:
        return Greeting.RESUME
    # an epoch that is not begun yet: a log that went back
    return Greeting.FENCED if epoch < session.epoch else Greeting.UNKNOWN


class Room(NamedTuple):
    """Of the table: sessions, and requests in their windows."""

    sessions: int
    entries: int


def _lacking(state: LogState) -> Room:
    """Return how much too little room there is for one session more."""
    sessions = state.sessions
    lacking = len(sessions) + 1 - limits.SESSIONS_MAX
    # each may hold one window: only beyond so many does it pay to count
    if len(sessions) * limits.WINDOW_REQUESTS < limits.WINDOW_ENTRIES_MAX:
        return Room(lacking, 0)
    entries = sum(map(_entries, sessions.values()))
    return Room(lacking, entries + limits.WINDOW_REQUESTS - limits.WINDOW_ENTRIES_MAX)


def _entries(session: SessionState) -> int:
    return sum(len(run.requests) for run in session.runs) // REQUEST_BYTES


def _expendable(state: LogState, idle: Mapping[int, int], now_ns: int) -> Iterator[SessionState]:
    """Yield whom to evict first: nobody comes back for a session without a name, or soon."""
    for has_name in (False, True):
        for session_id, since_ns in idle.items():
            session = state.sessions.get(session_id)
            if session is None or bool(session.name) is not has_name:
                continue
            if (
                not session.name.startswith(limits.ONCE_PREFIX_NAME)
                or now_ns - since_ns > _ONCE_IDLE_NS
            ):
                yield session


_ONCE_IDLE_NS = int(limits.SESSION_ONCE_IDLE_S) * limits.CLOCK_NS_PER_S
