"""The control socket as a producer in an event loop uses it; see ``client.asking``."""

import asyncio
import contextlib
import os
from typing import Any

from wald import limits
from wald.client.asking import (
    CONTROL_SUFFIX,
    answer_of,
    check_path,
    question,
    time_for,
    unanswered,
)
from wald.client.delivery import Pause, Waiting
from wald.client.link import Deadline
from wald.errors import Closed, Unavailable


class AsyncAsker:
    """Asks, one question at a time, in one event loop; one kept connection."""

    def __init__(self, data_socket: str) -> None:
        self._path = data_socket + CONTROL_SUFFIX
        self._lock: asyncio.Lock | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False

    async def ask(self, op: str, deadline: Deadline, **request: object) -> dict[str, Any]:
        """Ask one thing and return the answer; raises as ``Asker.ask``."""
        line, within_s = question(op, request), time_for(deadline)
        self._lock = self._lock or asyncio.Lock()
        try:
            async with asyncio.timeout(within_s), self._lock:
                self._check_open()
                said = await self._answer(line)
        except PermissionError:
            raise
        except OSError as error:
            self._check_open()  # a close ends what is asked
            raise unanswered(self._path, error, within_s) from error
        return answer_of(self._path, said)

    async def rest(self, seconds: float) -> None:
        """Wait before the next question.

        Raises:
            Closed: the producer was closed meanwhile.
        """
        await asyncio.sleep(seconds)
        self._check_open()

    async def wait_for(self, steps: Waiting, deadline: Deadline) -> None:
        """Ask and pause as the steps say."""
        with contextlib.suppress(StopIteration):
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await self.rest(step.seconds)
                    step = next(steps)
                    continue
                try:
                    answer = await self.ask(step.op, deadline, **step.request)
                except (Unavailable, PermissionError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)

    def close(self) -> None:
        """Close; harmless to repeat. Who waits is told."""
        self._closed = True
        self._drop()

    def forget(self) -> None:
        """In the child of a fork: let go of the parent's connection, and not of its event loop."""
        if self._writer is not None:
            descriptor = self._writer.get_extra_info("socket").fileno()
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)

    def _check_open(self) -> None:
        if self._closed:
            msg = "the producer is closed"
            raise Closed(msg)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _answer(self, line: bytes) -> bytes:
        kept = self._reader is not None
        try:
            return await self._exchange(line)
        except ConnectionError:
            if not kept or self._closed:
                raise
            return await self._exchange(line)  # it was closed for being idle, or by a restart

    async def _exchange(self, line: bytes) -> bytes:
        try:
            if self._reader is None or self._writer is None:
                check_path(self._path)
                self._reader, self._writer = await asyncio.open_unix_connection(
                    self._path, limit=limits.CONTROL_LINE_MAX_BYTES
                )
            self._writer.write(line)
            said = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self._drop()
            raise ConnectionResetError from error
        except BaseException:
            self._drop()  # an answer that comes later would be taken for that of the next question
            raise
        return said
