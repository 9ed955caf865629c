"""The control socket: one JSON object a line in, one a line out.

``{"op": "status"}`` and ``{"op": "ping"}`` are answered here; operations that begin with ``drain.``
are passed on to the drainer's own socket. A failure is ``{"ok": false, "error": {...}}``.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from wald import limits
from wald.core.access import Caller
from wald.errors import InputError, Unavailable, WaldError
from wald.supervisor.guard import Guard

log = logging.getLogger("wald.supervisor")

Operation: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

_CONNECTIONS_MAX = 512  # commands, and producers that wait for deliveries
_IDLE_S = 60.0
_FORWARD_S = 10.0
_PING_S = 1.0
_PING = b'{"op":"drain.ping"}\n'
_EXPECTED = 'expected {"op": "..."}'
_SEE_LIMITS = "see its disk, its memory and its limit of open files"
_SEE_STATUS = "see 'wald status'"
FORWARDED = "drain."


class ControlServer:
    """Answers the control socket until it is cancelled.

    Args:
        operations: by name, what answers it; an answer is sent with ``"ok": true``.
        drain_address: where to pass on operations that begin with ``drain.``.
        guard: refuses what a caller may not ask.
    """

    def __init__(
        self, operations: Mapping[str, Operation], drain_address: str, guard: Guard | None = None
    ) -> None:
        self._guard = guard
        self._operations = operations
        self._drain_address = drain_address
        self._connections = 0

    async def serve(self, listening: socket.socket) -> None:
        """Serve the listening socket; the caller closes it."""
        server = await asyncio.start_unix_server(
            self._connected, sock=listening.dup(), limit=limits.CONTROL_LINE_MAX_BYTES
        )
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _CONNECTIONS_MAX:
                await self._converse(reader, writer)
        except (ConnectionError, TimeoutError, ValueError):
            pass  # the other side is gone, silent, or sends lines beyond the bound
        except asyncio.CancelledError:
            pass  # the daemon ends, while a producer keeps its connection
        finally:
            self._connections -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = self._guard.caller(writer.get_extra_info("socket")) if self._guard else None
        while line := await asyncio.wait_for(reader.readline(), _IDLE_S):
            writer.write(await self.answer(line, caller))
            await asyncio.wait_for(writer.drain(), _IDLE_S)

    async def answer(self, line: bytes, caller: Caller | None = None) -> bytes:
        """Return the line that answers a line of a caller."""
        try:
            request = _parsed(line)
            name = request["op"]
            if self._guard is not None:
                self._guard.check(caller, request)
            if name.startswith(FORWARDED):
                return await self._forwarded(line)
            operation = self._operations.get(name)
            if operation is None:
                msg = f"unknown operation {name[:80]!r}"
                raise InputError(msg)
            answer = {"ok": True, **await operation(request)}
            if self._guard is not None and name == "status":
                answer = self._guard.shown(caller, answer)
        except WaldError as error:
            answer = {"ok": False, "error": error.as_dict()}
        except OSError as error:
            failed = Unavailable(f"the supervisor cannot tell: {error}", hint=_SEE_LIMITS)
            answer = {"ok": False, "error": failed.as_dict()}
        return json.dumps(answer, separators=(",", ":")).encode() + b"\n"

    async def ask_drain(self) -> Mapping[str, Any] | None:
        """Return what the drain process says of itself; None if it does not answer now."""
        try:
            return _parsed_object(await self._forwarded(_PING, _PING_S))
        except WaldError:
            return None

    async def _forwarded(self, line: bytes, within_s: float = _FORWARD_S) -> bytes:
        try:
            async with asyncio.timeout(within_s):
                return await self._exchange(line)
        except TimeoutError as error:
            msg = f"the drain process did not answer within {within_s:g} s"
            raise Unavailable(msg, hint=_SEE_STATUS) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            msg = f"the drain process does not answer: {why}"
            unsent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            raise Unavailable(msg, hint=_SEE_STATUS, unsent=unsent) from error

    async def _exchange(self, line: bytes) -> bytes:
        with short_address(self._drain_address) as address:
            reader, writer = await asyncio.open_unix_connection(
                address, limit=limits.CONTROL_LINE_MAX_BYTES
            )
        try:
            writer.write(line)
            await writer.drain()
            answer = await reader.readline()
        finally:
            writer.close()
        if not answer.endswith(b"\n"):
            msg = "it ended before it answered"
            raise ConnectionResetError(msg)
        return answer


@contextmanager
def short_address(path: str) -> Iterator[str]:
    """Yield an address of a socket: one longer than the kernel takes goes by its directory."""
    if len(os.fsencode(path)) <= limits.SOCKET_PATH_MAX_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def _parsed(line: bytes) -> Mapping[str, Any]:
    request = _parsed_object(line)
    if not isinstance(request.get("op"), str):
        raise InputError(_EXPECTED)
    return request


def _parsed_object(line: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = "not a line of JSON"
        raise InputError(msg) from error
    if not isinstance(said, dict):
        raise InputError(_EXPECTED)
    return said
