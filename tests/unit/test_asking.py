"""The producer's side of the control socket, in both colours, against one that answers as told."""

import asyncio
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from random import Random
from shutil import rmtree
from typing import Any

import pytest

from wald import cli, limits
from wald.client.aio_asking import AsyncAsker
from wald.client.asking import Asker
from wald.client.delivery import Waiting, read_status, wait_for, waiting
from wald.client.link import Deadline
from wald.errors import (
    Closed,
    DeliveryPending,
    DeliveryRefused,
    DeliveryTimeout,
    InputError,
    ProtocolMismatch,
    Unavailable,
)
from wald.model import Receipt
from wald.testing.clock import ManualClock

HANG_UP = b""
RECEIPT = Receipt("s", 7, "durable", 7)


class Answering:
    """A control socket that answers each line with the next of its answers; b"" hangs up."""

    def __init__(self, path: str, *answers: bytes) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self._answers = list(answers)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path + ".ctl")
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._answers:
            connection, _ = self._listening.accept()
            self.connections += 1
            with connection, connection.makefile("rb") as lines:
                while self._answers:
                    line = lines.readline()
                    if not line:
                        break
                    self.asked.append(json.loads(line))
                    answer = self._answers.pop(0)
                    if answer == HANG_UP:
                        break
                    connection.sendall(answer)

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listening.close()


@pytest.fixture
def path() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="w")
    yield f"{directory}/w.sock"
    rmtree(directory)


def ok(**said: object) -> bytes:
    return json.dumps({"ok": True, **said}).encode() + b"\n"


def pending(done: int = 0, **routes: object) -> bytes:
    return ok(delivered=done, next={"lsn": 7, "verdict": "pending", "routes": routes})


def over(verdict: str, **route: str) -> bytes:
    said = {"fate": "durable", "blocked": "", "why": "", **route}
    return ok(delivered=0, next={"lsn": 7, "verdict": verdict, "routes": {"r": said}})


def deadline(seconds: float = 5.0) -> Deadline:
    return Deadline(ManualClock(), seconds)


class Blocking(Asker):
    """The blocking one."""

    def wait_for(self, steps: Waiting, until: Deadline) -> None:
        wait_for(self, steps, until)


class InLoop:
    """The asynchronous one; each call runs its loop until it is done."""

    def __init__(self, path: str) -> None:
        self._runner = asyncio.Runner()
        self._twin = AsyncAsker(path)

    def ask(self, op: str, until: Deadline) -> dict[str, Any]:
        return self._runner.run(self._twin.ask(op, until))

    def wait_for(self, steps: Waiting, until: Deadline) -> None:
        self._runner.run(self._twin.wait_for(steps, until))

    def close(self) -> None:
        async def close() -> None:
            self._twin.close()
            await asyncio.sleep(0)  # its transport closes in the next turn

        self._runner.run(close())

    def end(self) -> None:
        self._runner.close()


Makes = Callable[[str], Any]


@pytest.fixture(params=[Blocking, InLoop], ids=["blocking", "asynchronous"])
def ask_at(request: pytest.FixtureRequest) -> Iterator[Makes]:
    made: list[Any] = []

    def make(path: str) -> Any:
        made.append(request.param(path))
        return made[-1]

    yield make
    for each in made:
        if isinstance(each, InLoop):
            each.end()


def test_a_connection_is_kept_and_made_anew_when_it_was_closed(path: str, ask_at: Makes) -> None:
    server = Answering(path, ok(n=1), ok(n=2), HANG_UP, ok(n=3))
    asker = ask_at(path)
    assert [asker.ask("a", deadline())["n"] for _ in range(3)] == [1, 2, 3]
    assert server.connections == 2
    assert server.asked[2] == server.asked[3] == {"op": "a"}
    asker.close()
    server.end()


ANSWERS = [
    ("not JSON", b"hello\n", ProtocolMismatch),
    ("an end", HANG_UP, Unavailable),
    ("an error", b'{"ok": false, "error": {"code": "input", "message": "no"}}\n', InputError),
    ("an error of a later release", b'{"ok": false, "error": {"code": "new"}}\n', Exception),
    ("a line without end", b"x" * (limits.CONTROL_LINE_MAX_BYTES + 1), Unavailable),
]


@pytest.mark.parametrize(
    ("answer", "error"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
def test_a_bad_answer_is_a_typed_error(
    path: str, answer: bytes, error: type[Exception], ask_at: Makes
) -> None:
    server = Answering(path, answer)
    asker = ask_at(path)
    with pytest.raises(error):
        asker.ask("a", deadline())
    asker.close()
    server.end()


def test_a_daemon_from_before_an_upgrade_is_told_and_no_traceback(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Answering(path, ok(routes={"r": {}}, frontier_lsn=1))
    assert cli.run_command(["status", "--socket", path]) == ProtocolMismatch.exit_code
    server.end()
    said = capsys.readouterr().err
    assert "error[protocol-mismatch]: the daemon does not tell '" in said
    assert "restart it" in said


def test_no_daemon_and_a_path_that_is_too_long(path: str, ask_at: Makes) -> None:
    with pytest.raises(Unavailable, match="no daemon answers"):
        ask_at(path).ask("a", deadline())
    with pytest.raises(Unavailable, match="longer than a socket's path"):
        ask_at("/" + "x" * 120).ask("a", deadline())
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(path + ".ctl")
    silent.listen()
    asker = ask_at(path)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 s"):
        asker.ask("a", deadline(0))
    asker.close()
    silent.close()
    with pytest.raises(Closed):
        asker.ask("a", deadline())


def wait(
    asker: Any, path: str, seconds: float, *answers: bytes, lsns: tuple[int, ...] = (7,)
) -> Answering:
    server = Answering(path, *answers)
    receipts = [Receipt("s", lsn, "durable", 9) for lsn in lsns]
    try:
        until = deadline(seconds)
        asker.wait_for(waiting(receipts, until, Random(1), "results"), until)
    finally:
        asker.close()
        server.end()
    return server


def test_a_wait_asks_for_what_is_left(path: str, ask_at: Makes) -> None:
    server = wait(
        ask_at(path), path, 5.0,
        pending(), pending(1), HANG_UP, pending(), ok(delivered=2, next=None),
        lsns=(7, 8, 9),
    )  # fmt: skip
    assert [each["lsns"] for each in server.asked] == [
        [7, 8, 9],
        [7, 8, 9],
        [8, 9],
        [8, 9],
        [8, 9],
    ]
    assert server.asked[0] == {"op": "drain.delivered", "stream": "s", "lsns": [7, 8, 9]}


def test_a_long_list_is_asked_for_in_parts(path: str, ask_at: Makes) -> None:
    many = limits.WHERE_LSNS_MAX
    first, second = ok(delivered=many, next=None), ok(delivered=1, next=None)
    server = wait(ask_at(path), path, 5.0, first, second, lsns=tuple(range(1, many + 2)))
    assert [len(each["lsns"]) for each in server.asked] == [many, 1]


ENDS = [
    (
        "too late",
        pending(r={"fate": "sealed", "blocked": "", "why": "refused"}),
        DeliveryTimeout,
        "durable, and was not delivered within 0 s (r: sealed)",
    ),
    (
        "parked",
        over("blocked", blocked="parked as halted: no"),
        DeliveryPending,
        "is durable, delivery pending: r: parked as halted: no",
    ),
    (
        "uncertain",
        over("blocked", fate="uncertain", why="no answer"),
        DeliveryPending,
        "delivery pending: r: no answer",
    ),
    (
        "dead letter",
        over("refused", fate="dead-letter", why="X: nobody books that"),
        DeliveryRefused,
        "was not delivered: r: dead-letter: X: nobody books that",
    ),
    ("purged", over("refused", fate="purged"), DeliveryRefused, "was not delivered: r: purged"),
]


@pytest.mark.parametrize(
    ("answer", "error", "words"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS]
)
def test_each_end_of_a_wait_is_told_with_receipt_routes_and_results(
    path: str,
    answer: bytes,
    error: type[DeliveryTimeout | DeliveryRefused],
    words: str,
    ask_at: Makes,
) -> None:
    with pytest.raises(error) as caught:
        wait(ask_at(path), path, 0.0, answer)
    assert type(caught.value) is error
    assert words in caught.value.message
    assert caught.value.receipt.lsn == 7
    assert caught.value.results == "results"
    assert set(caught.value.routes) == {"r"}


def test_an_answer_is_read_as_values() -> None:
    said = {
        "lsn": 7,
        "stream": None,
        "durable_ns": None,
        "trace": "",
        "routes": {
            "a": {"fate": "dead-letter", "letter": {"code": "X", "message": "no"}, "blocked": ""},
            "b": {"fate": "sealed", "batch": 3, "attempts": 2, "time_ns": 5, "last_error": "e"},
            "c": {"fate": "uncertain", "held": "asked", "blocked": "parked"},
        },
    }
    status = read_status(said)
    assert [route.reason for route in status.routes.values()] == ["X: no", "e", "asked"]
    assert (status.routes["b"].batch, status.routes["b"].attempts) == (3, 2)
    assert not status.delivered
