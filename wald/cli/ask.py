"""Asking a running daemon over its control socket."""

import json
import os
import socket
from types import TracebackType
from typing import Any, Self, cast

from wald import limits
from wald.config.places import CONTROL_SUFFIX
from wald.errors import ProtocolMismatch, Unavailable, reported

_TIMEOUT_S = 40.0  # a forwarded question may take the supervisor 30 s


class Control:
    """A connection to the control socket of a daemon.

    Raises:
        Unavailable: no daemon answers there.
    """

    def __init__(self, data_socket: str) -> None:
        self._path = data_socket + CONTROL_SUFFIX
        if len(os.fsencode(self._path)) > limits.SOCKET_PATH_MAX_BYTES:
            msg = f"{self._path} is longer than a socket's path can be"
            raise Unavailable(msg)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            msg = f"no daemon answers at {data_socket}: {error.strerror}"
            raise Unavailable(msg) from error
        self._lines = self._socket.makefile("rb")

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
        self._lines.close()
        self._socket.close()

    def ask(self, op: str, **request: object) -> dict[str, Any]:
        """Ask one thing and return the answer.

        Raises:
            Unavailable: the daemon ended before it answered.
            WaldError: what the daemon said instead of an answer.
        """
        try:
            self._socket.sendall(json.dumps({"op": op, **request}).encode() + b"\n")
            line = self._lines.readline()
        except OSError as error:
            msg = f"the daemon at {self._path} did not answer: {error}"
            raise Unavailable(msg) from error
        if not line.endswith(b"\n"):
            msg = f"the daemon at {self._path} ended before it answered"
            raise Unavailable(msg)
        try:
            answer = cast("dict[str, Any]", json.loads(line))
        except ValueError as error:
            msg = f"what answers at {self._path} is not wald"
            raise ProtocolMismatch(msg) from error
        if not answer.get("ok"):
            raise reported(answer.get("error") or {})
        return answer
