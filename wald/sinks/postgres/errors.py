"""What PostgreSQL says, as outcomes: the table of SQLSTATEs, and which row an error names.

| SQLSTATE | is |
|---|---|
| 22, 23, 21, 44, 54, P0 | of a record: a value, a constraint, a trigger that raises |
| 40001, 40P01, 55P03, 57014, 53200, 25P03, 25P04 | busy: less at a time, and again |
| 08, 57P, 25006, 53300, 58, no code: the connection broke | out of reach: connect anew |
| 53100, 53400 | full |
| 28 | authentication |
| XX001, XX002 | damaged |
| 08007, 40003; no code, 08 or 57P behind a COMMIT | nobody knows |
| all else: 42, 3D, 3F, 0A, ... | configuration |
"""

import re

import psycopg

from wald import limits
from wald.model import Systemic, SystemicKind

# by the longest beginning that is in the table
_KINDS = {
    "08": SystemicKind.UNREACHABLE,
    "25006": SystemicKind.UNREACHABLE,  # a standby, behind a failover
    "25P03": SystemicKind.BUSY,
    "25P04": SystemicKind.BUSY,
    "28": SystemicKind.AUTHENTICATION,
    "40": SystemicKind.BUSY,
    "53": SystemicKind.UNREACHABLE,
    "53100": SystemicKind.FULL,
    "53200": SystemicKind.BUSY,
    "53400": SystemicKind.FULL,
    "55P03": SystemicKind.BUSY,
    "57": SystemicKind.UNREACHABLE,
    "57014": SystemicKind.BUSY,
    "58": SystemicKind.UNREACHABLE,
    "XX001": SystemicKind.DAMAGED,
    "XX002": SystemicKind.DAMAGED,
}
_OF_A_RECORD = ("21", "22", "23", "44", "54", "P0")
_OF_A_CONNECTION = ("08", "25006", "25P0", "57P")
_NO_ANSWER = ("08", "40003", "57P")
# a COPY that does not fit the table any more: another type, another column
STALE_CATALOGUE = frozenset({"42703", "42P01", "42804", "428C9"})
_HINTS = {
    SystemicKind.UNREACHABLE: "the server must run, and be reached under the host and port of url",
    SystemicKind.FULL: "free space on the file system of the server",
    SystemicKind.AUTHENTICATION: "role, password and pg_hba.conf must let wald in",
    SystemicKind.CONFIGURATION: "compare table, columns, mode and grants: wald check",
    SystemicKind.DAMAGED: "the server says that its files are damaged: restore it",
}
_ADVICE = {
    "42P01": "make the table, or correct 'table': schema.table, or as the search path finds it",
    "42501": "wald check --print-grants says what the owner of the database must run",
    "42P10": "make a unique index of exactly the columns in 'conflict'",
}
_SHOWS_ROW = frozenset({"23502", "23514"})  # the detail is the whole row: the dead letter has it
# what libpq itself says of a connection that it gave up, which has no SQLSTATE and is English
_NOT_TRUSTED = re.compile(
    r"no password supplied|certificate verify failed|does not match host name|root certificate file"
)
_WRONG_SETTING = re.compile(r"invalid (URI|connection|port|sslmode)")
# and the server, where libpq is older than 17 and does not let its code be seen
_REFUSED_LOGIN = re.compile(
    r"authentication failed|no pg_hba\.conf entry|role .* (does not exist|is not permitted)"
    r"|certificate authentication"
)
_WRONG_DATABASE = re.compile(r"database .* does not exist|permission denied for database")
_PLACE = re.compile(r"(?:connection (?:failed|is bad): )?connection to server [^\n]*? failed: ")
_ASKS_BACK = re.compile(r"\n\s*Is the server running [^\n]*")


class Late(psycopg.OperationalError):
    """No answer within the time of an attempt; the connection is of no use any more."""


def of_a_record(error: psycopg.Error) -> bool:
    """Tell whether an error is for what a record holds, and not for the target's state."""
    return is_of_driver(error) or sqlstate(error).startswith(_OF_A_RECORD)


def is_of_driver(error: psycopg.Error) -> bool:
    """Tell whether the driver refused a value that the server never saw."""
    return isinstance(error, psycopg.DataError) and not sqlstate(error)


def is_unanswered(error: psycopg.Error) -> bool:
    """Tell whether an error of a COMMIT leaves open what became of it."""
    code = sqlstate(error)
    return not code or code.startswith(_NO_ANSWER)


def is_broken(error: psycopg.Error) -> bool:
    """Tell whether another connection may do better at once: this one was lost or given up."""
    code = sqlstate(error)
    lost = isinstance(error, psycopg.OperationalError) and not isinstance(error, Late)
    return code.startswith(_OF_A_CONNECTION) if code else lost


def is_stale(error: psycopg.Error) -> bool:
    """Tell whether an error may come from a table that changed since it was looked at."""
    return sqlstate(error) in STALE_CATALOGUE


def keeps_connection(error: psycopg.Error) -> bool:
    """Tell whether the connection is as good as before: an error of a statement, no more."""
    kinds = {SystemicKind.BUSY, SystemicKind.CONFIGURATION, SystemicKind.FULL}
    return bool(sqlstate(error)) and sqlstate(error)[:3] != "25P" and _kind(error) in kinds


def systemic(error: psycopg.Error, place: str) -> Systemic:
    """Return what an error says of the target as a whole; ``place`` says which one it is."""
    kind = _kind(error)
    advice = getattr(error, "advice", "") or _ADVICE.get(sqlstate(error), "")
    return Systemic(kind, f"{place}: {describe(error)}", advice or _HINTS.get(kind, ""))


def _kind(error: psycopg.Error) -> SystemicKind:
    code = sqlstate(error)
    if not code:
        text = str(error)
        wrong = isinstance(error, psycopg.ProgrammingError) or _WRONG_SETTING.search(text)
        if wrong or _WRONG_DATABASE.search(text):
            return SystemicKind.CONFIGURATION
        if _NOT_TRUSTED.search(text) or _REFUSED_LOGIN.search(text):
            return SystemicKind.AUTHENTICATION
        return SystemicKind.UNREACHABLE
    for length in (5, 2):
        if code[:length] in _KINDS:
            return _KINDS[code[:length]]
    return SystemicKind.CONFIGURATION


def sqlstate(error: Exception) -> str:
    """Return an error's code; empty where none was told: the connection broke, or never was."""
    return getattr(error, "sqlstate", None) or ""


def line_of(error: psycopg.Error, table: str) -> int | None:
    """Return which row of a COPY to a table an error names, from 1.

    The context says ``COPY t, line 7``, in the server's language.
    """
    context = error.diag.context or ""
    found = re.search(rf"^COPY {re.escape(table)}, \D*?(\d+)", context, re.MULTILINE)
    return int(found[1]) if found else None


def describe(error: Exception) -> str:
    """Return an error as one bounded line: the server's own words, with detail and column."""
    diag = getattr(error, "diag", None)
    if diag is None or diag.message_primary is None:
        words = _ASKS_BACK.sub("", _PLACE.sub("", str(error)))
    else:
        context = (diag.context or "").partition(", column ")[2].partition("\n")[0]
        where = f"column {context}" if context else ""
        detail = None if diag.sqlstate in _SHOWS_ROW else diag.message_detail
        words = ": ".join(filter(None, (diag.message_primary, detail, where)))
    return " ".join(words.split())[: limits.ERROR_TEXT_MAX_CHARS] or type(error).__name__
