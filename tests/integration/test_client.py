"""The blocking client against a real ingest: values, refusals, restarts, threads, fork."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgpack
import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from tests.impostor import Impostor, answered_by
from wald import limits
from wald.client.encoding import encode_value, encode_values
from wald.client.link import ROOT_SOCKET, Deadline, Link, default_socket
from wald.client.requests import Columns, outgoing
from wald.client.results import Results
from wald.clock import SystemClock
from wald.config import Settings, SinkSettings
from wald.config.settings import StreamSettings
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    Ack,
    Append,
    Failed,
    Goodbye,
    Hello,
    OpenStream,
    Pong,
    StreamOpened,
    Welcome,
)
from wald.model import Receipt, Refused


@pytest.fixture
def door() -> Iterator[Door]:
    with short_directory() as directory, Door(directory) as opened:
        yield opened


# --- values -------------------------------------------------------------------------------------

VALUES = {
    "bytes": (b"raw", 0, b"raw"),
    "bytearray": (bytearray(b"raw"), 0, b"raw"),
    "memoryview": (memoryview(b"raw"), 0, b"raw"),
    "dict": ({"a": 1}, 1, msgpack.packb({"a": 1})),
    "text": ("é", 1, msgpack.packb("é")),
    "tuple": ((1, None), 1, msgpack.packb([1, None])),
    "bytes inside": ([b"x"], 1, msgpack.packb([b"x"])),
    "float": (1.5, 1, msgpack.packb(1.5)),
    "nan": (float("nan"), 1, msgpack.packb(float("nan"))),
    "datetime": (
        datetime(2026, 11, 22, 10, 14, 3, 120_000, tzinfo=UTC),
        1,
        msgpack.packb(msgpack.ExtType(1, b"2026-11-22T10:14:03.120000+00:00")),
    ),
    "date": (date(2026, 11, 22), 1, msgpack.packb(msgpack.ExtType(2, b"2026-11-22"))),
    "Decimal": (Decimal("12.50"), 1, msgpack.packb(msgpack.ExtType(3, b"12.50"))),
    "UUID": (UUID(int=7), 1, msgpack.packb(msgpack.ExtType(4, bytes(15) + b"\x07"))),
}


def deep(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


UNSTORABLE = {
    "a naive datetime": datetime(2026, 11, 22, 10, 14),  # noqa: DTZ001 - that is the point
    "a naive datetime inside": {"at": datetime(2026, 11, 22)},  # noqa: DTZ001
    "Decimal NaN": Decimal("NaN"),
    "a set": {1},
    "an object": object(),
    "an int beyond 64 bits": 1 << 64,
    "a lone surrogate": "\ud800",
    "too deep": deep(limits.MSGPACK_MAX_DEPTH + 1),
}


@pytest.mark.parametrize("what", VALUES)
def test_a_value_is_encoded_as_the_page_says(what: str):
    value, content, data = VALUES[what]
    assert encode_value(value) == (content, data)


@pytest.mark.parametrize("what", UNSTORABLE)
def test_a_value_without_a_form_is_refused_with_its_index(door: Door, what: str):
    value = UNSTORABLE[what]
    assert [each.index for each in encode_values([b"a", value]).refused] == [1]
    with wald.connect(door.path) as producer:
        with pytest.raises(wald.RecordRefused) as caught:
            producer.append("s", value)
        assert (caught.value.reason, caught.value.index) == ("record.value", 0)
        results = producer.append_many("s", [{"a": 1}, value, b"c"])
        first, refused, last = results
        assert isinstance(first, Receipt)
        assert isinstance(refused, Refused)
        assert isinstance(last, Receipt)
        assert (refused.index, last.lsn) == (1, first.lsn + 1)


def test_what_was_appended_is_in_the_log_with_key_and_headers(door: Door):
    with wald.connect(door.path) as producer:
        receipt = producer.append("s", {"n": 1}, key="k", headers={"h": b"v"}, dedup_id="d")
        assert receipt == Receipt("s", 1, "durable", 1)
        producer.append_many("s", [b"raw", {"n": 2}, b"raw"], keys=["a", None, b"c"])
        producer.append_many("s", [{"k": "x"}, {"k": "y"}], key=lambda value: value["k"])  # type: ignore[index]
        producer.append_many("s", [b"1", b"2"], key="same", headers={"h": "x"})
    assert door.stored_bodies() == [
        Body(1, [msgpack.packb({"n": 1})], ["k"], [{"h": b"v"}], ["d"]),
        Body(b"\0\1\0", [b"raw", msgpack.packb({"n": 2}), b"raw"], ["a", None, b"c"]),
        Body(1, [msgpack.packb({"k": "x"}), msgpack.packb({"k": "y"})], ["x", "y"]),
        Body(0, [b"1", b"2"], ["same", "same"], [{"h": "x"}, {"h": "x"}]),
    ]


def test_what_is_urgent_says_so_in_a_header(door: Door):
    with wald.connect(door.path) as producer:
        producer.append("s", b"1", headers={"h": "x"}, urgent=True)
        producer.append_many("s", [b"2", b"3"], urgent=True)
    header = limits.URGENT_HEADER_NAME
    assert door.stored_bodies() == [
        Body(0, [b"1"], None, [{header: "", "h": "x"}]),
        Body(0, [b"2", b"3"], None, [{header: ""}, {header: ""}]),
    ]


# --- results ------------------------------------------------------------------------------------


def test_results_name_what_the_daemon_refused(door: Door):
    with wald.connect(door.path) as producer:
        keys = [str(n) for n in range(50)]
        keys[46] = "k" * 2_000
        results = producer.append_many("s", [b"v"] * 50, keys=keys)
        assert (len(results), len(results.accepted), len(results.refused)) == (50, 49, 1)
        refused = results[46]
        assert isinstance(refused, Refused)
        assert (refused.index, refused.code) == (46, "record.key")
        lsns = [each.lsn for each in results.accepted]
        assert lsns == list(range(1, 50))
        assert isinstance(results[-1], Receipt)
        assert [type(each) for each in results[45:48]] == [Receipt, Refused, Receipt]
        assert repr(results) == "Results('s', 49 accepted, 1 refused)"
        with pytest.raises(wald.RecordRefused) as caught:
            results.raise_for_refused()
        assert caught.value.index == 46
        with pytest.raises(wald.RecordRefused):
            producer.append("s", b"v", key="k" * 2_000)
        producer.append_many("s", [b"v"]).raise_for_refused()
        assert list(producer.append_many("s", [])) == []


def test_many_values_are_cut_into_requests_within_the_limits(door: Door):
    values = [bytes([n % 251]) * 1_000 for n in range(9_000)]
    with wald.connect(door.path) as producer:
        results = producer.append_many("s", values)
        assert [each.lsn for each in results.accepted] == list(range(1, 9_001))
        assert 8 < producer.session.last_sequence < 20
        big = producer.append_many("s", [bytes(limits.RECORD_MAX_BYTES)] * 3 + [bytes(1 << 21)])
        assert [type(each) for each in big] == [Receipt] * 3 + [Refused]


def test_huge_keys_and_headers_never_make_a_request_too_large():
    keys = ["k" * (2 << 20), "fine"]
    ready, refused = outgoing([b"a", b"b"], Columns(keys))
    assert [list(each.indexes) for each in ready] == [[0], [1]]
    assert refused == []
    ready, refused = outgoing([b"a", b"b"], Columns(["k" * (5 << 20), "fine"]))
    assert [each.index for each in refused] == [0]
    _, refused = outgoing([b"a"], Columns(None, [{"h": object()}]))  # type: ignore[dict-item]
    assert [each.index for each in refused] == [0]


@pytest.mark.parametrize(
    "options", [{"key": "a", "keys": ["b"]}, {"keys": ["a", "b"]}, {"dedup_ids": []}]
)
def test_options_that_contradict_are_an_error_of_the_caller(door: Door, options):
    with wald.connect(door.path) as producer, pytest.raises(ValueError, match=r"keys|key"):
        producer.append_many("s", [b"v"], **options)


@pytest.mark.parametrize("stream", ["../x", "A", "", "a b"])
def test_a_name_that_is_no_stream_is_refused(door: Door, stream: str):
    with wald.connect(door.path) as producer, pytest.raises(wald.UnknownStream) as caught:
        producer.append(stream, b"x")
    assert caught.value.hint


# --- nobody there, restarts ---------------------------------------------------------------------


def test_without_a_daemon_it_is_unavailable_at_once():
    with short_directory() as directory, wald.connect(directory / "nobody") as producer:
        with pytest.raises(wald.Unavailable) as caught:
            producer.append("s", b"x")
        assert caught.value.retryable
        with pytest.raises(wald.Unavailable):
            producer.ping()


def test_a_path_that_no_socket_can_have_is_unavailable():
    with wald.connect("/tmp/" + "x" * 200) as producer, pytest.raises(wald.Unavailable):
        producer.append("s", b"x")


def test_it_waits_for_a_daemon_that_comes():
    with short_directory() as directory:
        got: list[Receipt] = []

        def produce() -> None:
            with wald.connect(directory / "s", wait_for_daemon=True) as producer:
                got.append(producer.append("s", b"x"))

        thread = threading.Thread(target=produce)
        thread.start()
        with Door(directory):
            thread.join(DEADLINE_S)
        assert [each.lsn for each in got] == [1]


@pytest.mark.parametrize("timeout", [10**7, 1e10, 10**12])
def test_who_waits_as_good_as_for_ever_gets_the_answer(door: Door, timeout: float):
    with wald.connect(door.path, timeout=timeout) as producer:
        first = producer.append("events", b"1").lsn
        assert producer.submit("events", b"2").result().lsn == first + 1
        producer.flush()


@pytest.mark.parametrize("threads", [1, 3])
def test_many_refusals_are_heard_while_more_is_sent(threads: int):
    """Both ends would wait for the other to read."""
    with short_directory() as directory:
        settings = Settings(
            str(directory / "data"),
            str(directory / "s"),
            sinks={"to": SinkSettings("to", "null")},
            auto_sink="to",
            streams={"events": StreamSettings("events", key="required")},
        )
        keys = [None if n % 10 == 0 else "k" for n in range(16 * 8_192 // threads)]
        found: list[Results] = []

        def append(producer: wald.Producer) -> None:
            found.append(producer.append_many("events", [b"v"] * len(keys), keys=keys))

        with Door(directory, settings=settings) as door, wald.connect(door.path) as producer:
            appending = [threading.Thread(target=append, args=(producer,)) for _ in range(threads)]
            for thread in appending:
                thread.start()
            for thread in appending:
                thread.join(DEADLINE_S)
        codes = [{each.code for each in results.refused} for results in found]
        assert codes == [{"record.key"}] * threads
        assert [len(results.refused) for results in found] == [keys.count(None)] * threads


def test_what_arrives_while_much_is_sent_again_is_kept():
    mine, peer = socket.socketpair()
    said, sent = Pong(1, bytes(64)).encode() * 20_000, bytes(1 << 20)
    received = bytearray()

    def answer() -> None:
        peer.sendall(said)  # and reads only then
        while len(received) < len(sent):
            received.extend(peer.recv(1 << 16))

    answering = threading.Thread(target=answer)
    answering.start()
    link = Link(mine)
    link.send_rest(link.send(sent), Deadline(SystemClock(), DEADLINE_S))
    answering.join(DEADLINE_S)
    assert received == sent
    events = 0
    while events < 20_000:
        link.wait(0)
        events += len([*link.events()])
    link.close()
    peer.close()


def test_a_look_while_another_thread_waits_is_no_error():
    mine, peer = socket.socketpair()
    link = Link(mine)
    waiting = threading.Thread(target=link.wait, args=(DEADLINE_S,))
    waiting.start()
    assert [link.has_more() for _ in range(2_000)] == [False] * 2_000
    peer.send(b"x")
    waiting.join(DEADLINE_S)
    assert link.has_more()
    link.close()
    peer.close()


def test_a_restart_of_the_daemon_is_invisible(door: Door):
    with wald.connect(door.path) as producer:
        producer.append("s", b"1")
        session = producer.session
        for number in range(3):
            door.stop()
            door.start()
            assert producer.append("s", b"x").lsn == 2 + number
        assert producer.session.session_id == session.session_id
        assert producer.session.last_sequence == 4
        producer.flush()


def test_appends_during_restarts_are_stored_once_each(door: Door):
    lsns: list[int] = []
    done = threading.Event()

    def produce() -> None:
        with wald.connect(door.path) as producer:
            while not done.is_set():
                lsns.extend(each.lsn for each in producer.append_many("s", [b"x"] * 3).accepted)

    thread = threading.Thread(target=produce)
    thread.start()
    for _ in range(4):
        door.stop()
        door.start()
    done.set()
    thread.join(DEADLINE_S)
    assert lsns == list(range(1, len(lsns) + 1))
    assert sum(len(body.values) for body in door.stored_bodies()) == len(lsns)


def test_a_second_client_of_the_name_fences_the_first(door: Door):
    with (
        wald.connect(door.path, name="ann") as first,
        wald.connect(door.path, name="ann") as second,
    ):
        first.append("s", b"1")
        second.append("s", b"2")
        assert second.session.last_sequence == 2
        for _ in range(2):
            with pytest.raises(wald.Fenced):
                first.append("s", b"3")
        second.append("s", b"3")


def test_a_later_process_of_the_name_goes_on_and_may_ask_once_more(door: Door):
    body = Body(0, [b"a", b"b"])
    with wald.connect(door.path, name="once:import") as producer:
        assert producer.session.last_sequence == 0
        first = producer.append_request("s", body, sequence=1)
        second = producer.append_request("s", bodies.encode(Body(0, [b"c"])), sequence=2)
    with wald.connect(door.path, name="once:import") as producer:
        assert producer.session.last_sequence == 2
        again = producer.append_request("s", Body(0, [b"c"]), sequence=2)
        assert [each.lsn for each in again.accepted] == [each.lsn for each in second.accepted]
        with pytest.raises(wald.SequenceConflict):
            producer.append_request("s", Body(0, [b"changed"]), sequence=2)
        third = producer.append_request("s", Body(0, [b"d"]), sequence=3)
        assert [each.lsn for each in (*first.accepted, *third.accepted)] == [1, 2, 4]


# --- a daemon made of frames, to misbehave ------------------------------------------------------


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    with short_directory() as directory:
        made = Impostor(directory)
        yield made
        made.listening.close()


def test_a_request_without_an_answer_is_of_unknown_outcome(impostor: Impostor):
    def script() -> None:
        with impostor.accept() as connection:
            opened = impostor.read(connection)
            connection.sendall(StreamOpened(opened.request, 1).encode())  # type: ignore[attr-defined]
            impostor.read(connection)  # the append: never answered
            impostor.read(connection)

    thread = answered_by(script)
    with wald.connect(impostor.path, timeout=0.3) as producer:
        with pytest.raises(wald.OutcomeUnknown):
            producer.append("s", b"x")
        with pytest.raises(wald.WaitTimeout):
            producer.flush(0.05)
    thread.join(DEADLINE_S)


def test_a_session_that_is_gone_leaves_the_outcome_unknown(impostor: Impostor):
    def script() -> None:
        with impostor.accept() as connection:
            opened = impostor.read(connection)
            connection.sendall(StreamOpened(opened.request, 1).encode())  # type: ignore[attr-defined]
            impostor.read(connection)
        connection, _ = impostor.listening.accept()
        with connection:
            hello = impostor.read(connection)
            assert isinstance(hello, Hello)
            assert hello.session == 5
            connection.sendall(
                Failed("outcome-unknown", "gone", answers=2, request=hello.request).encode()
            )
            again = impostor.read(connection)
            assert isinstance(again, Hello)
            assert again.session == 0
            connection.sendall(Welcome(again.request, 6, 0, bytes(16)).encode())
            opened = impostor.read(connection)  # the ids of streams may be gone with the session
            assert isinstance(opened, OpenStream)
            connection.sendall(StreamOpened(opened.request, 9).encode())
            request = impostor.read(connection)
            assert isinstance(request, Append)
            assert (request.stream, request.sequence, request.lag) == (9, 1, 1)
            connection.sendall(Ack(1, 1, 1, 1).encode())
            impostor.read(connection)

    thread = answered_by(script)
    with wald.connect(impostor.path) as producer:
        with pytest.raises(wald.OutcomeUnknown):
            producer.append("s", b"x")
        assert producer.session.session_id == 6
        assert producer.append("s", b"y").lsn == 1
    thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Failed("protocol-mismatch", "old", flags=1), wald.ProtocolMismatch),
        (Failed("backpressure", "full", retry_after_ms=1, flags=1), wald.Backpressure),
        (Goodbye(), wald.Unavailable),
    ],
    ids=["version", "full", "stopping"],
)
def test_a_greeting_that_is_refused_is_told(impostor: Impostor, answer, error):
    done = threading.Event()

    def script() -> None:
        impostor.listening.settimeout(0.1)
        while not done.is_set():
            try:
                connection, _ = impostor.listening.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):  # the client gives up at its deadline
                connection.settimeout(DEADLINE_S)
                impostor.read(connection)
                connection.sendall(answer.encode())

    thread = answered_by(script)
    try:
        with wald.connect(impostor.path, timeout=0.3) as producer, pytest.raises(error):
            producer.append("s", b"x")
    finally:
        done.set()
        thread.join(DEADLINE_S)


def test_bytes_that_are_no_protocol_are_a_mismatch(impostor: Impostor):
    def script() -> None:
        connection, _ = impostor.listening.accept()
        with connection:
            impostor.read(connection)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = answered_by(script)
    with wald.connect(impostor.path, timeout=5.0) as producer, pytest.raises(wald.ProtocolMismatch):
        producer.append("s", b"x")
    thread.join(DEADLINE_S)


# --- threads, fork, close -----------------------------------------------------------------------


def test_threads_share_a_producer(door: Door):
    lsns: list[int] = []

    with wald.connect(door.path) as producer:

        def produce() -> None:
            lsns.extend(producer.append("s", b"x").lsn for _ in range(50))

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert sorted(lsns) == list(range(1, 401))
        assert producer.session.last_sequence == 400


def test_a_closed_producer_says_so_also_to_one_that_waits(door: Door):
    producer = wald.connect(door.path)
    assert 0 < producer.ping() < DEADLINE_S
    producer.close()
    producer.close()
    for call in (lambda: producer.append("s", b"x"), producer.ping, lambda: producer.session):
        with pytest.raises(wald.Closed):
            call()


_FORKS = """
import os, sys, wald
producer = wald.connect(sys.argv[1], name="parent")
producer.append("s", b"parent 1")
mine = producer.session.session_id
child = os.fork()
if child == 0:
    producer.append("s", b"child")
    ok = producer.session.session_id != mine
    producer.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
producer.append("s", b"parent 2")
assert producer.session.session_id == mine
producer.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forks_child_opens_a_session_of_its_own(door: Door):
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, door.path],
        cwd=Path(__file__).parents[2],
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0
    assert [body.values for body in door.stored_bodies()] == [
        [b"parent 1"],
        [b"child"],
        [b"parent 2"],
    ]


# --- the front ----------------------------------------------------------------------------------


def test_the_public_names_are_there_and_no_other():
    for name in wald.__all__:
        assert getattr(wald, name) is not None
    assert dir(wald) == sorted(wald.__all__)
    with pytest.raises(AttributeError):
        wald.nothing  # noqa: B018 - the access is what is tested


def test_importing_wald_is_cheap_and_loads_nothing_of_the_daemon():
    """Counted, not timed: below 60 ms as long as no large library is among these."""
    code = (
        "import sys; bare = set(sys.modules); import wald; early = set(sys.modules);"
        "wald.connect; late = set(sys.modules);"
        "bad = set('lmdb uvloop click psutil rich google_crc32c asyncio logging'.split());"
        "print(len(early - bare), len(late - early), sorted(late & bad), 'msgpack' in early)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=DEADLINE_S
    ).stdout.split(maxsplit=2)
    assert int(said[0]) < 40
    assert int(said[1]) < 100
    assert said[2].strip() == "[] False"


@pytest.mark.parametrize(
    ("environment", "uid", "path"),
    [
        ({"WALD_SOCKET": "/x"}, 0, "/x"),
        ({}, 0, ROOT_SOCKET),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/wald/wald.sock"),
        ({"XDG_STATE_HOME": "/state"}, 7, "/state/wald/wald.sock"),
        ({"HOME": "/home/ann"}, 7, "/home/ann/.local/state/wald/wald.sock"),
    ],
)
def test_the_default_socket_is_where_the_daemon_listens(environment, uid, path):
    from wald.config.places import default_places

    assert default_socket(environment, uid) == path
    assert default_places(environment, uid).socket == path


def test_wald_socket_names_the_daemon(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WALD_SOCKET", door.path)
    with wald.connect() as producer:
        assert producer.append("s", b"x").lsn == 1
        assert door.path in repr(producer)
    assert os.fspath(door.path)
