"""The asynchronous client: ``wald.aio.connect`` is ``wald.connect_async``."""

from wald.client.aio import AsyncProducer
from wald.client.aio import connect_async as connect
from wald.client.aio_pending import AsyncPending
from wald.client.streams import AsyncStream

__all__ = ["AsyncPending", "AsyncProducer", "AsyncStream", "connect"]
