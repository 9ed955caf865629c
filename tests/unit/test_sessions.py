"""Duplicates at the door: the table of docs/protocol.md, row by row, also after a restart."""

from struct import pack

import pytest

from wald import limits
from wald.core import frame
from wald.core.events import Ack, RefusedRecords
from wald.core.frame import RefusedRecord, Section, SectionKind
from wald.core.sessions import (
    Greeting,
    GreetingPlan,
    Verdict,
    decide,
    last_accepted,
    plan_greeting,
    repeat_answer,
)
from wald.core.state import LogState, session_issued, stream_opened
from wald.core.wire import FrameReader, Side

SESSION = 77
STREAM = 1
NOW_NS = 1_000_000_000_000_000_000


def crc_of(sequence: int) -> int:
    return 1_000 + sequence


def run(
    first: int,
    count: int,
    *,
    answered: int = 0,
    session: int = SESSION,
    stored: int = 2,
    refusals: tuple[RefusedRecord, ...] = (),
) -> Section:
    """A section of ``count`` requests of two records each, their CRC told by their sequence."""
    rows = b"".join(pack("<IIII", 2, stored, 10, crc_of(first + i)) for i in range(count))
    bodies = bytes(10 * count)
    records = stored * count
    kind = SectionKind.APPEND
    return Section(kind, 1, STREAM, session, first, answered, records, rows, refusals, bodies)


def state_of(*sections: Section, session: int = SESSION, name: str = "") -> LogState:
    state = LogState()
    for control in (stream_opened(STREAM, "s"), session_issued(session, name)):
        state.apply(control, 1, NOW_NS)
    lsn = 1
    for section in sections:
        state.apply(section, lsn, NOW_NS)
        lsn += section.records
    return state


def restarted(state: LogState) -> LogState:
    """The state as the next process reads it from the snapshot of a segment."""
    again = LogState()
    for section in state.snapshot():
        again.apply(section, 1, NOW_NS)
    return again


# last durable 10 (1..10 durable, answered through 4), accepted and not durable 11..12
DURABLE = (run(1, 6), run(7, 4, answered=4))
PENDING = (run(11, 2, answered=4),)

ROWS = {
    "last + 1 is appended": (13, crc_of(13), Verdict.APPEND),
    "last + 1 is appended whatever its body": (13, 5, Verdict.APPEND),
    "in the window, durable: the original answer": (8, crc_of(8), Verdict.REPEAT),
    "the first of the window": (5, crc_of(5), Verdict.REPEAT),
    "the last durable": (10, crc_of(10), Verdict.REPEAT),
    "accepted and not durable yet: wait": (11, crc_of(11), Verdict.WAIT),
    "the last accepted: wait": (12, crc_of(12), Verdict.WAIT),
    "another body, durable: conflict": (8, crc_of(9), Verdict.CONFLICT),
    "another body, not durable: conflict": (12, crc_of(11), Verdict.CONFLICT),
    "answered already: unknown": (4, crc_of(4), Verdict.UNKNOWN),
    "sequence 0: unknown": (0, 0, Verdict.UNKNOWN),
    "above last + 1: gap": (14, crc_of(14), Verdict.GAP),
    "far above: gap": (2**64 - 1, 0, Verdict.GAP),
}


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("row", ROWS)
def test_a_request_is_answered_as_the_table_says(row, restart):
    sequence, crc, verdict = ROWS[row]
    state = state_of(*DURABLE)
    if restart:
        state = restarted(state)
    decision = decide(state.sessions[SESSION], PENDING, STREAM, sequence, crc)
    assert decision.verdict is verdict
    assert (decision.run is not None) == (verdict is Verdict.REPEAT)


@pytest.mark.parametrize("sequence", [8, 12], ids=["durable", "not durable"])
def test_a_resend_under_another_stream_id_is_a_conflict(sequence):
    session = state_of(*DURABLE).sessions[SESSION]
    assert decide(session, PENDING, STREAM + 1, sequence, crc_of(sequence)).verdict is (
        Verdict.CONFLICT
    )


def test_a_session_that_is_not_in_the_table_never_appends():
    assert decide(None, (), STREAM, 1, 0).verdict is Verdict.UNKNOWN
    assert last_accepted(None, ()) == 0


def test_a_new_session_begins_with_sequence_one():
    session = state_of().sessions[SESSION]
    assert decide(session, (), STREAM, 1, 0).verdict is Verdict.APPEND
    assert decide(session, (), STREAM, 2, 0).verdict is Verdict.GAP


def test_the_window_ends_w_requests_back():
    window = limits.WINDOW_REQUESTS
    state = state_of(run(1, 50), run(51, window))
    session, last = state.sessions[SESSION], 50 + window
    assert last_accepted(session, ()) == last
    assert decide(session, (), STREAM, 51, crc_of(51)).verdict is Verdict.REPEAT
    assert decide(session, (), STREAM, 50, crc_of(50)).verdict is Verdict.UNKNOWN
    # what is accepted and not durable moves the window too
    pending = (run(last + 1, 10),)
    assert decide(session, pending, STREAM, 60, crc_of(60)).verdict is Verdict.UNKNOWN


def test_a_request_of_another_producers_window_is_not_found():
    state = state_of(run(1, 3))
    state.apply(session_issued(78, ""), 1, NOW_NS)
    assert decide(state.sessions[78], (), STREAM, 2, crc_of(2)).verdict is Verdict.GAP


def test_a_hole_in_what_is_known_is_unknown_and_not_a_new_request():
    state = state_of(run(1, 3))
    session = state.sessions[SESSION]
    session.runs.clear()
    assert decide(session, (), STREAM, 3, crc_of(3)).verdict is Verdict.UNKNOWN


def events_of(data: bytes) -> list[object]:
    reader = FrameReader(Side.CLIENT)
    reader.receive_data(data)
    return list(iter(reader.next_event, None))


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_repeat_is_told_the_original_lsns_and_refusals(restart):
    refusals = (RefusedRecord(1, 0, "record.key"), RefusedRecord(1, 1, "record.value"))
    state = state_of(run(1, 2), run(3, 3, stored=1, refusals=refusals))
    if restart:
        state = restarted(state)
    kept = state.sessions[SESSION].runs[-1]
    assert events_of(repeat_answer(kept, 3, 99)) == [Ack(3, 3, 5, 99)]
    refused, ack = events_of(repeat_answer(kept, 4, 99))
    assert isinstance(refused, RefusedRecords)
    assert [(each.record, each.code) for each in refused.refusals] == [
        (0, "record.key"),
        (1, "record.value"),
    ]
    assert ack == Ack(4, 4, 6, 99)


# --- hello --------------------------------------------------------------------------------------


def filled(monkeypatch: pytest.MonkeyPatch, *, bound: int, ages_s: list[float]) -> LogState:
    monkeypatch.setattr(limits, "SESSIONS_MAX", bound)
    state = LogState()
    for number, age_s in enumerate(ages_s, 1):
        state.apply(session_issued(number, ""), 1, NOW_NS - int(age_s * 1e9))
    return state


@pytest.mark.parametrize(
    ("session", "name", "plan"),
    [
        (0, "", GreetingPlan(Greeting.ISSUE)),
        (0, "other", GreetingPlan(Greeting.ISSUE)),
        (0, "ann", GreetingPlan(Greeting.TAKE, SESSION)),
        (SESSION, "", GreetingPlan(Greeting.RESUME, SESSION)),
        (SESSION, "other", GreetingPlan(Greeting.RESUME, SESSION)),
        (78, "", GreetingPlan(Greeting.UNKNOWN, 78)),
        (78, "ann", GreetingPlan(Greeting.UNKNOWN, 78)),
    ],
)
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_hello_is_answered_as_the_table_says(session, name, plan, restart):
    state = state_of(run(1, 2), name="ann")
    if restart:
        state = restarted(state)
    assert plan_greeting(state, session, name, {}, NOW_NS) == plan


@pytest.mark.parametrize(
    ("idle", "evicted"),
    [
        ([3, 1, 2], (3,)),  # the longest without a connection, whenever its last group was
        ([1, 3, 2], (1,)),
        ([4, 3, 2], (3,)),  # before one that has a name
        ([5, 4], (4,)),  # named ones last, and not one of 'once' within its days
    ],
)
def test_at_the_bound_the_session_longest_without_a_connection_makes_room(
    monkeypatch: pytest.MonkeyPatch, idle: list[int], evicted: tuple[int, ...]
):
    state = filled(monkeypatch, bound=5, ages_s=[5.0, 90_000.0, 1.0])
    state.apply(session_issued(4, "ann"), 1, NOW_NS)
    state.apply(session_issued(5, "once:import"), 1, NOW_NS)
    since = dict.fromkeys(idle, NOW_NS - 10**9)
    plan = plan_greeting(state, 0, "", since, NOW_NS)
    assert plan == GreetingPlan(Greeting.ISSUE, evict=evicted)


def test_at_the_bound_a_hello_is_refused_if_all_sessions_have_a_connection(monkeypatch):
    state = filled(monkeypatch, bound=2, ages_s=[1e9, 1e9])
    assert plan_greeting(state, 0, "", {}, NOW_NS) == GreetingPlan(Greeting.FULL)


def test_a_session_of_once_is_kept_for_its_days(monkeypatch):
    monkeypatch.setattr(limits, "SESSIONS_MAX", 1)
    state = LogState()
    state.apply(session_issued(1, "once:import"), 1, NOW_NS)
    day_ns = 86_400 * 10**9
    later = plan_greeting(state, 0, "", {1: NOW_NS}, NOW_NS + 6 * day_ns)
    assert later.greeting is Greeting.FULL
    much_later = plan_greeting(state, 0, "", {1: NOW_NS}, NOW_NS + 8 * day_ns)
    assert much_later == GreetingPlan(Greeting.ISSUE, evict=(1,))


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_name_of_once_that_a_loss_forgot_does_not_begin_anew_for_its_days(*, restart: bool):
    state = state_of(run(1, 2), name="once:import")
    state.apply(session_issued(78, "ann"), 1, NOW_NS)
    state.forget_all_sessions()
    if restart:
        state = restarted(state)
    day_ns = 86_400 * 10**9
    plans = {
        name: plan_greeting(state, 0, name, {}, NOW_NS + 6 * day_ns).greeting
        for name in ("once:import", "once:another", "ann", "")
    }
    assert plans.pop("once:import") is Greeting.LOST
    assert set(plans.values()) == {Greeting.ISSUE}
    later = plan_greeting(state, 0, "once:import", {}, NOW_NS + 8 * day_ns)
    assert later.greeting is Greeting.ISSUE


def test_the_entries_of_all_windows_together_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "WINDOW_ENTRIES_MAX", 300)
    state = state_of(run(1, 44))
    state.apply(session_issued(78, ""), 1, NOW_NS)
    # two sessions may hold two windows, above the bound: so they are counted, and one more fits
    assert plan_greeting(state, 0, "", {}, NOW_NS).greeting is Greeting.ISSUE
    state.apply(run(45, 1), 100, NOW_NS)
    assert plan_greeting(state, 0, "", {}, NOW_NS).greeting is Greeting.FULL
    # one with an empty window would make no room
    idle = {78: 0, SESSION: NOW_NS}
    plan = plan_greeting(state, 0, "", idle, NOW_NS)
    assert plan == GreetingPlan(Greeting.ISSUE, evict=(SESSION,))


def test_the_table_of_the_page_has_a_verdict_for_each_row():
    assert frame.REQUEST_BYTES == 16
    assert {row[2] for row in ROWS.values()} == set(Verdict)
