"""The example client, written from docs/protocol.md alone, against daemon and golden frames.

It shares no code with wald, so that page, golden frames and daemon are checked against each other.
"""

import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from docs.examples.minimal_client import (
    MinimalClient,
    ProtocolError,
    RefusedError,
    ServerError,
)
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from wald import limits
from wald.storage.log import Log
from wald.system import PosixFileSystem, SystemClock

ROOT = Path(__file__).parents[2]
GOLDEN = {
    each["name"]: bytes.fromhex(each["hex"])
    for each in json.loads((ROOT / "tests/golden/wire-1/frames.json").read_text())
}
STREAM = 7  # of the golden frames
USER_ANN = bytes.fromhex("81a475736572a3616e6e")
NOT_A_BIN: bytes = "e"  # type: ignore[assignment] # packed as a str, which the daemon refuses


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def door(directory: Path) -> Iterator[Door]:
    with Door(directory) as opened:
        yield opened


def records_of(door: Door, stream: str) -> int:
    """How many records the log holds of a stream, when ingest has stopped."""
    log = Log.open(PosixFileSystem(), door.data_dir, SystemClock(), random.Random(2))
    try:
        return log.state.streams_by_name[stream].records
    finally:
        log.close()


# --- against the daemon -------------------------------------------------------------------------


def test_it_appends_and_is_told_the_lsns(door: Door) -> None:
    with MinimalClient(door.path) as client:
        signups, other = client.open_stream("signups"), client.open_stream("other")
        assert client.append(signups, [b"a", b"b"]) == [1, 2]
        assert client.append(other, [b"c"]) == [3]
        assert client.append(signups, [bytes(300_000)] * 3) == [4, 5, 6]
        assert client.open_stream("signups") == signups
        assert client.ping(b"there?") == b"there?"


def test_keys_are_stored_and_a_long_one_is_refused_alone(door: Door) -> None:
    with MinimalClient(door.path) as client:
        stream = client.open_stream("s")
        assert client.append(stream, [b"a", b"b", b"c"], ["ann", b"bob", None]) == [1, 2, 3]
        with pytest.raises(RefusedError) as caught:
            client.append(stream, [b"a", b"b", b"c"], [None, "k" * 1_025, "ann"])
        assert caught.value.lsns == [4, None, 5]
        assert caught.value.refusals[1][0] == "record.key"
        assert client.append(stream, [b"d"]) == [6]


def test_a_request_refused_whole_has_no_lsns(door: Door) -> None:
    with MinimalClient(door.path) as client:
        stream = client.open_stream("s")
        with pytest.raises(RefusedError) as caught:
            client.append(
                stream, [b"x"] * (limits.REFUSALS_KEPT_PER_REQUEST + 1), ["k" * 2_000] * 1_025
            )
        assert set(caught.value.lsns) == {None}
        assert [code for code, _ in caught.value.refusals.values()] == ["request.refusals"]
        assert client.append(stream, [b"d"]) == [1]


def test_a_stream_that_may_not_be_is_told_and_the_client_goes_on(door: Door) -> None:
    with MinimalClient(door.path) as client:
        with pytest.raises(ServerError, match="unknown-stream"):
            client.open_stream("../x")
        assert client.append(client.open_stream("s"), [b"x"]) == [1]


def test_what_is_unanswered_over_a_restart_is_sent_again_and_stored_once(door: Door) -> None:
    client = MinimalClient(door.path)
    client.connect()
    client.hello()
    stream = client.open_stream("s")
    assert client.append(stream, [b"answered"]) == [1]
    sequences = [client.send(stream, [b"x", b"y"]) for _ in range(20)]
    with pytest.raises(RefusedError):
        client.wait(client.send(stream, [b"kept", NOT_A_BIN]))
    sequences.append(client.send(stream, [b"last"]))
    door.stop()
    door.start()
    client.reconnect()
    lsns = [lsn for sequence in sequences for lsn in client.wait(sequence)]
    assert lsns == [*range(2, 42), 43]  # 42 is what was kept beside the refused one
    assert client.append(stream, [b"on"]) == [44]
    client.close()
    door.stop()
    assert records_of(door, "s") == 44


def test_over_many_restarts_every_record_is_stored_once(door: Door) -> None:
    client = MinimalClient(door.path)
    client.connect()
    client.hello()
    stream = client.open_stream("s")
    sequences: list[int] = []
    for _ in range(4):
        sequences += [client.send(stream, [b"x"], ["ann"]) for _ in range(50)]
        door.stop()
        door.start()
        client.reconnect()
    assert [lsn for each in sequences for lsn in client.wait(each)] == list(range(1, 201))
    client.close()
    door.stop()
    assert records_of(door, "s") == 200


def test_a_name_is_taken_over_and_goes_on_behind_the_last_sequence(door: Door) -> None:
    older, newer = MinimalClient(door.path), MinimalClient(door.path)
    for client in (older, newer):
        client.connect()
    older.hello("ann")
    stream = older.open_stream("s")
    assert older.append(stream, [b"old"]) == [1]
    newer.hello("ann")
    assert newer.session == older.session
    assert [newer.append(stream, [b"new"]) for _ in range(2)] == [[2], [3]]
    with pytest.raises((ServerError, OSError), match=r"fenced|closed|pipe|reset"):
        older.append(stream, [b"too late"])
    with pytest.raises(ProtocolError, match="fenced"):
        older.reconnect()
    for client in (older, newer):
        client.close(goodbye=False)


def test_after_goodbye_the_session_is_not_known_and_a_new_one_begins(door: Door) -> None:
    with MinimalClient(door.path) as client:
        assert client.append(client.open_stream("s"), [b"x"]) == [1]
    with pytest.raises(ServerError, match="outcome-unknown"):
        client.reconnect()
    client.hello()  # on the same connection
    assert client.append(client.open_stream("s"), [b"y"]) == [2]
    client.close()


def test_run_as_a_program_it_prints_an_lsn_for_each_line(door: Door) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/examples/minimal_client.py", door.path, "lines"],
        input=b"one\ntwo\nthree",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n2\n3\n", b"")


# --- against the golden frames ------------------------------------------------------------------


def of_stream(frame: bytes, stream: int) -> bytes:
    return frame[:8] + stream.to_bytes(4, "little") + frame[12:]


def of_request(frame: bytes, number: int) -> bytes:
    return frame[:16] + number.to_bytes(8, "little") + frame[24:]


class Script:
    """A daemon that says what it is told: how many frames to hear, then what to say.

    Args:
        path: of its socket.
        connections: the steps of each connection, one after the other; behind them it ends.
    """

    def __init__(self, path: Path, *connections: list[tuple[int, bytes]]) -> None:
        self.path = str(path)
        self.heard: list[bytes] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen()
        self._listening.settimeout(DEADLINE_S)
        self._thread = threading.Thread(target=self._play, args=(connections,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        self._listening.close()
        assert not self._thread.is_alive(), "the script was not played to its end"

    def _play(self, connections: tuple[list[tuple[int, bytes]], ...]) -> None:
        for steps in connections:
            connected, _ = self._listening.accept()
            with connected, connected.makefile("rb") as reading:
                connected.settimeout(DEADLINE_S)
                for count, said in steps:
                    for _ in range(count):
                        head = reading.read(24)
                        self.heard.append(head + reading.read(int.from_bytes(head[:4], "little")))
                    connected.sendall(said)


def golden(*names: str) -> bytes:
    return b"".join(GOLDEN[name] for name in names)


def test_it_sends_the_golden_requests_and_understands_the_golden_answers(directory: Path) -> None:
    steps = [
        (1, golden("welcome")),
        (1, golden("stream")),
        (2, golden("ack")),
        (1, golden("refused-value", "ack-partly")),
        (1, golden("error-not-stored")),
        (1, of_request(GOLDEN["pong"], 3)),
        (1, of_request(GOLDEN["pong"], 4)),
        (1, golden("pong")),
        (1, golden("goodbye-daemon")),
    ]
    told: list[tuple[str, bytes]] = []
    with Script(directory / "g", steps) as played:
        client = MinimalClient(
            played.path, transcript=lambda side, frame: told.append((side, frame))
        )
        with client:
            assert client.session == 0x1122334455667788
            assert client.open_stream("signups") == STREAM
            first = client.send(STREAM, [b"a", b"bc"])
            second = client.send(STREAM, [USER_ANN], ["ann"], content=1)
            assert (client.wait(first), client.wait(second)) == ([1001, 1002], [1003])
            with pytest.raises(RefusedError) as refused:
                client.append(STREAM, [b"d", NOT_A_BIN])
            assert refused.value.lsns == [1004, None]
            with pytest.raises(ServerError, match="disk-full: no room") as failed:
                client.append(STREAM, [b"f"])
            assert (failed.value.sequence, failed.value.not_stored) == (4, True)
            assert failed.value.retry_after_ms == 1_000
            assert [client.ping(b"are you there") for _ in range(3)] == [b"are you there"] * 3
    requests = [
        *("hello", "open-stream", "append-two", "append-keyed", "append-partly"),
        *("", "", "", "ping", "goodbye"),
    ]
    for name, frame in zip(requests, played.heard, strict=True):
        assert not name or frame == GOLDEN[name], name
    assert [frame for side, frame in told if side == "sent"] == played.heard
    assert b"".join(f for side, f in told if side == "received") == b"".join(s for _, s in steps)


def test_it_comes_back_as_the_golden_frames_do(directory: Path) -> None:
    unknown = of_request(GOLDEN["error-stream"], 1)
    unknown = unknown[:12] + (2).to_bytes(4, "little") + unknown[16:]  # it answers HELLO
    with Script(
        directory / "g",
        [(1, golden("welcome"))],
        [(1, of_request(GOLDEN["welcome-resumed"], 1))],
        [
            (1, unknown),
            (1, of_request(GOLDEN["welcome-resumed"], 2)),
            (1, golden("goodbye-daemon")),
        ],
    ) as played:
        client = MinimalClient(played.path)
        client.connect()
        client.hello()
        with pytest.raises(ProtocolError, match="fenced"):
            client.reconnect()  # told 41, and it has sent nothing
        with pytest.raises(ServerError, match="unknown-stream"):
            client.reconnect()
        client.hello("once:import")
        client.close()
    resumed = of_request(GOLDEN["hello-resume"], 1)
    assert played.heard == [
        GOLDEN["hello"],
        resumed,
        resumed,
        GOLDEN["hello-named"],
        GOLDEN["goodbye"],
    ]


def welcomed(last: int) -> bytes:
    """The golden WELCOME of a session that has used so many sequences."""
    return GOLDEN["welcome"][:48] + last.to_bytes(8, "little") + GOLDEN["welcome"][56:]


def ack(sequence: int) -> bytes:
    return of_request(GOLDEN["ack"], sequence)[:24] + struct.pack("<QQQ", sequence, 1001, 2000)


@pytest.mark.parametrize(
    ("last", "answer", "refusals", "stored"),
    [
        (8, GOLDEN["refused"] + ack(9), {46: ("record.too-large", "2,000,000 bytes")}, 49),
        (
            9,
            GOLDEN["refused-whole"] + ack(10),
            {0xFFFFFFFF: ("request.malformed", "not a request body")},
            0,
        ),
    ],
    ids=["refused", "refused-whole"],
)
def test_it_understands_the_golden_refusals(
    directory: Path, last: int, answer: bytes, refusals: object, stored: int
) -> None:
    with Script(directory / "g", [(1, welcomed(last)), (1, answer)]) as played:
        client = MinimalClient(played.path)
        client.connect()
        client.hello("once:import")
        with pytest.raises(RefusedError) as caught:
            client.append(STREAM, [b"x"] * 50)
        client.close(goodbye=False)
    assert caught.value.refusals == refusals
    lsns = [lsn for lsn in caught.value.lsns if lsn is not None]
    assert lsns == list(range(1001, 1001 + stored))


@pytest.mark.parametrize(
    ("name", "code", "closing", "not_stored"),
    [
        ("error-stream", "unknown-stream", False, False),
        ("error-no-room", "disk-full", False, True),
        ("error-closing", "fenced", True, False),
    ],
)
def test_it_understands_the_golden_errors(
    directory: Path, name: str, code: str, *, closing: bool, not_stored: bool
) -> None:
    with Script(directory / "g", [(1, welcomed(11)), (1, GOLDEN[name])]) as played:
        client = MinimalClient(played.path)
        client.connect()
        client.hello()
        with pytest.raises(ServerError) as caught:
            client.append(STREAM, [b"x"])
        client.close(goodbye=False)
    error = caught.value
    assert (error.code, error.closing, error.not_stored) == (code, closing, not_stored)


def test_the_daemon_answers_the_golden_requests_with_the_golden_answers(door: Door) -> None:
    told: dict[str, list[bytes]] = {"sent": [], "received": []}
    with MinimalClient(door.path, lambda side, frame: told[side].append(frame)) as client:
        session = client.session.to_bytes(8, "little")
        stream = client.open_stream("signups")
        client.wait(client.send(stream, [b"a", b"bc"]))
        client.wait(client.send(stream, [USER_ANN], ["ann"], content=1))
        with pytest.raises(RefusedError):
            client.append(stream, [b"d", NOT_A_BIN])
        client.ping(b"are you there")
    hello, opened, two, keyed, partly, ping, goodbye = told["sent"]
    assert (hello, opened, goodbye) == (GOLDEN["hello"], GOLDEN["open-stream"], GOLDEN["goodbye"])
    assert of_stream(two, STREAM) == GOLDEN["append-two"]
    # alone in flight its lag is 1, not 2
    assert keyed[16:] == GOLDEN["append-keyed"][16:]
    assert of_stream(partly, STREAM) == GOLDEN["append-partly"]
    assert of_request(ping, 5) == GOLDEN["ping"]
    welcome, is_open, *acks, refused, last, pong, bye = told["received"]
    # the session and the log have ids of their own
    golden_welcome = GOLDEN["welcome"]
    assert (
        welcome
        == golden_welcome[:40]
        + session
        + golden_welcome[48:56]
        + welcome[56:72]
        + golden_welcome[72:]
    )
    assert of_stream(is_open, STREAM) == GOLDEN["stream"]
    assert [struct.unpack_from("<Q", each, 32)[0] for each in acks] == [1, 3]
    assert refused == GOLDEN["refused-value"]
    assert last[:32] == GOLDEN["ack-partly"][:32]
    assert struct.unpack_from("<QQ", last, 32) == (4, 4)  # the LSNs of a fresh log
    assert of_request(pong, 5) == GOLDEN["pong"]
    assert bye == GOLDEN["goodbye-daemon"]
