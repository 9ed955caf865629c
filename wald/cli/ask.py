"""Asking a running daemon over its control socket."""

import json
import os
import socket
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from wald import limits
from wald.config.places import CONTROL_SUFFIX
from wald.errors import ProtocolMismatch, Unavailable, reported

_TIMEOUT_S = 15.0  # a forwarded question may take the supervisor 10 s
_STATUS_S = 5.0
_STARTS_S = 5.0  # what drain takes to start, at most, as a rule
_AGAIN_S = 0.05


class Control:
    """A connection to the control socket of a daemon; made anew after an answer that did not come.

    Raises:
        Unavailable: no daemon answers there.
    """

    def __init__(self, data_socket: str) -> None:
        self._data_socket = data_socket
        self._path = data_socket + CONTROL_SUFFIX
        self._socket: socket.socket | None = None
        if len(os.fsencode(self._path)) > limits.SOCKET_PATH_MAX_BYTES:
            msg = f"{self._path} is longer than a socket's path can be"
            raise Unavailable(msg, hint="name a shorter path with --socket or WALD_SOCKET")
        self._connect(_STATUS_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None

    def status(self, timeout_s: float = _STATUS_S) -> dict[str, Any]:
        """Ask for the figures of all routes and processes; raises as ``ask`` does."""
        return self.ask("status", timeout_s)

    def ask(self, op: str, timeout_s: float = _TIMEOUT_S, **request: object) -> dict[str, Any]:
        """Ask one thing and return the answer.

        The drain process is given a moment to start: a daemon serves before it delivers.

        Raises:
            Unavailable: the daemon ended before it answered, or did not answer in time.
            WaldError: what the daemon said instead of an answer.
            ProtocolMismatch: it is not wald; or of another version, as soon as something is
                taken from the answer that it does not tell.
        """
        from wald.system import SystemClock

        clock = SystemClock()
        ends_ns = clock.monotonic_ns() + round(min(timeout_s, _STARTS_S) * limits.CLOCK_NS_PER_S)
        while True:
            try:
                return self._ask_once(op, timeout_s, request)
            except Unavailable as error:
                is_early = clock.monotonic_ns() < ends_ns
                if not (error.facts.get("unsent") and is_early and self._drain_starts()):
                    raise
            clock.sleep(_AGAIN_S)

    def _drain_starts(self) -> bool:
        status = self._ask_once("status", _STATUS_S, {})
        return status["processes"]["drain"]["state"] in {"starting", "waiting"}

    def _ask_once(self, op: str, timeout_s: float, request: dict[str, object]) -> dict[str, Any]:
        line = self._exchange(json.dumps({"op": op, **request}).encode() + b"\n", timeout_s)
        try:
            answer = cast("dict[str, Any]", json.loads(line, object_hook=_Answer))
        except ValueError as error:
            msg = f"what answers at {self._path} is not wald"
            raise ProtocolMismatch(msg) from error
        if not answer.get("ok"):
            said = answer.get("error") or {}
            refusal = reported(said)
            refusal.facts["unsent"] = said.get("unsent", False)  # so that it may be asked again
            raise refusal
        return answer

    def _exchange(self, request: bytes, timeout_s: float) -> bytes:
        try:
            connected = self._socket or self._connect(timeout_s)
            connected.settimeout(max(timeout_s, _SHORTEST_S))
            connected.sendall(request)
            line = self._lines.readline()
        except TimeoutError as error:
            self.close()  # its answer may come later, and would be taken for the next one
            msg = f"the daemon at {self._data_socket} did not answer within {timeout_s:.3g} s"
            raise Unavailable(msg, hint=_HUNG) from error
        except OSError as error:
            self.close()
            msg = f"the daemon at {self._data_socket} did not answer: {error.strerror}"
            raise Unavailable(msg) from error
        if not line.endswith(b"\n"):
            self.close()
            msg = f"the daemon at {self._data_socket} ended before it answered"
            raise Unavailable(msg)
        return line

    def _connect(self, timeout_s: float) -> socket.socket:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connecting.settimeout(max(timeout_s, _SHORTEST_S))
        try:
            connecting.connect(self._path)
        except OSError as error:
            connecting.close()
            raise self._unreachable(error) from error
        self._socket = connecting
        self._lines = connecting.makefile("rb")
        return connecting

    def _unreachable(self, error: OSError) -> Unavailable:
        why = "it does not answer" if isinstance(error, TimeoutError) else error.strerror
        msg = f"no daemon answers at {self._data_socket}: {why}"
        hint = ""
        if isinstance(error, TimeoutError):
            hint = _HUNG
        elif isinstance(error, PermissionError):
            hint = "it answers only its own user and root: sudo -u USER wald ..."
        elif isinstance(error, FileNotFoundError) and os.path.lexists(self._data_socket):
            msg = f"no daemon answers at {self._data_socket}: there is no {self._path}"
            hint = "name the data socket of a running daemon; commands go to that path + .ctl"
        return Unavailable(msg, hint=hint)


class _Answer(dict[str, Any]):
    """What a daemon said; one that was started before an upgrade may not say everything."""

    def __missing__(self, key: str) -> NoReturn:
        msg = f"the daemon does not tell {key!r}: it is not of this command's version"
        raise ProtocolMismatch(msg, hint="restart it, or use the wald that it was started with")


_SHORTEST_S = 0.001  # 0 would not block at all
_HUNG = "it runs and does not answer: see its log, and its processes"
