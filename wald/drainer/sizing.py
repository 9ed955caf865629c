"""How many lanes of a route are at work: the number follows the lag, within bounds."""

from collections.abc import Sequence

from wald import limits
from wald.core import pacing
from wald.core.pacing import Rate, Workers
from wald.drainer.lane_figures import LaneFigures
from wald.drainer.route import Route
from wald.model import Lsn

_NS = limits.CLOCK_NS_PER_S


class Sizing:
    """Sizes the crew of a route; used by one thread."""

    def __init__(self, template: Route) -> None:
        self._template = template
        self._workers = Workers(template.settings.workers.min, 0, 0)
        self._rate = Rate()
        self._rated: Lsn | None = None

    def begin(self, lanes: int) -> None:
        """Size it for so many lanes of which nothing is known yet."""
        self._resize(lanes, 0.0, self._template.shared.clock.monotonic_ns())

    def follow(self, lanes: int, figures: Sequence[LaneFigures], now_ns: int) -> None:
        """Follow the lag of the lanes at work."""
        self._resize(lanes, self._lag_s(figures, now_ns), now_ns)

    def _resize(self, lanes: int, lag_s: float, now_ns: int) -> None:
        workers = self._template.settings.workers
        highest = min(workers.max or lanes, lanes)
        lowest = min(workers.min, highest)
        self._workers = pacing.workers_at_work(
            self._workers, lag_s, lowest=lowest, highest=highest, now_ns=now_ns
        )
        self._template.crew.resize(self._workers.number)

    def _lag_s(self, figures: Sequence[LaneFigures], now_ns: int) -> float:
        """Return how long the backlog would take at the present rate, counted in LSNs.

        No more than what is overdue: what waits for a full batch does not lag.
        """
        frontier = self._template.frontier()
        if frontier is None:
            return 0.0
        through = min(each.through_lsn for each in figures)
        before, self._rated = self._rated, through
        if before is not None and through > before:
            self._rate = self._rate.after(through - before, now_ns)
        left_s = pacing.lag_s(frontier.lsn - through, self._rate.per_s(now_ns))
        oldest_ns = [
            each.oldest_pending_ns for each in figures if each.oldest_pending_ns is not None
        ]
        if not oldest_ns:
            return 0.0
        batch = self._template.settings.batch
        age_s = (self._template.shared.clock.wall_ns() - min(oldest_ns)) / _NS
        return min(left_s, max(0.0, age_s - batch.max_age_s - batch.jitter_s))
