"""Shipped for users too: a file system and a clock that tests own."""

from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem, Stopped
from wald.testing.simnames import Names

__all__ = ["ManualClock", "Names", "SimFileSystem", "Stopped"]
