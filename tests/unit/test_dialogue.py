"""What a producer and the daemon say to each other: greetings, answers, the end of a session."""

from random import Random

import pytest

from wald.core.dialogue import BACKOFF_CAP_S, Dialogue
from wald.core.events import (
    Ack,
    Append,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    Refusal,
    RefusedRecords,
    StreamOpened,
    Throttle,
    Welcome,
)
from wald.core.wire import Side, next_frame
from wald.errors import (
    Backpressure,
    Fenced,
    OutcomeUnknown,
    ProtocolMismatch,
    Unavailable,
    UnknownStream,
    WaldError,
)

LOG_ID = b"0123456789abcdef"
HELLO = int(FrameType.HELLO)


def begun(*, single: bool = False, patient: bool = False) -> Dialogue:
    return Dialogue("/w.sock", "ann", patient=patient, single=single)


def welcomed(*, single: bool = False, session: int = 5, last: int = 0) -> Dialogue:
    dialogue = begun(single=single)
    dialogue.greet()
    assert dialogue.take_greeting(Welcome(1, session, last, LOG_ID, epoch=3)) == b""
    assert dialogue.greeted
    return dialogue


def read(frame: bytes) -> Event:
    found = next_frame(frame, 0, Side.DAEMON)
    assert found is not None
    return found[0]


def greeting(dialogue: Dialogue) -> Hello:
    hello = read(dialogue.greet())
    assert isinstance(hello, Hello)
    return hello


# --- greetings ----------------------------------------------------------------------------------


def test_the_first_hello_says_the_name_and_the_next_one_the_session_and_its_epoch():
    first = greeting(begun())
    assert (first.name, first.session, first.epoch) == ("ann", 0, 0)
    dialogue = welcomed()
    again = greeting(dialogue)
    assert (again.session, again.epoch) == (5, 3)
    assert not dialogue.greeted


def test_what_is_unanswered_follows_the_welcome_in_order():
    dialogue = welcomed()
    for body in (b"1", b"2"):
        dialogue.outbox.add(3, body, 1)
    dialogue.greet()
    dialogue.take_greeting(Welcome(2, 5, 0, LOG_ID))
    again = [read(frame) for frame in dialogue.again()]
    assert again == [Append(3, 1, 1, b"1"), Append(3, 2, 2, b"2")]


def test_another_log_has_other_ids_of_streams():
    dialogue = welcomed()
    dialogue.streams["s"] = 7
    dialogue.greet()
    dialogue.take_greeting(Welcome(2, 5, 0, LOG_ID))
    assert dialogue.streams == {"s": 7}
    dialogue.greet()
    dialogue.take_greeting(Welcome(3, 5, 0, LOG_ID[::-1]))
    assert dialogue.streams == {}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Goodbye(), ConnectionResetError),
        (Failed("backpressure", "full", "", 5, ErrorFlag.CLOSING), Backpressure),
        (Failed("protocol-mismatch", "old", "", 0, ErrorFlag.CLOSING), ProtocolMismatch),
        (Failed("outcome-unknown", "forgotten", "", 0, 0, HELLO, 1), OutcomeUnknown),
    ],
    ids=["it stops", "no room", "another version", "the name is forgotten"],
)
def test_a_greeting_may_be_refused(event: Event, error: type[Exception]):
    dialogue = begun()
    dialogue.greet()
    with pytest.raises(error):
        dialogue.take_greeting(event)
    assert dialogue.ended is None


def test_anything_else_before_the_welcome_is_passed_over():
    dialogue = begun()
    dialogue.greet()
    assert dialogue.take_greeting(Pong(9)) == b""
    assert not dialogue.greeted


def test_who_is_fenced_while_it_greets_has_ended():
    dialogue = welcomed()
    dialogue.greet()
    with pytest.raises(Fenced):
        dialogue.take_greeting(Failed("fenced", "another", "", 0, ErrorFlag.CLOSING))
    assert isinstance(dialogue.ended, Fenced)
    used = welcomed()
    used.greet()
    with pytest.raises(Fenced):  # sequences that this one never used
        used.take_greeting(Welcome(2, 5, 9, LOG_ID))
    assert isinstance(used.ended, Fenced)


# --- a session is lost --------------------------------------------------------------------------

FORGOTTEN = Failed("outcome-unknown", "no such session", "", 0, 0, HELLO, 2)


def test_a_session_that_is_not_known_is_given_up_for_another():
    dialogue = welcomed()
    dialogue.streams["s"] = 7
    request = dialogue.outbox.add(7, b"1", 1)
    dialogue.greet()
    hello = read(dialogue.take_greeting(FORGOTTEN))
    assert isinstance(hello, Hello)
    assert (hello.session, hello.epoch) == (0, 0)
    assert isinstance(request.error, OutcomeUnknown)
    assert dialogue.streams == {}


def test_a_log_that_went_back_ends_the_connection_and_the_session():
    dialogue = welcomed()
    dialogue.outbox.sent(dialogue.outbox.add(7, b"1", 1))
    dialogue.take(Ack(1, 1, 1, 1))
    on_its_way = dialogue.outbox.add(7, b"2", 1)
    dialogue.greet()
    with pytest.raises(ConnectionResetError):
        dialogue.take_greeting(Welcome(2, 5, 0, LOG_ID))
    assert isinstance(on_its_way.error, OutcomeUnknown)
    assert greeting(dialogue).session == 0


def test_a_single_session_ends_with_its_session():
    dialogue = welcomed(single=True)
    dialogue.greet()
    with pytest.raises(OutcomeUnknown, match="may or may not be stored") as lost:
        dialogue.take_greeting(FORGOTTEN)
    assert dialogue.ended is lost.value
    assert "another name" in lost.value.hint


# --- questions and answers ----------------------------------------------------------------------


def test_an_answer_is_given_once_to_its_number():
    dialogue = welcomed()
    number, frame = dialogue.ping()
    assert read(frame) == Ping(number)
    opening, frame = dialogue.open_stream("s")
    assert read(frame) == OpenStream(opening, "s")
    assert dialogue.answer(number) is None
    dialogue.take(StreamOpened(opening, 7))
    dialogue.take(Pong(number))
    assert (dialogue.is_answered(number), dialogue.is_answered(99)) == (True, False)
    assert dialogue.answer(number) == Pong(number)
    assert dialogue.answer(number) is None
    assert dialogue.answer(opening) == StreamOpened(opening, 7)


@pytest.mark.parametrize(
    ("code", "error"),
    [("unknown-stream", UnknownStream), ("backpressure", Backpressure)],
)
def test_an_answer_may_be_an_error(code: str, error: type[WaldError]):
    dialogue = welcomed()
    number, _ = dialogue.open_stream("s")
    dialogue.take(Failed(code, "why", "hint", 5, 0, int(FrameType.OPEN_STREAM), number))
    with pytest.raises(error, match="why"):
        dialogue.answer(number)


@pytest.mark.parametrize("name", ["", "A", "a b", "x" * 65, b"s", None, ["s"]], ids=str)
def test_what_is_no_name_is_never_asked_for(name):
    with pytest.raises(UnknownStream):
        welcomed().open_stream(name)


# --- what arrives -------------------------------------------------------------------------------


def test_answers_to_requests_go_to_the_outbox():
    dialogue = welcomed()
    one, two = (dialogue.outbox.add(7, b"x", 1) for _ in range(2))
    dialogue.take(RefusedRecords(1, (Refusal(0, "record.key", "no"),)))
    dialogue.take(Throttle(7, 250, 900))
    dialogue.take(Ack(1, 1, 4, 9))
    dialogue.take(Failed("sequence-conflict", "no", "", 0, 0, int(FrameType.APPEND), 2))
    assert (one.done, one.refusals[0].code) == (True, "record.key")
    assert two.error is not None
    assert dialogue.outbox.pauses_s == {7: 0.25}
    dialogue.take(Goodbye())  # the end of the connection follows


@pytest.mark.parametrize(
    ("code", "raised", "ends"),
    [
        ("fenced", Fenced, True),
        ("protocol-mismatch", ProtocolMismatch, False),
        ("backpressure", None, False),
    ],
)
def test_what_closes_a_connection_is_raised_unless_coming_back_helps(code, raised, ends):
    dialogue = welcomed()
    event = Failed(code, "why", "", 5, ErrorFlag.CLOSING)
    if raised is None:
        dialogue.take(event)
    else:
        with pytest.raises(raised):
            dialogue.take(event)
    assert (dialogue.ended is not None) == ends


# --- nobody answers -----------------------------------------------------------------------------


class Latest(Random):
    """Draws the upper end."""

    def uniform(self, a: float, b: float) -> float:
        assert a == b / 2
        return b


@pytest.mark.parametrize(
    ("failures", "left_s", "pause_s"),
    [(1, 9.0, 0.02), (3, 9.0, 0.08), (99, 9.0, BACKOFF_CAP_S), (99, 0.1, 0.1)],
)
def test_pauses_grow_up_to_a_cap_and_never_beyond_the_deadline(failures, left_s, pause_s):
    dialogue = welcomed()
    assert dialogue.pause_s(ConnectionRefusedError(), failures, left_s, Latest()) == pause_s


@pytest.mark.parametrize(
    ("error", "patient", "left_s", "hint"),
    [
        (FileNotFoundError(2, "no such file"), False, 9.0, "wald serve"),
        (PermissionError(13, "not allowed"), False, 9.0, "owner and group"),
        (ConnectionResetError(), True, 0.0, ""),
        (TimeoutError(), True, 0.0, "wald status"),
    ],
    ids=["nobody there", "not allowed", "time is over", "it hangs"],
)
def test_without_hope_or_time_it_is_unavailable(error, patient, left_s, hint):
    with pytest.raises(Unavailable) as told:
        begun(patient=patient).pause_s(error, 1, left_s, Latest())
    assert hint in told.value.hint
    assert "/w.sock" in told.value.message


def test_a_patient_one_waits_for_a_daemon_that_was_never_there():
    assert begun(patient=True).pause_s(FileNotFoundError(), 1, 9.0, Latest()) == 0.02


def test_who_was_told_that_there_is_no_room_is_told_so_at_the_end():
    full = Backpressure("full", retry_after_s=1.0)
    assert begun().pause_s(full, 1, 9.0, Latest()) == 0.02
    with pytest.raises(Backpressure):
        begun().pause_s(full, 1, 0.0, Latest())
