"""What a status means, as a labelled table: of a whole answer, or of one item of it. Pure.

An answer says who is at fault. Only 400 and 422 are a record's; what concerns the target, its
address or its keys never makes a dead letter. A 5xx is no proof that nothing took effect: a server
that failed in the middle, or a gateway that gave up waiting, may have passed the batch on. 503 is:
it says that the request was not taken up.
"""

from enum import Enum
from typing import NamedTuple

from wald.model import SystemicKind


class Meaning(Enum):
    """What a status says of what was sent."""

    TAKEN = "took effect"
    REFUSED = "refused for good"
    TOO_LARGE = "too large: less at a time"
    BUSY = "not now: sent again"
    UNREACHABLE = "target down: sent again"
    FULL = "target full"
    AUTHENTICATION = "authentication"
    CONFIGURATION = "configuration"
    UNKNOWN = "may have taken effect: sent again where the class allows"


class When(Enum):
    """What the meaning of a status depends on."""

    ALWAYS = "-"
    TAKEN = 'conflict = "taken"'
    RUNNING = 'conflict = "running"; the default where an id is sent'
    RETRY = 'conflict = "retry"'
    REFUSED = 'conflict = "refused"; the default else'


class Status(NamedTuple):
    """A row of the table: these statuses, if ``when`` holds, mean that."""

    label: str
    codes: str  # "409", "408, 425, 429", "500-599"; the first row that has a status counts
    when: When
    meaning: Meaning


STATUSES: tuple[Status, ...] = (
    Status("taken", "200-299", When.ALWAYS, Meaning.TAKEN),
    Status("moved", "300-399", When.ALWAYS, Meaning.CONFIGURATION),
    Status("refused", "400, 422", When.ALWAYS, Meaning.REFUSED),
    Status("not-let-in", "401, 403, 407", When.ALWAYS, Meaning.AUTHENTICATION),
    Status("not-now", "408, 425, 429", When.ALWAYS, Meaning.BUSY),
    Status("already-there", "409", When.TAKEN, Meaning.TAKEN),
    Status("still-running", "409", When.RUNNING, Meaning.UNKNOWN),
    Status("conflict", "409", When.RETRY, Meaning.BUSY),
    Status("conflict-refused", "409", When.REFUSED, Meaning.REFUSED),
    Status("too-large", "413", When.ALWAYS, Meaning.TOO_LARGE),
    Status("wrong-request", "402-499", When.ALWAYS, Meaning.CONFIGURATION),
    Status("not-implemented", "501, 505", When.ALWAYS, Meaning.CONFIGURATION),
    Status("not-served", "503", When.ALWAYS, Meaning.UNREACHABLE),
    Status("no-room", "507", When.ALWAYS, Meaning.FULL),
    Status("server-failed", "500-599", When.ALWAYS, Meaning.UNKNOWN),
    Status("no-status", "100-199, 600-999", When.ALWAYS, Meaning.UNKNOWN),
)
CONFLICTS = {"taken": When.TAKEN, "running": When.RUNNING, "retry": When.RETRY}
CONFLICTS["refused"] = When.REFUSED
KINDS = {
    Meaning.BUSY: SystemicKind.BUSY,
    Meaning.UNREACHABLE: SystemicKind.UNREACHABLE,
    Meaning.FULL: SystemicKind.FULL,
    Meaning.AUTHENTICATION: SystemicKind.AUTHENTICATION,
    Meaning.CONFIGURATION: SystemicKind.CONFIGURATION,
}
HINTS = {
    "moved": "name the final address as url: redirects are not followed",
    "not-let-in": "the token is wrong, expired, or lacks the right to write",
    "wrong-request": "the address, method, content or headers are not what the server wants",
    "not-implemented": "the server does not know this kind of request",
}
STATUS_MIN, STATUS_MAX = 100, 999


def status_row(status: int, conflict: str) -> Status:
    """Return the first row of the table that holds; ``conflict`` says what a 409 is."""
    held = {When.ALWAYS, CONFLICTS[conflict]}
    known = status if STATUS_MIN <= status <= STATUS_MAX else STATUS_MIN
    return next(row for row in _BY_CODE[known] if row.when in held)


def codes_of(row: Status) -> set[int]:
    """Return the statuses that a row names."""
    found: set[int] = set()
    for part in row.codes.split(", "):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


_BY_CODE = {
    status: [row for row in STATUSES if status in codes_of(row)]
    for status in range(STATUS_MIN, STATUS_MAX + 1)
}
