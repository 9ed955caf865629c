"""Logging in: within the time of an attempt, and with the code of what the server refused.

libpq has no more than a text for a login that failed, in the server's language; its trace has the
SQLSTATE. So a refusal that is new is brought about once more, traced into memory, and remembered by
its text.
"""

import contextlib
import os
import re
import select
import time
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from wald.sinks.postgres.options import Options
from wald.sinks.secrets import renewed

_MS: Final = 1_000
_LEAST_S: Final = 2  # the driver waits no less
_TRACES_CONNECTING: Final = 170_000  # libpq since
_TEXTS_MAX: Final = 64
_TRACE_MAX_BYTES: Final = 65_536
_KEEPALIVE: Final = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# libpq puts two spaces behind the severity that a server tells, whatever its language
_BY_THE_SERVER = re.compile(r"failed: [^\s:]+:  ")
_CODE = re.compile(rb'ErrorResponse\t.*? C "([0-9A-Z]{5})"')
_WAITS: Final = {pq.PollingStatus.READING: select.POLLIN, pq.PollingStatus.WRITING: select.POLLOUT}


class Refusals:
    """The codes of logins that a server refused, by the text that the driver has for each."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def coded(
        self, error: psycopg.OperationalError, conninfo: str, timeout_s: float
    ) -> psycopg.OperationalError:
        """Return an error of connecting, with its SQLSTATE if the server told one."""
        text = str(error)
        if not _BY_THE_SERVER.search(text):
            return error
        code = self._codes.get(text) or _told(conninfo, timeout_s)
        if not code:
            return error
        if len(self._codes) == _TEXTS_MAX:
            self._codes.clear()
        self._codes[text] = code
        coded = psycopg.OperationalError(text)
        coded.sqlstate = code
        return coded


def conninfo_of(options: Options, timeout_s: float) -> str:
    """Return how libpq connects: by the URL, and by what it does not say itself.

    Args:
        options: of the sink.
        timeout_s: for all hosts together, but at least the driver's least for each.
    """
    each_s = min(options.connect_timeout_s, timeout_s / options.hosts)
    always: dict[str, Any] = {
        "client_encoding": "UTF8",
        "connect_timeout": max(_LEAST_S, int(each_s)),
    }
    if options.password is not None:
        always["password"] = renewed(options.password)
    defaults: Mapping[str, str | int] = {
        "application_name": "wald",
        "target_session_attrs": "read-write",
        "tcp_user_timeout": round(options.transaction_timeout_s * _MS),
        **_KEEPALIVE,
    }
    unsaid = {name: value for name, value in defaults.items() if f"{name}=" not in options.url}
    return make_conninfo(options.url, **unsaid, **always)


def _told(conninfo: str, timeout_s: float) -> str:
    """Connect once more, and return the code that the server refuses it with; empty for none."""
    if pq.version() < _TRACES_CONNECTING:
        return ""
    connection = pq.PGconn.connect_start(conninfo.encode())
    # in memory alone: a password may be in it
    trace = os.memfd_create("wald-login")
    try:
        # keeps about 5 KB for ever, for nobody can close the driver's stream: so texts are kept
        connection.trace(trace)
        _poll(connection, time.monotonic() + timeout_s)  # noqa: TID251 - the driver's time
        connection.untrace()
        found = _CODE.findall(os.pread(trace, _TRACE_MAX_BYTES, 0))
    finally:
        connection.finish()
        os.close(trace)
    return found[-1].decode() if found else ""


def _poll(connection: Any, ends_s: float) -> None:  # noqa: ANN401 - of one of the driver's modules
    """Carry a connection on until it stands, failed, or its time is over."""
    while connection.status != pq.ConnStatus.BAD:
        events = _WAITS.get(connection.connect_poll())
        left_s = ends_s - time.monotonic()  # noqa: TID251 - the driver's time
        if events is None or left_s <= 0:
            return
        waiting = select.poll()
        with contextlib.suppress(OSError):  # libpq closes a socket and opens the next
            waiting.register(connection.socket, events)
            waiting.poll(left_s * _MS)
