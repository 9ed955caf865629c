"""What a web handler does with each error: a table, and a function that reads it."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from wald.errors import (
    AccessDenied,
    Backpressure,
    DeliveryRefused,
    DeliveryTimeout,
    DiskFull,
    Fenced,
    OutcomeUnknown,
    RecordRefused,
    Refusal,
    SequenceConflict,
    Unavailable,
    UnknownStream,
    WaldError,
)


class ErrorAnswer(NamedTuple):
    """A row: the error, what it means, the status of the answer, and when to come back."""

    kind: type[WaldError]
    means: str
    status: int
    retry_after_s: float | None = None  # where the error itself says no time


class HttpAnswer(NamedTuple):
    """What to answer: status, headers, and a body that is JSON."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, str]


ERROR_ANSWERS: Final = (
    ErrorAnswer(Unavailable, "no daemon, nothing was sent: sending again is safe", 503, 1.0),
    ErrorAnswer(DiskFull, "the log has no room: nothing is stored", 503),
    ErrorAnswer(Backpressure, "a quota, or too much on its way: nothing is stored", 429),
    ErrorAnswer(RecordRefused, "the record cannot be stored: its sender mends it", 422),
    ErrorAnswer(AccessDenied, "this user may not append to the stream", 403),
    ErrorAnswer(UnknownStream, "no route takes the stream", 404),
    ErrorAnswer(SequenceConflict, "a sequence was used for something else", 409),
    ErrorAnswer(Refusal, "any other refusal: the caller's fault", 400),
    ErrorAnswer(
        OutcomeUnknown, "sent, not answered: `settle` it, or say that it may be there", 202
    ),
    ErrorAnswer(DeliveryTimeout, "it is durable, and not delivered yet", 202),
    ErrorAnswer(DeliveryRefused, "it was durable, and a target refused it: a dead letter", 422),
    ErrorAnswer(Fenced, "another client took this producer's name: this process stops", 500),
    ErrorAnswer(WaldError, "anything else", 500),
)
"""The first row that fits; `docs/how-to/errors.md` prints it."""


def http_answer(error: WaldError) -> HttpAnswer:
    """Return what a web handler answers to an error of a producer.

    Args:
        error: as it was raised.

    Returns:
        Status, headers (``Retry-After`` where coming back helps) and a body for JSON: code, message
        and hint. Nothing in them is secret; hints are for whoever runs the daemon.
    """
    row = next(each for each in ERROR_ANSWERS if isinstance(error, each.kind))
    after_s = error.retry_after_s if isinstance(error, Backpressure) else row.retry_after_s
    headers = {} if after_s is None else {"Retry-After": str(max(math.ceil(after_s), 1))}
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    return HttpAnswer(row.status, headers, body)
