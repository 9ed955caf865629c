"""``drain.sock``: JSON lines from commands, answered by the main thread between its rounds."""

import contextlib
import json
import logging
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wald import limits
from wald.errors import InputError, WaldError

Request = Mapping[str, Any]

_log = logging.getLogger("wald.drain")

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]
_RECV_BYTES = 65_536
_SEND_TIMEOUT_S = 1.0


@dataclass(slots=True)
class _Asker:
    connection: socket.socket
    unread: bytearray = field(default_factory=bytearray)


class Asks:
    """A listening socket and its few connections. The holder of ``ledger.lock`` alone."""

    def __init__(self, path: str, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._askers: set[socket.socket] = set()
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()  # a dead drainer's: the lock says that none is alive
        self._listening = _listen(path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ, None)

    def poll(self, timeout_s: float) -> None:
        """Answer what is asked, for as long."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._accept()
            else:
                self._read(key.data)

    def close(self) -> None:
        """Close all and remove the name."""
        for connection in list(self._askers):
            self._drop(connection)
        self._selector.close()
        self._listening.close()
        with contextlib.suppress(OSError):  # gone, or a disk that takes nothing any more
            Path(self._path).unlink()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return  # gone already, or no descriptor left: asked again
        if len(self._askers) >= limits.ASKS_CONNECTIONS_MAX:
            connection.close()
            return
        connection.settimeout(_SEND_TIMEOUT_S)  # read only when readable
        self._askers.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, _Asker(connection))

    def _read(self, asker: _Asker) -> None:
        try:
            data = asker.connection.recv(_RECV_BYTES)
            asker.unread += data
            while b"\n" in asker.unread:
                line, _, rest = asker.unread.partition(b"\n")
                asker.unread = bytearray(rest)
                asker.connection.sendall(json.dumps(self._reply(bytes(line))).encode() + b"\n")
        except OSError:
            data = b""
        if not data or len(asker.unread) > limits.CONTROL_LINE_MAX_BYTES:
            self._drop(asker.connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._askers.discard(connection)
        connection.close()

    def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return refusal("input", "the line is not JSON")
        if not isinstance(request, dict):
            return refusal("input", "the line is not a JSON object")
        try:
            return {"ok": True, **self._answer(request)}
        except WaldError as error:
            return refusal(error.code, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - what is asked never ends the process
            _log.error("an ask failed: %r", error, exc_info=error)
            return refusal("internal", "the drain process could not answer", "see its log")


def refusal(code: str, message: str, hint: str = "") -> dict[str, Any]:
    """Return an answer that says no."""
    return {"ok": False, "error": {"code": code, "message": message, "hint": hint}}


def natural(request: Request, name: str, default: int) -> int:
    """Return a whole number that a request says.

    Raises:
        InputError: it says something else.
    """
    value = request.get(name, default)
    if type(value) is not int or not 0 <= value < limits.LSN_MAX:
        raise wrong_value(name, value, f"a number from 0 to {limits.LSN_MAX - 1}")
    return value


def wrong_value(name: str, value: object, wanted: str) -> InputError:
    """Return what is said of a field of a request that is not what it should be."""
    return InputError(f"{name} is {str(value)[:80]!r}, not {wanted}")


# --- answers ------------------------------------------------------------------------------------


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # a mode set after the bind would leave a gap
    try:
        _bind(listening, path)
        listening.listen(limits.ASKS_CONNECTIONS_MAX)
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _bind(listening: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= limits.SOCKET_PATH_MAX_BYTES:
        listening.bind(path)
        return
    place = Path(path)  # too long a path is reached through its open directory
    directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listening.bind(f"/proc/self/fd/{directory}/{place.name}")
    finally:
        os.close(directory)
