"""Shipped for users too: what stands in for producer, disk, clock, ledger and target in a test.

Each name is loaded when it is first used: ``FakeProducer`` needs msgpack and no more, on any
system; ``SinkContract`` and ``Workbench``, what every sink must pass, need pytest.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wald.testing.async_fake_producer import AsyncFakeProducer
    from wald.testing.clock import ManualClock
    from wald.testing.delivered import assert_delivered
    from wald.testing.fake_producer import FakeProducer
    from wald.testing.local_daemon import LocalDaemon
    from wald.testing.memory_daemon import MemoryRecord
    from wald.testing.memory_ledger import MemoryLedger
    from wald.testing.recording_sink import RecordingSink, RecordingTarget
    from wald.testing.simfs import SimFileSystem, Stopped
    from wald.testing.simnames import Names
    from wald.testing.sink_contract import SinkContract, Workbench

__all__ = [
    "AsyncFakeProducer",
    "FakeProducer",
    "LocalDaemon",
    "ManualClock",
    "MemoryLedger",
    "MemoryRecord",
    "Names",
    "RecordingSink",
    "RecordingTarget",
    "SimFileSystem",
    "SinkContract",
    "Stopped",
    "Workbench",
    "assert_delivered",
]

_MODULES = {
    "AsyncFakeProducer": "async_fake_producer",
    "FakeProducer": "fake_producer",
    "LocalDaemon": "local_daemon",
    "ManualClock": "clock",
    "MemoryLedger": "memory_ledger",
    "MemoryRecord": "memory_daemon",
    "Names": "simnames",
    "RecordingSink": "recording_sink",
    "RecordingTarget": "recording_sink",
    "SimFileSystem": "simfs",
    "SinkContract": "sink_contract",
    "Stopped": "simfs",
    "Workbench": "sink_contract",
    "assert_delivered": "delivered",
}


def __getattr__(name: str) -> object:
    """Load a name when it is first used."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
