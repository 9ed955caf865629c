import pytest

from tests.logtools import SESSION, STREAM, append, first_group
from wald import limits
from wald.core import frame, sessions, state
from wald.core.frame import RefusedRecord, SectionKind
from wald.core.state import LogState, RouteState
from wald.errors import FormatDamaged

ROUTE = RouteState(3, "to-db", STREAM, "db", "digest", 5, 4, 99)


def applied(*sections) -> LogState:
    built = LogState()
    lsn = 1
    for section in sections:
        built.apply(section, lsn, 1_000)
        lsn += section.records
    return built


def again(before: LogState) -> LogState:
    """A state read back from the snapshot of another."""
    after = LogState()
    for section in before.snapshot():
        packed = frame.join_sections([section])
        (read,) = frame.decode_sections(packed, 1)
        after.apply(read, 0, 0)
    return after


def contents(of: LogState) -> tuple[object, ...]:
    return (
        of.streams,
        of.routes,
        of.sessions,
        set(of.streams_by_name),
        {name: session.session_id for name, session in of.sessions_by_name.items()},
        of.next_stream_id,
        of.next_route_id,
        of.lost_files,
    )


def test_counts_are_cumulative_and_lsns_follow():
    built = applied(*first_group(), append(1, b"a", b"b"), append(2, b"c"))
    stream = built.streams[STREAM]
    assert (stream.records, stream.last_lsn) == (3, 3)
    assert stream.bytes == len(append(1, b"a", b"b").bodies) + len(append(2, b"c").bodies)
    assert built.streams_by_name["orders"] is stream
    session = built.sessions[SESSION]
    assert (session.last_sequence, session.active_ns) == (2, 1_000)
    assert [run.first_lsn for run in session.runs] == [1, 3]


def test_a_request_without_stored_records_uses_its_sequence_and_no_lsn():
    refused = append(1)._replace(refusals=(RefusedRecord(0, 0, "record.key"),))
    built = applied(*first_group(), refused)
    assert built.streams[STREAM].last_lsn == 0
    assert built.sessions[SESSION].last_sequence == 1
    assert built.sessions[SESSION].runs[0].refusals == refused.refusals


def test_a_snapshot_brings_back_the_same_state():
    built = applied(
        *first_group(),
        state.route_birth(ROUTE),
        append(1, b"a")._replace(refusals=(RefusedRecord(0, 1, "record.too-large"),)),
        append(2, b"b", answered=0),
        state.session_issued(8, ""),
        state.stream_opened(9, "other"),
    )
    built.lost_files = {4, 2}
    assert contents(again(built)) == contents(built)
    assert contents(again(again(built))) == contents(built)
    assert again(built).next_stream_id == 10
    assert contents(again(LogState())) == contents(LogState())


def test_ids_are_not_given_twice_after_a_route_died_and_a_snapshot():
    built = applied(*first_group(), state.route_birth(ROUTE), state.route_death(3))
    assert 3 not in built.routes
    assert again(built).next_route_id == 4


def test_answered_requests_are_forgotten():
    built = applied(*first_group(), append(1, b"a"), append(2, b"b"), append(3, b"c", answered=2))
    assert [run.first_sequence for run in built.sessions[SESSION].runs] == [3]


def test_a_window_holds_no_more_than_its_bound():
    built = applied(*first_group())
    for sequence in range(1, limits.WINDOW_REQUESTS + 10):
        built.apply(append(sequence, b"x"), sequence, 0)
    runs = built.sessions[SESSION].runs
    assert len(runs) == limits.WINDOW_REQUESTS
    assert runs[0].first_sequence == 10


def test_a_name_has_one_session():
    built = applied(state.session_issued(1, "ann"), state.session_issued(2, "ann"))
    assert set(built.sessions) == {2}
    assert built.sessions_by_name["ann"].session_id == 2
    built.apply(state.session_issued(2, "ann"), 0, 0)  # said again: no harm
    assert set(built.sessions) == {2}


def test_sessions_can_be_forgotten():
    built = applied(state.session_issued(1, "ann"), state.session_issued(2, ""))
    built.forget_session(2)
    built.forget_session(2)
    built.forget_session(1)
    assert not built.sessions
    assert not built.sessions_by_name
    built = applied(state.session_issued(1, "ann"))
    built.forget_all_sessions()
    assert not built.sessions
    assert not built.sessions_by_name


def test_a_session_s_end_forgets_it_and_its_name():
    built = applied(
        state.session_issued(1, "ann"), state.session_issued(2, ""), state.session_ended(1)
    )
    assert set(built.sessions) == {2}
    assert not built.sessions_by_name
    built.apply(state.session_ended(1), 0, 0)  # said again: no harm
    built.apply(state.session_issued(3, "ann"), 0, 0)
    built.apply(state.session_ended(1), 0, 0)
    assert built.sessions_by_name["ann"].session_id == 3


def test_records_of_a_session_that_was_evicted_still_count():
    built = applied(*first_group())
    built.forget_session(SESSION)
    built.apply(append(1, b"x"), 1, 0)
    assert built.streams[STREAM].records == 1


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(append(1, b"x")._replace(stream=5), id="records of an unknown stream"),
        pytest.param(frame.control_section(SectionKind.STREAM, {"stream": 1}), id="no name"),
        pytest.param(
            frame.control_section(SectionKind.STREAM, {"stream": "1", "name": "x"}), id="id as text"
        ),
        pytest.param(
            frame.control_section(SectionKind.SESSION, {"session": 1, "name": 2}), id="name as int"
        ),
        pytest.param(
            frame.control_section(SectionKind.ROUTE_BIRTH, {"route": 1}), id="half a route"
        ),
        pytest.param(frame.control_section(SectionKind.ROUTE_DEATH, {}), id="no route"),
        pytest.param(frame.control_section(SectionKind.SESSION_END, {}), id="no session"),
        pytest.param(
            frame.control_section(SectionKind.SNAPSHOT, {"streams": [[1, "x"]]}), id="a short row"
        ),
        pytest.param(
            frame.control_section(SectionKind.SNAPSHOT, {"streams": 5}), id="rows are no array"
        ),
        pytest.param(
            frame.control_section(SectionKind.SNAPSHOT, {"sessions": [[1, "x", 1, 1, 1, [1]]]}),
            id="a run is no row",
        ),
    ],
)
def test_a_statement_that_says_nonsense_is_damage(section):
    built = applied(state.stream_opened(STREAM, "orders"))
    with pytest.raises(FormatDamaged):
        built.apply(section, 1, 0)


def refusing(sequence: int, count: int, session: int = SESSION):
    refusals = tuple(RefusedRecord(0, index, "record.content") for index in range(count))
    return append(sequence, session=session)._replace(refusals=refusals)


def refusals_in(built: LogState) -> int:
    return sum(len(run.refusals) for each in built.sessions.values() for run in each.runs)


def test_refusals_that_a_session_keeps_are_bounded_and_the_oldest_requests_go():
    each = limits.REFUSALS_KEPT_PER_REQUEST
    kept = limits.REFUSALS_PER_SESSION_MAX // each
    built = applied(*first_group(), append(1, b"x"))
    for sequence in range(2, 2 + 2 * kept):
        built.apply(refusing(sequence, each), sequence, 0)
    built.apply(append(2 + 2 * kept, b"x"), 99, 0)
    runs = built.sessions[SESSION].runs
    assert refusals_in(built) == limits.REFUSALS_PER_SESSION_MAX
    assert [run.first_sequence for run in runs if run.refusals] == list(
        range(2 + kept, 2 + 2 * kept)
    )
    assert [run.first_sequence for run in runs if not run.refusals] == [1, 2 + 2 * kept]
    crc = frame.request_entries(refusing(2, 1))[0].body_crc
    session = built.sessions[SESSION]
    verdict = {seq: sessions.decide(session, (), STREAM, seq, crc).verdict for seq in (2, 2 + kept)}
    assert verdict == {2: sessions.Verdict.UNKNOWN, 2 + kept: sessions.Verdict.REPEAT}
    assert contents(again(built)) == contents(built)
    built.apply(append(3 + 2 * kept, b"x", answered=2 + 2 * kept), 100, 0)
    assert (refusals_in(built), session.refusals) == (0, 0)


def test_refusals_that_all_sessions_keep_are_bounded_together():
    built = applied(*first_group())
    count = limits.REFUSALS_MAX // limits.REFUSALS_PER_SESSION_MAX + 5
    ids = range(100, 100 + count)
    for session_id in ids:
        built.apply(state.session_issued(session_id, ""), 0, 0)
        for sequence in range(1, 9):
            built.apply(refusing(sequence, limits.REFUSALS_KEPT_PER_REQUEST, session_id), 1, 0)
            assert refusals_in(built) <= limits.REFUSALS_MAX
    assert refusals_in(built) == limits.REFUSALS_MAX
    assert contents(again(built)) == contents(built)
    for session_id in ids:
        built.apply(state.session_ended(session_id), 0, 0)
    built.apply(refusing(1, 7), 1, 0)
    assert refusals_in(built) == 7


def test_a_snapshot_of_the_largest_state_comes_in_parts_of_bounded_size():
    built = applied(*first_group())
    requests_each = limits.WINDOW_REQUESTS
    for session_id in range(limits.WINDOW_ENTRIES_MAX // requests_each):
        built.apply(state.session_issued(100 + session_id, f"p{session_id}"), 0, 0)
        table = append(1).requests * requests_each
        for first in range(0, requests_each, 16):  # runs of 16 requests
            run = append(first + 1, session=100 + session_id)
            built.apply(run._replace(requests=table[: 16 * 16]), 1, 0)
    for session_id in range(limits.REFUSALS_MAX // limits.REFUSALS_KEPT_PER_REQUEST):
        run = refusing(requests_each + 1, limits.REFUSALS_KEPT_PER_REQUEST, 100 + session_id)
        built.apply(run, 1, 0)
    assert refusals_in(built) == limits.REFUSALS_MAX
    for session_id in range(limits.SESSIONS_MAX - len(built.sessions)):
        built.apply(state.session_issued(10_000 + session_id, "n" * 128 + str(session_id)), 0, 0)
    parts = [frame.section_bytes(section) for section in built.snapshot()]
    assert max(parts) <= limits.SNAPSHOT_BLOCK_MAX_BYTES
    assert sum(parts) <= limits.SNAPSHOT_MAX_BYTES
    assert contents(again(built)) == contents(built)


def test_a_loss_keeps_the_names_of_once_and_a_new_session_ends_that() -> None:
    built = LogState()
    for number, name in enumerate(("once:a", "once:b", "ann", ""), 1):
        built.apply(state.session_issued(number, name), 0, number * 100)
    built.forget_all_sessions()
    built.forget_all_sessions()  # another loss keeps them too
    again = LogState()
    for section in built.snapshot():
        again.apply(section, 0, 0)
    assert again.lost_names == {"once:a": 100, "once:b": 200}
    again.apply(state.session_issued(9, "once:a"), 0, 0)
    assert again.lost_names == {"once:b": 200}
