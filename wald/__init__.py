"""wald: a durable write-ahead-log batching daemon.

The public names of the client; each is loaded when it is first used, so that ``import wald`` costs
nothing and pulls in nothing of the daemon.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wald.client.aio import AsyncProducer, connect_async
    from wald.client.aio_pending import AsyncPending
    from wald.client.blocking import Producer, connect
    from wald.client.delivery import RecordStatus, RouteStatus
    from wald.client.encoding import decode_value, encode_value
    from wald.client.identity import SessionInfo
    from wald.client.pending import Pending
    from wald.client.results import Results
    from wald.client.streams import AsyncStream, Stream
    from wald.client.web import HttpAnswer, http_answer
    from wald.errors import (
        AccessDenied,
        Backpressure,
        Closed,
        DeliveryPending,
        DeliveryRefused,
        DeliveryTimeout,
        DiskFull,
        Fenced,
        InputError,
        NoRecord,
        NotOurs,
        OutcomeUnknown,
        ProtocolMismatch,
        RecordRefused,
        Refusal,
        SequenceConflict,
        Unavailable,
        UnknownStream,
        WaitTimeout,
        WaldError,
    )
    from wald.model import Receipt, Refused

__all__ = [
    "AccessDenied",
    "AsyncPending",
    "AsyncProducer",
    "AsyncStream",
    "Backpressure",
    "Closed",
    "DeliveryPending",
    "DeliveryRefused",
    "DeliveryTimeout",
    "DiskFull",
    "Fenced",
    "HttpAnswer",
    "InputError",
    "NoRecord",
    "NotOurs",
    "OutcomeUnknown",
    "Pending",
    "Producer",
    "ProtocolMismatch",
    "Receipt",
    "RecordRefused",
    "RecordStatus",
    "Refusal",
    "Refused",
    "Results",
    "RouteStatus",
    "SequenceConflict",
    "SessionInfo",
    "Stream",
    "Unavailable",
    "UnknownStream",
    "WaitTimeout",
    "WaldError",
    "__version__",
    "connect",
    "connect_async",
    "decode_value",
    "encode_value",
    "http_answer",
]

__version__ = "0.1.0"

_MODULES = {
    "AsyncPending": "wald.client.aio_pending",
    "AsyncProducer": "wald.client.aio",
    "AsyncStream": "wald.client.streams",
    "Producer": "wald.client.blocking",
    "SessionInfo": "wald.client.identity",
    "Stream": "wald.client.streams",
    "connect": "wald.client.blocking",
    "connect_async": "wald.client.aio",
    "decode_value": "wald.client.encoding",
    "encode_value": "wald.client.encoding",
    "http_answer": "wald.client.web",
    "HttpAnswer": "wald.client.web",
    "Pending": "wald.client.pending",
    "RecordStatus": "wald.client.delivery",
    "Results": "wald.client.results",
    "RouteStatus": "wald.client.delivery",
    "Receipt": "wald.model",
    "Refused": "wald.model",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found: object = getattr(importlib.import_module(_MODULES.get(name, "wald.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
