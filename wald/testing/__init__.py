"""Shipped for users too: what stands in for disk, clock, ledger and target in a test.

``SinkContract`` and ``Workbench``, what every sink must pass, need pytest: loaded when asked for.
"""

from typing import TYPE_CHECKING, Any

from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget
from wald.testing.simfs import SimFileSystem, Stopped
from wald.testing.simnames import Names

if TYPE_CHECKING:
    from wald.testing.sink_contract import SinkContract, Workbench

__all__ = [
    "ManualClock",
    "MemoryLedger",
    "Names",
    "RecordingSink",
    "RecordingTarget",
    "SimFileSystem",
    "SinkContract",
    "Stopped",
    "Workbench",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    if name not in {"SinkContract", "Workbench"}:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from wald.testing import sink_contract  # noqa: PLC0415

    return getattr(sink_contract, name)
