"""A producer's requests on their way: window, answers, what is sent again."""

import pytest

from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Append,
    ErrorFlag,
    Event,
    Failed,
    Refusal,
    RefusedRecords,
    Welcome,
)
from wald.core.outbox import Outbox, Request, error_of
from wald.core.wire import Side, next_frame
from wald.errors import (
    Backpressure,
    DiskFull,
    Fenced,
    OutcomeUnknown,
    ProtocolMismatch,
    SequenceConflict,
    SequenceGap,
)

STREAM = 3


def welcomed(last: int = 0, session: int = 5, window: int = 4) -> Outbox:
    outbox = Outbox()
    outbox.welcome(Welcome(1, session, last, bytes(16), window=window, in_flight_max_bytes=100))
    return outbox


def add(outbox: Outbox, records: int = 2, body: bytes = b"body") -> Request:
    return outbox.add(STREAM, body, records)


def read(frame: bytes) -> Event:
    found = next_frame(frame, 0, Side.DAEMON)
    assert found is not None
    return found[0]


def test_sequences_go_on_from_the_last_assigned():
    outbox = welcomed(last=41)
    assert [add(outbox).sequence for _ in range(3)] == [42, 43, 44]
    assert len(outbox) == 3


def test_a_frame_says_how_far_it_is_ahead_of_what_is_answered():
    outbox = welcomed()
    first, second, third = add(outbox), add(outbox), add(outbox)
    assert read(outbox.frame(first)) == Append(STREAM, 1, 1, b"body")
    assert read(outbox.frame(third)) == Append(STREAM, 3, 3, b"body")
    outbox.take(Ack(1, 1, 1, 2))
    assert read(outbox.frame(second)) == Append(STREAM, 2, 1, b"body")


def test_an_ack_counts_lsns_over_its_requests_less_what_was_refused():
    outbox = welcomed()
    one, two, three, four = (add(outbox, records=3) for _ in range(4))
    outbox.take(RefusedRecords(2, (Refusal(1, "record.key"),)))
    outbox.take(RefusedRecords(3, (Refusal(WHOLE_REQUEST, "request.malformed"),)))
    outbox.take(Ack(1, 4, 101, 120))
    assert [each.first_lsn for each in (one, two, three, four)] == [101, 104, 106, 106]
    assert [each.stored for each in (one, two, three, four)] == [3, 2, 0, 3]
    assert all(each.done and each.durable_lsn == 120 for each in (one, two, three, four))
    assert (len(outbox), outbox.in_flight_bytes) == (0, 0)


def test_the_window_and_the_bytes_in_flight_are_bounded():
    outbox = welcomed(window=2)
    rooms = [outbox.has_room]
    add(outbox), add(outbox)
    rooms.append(outbox.has_room)
    outbox.take(Ack(1, 1, 1, 1))
    rooms.append(outbox.has_room)
    add(outbox, body=bytes(100))
    outbox.take(Ack(2, 2, 3, 3))
    rooms.append(outbox.has_room)
    assert rooms == [True, False, True, False]


def test_no_room_frees_the_sequences_of_the_request_and_of_all_behind():
    outbox = welcomed()
    one, two, three = add(outbox), add(outbox), add(outbox)
    outbox.take(Failed("disk-full", "full", "free some", 250, ErrorFlag.NOT_STORED, 1, 2))
    assert [each.done for each in (one, two, three)] == [False, True, True]
    for request in (two, three):
        assert isinstance(request.error, DiskFull)
        assert request.error.retry_after_s == 0.25
    assert outbox.in_flight_bytes == len(b"body")
    assert add(outbox).sequence == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("sequence-conflict", SequenceConflict),
        ("sequence-gap", SequenceGap),
        ("outcome-unknown", OutcomeUnknown),
        ("fenced", Fenced),
        ("disk-full", DiskFull),
        ("backpressure", Backpressure),
        ("frame.malformed", ProtocolMismatch),
    ],
)
def test_an_error_ends_its_request_alone_with_its_class(code, kind):
    outbox = welcomed()
    one, two = add(outbox), add(outbox)
    outbox.take(Failed(code, "why", "hint", 0, 0, 1, 1))
    assert one.error is not None
    assert type(one.error) is kind
    assert one.error.hint == "hint"
    assert not two.done
    outbox.take(Failed(code, "why", "hint", 0, 0, 1, 9))  # of nobody: ignored
    assert len(outbox) == 1


def test_after_a_lost_connection_all_that_is_unanswered_is_sent_again():
    outbox = welcomed()
    add(outbox), add(outbox), add(outbox)
    outbox.take(Ack(1, 1, 1, 2))
    for request in outbox.unanswered():
        outbox.sent(request)
    outbox.welcome(Welcome(2, 5, 3, bytes(16)))
    assert [read(outbox.frame(each)) for each in outbox.unanswered()] == [
        Append(STREAM, 2, 1, b"body"),
        Append(STREAM, 3, 2, b"body"),
    ]
    outbox.take(Ack(2, 2, 3, 9))
    outbox.take(Ack(3, 3, 7, 9))
    assert not outbox


def test_a_lost_session_leaves_the_outcome_unknown():
    outbox = welcomed(last=7)
    request = add(outbox)
    outbox.lose_session()
    assert isinstance(request.error, OutcomeUnknown)
    assert (len(outbox), outbox.session, outbox.in_flight_bytes) == (0, 0, 0)
    outbox.welcome(Welcome(1, 6, 0, bytes(16)))
    assert add(outbox).sequence == 1


def test_a_last_sequence_above_ours_means_that_another_took_the_name():
    outbox = welcomed(last=7)
    request = add(outbox)
    with pytest.raises(Fenced):  # the request was never sent: sequence 8 is not ours
        outbox.welcome(Welcome(1, 5, 8, bytes(16)))
    outbox.sent(request)
    outbox.welcome(Welcome(1, 5, 8, bytes(16)))
    with pytest.raises(Fenced):
        outbox.welcome(Welcome(1, 5, 9, bytes(16)))


def test_a_last_sequence_below_what_was_acknowledged_means_that_the_log_went_back():
    outbox = welcomed(last=7)
    for request in (add(outbox), add(outbox)):
        outbox.sent(request)
    outbox.take(Ack(8, 8, 1, 2))
    outbox.welcome(Welcome(1, 5, 8, bytes(16)))  # the last was not acknowledged
    with pytest.raises(OutcomeUnknown, match="went back"):
        outbox.welcome(Welcome(1, 5, 7, bytes(16)))
    outbox.lose_session()
    outbox.welcome(Welcome(1, 5, 7, bytes(16)))
    assert add(outbox).sequence == 8
    with pytest.raises(OutcomeUnknown):  # what a greeting said counts as acknowledged
        outbox.welcome(Welcome(1, 5, 6, bytes(16)))


def test_a_given_sequence_asks_for_an_answer_once_more():
    outbox = welcomed(last=7)
    again = outbox.add(STREAM, b"same", 1, sequence=7)
    assert read(outbox.frame(again)) == Append(STREAM, 7, 1, b"same")
    outbox.take(Ack(7, 7, 55, 60))
    assert again.first_lsn == 55
    assert add(outbox).sequence == 8


def test_refusals_of_another_request_change_nothing():
    outbox = welcomed()
    request = add(outbox)
    outbox.take(RefusedRecords(9, (Refusal(0, "record.key"),)))
    assert request.refusals == ()
    assert error_of(Failed("disk-full", "m")).message == "m"
