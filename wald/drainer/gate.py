"""What stands between a lane and its target: how much goes at a time, and when to hold back."""

from collections.abc import Mapping
from typing import Any

from wald.config import BatchSettings
from wald.core.batching import Bounds
from wald.model import Capabilities, Outcome


class Gate:
    """Asked by one lane before it seals or sends, and told what came of each attempt."""

    def __init__(self, batch: BatchSettings) -> None:
        self._batch = batch

    def bounds(self, able: Capabilities) -> Bounds:
        """Return when the next batch is sealed."""
        batch = self._batch
        return Bounds(
            min(batch.max_records, able.max_records),
            min(batch.max_bytes, able.max_bytes),
            batch.max_age_s,
        )

    def wait_s(self) -> float:
        """Return how long to hold back before the target is asked or sent anything; 0 to go on."""
        return 0.0

    def ended(self, outcome: Outcome, records: int, seconds: float) -> None:
        """Take in what an attempt with so many records came to, and how long it took."""

    def figures(self) -> Mapping[str, Any]:
        """Return what status says of it."""
        return {}
