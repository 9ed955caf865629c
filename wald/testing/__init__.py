"""Shipped for users too: what stands in for disk, clock, ledger and target in a test."""

from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget
from wald.testing.simfs import SimFileSystem, Stopped
from wald.testing.simnames import Names

__all__ = [
    "ManualClock",
    "MemoryLedger",
    "Names",
    "RecordingSink",
    "RecordingTarget",
    "SimFileSystem",
    "Stopped",
]
