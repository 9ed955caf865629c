"""A handler for the standard library's logging: records go to a stream, structured.

    logging.getLogger().addHandler(wald.logging.Handler("logs"))

It holds the application up for no longer than its budget, drops what finds no way in that time, and
counts it: what was dropped is told with the next record that goes through.
"""

import logging
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

from wald import limits
from wald.client.blocking import Producer
from wald.client.encoding import BAD_VALUE, encode_value
from wald.client.identity import socket_of
from wald.client.pending import Pending
from wald.clock import SystemClock
from wald.errors import Backpressure, RecordRefused, WaldError
from wald.ports import Clock

__all__ = ["Handler"]

_OURS = "wald"
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_handlers: "weakref.WeakSet[Handler]" = weakref.WeakSet()


class Handler(logging.Handler):
    """Appends log records to a stream, each as a map of its fields.

    What wald itself logs is left out, and so is what is logged while a record is handled.

    Args:
        stream: where the records go.
        path: the daemon's socket, as in ``wald.connect``.
        level: as in ``logging.Handler``.
        budget: seconds that one record may hold up the thread that logs it.
        fields: what every record carries besides, such as the name of a service.
        producer: to use instead of one of its own; nobody else should use it meanwhile.
        clock: for tests.

    Attributes:
        dropped: how many records found no way, were refused, or came after ``close``.
    """

    def __init__(
        self,
        stream: str = "logs",
        *,
        path: str | os.PathLike[str] | None = None,
        level: int | str = logging.NOTSET,
        budget: float = limits.LOGGING_BUDGET_S,
        fields: Mapping[str, object] | None = None,
        producer: Producer | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(level)
        self.stream = stream
        self.dropped = 0
        self._budget_s = budget
        self._fields = dict(fields or {})
        self._producer = producer or Producer(socket_of(path), timeout=budget)
        self._clock: Clock = clock or SystemClock()
        self._gate = threading.Lock()  # one at a time, and the others wait within their budget
        self._inside = threading.local()
        self._rests_until_ns = 0  # after a failure nothing is tried for a while
        self._under_way: deque[tuple[Pending, int]] = deque(maxlen=limits.LOGGING_UNDER_WAY_RECORDS)
        self._told_dropped = 0
        _handlers.add(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit, without the handler's lock: who waits for it would have no bound."""
        found: object = self.filter(record)
        if isinstance(found, logging.LogRecord):
            record = found
        if found:
            self.emit(record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Submit one record, within the budget."""
        if record.name == _OURS or record.name.startswith(f"{_OURS}."):
            return
        if getattr(self._inside, "now", False):
            self.dropped += 1
            return
        self._inside.now = True
        try:
            self._emit(record)
        except Exception:  # noqa: BLE001 - logging never harms the application
            self.dropped += 1
            self.handleError(record)
        finally:
            self._inside.now = False

    def _emit(self, record: logging.LogRecord) -> None:
        began_ns = self._clock.monotonic_ns()
        if began_ns < self._rests_until_ns:
            self.dropped += 1
            return
        value = self.structured(record)
        if not self._gate.acquire(timeout=self._left_s(began_ns)):
            self.dropped += 1
            return
        try:
            self._submit(value, began_ns)
        finally:
            self._gate.release()

    def _submit(self, value: dict[str, object], began_ns: int) -> None:
        self._count_refused()
        untold = self.dropped - self._told_dropped
        if untold:
            value["dropped"] = untold
        try:
            sent = self._producer.submit(self.stream, value, timeout=self._left_s(began_ns))
        except RecordRefused:
            self.dropped += 1  # the next one may well be taken
        except WaldError as error:
            self.dropped += 1
            pause_s = error.retry_after_s if isinstance(error, Backpressure) else 0.0
            pause_s = max(pause_s, limits.LOGGING_PAUSE_S)
            now_ns = self._clock.monotonic_ns()
            self._rests_until_ns = now_ns + int(pause_s * limits.CLOCK_NS_PER_S)
        else:
            self._told_dropped += untold
            self._under_way.append((sent, untold))

    def _left_s(self, began_ns: int) -> float:
        lasted_s = (self._clock.monotonic_ns() - began_ns) / limits.CLOCK_NS_PER_S
        return max(self._budget_s - lasted_s, 0.0)

    def _count_refused(self) -> None:
        while self._under_way and self._under_way[0][0].is_known:
            sent, told = self._under_way.popleft()
            if sent.exception(0) is not None:
                self.dropped += 1
                self._told_dropped -= told  # nobody has heard of them

    # --- what a record becomes ------------------------------------------------------------------

    def structured(self, record: logging.LogRecord) -> dict[str, object]:
        """Return the fields of a record; override it for others.

        A formatter, if there is one, makes the message; what it adds of exceptions is left to it.
        """
        formatter = self.formatter
        message = record.getMessage() if formatter is None else formatter.format(record)
        value: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": _text(message),
            "file": record.filename,
            "line": record.lineno,
            "function": record.funcName,
            "process": record.process,
            "thread": record.threadName,
        }
        if record.exc_info and formatter is None:
            value["exception"] = _text("".join(traceback.format_exception(*record.exc_info)))
        extra = {name: _storable(each) for name, each in vars(record).items() if name not in _PLAIN}
        return {**value, **self._fields, **({"extra": extra} if extra else {})}

    # --- the end --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until what was submitted is answered; bounded."""
        # (who logs meanwhile waits at the gate, within the budget)
        if self._producer.is_closed or not self._gate.acquire(timeout=limits.EXIT_TIMEOUT_S):
            return
        try:
            if self._under_way:
                self._producer.flush(limits.EXIT_TIMEOUT_S)
                self._count_refused()
        except WaldError:
            pass  # what is left is counted when it is known
        finally:
            self._gate.release()

    def close(self) -> None:
        """Wait for what was submitted, bounded, and close; later records are dropped."""
        self._producer.close(limits.EXIT_TIMEOUT_S)
        super().close()

    def _after_fork(self) -> None:
        self._gate = threading.Lock()
        self._inside = threading.local()
        self._under_way.clear()  # the parent's


def _text(text: str) -> str:
    """Return text that can be stored: within the limit, and without halves of surrogate pairs."""
    cut = text[: limits.LOGGING_TEXT_MAX_CHARS]
    return cut.encode("utf-8", "backslashreplace").decode()


def _storable(value: object) -> object:
    """Return a value as it is, or as text if it has no form."""
    try:
        _, data = encode_value(value)
    except BAD_VALUE:
        return _text(repr(value))
    return value if len(data) <= limits.LOGGING_TEXT_MAX_CHARS else _text(repr(value))


def _after_fork_in_child() -> None:
    for handler in list(_handlers):
        handler._after_fork()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
