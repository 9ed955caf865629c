"""Whether new records find room on the disk: told once when they do not, and once when they do."""

import logging

from wald import limits
from wald.ports import Clock

_log = logging.getLogger("wald.ingest")


class Room:
    """Follows what the committer finds; looked at every second.

    Args:
        clock: since when, for people.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._message = ""
        self._since_ns = 0
        self._last_ns = 0
        self._refused = 0
        self._is_low = False

    def look(self, message: str, refused: int, *, is_low: bool) -> bool:
        """Take note of how the last group fared.

        Args:
            message: why it found no room; empty if it did.
            refused: how many were refused for that, ever.
            is_low: whether the disk has less than the reserve free.

        Returns:
            Whether room is wanted now: somebody was refused since the last look, or it is low.
        """
        now_ns = self._clock.wall_ns()
        more, self._refused = refused > self._refused, refused
        if more:
            self._last_ns = now_ns
        if message and not self._message:
            self._since_ns = now_ns
            _log.error("no new record is accepted: %s; what is stored is delivered", message)
        elif self._message and not message:
            lasted_s = max(0, now_ns - self._since_ns) / limits.CLOCK_NS_PER_S
            _log.info("new records are accepted again, after %.1f s", lasted_s)
        self._message = message
        if is_low and not self._is_low:
            _log.warning(
                "less is free on the disk than ledger and restarts may need: what is kept for "
                "targets that go back goes before its time"
            )
        self._is_low = is_low
        return more or is_low

    def figures(self) -> dict[str, object] | None:
        """Return since when, why, and when somebody was refused last; None if there is room."""
        if not self._message:
            return None
        return {
            "message": self._message,
            "since_ns": self._since_ns,
            "last_ns": self._last_ns,
        }
