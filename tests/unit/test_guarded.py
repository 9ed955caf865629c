"""A sink in a process of its own: only what that process did with a record counts against it."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from wald import limits
from wald.config import RouteSettings, SinkSettings
from wald.drainer.guarded import _COMMAND, CRASHED, GuardedSink
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Capabilities,
    Content,
    Delivered,
    LaneKey,
    ProgressRow,
    Record,
    Rejected,
    ReplayClass,
)

KEY = LaneKey(bytes(16), 1, 0, 0)
RECORD = Record(1, 1, int(Content.JSON), b"{}")
ATTEMPT = Attempt(
    KEY,
    "things",
    NO_REVISION,
    ProgressRow(1, bytes([1]) * 16, 1, Anchor(1, 1), 7, NO_REVISION),
    (RECORD,),
    timeout_s=0.001,
)
ENDS = (sys.executable, "-c", "raise SystemExit(3)")
SAYS_NOTHING = (sys.executable, "-c", "import signal; signal.pause()")
# ready, and then killed by the first thing that it is asked
READY_AND_ENDS = (
    sys.executable,
    "-c",
    (
        "import json, sys; from multiprocessing.connection import Connection;"
        "one = Connection(json.loads(sys.stdin.readline())['sink_fd']);"
        "one.send_bytes(b'ready'); one.recv_bytes(); sys.exit(3)"
    ),
)


class Guarded:
    """Guarded sinks over one database, each closed behind the test."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack

    def sink(self, *command: str) -> GuardedSink:
        route = RouteSettings("things", "things", "db", attempt_timeout_s=0.001)
        settings = SinkSettings("db", "sqlite", {"path": str(self.path)})
        capabilities = Capabilities(ReplayClass.TRANSACTIONAL, 100, 1 << 20)
        return self._stack.enter_context(
            closing(GuardedSink(route, settings, capabilities, command=command or _COMMAND))
        )


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.setattr(limits, "HUNG_ATTEMPT_FACTOR_COUNT", 60_000)  # of a millisecond
    with ExitStack() as stack:
        yield Guarded(tmp_path / "x.db", stack)


def test_it_delivers_as_the_sink_does(guarded: Guarded) -> None:
    assert guarded.sink().deliver(ATTEMPT) == Delivered()
    with closing(sqlite3.connect(guarded.path)) as database:
        assert database.execute("SELECT lsn FROM things").fetchall() == [(1,)]


@pytest.mark.parametrize("command", [ENDS, ("/no/such/interpreter",)])
def test_where_no_process_can_start_no_record_is_to_blame(
    guarded: Guarded, command: tuple[str, ...]
) -> None:
    sink = guarded.sink(*command)
    for _ in range(2):  # each call tries again
        with pytest.raises((RuntimeError, OSError), match=r"could not start|No such file"):
            sink.deliver(ATTEMPT)
        with pytest.raises((RuntimeError, OSError), match=r"could not start|No such file"):
            sink.probe(ATTEMPT, [RECORD])


def test_a_process_that_takes_long_to_start_is_ended_and_no_record_is_to_blame(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GUARDED_START_S", 0.05)
    with pytest.raises(RuntimeError, match=r"was not ready within 0\.05 s"):
        guarded.sink(*SAYS_NOTHING).deliver(ATTEMPT)


def test_a_process_that_dies_of_a_record_says_so(guarded: Guarded) -> None:
    sink = guarded.sink(*READY_AND_ENDS)
    expected = Rejected((), "its process ended: exit code 3", CRASHED)
    assert sink.deliver(ATTEMPT) == expected
    assert sink.probe(ATTEMPT, [RECORD]) == expected
