"""The null sink: takes everything and keeps nothing; for pilots and benchmarks.

What it took is counted where every route is: delivered, in ``wald status``. Class ``keyed``: where
nothing is kept nothing is there twice. ``delay`` plays a target that takes so long for a batch.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wald import limits
from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    RejectedRecord,
    ReplayClass,
    Severity,
    Unknown,
)
from wald.sinks.reading import OptionReader

KEYS = ("delay",)
DELAY_MAX_S = 3600.0


def make(route: str, stream: str, settings: Mapping[str, object]) -> "NullSink":
    """Make the sink of a route.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    del stream
    options = OptionReader("null", route, settings, KEYS)
    return NullSink(options.duration_s("delay", "0s", high_s=DELAY_MAX_S))


@dataclass(frozen=True, slots=True)
class NullSink:
    """The ``Sink`` of one lane."""

    delay_s: float = 0.0

    @property
    def capabilities(self) -> Capabilities:
        """Whatever a lane can seal."""
        return Capabilities(ReplayClass.KEYED, limits.REQUEST_MAX_RECORDS, limits.SEGMENT_BYTES)

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Remember nothing."""
        del key
        return None

    def deliver(self, attempt: Attempt) -> Outcome:
        """Take the records and forget them."""
        bound_s = self.delay_s if attempt.timeout_s is None else attempt.timeout_s
        if self.delay_s:
            threading.Event().wait(min(self.delay_s, bound_s))
        return Delivered() if self.delay_s <= bound_s else Unknown("slower than an attempt may be")

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Refuse nothing."""
        del attempt, records
        return ()

    def check(self) -> Sequence[Finding]:
        """Say what becomes of records."""
        msg = "everything is taken, and nothing is kept"
        return [Finding(Severity.OK, "null.found", msg)]

    def close(self) -> None:
        """Do nothing."""
