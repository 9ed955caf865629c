"""submit: answers that are asked for later. Against a real ingest, and one made of frames."""

import logging
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from tests.impostor import Impostor, answered_by
from wald import limits
from wald.core import body as bodies
from wald.core.events import Ack, Append, OpenStream, StreamOpened
from wald.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def door() -> Iterator[Door]:
    with short_directory() as directory, Door(directory) as opened:
        yield opened


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    with short_directory() as directory:
        made = Impostor(directory)
        yield made
        made.listening.close()


def script(
    arguments: list[str], code: str, **options: object
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        timeout=DEADLINE_S,
        check=False,
        capture_output=True,
        text=True,
    )


# --- what comes back ----------------------------------------------------------------------------


def test_what_was_submitted_is_stored_once_and_in_order_among_appends(door: Door):
    with wald.connect(door.path) as producer:
        pendings = [producer.submit("s", b"%d" % number) for number in range(1_000)]
        receipt = producer.append("s", b"1000")
        pendings += [producer.submit("s", b"%d" % number) for number in range(1_001, 1_500)]
        results = producer.append_many("s", [b"1500", b"1501"])
        assert receipt.lsn == 1_001
        assert [each.lsn for each in results.accepted] == [1_501, 1_502]
        lsns = [each.result().lsn for each in pendings]
        assert lsns == [*range(1, 1_001), *range(1_002, 1_501)]
        assert all(each.done() for each in pendings)
        assert pendings[0].result() == wald.Receipt(
            "s", 1, "durable", pendings[0].result().durable_lsn
        )
        assert producer.session.last_sequence < 1_200  # in a flood they go out together
        assert "answered" in repr(pendings[0])
    assert door.stored_values() == [b"%d" % number for number in range(1_502)]


def test_a_few_go_out_at_once_though_nobody_asks(door: Door):
    producer = wald.connect(door.path)
    for number in range(limits.SUBMIT_AT_ONCE_REQUESTS // 2):
        producer.submit("s", b"%d" % number)
    with wald.connect(door.path) as other:  # its ack comes behind what was sent before
        assert other.append("s", b"other").lsn == limits.SUBMIT_AT_ONCE_REQUESTS // 2 + 1
    producer.close()


def test_streams_keep_apart_and_each_keeps_its_order(door: Door):
    with wald.connect(door.path) as producer:
        many = [producer.submit("ab"[n % 2], {"n": n}, key=str(n % 3)) for n in range(300)]
        assert [each.result().lsn for each in many] == list(range(1, 301))
        assert {each.stream for each in many} == {"a", "b"}


def test_one_refused_record_among_many_harms_no_other(door: Door):
    with wald.connect(door.path) as producer:
        keys = ["k" * 2_000 if n == 46 else str(n) for n in range(200)]
        pendings = [producer.submit("s", b"v", key=key) for key in keys]
        errors = [each.exception() for each in pendings]
        assert [at for at, error in enumerate(errors) if error is not None] == [46]
        refused = errors[46]
        assert isinstance(refused, wald.RecordRefused)
        assert (refused.reason, refused.index) == ("record.key", 0)
        with pytest.raises(wald.RecordRefused):
            pendings[46].result()
        assert [pendings[at].result().lsn for at in (45, 47)] == [46, 47]


@pytest.mark.parametrize(
    ("stream", "value", "error"),
    [("s", {1}, wald.RecordRefused), ("NO", b"", wald.UnknownStream)],
    ids=["a value without a form", "a name that is none"],
)
def test_what_cannot_be_sent_is_told_by_submit_itself(door: Door, stream, value, error):
    with wald.connect(door.path) as producer:
        with pytest.raises(error):
            producer.submit(stream, value)
        with pytest.raises(error):
            producer.submit(stream, value, key="k", headers={"a": "b"}, dedup_id="c", urgent=True)


def test_a_key_that_is_none_is_refused_before_it_meets_others(door: Door):
    with wald.connect(door.path) as producer:
        with pytest.raises(wald.RecordRefused):
            producer.submit("s", b"v", key="\ud800")
        assert producer.submit("s", b"v", key="k", urgent=True).result().lsn == 1


def test_without_a_daemon_nothing_is_taken():
    with short_directory() as directory, wald.connect(directory / "nobody") as producer:
        for _ in range(3):
            with pytest.raises(wald.Unavailable):
                producer.submit("s", b"x")


def test_a_refusal_that_nobody_asks_for_is_logged(door: Door, caplog: pytest.LogCaptureFixture):
    with wald.connect(door.path) as producer:
        asked = producer.submit("s", b"v", key="k" * 2_000)
        assert asked.exception() is not None
        del asked
        producer.submit("s", b"v", key="k" * 2_000)
        producer.flush()
    assert [(each.name, each.levelno) for each in caplog.records] == [("wald", logging.ERROR)]
    assert "record.key" in caplog.text


# --- restarts, bounds ---------------------------------------------------------------------------


def test_restarts_between_submit_and_answer_are_invisible(door: Door):
    with wald.connect(door.path) as producer:
        pendings = []
        for round_no in range(4):
            pendings += [producer.submit("s", b"%d" % (round_no * 100 + n)) for n in range(100)]
            door.stop()
            door.start()
        assert [each.result().lsn for each in pendings] == list(range(1, 401))
    assert door.stored_values() == [b"%d" % number for number in range(400)]


def silent(impostor: Impostor, heard: list[object]) -> None:
    """Open the stream, and answer nothing that is appended."""
    with impostor.accept() as connection:
        reader = impostor.reader(connection)
        for event in reader:
            if isinstance(event, OpenStream):
                connection.sendall(StreamOpened(event.request, 1).encode())
            heard.append(event)


def test_what_is_on_its_way_is_bounded_and_what_finds_no_room_is_not_sent(impostor: Impostor):
    heard: list[object] = []
    thread = answered_by(lambda: silent(impostor, heard))
    bound = limits.SUBMIT_AT_ONCE_REQUESTS + limits.SUBMIT_TOGETHER_RECORDS * (
        limits.WINDOW_REQUESTS - limits.SUBMIT_AT_ONCE_REQUESTS + 1
    )
    producer = wald.connect(impostor.path, timeout=30)
    taken = [producer.submit("s", b"%d" % number) for number in range(bound)]
    with pytest.raises(wald.Backpressure):
        producer.submit("s", b"one too many", timeout=0.05)
    with pytest.raises(wald.OutcomeUnknown, match="as soon as there is room"):
        taken[-1].result(0.05)
    producer.close(timeout=0.05)
    thread.join(DEADLINE_S)
    appends = [event for event in heard if isinstance(event, Append)]
    values = [value for event in appends for value in bodies.decode(event.body).values]
    assert values == [b"%d" % number for number in range(len(values))]


def test_a_flush_sends_what_is_gathered_though_all_that_was_sent_is_answered(impostor: Impostor):
    go = threading.Event()
    at_once = limits.SUBMIT_AT_ONCE_REQUESTS

    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                elif isinstance(event, Append) and event.sequence >= at_once:
                    first = 1 if event.sequence == at_once else event.sequence
                    go.wait(DEADLINE_S)
                    connection.sendall(Ack(first, event.sequence, first, 99).encode())

    thread = answered_by(script)
    with wald.connect(impostor.path) as producer:
        pendings = [producer.submit("s", b"x") for _ in range(at_once + 8)]
        go.set()
        assert [each.result().lsn for each in pendings[:at_once]] == list(range(1, at_once + 1))
        assert not any(each.was_sent for each in pendings[at_once:])
        producer.flush()
        assert all(each.is_known for each in pendings)
    thread.join(DEADLINE_S)


def test_a_flush_that_cannot_send_what_is_gathered_says_so(impostor: Impostor):
    heard: list[object] = []
    thread = answered_by(lambda: silent(impostor, heard))
    producer = wald.connect(impostor.path)
    pendings = [producer.submit("s", b"x") for _ in range(limits.SUBMIT_AT_ONCE_REQUESTS + 1)]
    producer._session.outbox.lose_session()
    assert not pendings[-1].was_sent
    producer._session._link.shut()  # type: ignore[union-attr]
    impostor.listening.close()
    with pytest.raises(wald.WaitTimeout, match="what was submitted is not sent"):
        producer.flush(0.05)
    producer.close(timeout=0.05)
    thread.join(DEADLINE_S)


def test_an_answer_that_is_late_can_be_waited_for_again(impostor: Impostor):
    go = threading.Event()

    def late() -> None:
        with impostor.accept() as connection:
            reader = impostor.reader(connection)
            for event in reader:
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    go.wait(DEADLINE_S)
                    connection.sendall(
                        Ack(event.sequence, event.sequence, event.sequence + 10, 99).encode()
                    )

    thread = answered_by(late)
    with wald.connect(impostor.path) as producer:
        pending = producer.submit("s", b"x")
        assert not pending.done()
        with pytest.raises(wald.OutcomeUnknown) as unknown:
            pending.result(0.01)
        assert unknown.value.unsettled is pending
        with pytest.raises(wald.OutcomeUnknown) as one:
            producer.append("s", b"x", timeout=0.01)
        with pytest.raises(wald.OutcomeUnknown) as many:
            producer.append_many("s", [b"x"], timeout=0.01)
        with pytest.raises(wald.OutcomeUnknown):
            producer.settle(many.value, timeout=0.01)
        results = many.value.unsettled
        assert results.is_unsettled
        assert results.refused[0].code == "outcome-unknown"
        go.set()
        assert producer.settle(unknown.value) == wald.Receipt("s", 11, "durable", 99)
        assert producer.settle(one.value) == wald.Receipt("s", 12, "durable", 99)
        assert list(producer.settle(results)) == [wald.Receipt("s", 13, "durable", 99)]
        assert not producer.settle(results).is_unsettled
        final = wald.OutcomeUnknown("the session is lost")
        with pytest.raises(wald.OutcomeUnknown, match="lost"):
            producer.settle(final)
    thread.join(DEADLINE_S)


def test_a_close_is_bounded_and_says_what_it_left(
    impostor: Impostor, caplog: pytest.LogCaptureFixture
):
    heard: list[object] = []
    thread = answered_by(lambda: silent(impostor, heard))
    producer = wald.connect(impostor.path)
    pending = producer.submit("s", b"x")
    producer.close(timeout=0.05)
    thread.join(DEADLINE_S)
    assert "1 submitted records unanswered" in caplog.text
    with pytest.raises(wald.OutcomeUnknown, match="closed"):
        pending.result()
    with pytest.raises(wald.Closed):
        producer.submit("s", b"x")


def test_who_forgets_to_close_is_warned(impostor: Impostor):
    heard: list[object] = []
    thread = answered_by(lambda: silent(impostor, heard))
    producer = wald.connect(impostor.path)
    producer.submit("s", b"x")
    link = producer._session._link
    assert link is not None
    with pytest.warns(ResourceWarning, match="1 submitted records are unanswered"):
        del producer
    link.close()
    thread.join(DEADLINE_S)


# --- threads, fork, the end of the interpreter, signals -----------------------------------------


def test_threads_submit_to_one_producer_and_each_keeps_its_order(door: Door):
    with wald.connect(door.path) as producer:
        lsns: dict[int, list[int]] = {}

        def produce(number: int) -> None:
            pendings = [producer.submit("s", b"%d" % number) for _ in range(500)]
            lsns[number] = [each.result().lsn for each in pendings]

        threads = [threading.Thread(target=produce, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert all(found == sorted(found) for found in lsns.values())
        assert sorted(lsn for found in lsns.values() for lsn in found) == list(range(1, 3_001))


_FORKS = """
import os, sys, wald
producer = wald.connect(sys.argv[1])
pendings = [producer.submit("s", b"parent %d" % n) for n in range(300)]   # some sent, some gathered
child = os.fork()
if child == 0:
    ok = all(each.done() for each in pendings)
    try:
        pendings[-1].result()   # nothing was read since it was submitted
        ok = False
    except wald.NotOurs as error:
        ok = ok and isinstance(error, wald.OutcomeUnknown)
    producer.submit("s", b"child").result()
    producer.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert [each.result().stream for each in pendings] == ["s"] * 300
producer.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_fork_between_submit_and_answer_leaves_the_records_to_the_parent(door: Door):
    done = script([door.path], _FORKS)
    assert done.returncode == 0, done.stderr
    values = door.stored_values()
    assert sorted(values) == sorted([b"child", *(b"parent %d" % n for n in range(300))])
    assert [each for each in values if each != b"child"] == [b"parent %d" % n for n in range(300)]


_ENDS = """
import sys, wald
producer = wald.connect(sys.argv[1])
for n in range(300):
    producer.submit("s", b"%d" % n)
"""


def test_the_end_of_the_interpreter_waits_for_what_was_submitted(door: Door):
    done = script([door.path], _ENDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert door.stored_values() == [b"%d" % n for n in range(300)]


def test_the_end_of_the_interpreter_is_bounded_and_tells_what_is_left(impostor: Impostor):
    heard: list[object] = []
    thread = answered_by(lambda: silent(impostor, heard))
    done = script([impostor.path], _ENDS)
    thread.join(DEADLINE_S)
    assert done.returncode == 0
    assert "was closed with 300 submitted records unanswered" in done.stderr


_CALLS: list[tuple[str, Callable[[wald.Producer], object]]] = [
    ("append", lambda producer: producer.append("s", b"from within")),
    ("received", lambda producer: producer.append("s", b"from within", ack="received")),
    ("submit", lambda producer: producer.submit("s", b"from within")),
    ("append_many", lambda producer: producer.append_many("s", [b"from within"])),
    ("flush", lambda producer: producer.flush()),
    ("ping", lambda producer: producer.ping()),
    ("session", lambda producer: producer.session),
    ("close", lambda producer: producer.close()),
]
_EACH_CALL = pytest.mark.parametrize(
    "call", [row[1] for row in _CALLS], ids=[row[0] for row in _CALLS]
)


@_EACH_CALL
def test_a_signal_handler_is_refused_what_would_wait_for_the_call_that_it_interrupts(
    impostor: Impostor, call: Callable[[wald.Producer], object]
):
    handled = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def script() -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    signal.pthread_kill(main, signal.SIGUSR1)
                    handled.wait(DEADLINE_S)
                    connection.sendall(Ack(event.sequence, event.sequence, 7, 7).encode())

    producer = wald.connect(impostor.path, timeout=DEADLINE_S)
    told: list[wald.WaldError] = []

    def handle(*_: object) -> None:
        try:
            call(producer)
        except wald.WaldError as error:
            told.append(error)
        handled.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        thread = answered_by(script)
        assert producer.append("s", b"x").lsn == 7
        producer.close()
        thread.join(DEADLINE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(error) for error in told] == [InputError]
    assert "signal handler" in told[0].hint


@_EACH_CALL
def test_what_runs_while_a_session_is_at_work_is_refused_too(
    call: Callable[[wald.Producer], object],
):
    """As a finalizer may: here it is whoever gives the jitter."""

    class Chance(random.Random):
        def uniform(self, a: float, b: float) -> float:
            with pytest.raises(InputError):
                call(producer)
            return super().uniform(a, b)

    with short_directory() as directory:
        producer = wald.Producer(
            str(directory / "none"), timeout=0.1, wait_for_daemon=True, chance=Chance(1)
        )
        with pytest.raises(wald.Unavailable):
            producer.append("s", b"x")
        producer.close()


class StoppedError(BaseException):
    """What a signal handler of the application raises."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_while_submitting_loses_and_doubles_nothing(door: Door):
    """(A socket that a signal cuts off as it is made is closed by the garbage collector.)"""
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()
    armed = False

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise StoppedError

    def disturb() -> None:
        chance = random.Random(11)
        while not ended.wait(chance.uniform(0.0005, 0.003)):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=disturb)
    sent: list[bytes] = []
    unsure: list[bytes] = []
    with wald.connect(door.path) as producer:
        producer.append("s", b"first")
        thread.start()
        for number in range(1_000_000):
            if number > 3_000 and len(unsure) > 10:
                break
            value = b"%d" % number
            try:
                armed = True
                producer.submit("s", value)
                sent.append(value)
                armed = False
            except StoppedError:
                unsure.append(value)
        ended.set()
        thread.join(DEADLINE_S)
        signal.signal(signal.SIGUSR1, before)
        producer.flush()
    assert unsure
    values = door.stored_values()
    assert len(values) == len(set(values))
    assert set(sent) <= set(values) <= {b"first", *sent, *unsure}
