"""What went to a target since the drain process began, and what that may have cost.

An attempt is one request of the target, unless the sink says otherwise (note ``requests``).
"""

from collections.abc import Sequence
from typing import NamedTuple

REQUESTS = "requests"  # of ``Delivered.notes``: how many requests the attempt took
_KIB = 1024


class Traffic(NamedTuple):
    """Requests made, whatever came of them; records and bytes of those that took effect."""

    requests: int = 0
    records: int = 0
    size_bytes: int = 0

    def with_attempt(self, requests: int, records: int, size_bytes: int) -> "Traffic":
        """Return the sum with one attempt."""
        size_bytes += self.size_bytes
        return Traffic(self.requests + requests, self.records + records, size_bytes)

    @property
    def records_per_request(self) -> float | None:
        """How many records took effect for each request; None before the first one."""
        return self.records / self.requests if self.requests else None

    def cost(self, per_request: float, per_kib: float) -> float | None:
        """Return an estimate; None where the settings name no price."""
        if not per_request and not per_kib:
            return None
        return self.requests * per_request + self.size_bytes / _KIB * per_kib


def summed(each: Sequence[Traffic]) -> Traffic:
    """Return the traffic of all lanes of a route."""
    return Traffic(*map(sum, zip(*each, strict=True))) if each else Traffic()
