"""What a lane's sink counts on the way, told with the next batch that is through."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

from wald.core.traffic import REQUESTS

EXTRA_FIELDS: Final = "extra-fields"
NOT_NEWER: Final = "not-newer"  # the table has that record, or a newer one of its key
WRITE_UNITS: Final = "write-units"  # consumed, as the service bills them


class Notes:
    """Counters; thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, count: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += count

    def count_calls(self, requests: int, units: int) -> None:
        """Add requests and what they consumed."""
        self.count(REQUESTS, requests)
        self.count(WRITE_UNITS, units)

    def take(self) -> Mapping[str, int]:
        """Return what was counted since the last time, without zeros."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {name: count for name, count in counts.items() if count}
