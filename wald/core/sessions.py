"""Duplicates at the door: what a request with a sequence number is answered.

The table of docs/protocol.md ("Sequences and duplicates"), over what the log knows of a session
and what was accepted for it but is not durable yet. Pure: the state is read, never changed.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
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
) -> Decision:
    """Say what an append is answered.

    Args:
        session: what is durable of the session; None if it is not in the table.
        pending: what was accepted of it and is not durable, in order.
        stream: the request's stream.
        sequence: its sequence.
        body_crc: the CRC-32C of its body as received.
    """
    if session is None:
        return Decision(Verdict.UNKNOWN)
    last = last_accepted(session, pending)
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
    ISSUE = "a new session, durable before the answer"
    UNKNOWN = "the session it names is not in the table"
    FULL = "the table is at its bound"


class GreetingPlan(NamedTuple):
    """What a HELLO is answered, and which sessions go."""

    greeting: Greeting
    session: int = 0
    evict: tuple[int, ...] = ()


def plan_greeting(
    state: LogState, session: int, name: str, connected: Container[int], now_ns: int
) -> GreetingPlan:
    """Decide on a HELLO. Sessions with a connection are never evicted, others beyond the horizon.

    Args:
        state: the durable state.
        session: the session to come back to, or 0.
        name: the producer's name, or empty.
        connected: the ids of sessions that have a connection.
        now_ns: the wall clock.
    """
    if session:
        known = session in state.sessions
        return GreetingPlan(Greeting.RESUME if known else Greeting.UNKNOWN, session)
    named = state.sessions_by_name.get(name) if name else None
    if named is not None:
        return GreetingPlan(Greeting.RESUME, named.session_id)
    if _has_room(state):
        return GreetingPlan(Greeting.ISSUE)
    evict = tuple(
        each.session_id
        for each in state.sessions.values()
        if each.session_id not in connected and now_ns - each.active_ns > _horizon_ns(each)
    )
    return GreetingPlan(Greeting.ISSUE if evict else Greeting.FULL, evict=evict)


def _has_room(state: LogState) -> bool:
    sessions = state.sessions
    if len(sessions) >= limits.SESSIONS_MAX:
        return False
    # each may hold one window: only beyond so many does it pay to count
    if len(sessions) * limits.WINDOW_REQUESTS < limits.WINDOW_ENTRIES_MAX:
        return True
    entries = sum(len(run.requests) for each in sessions.values() for run in each.runs)
    return entries // REQUEST_BYTES + limits.WINDOW_REQUESTS <= limits.WINDOW_ENTRIES_MAX


def _horizon_ns(session: SessionState) -> int:
    once = session.name.startswith("once:")
    idle_s = limits.SESSION_ONCE_IDLE_S if once else limits.SESSION_IDLE_S
    return int(idle_s) * limits.CLOCK_NS_PER_S
