"""What a dead letter knows: the record, why, and who sent it."""

import pytest

from tests.backlog import FS, Backlog, end, eventually
from tests.integration.test_drain import sink_of, values
from wald.core import body, frame, state
from wald.core.frame import Section, SectionKind
from wald.drainer.producers import LogPlace, Producers, trace_of
from wald.model import Record
from wald.testing.recording_sink import RecordingTarget

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def section(session, *records, stream=1, headers=None):
    """Return a request of a session as a section."""
    data = body.encode(body.Body(0, list(records), headers=headers))
    table = frame._REQUEST.pack(len(records), len(records), len(data), frame.crc32c(data))
    return Section(SectionKind.APPEND, 1, stream, session, 1, 0, len(records), table, (), data)


def letters_of(backlog, target):
    shared = backlog.shared(sink_of(target))
    fleet = backlog.fleet(shared)
    try:
        eventually(lambda: fleet.figures()["events"]["through_lsn"] >= backlog.log.frontier.lsn)
        return shared.ledger.dead_letters(1)
    finally:
        end(fleet)
        shared.dead_log.close()


def test_a_letter_says_producer_trace_key_and_times(backlog):
    backlog.log.append_group([state.session_issued(9, "billing"), section(9, b"a", b"bad-named")])
    backlog.append(b"b", b"bad-nameless")  # session 7 has no name
    headers = [{"traceparent": TRACE}]
    receipt = backlog.log.append_group([section(9, b"bad-traced", headers=headers)])
    target = RecordingTarget(refuses=lambda record: record.value.startswith(b"bad"))
    named, nameless, traced = letters_of(backlog, target)
    assert named.producer == traced.producer == "billing"
    assert nameless.producer == "session 0000000000000007"
    assert (named.trace, traced.trace) == ("", TRACE)
    assert traced.record_time_ns == receipt.commit_time_ns
    assert traced.time_ns >= traced.record_time_ns
    assert traced.attempts == 1
    assert (traced.layout, traced.lane, len(traced.rev_id)) == (0, 0, 16)


def test_a_name_said_before_a_restart_of_ingest_is_found_in_the_snapshot(place):
    backlog = Backlog(place, "events")
    backlog.log.append_group([state.session_issued(9, "billing")])
    backlog.close()
    again = Backlog.__new__(Backlog)
    again.__dict__ |= backlog.__dict__
    again.log = type(backlog.log).open(FS, backlog.data_dir, backlog_clock(), backlog.chance)
    again.log.append_group([section(9, b"bad")])
    target = RecordingTarget(refuses=lambda record: record.value == b"bad")
    (letter,) = letters_of(again, target)
    assert letter.producer == "billing"
    again.close()


def backlog_clock():
    from tests.backlog import CLOCK

    return CLOCK


def test_what_the_log_does_not_hold_has_no_producer(backlog):
    lsns = backlog.append(*values(3))
    place = LogPlace(FS, backlog.data_dir, backlog.log.log_id, backlog.log.frontier)
    assert Producers().of(place, []) == {}
    assert Producers().of(place, [lsns[-1] + 50]) == {}
    other = place._replace(log_id=bytes(16))
    assert Producers().of(other, lsns) == {}
    gone = place._replace(data_dir=f"{backlog.data_dir}/nothing")
    assert Producers().of(gone, lsns) == {}


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        (None, ""),
        ({}, ""),
        ({"other": "x"}, ""),
        ({"traceparent": TRACE}, TRACE),
        ({"traceparent": TRACE.encode()}, TRACE),
        ({"traceparent": b"\xff"}, "\ufffd"),
        ({"traceparent": "x" * 1000}, "x" * 256),
    ],
)
def test_the_trace_context_is_the_header_bounded(headers, trace):
    assert trace_of(Record(1, 2, 0, b"", headers=headers)) == trace
