"""A sink in a process of its own, for batches in which the drainer died before.

A record may kill the process that touches it: a driver that crashes, memory without end, an
endless loop. An attempt is counted before it is made, so that one which the process did not
survive is found at the next start (``Manifest.crashes``). After two of them in a row the batch is
tried here, where only this process dies, within a bound of memory and of time, and what kills it
is searched for like what a target refuses. It counts against a record only once the process is
ready, with the sink made, and only beyond the bound that the sink has itself: a machine that is
slow, or has no room for a process, makes no dead letters.

Both ends of the socket pair are ours: values travel pickled.
"""

import contextlib
import json
import logging
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wald import limits
from wald.config import RouteSettings, Settings, SinkSettings
from wald.drainer.shaping import load_transform
from wald.model import (
    Attempt,
    Capabilities,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Systemic,
    SystemicKind,
    Unknown,
    sealed_before,
)
from wald.ports import Sink

if TYPE_CHECKING:
    from multiprocessing.connection import Connection  # a drainer seldom needs it: 14 ms

_log = logging.getLogger("wald.drain")
_COMMAND = (sys.executable, "-P", "-m", "wald.app", "sink")
_MAY_DOUBLE = frozenset({ReplayClass.WINDOW, ReplayClass.NONE})
_OPERATIONS = frozenset({"read_row", "deliver", "probe", "check", "encode"})
_TRANSFORM = "transform"
_OOM_SCORE_MAX = b"1000"
_EXIT_MEMORY = 12  # ENOMEM
CRASHED = "crashed"  # the code of a record that killed the process


class GuardedSink:
    """See ``wald.ports.Sink``; the real one lives in a child process, made anew when it died.

    Args:
        route: the route.
        sink: its sink.
        capabilities: of the real sink.
        encoder: of the real sink, if it freezes what it sends.
        command: what starts the child; it is given settings as a line on standard input.
    """

    def __init__(
        self,
        route: RouteSettings,
        sink: SinkSettings,
        capabilities: Capabilities,
        encoder: str = "",
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self.capabilities = capabilities
        self.encoder = encoder
        self._command = command
        self._route = route
        self._sink = sink
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Ask the target for the lane's row; a death says nothing of any record."""
        try:
            return cast("ProgressRow | Outcome | None", self._ask("read_row", key))
        except ProcessEnded as died:
            return Systemic(SystemicKind.CONFIGURATION, str(died), "the sink's driver is at fault")

    def deliver(self, attempt: Attempt) -> Outcome:
        """Make the attempt; a death is a refusal without a name, to be searched for.

        What the attempt came to before the death is found where it always is: at the row, or in
        a target that takes the same batch again without harm. Any other target's is unknown.
        """
        attempt.await_seal()  # which cannot be asked for from there
        attempt = replace(attempt, await_seal=sealed_before)
        try:
            return cast("Outcome", self._ask("deliver", attempt, timeout_s=attempt.timeout_s))
        except ProcessEnded as died:
            if self.capabilities.replay in _MAY_DOUBLE:
                return Unknown(str(died))
            return Rejected((), str(died), CRASHED)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Try records and roll back; a death is a refusal without a name."""
        timeout_s = min(self._route.attempt_timeout_s, limits.GUARDED_PROBE_TIMEOUT_S)
        attempt = replace(attempt, timeout_s=timeout_s, await_seal=sealed_before)
        try:
            answer = self._ask("probe", attempt, records, timeout_s=timeout_s)
        except ProcessEnded as died:
            return Rejected((), str(died), CRASHED)
        return cast("Sequence[RejectedRecord] | Outcome", answer)

    def encode(self, attempt: Attempt) -> bytes:
        """Encode what is sent.

        Raises:
            RuntimeError: the process died of it.
        """
        return cast("bytes", self._ask("encode", attempt))

    def transform(self, name: str, records: list[Record], timeout_s: float) -> Iterable[object]:
        """Return what a transform makes of records.

        Raises:
            ProcessEnded: the process died of it, or did not answer in time.
            RuntimeError: it raised.
        """
        return cast("list[object]", self._ask("transform", name, records, timeout_s=timeout_s))

    def check(self) -> Sequence[Finding]:
        """Verify at the target what can be verified."""
        return cast("Sequence[Finding]", self._ask("check"))

    def close(self) -> None:
        """End the process; harmless to repeat."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _ask(self, operation: str, *arguments: object, timeout_s: float | None = None) -> object:
        connection = self._connected()
        bound_s = timeout_s or self._route.attempt_timeout_s
        bound_s *= limits.HUNG_ATTEMPT_FACTOR_COUNT  # so that the sink's own comes first
        try:
            connection.send_bytes(pickle.dumps((operation, arguments)))
            if not connection.poll(bound_s):
                self.close()
                msg = f"no answer within {bound_s:g} s: its process was ended"
                raise ProcessEnded(msg)
            kind, value = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own child
        except (EOFError, OSError) as error:
            raise self._died() from error
        if kind == "raised":
            raise RuntimeError(value)
        return value

    def _connected(self) -> "Connection[Any, Any]":
        if self._connection is None:
            from multiprocessing.connection import Connection  # noqa: PLC0415 - only when used

            ours, its = socket.socketpair()
            with ours, its:  # also where no process can be made
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                    self._command,
                    stdin=subprocess.PIPE,
                    pass_fds=(its.fileno(),),
                    start_new_session=True,
                )
                self._connection = Connection(ours.detach())
                assert self._process.stdin is not None
                said = {"settings": self._settings().to_json(), "sink_fd": its.fileno()}
                with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                    pipe.write(json.dumps(said).encode() + b"\n")
            self._await_ready(self._connection)
        return self._connection

    def _await_ready(self, connection: "Connection[Any, Any]") -> None:
        """Wait for the sink to be made.

        Raises:
            RuntimeError: it was not; no record is to blame.
        """
        msg = f"a process for the sink was not ready within {limits.GUARDED_START_S:g} s"
        try:
            if connection.poll(limits.GUARDED_START_S):
                connection.recv_bytes()
                return
        except (EOFError, OSError):
            msg = f"a process for the sink could not start: {self._died()}"
        self.close()
        raise RuntimeError(msg)

    def _settings(self) -> Settings:
        """Return the settings that the child needs: one route and its sink."""
        return Settings(
            data_dir="",
            socket="",
            sinks={self._sink.name: self._sink},
            routes={self._route.name: self._route},
        )

    def _died(self) -> "ProcessEnded":
        process = self._process
        code = process.wait() if process is not None else 0
        self.close()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        msg = f"its process ended: {how}"
        return ProcessEnded(msg)


class ProcessEnded(Exception):
    """The child died, or was ended because it did not answer."""


def serve_sink(fd: int, sink: Sink, *, memory_bytes: int = limits.GUARDED_MEMORY_BYTES) -> int:
    """Answer what a ``GuardedSink`` asks, until it closes its end: the child's whole life."""
    from multiprocessing.connection import Connection  # noqa: PLC0415 - only when used

    with contextlib.suppress(OSError):  # whoever runs out of memory: this process goes first
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE_MAX)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with Connection(fd) as connection:
        connection.send_bytes(b"ready")
        while True:
            try:
                operation, arguments = pickle.loads(connection.recv_bytes())  # noqa: S301 - ours
            except EOFError:
                return 0
            connection.send_bytes(_answer(sink, operation, arguments))


def _answer(sink: Sink, operation: str, arguments: tuple[Any, ...]) -> bytes:
    """Return what the sink returns, or what it raised; without memory the process ends."""
    assert operation in _OPERATIONS or operation == _TRANSFORM, operation
    call = _transform if operation == _TRANSFORM else getattr(sink, operation)
    try:
        return pickle.dumps(("ok", call(*arguments)))
    except MemoryError:
        os._exit(_EXIT_MEMORY)
    except Exception as error:  # noqa: BLE001 - a sink is anybody's code, and so is a transform
        _log.warning("the sink, or the transform before it, raised", exc_info=error)
        return pickle.dumps(("raised", repr(error)))


def _transform(name: str, records: list[Record]) -> list[object]:
    made = load_transform(name)(records)
    return list(islice(made, limits.TRANSFORM_OUTPUT_MAX_RECORDS + 1))
