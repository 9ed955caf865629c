"""What the event loop reports by itself, said seldom.

Out of descriptors, asyncio's server reports each of a hundred attempts to accept, every second.
"""

import asyncio
import logging
from typing import Any

from wald import limits
from wald.ports import Clock

_log = logging.getLogger("wald.supervisor")


class Calm:
    """An exception handler of a loop that logs a kind of trouble no more often than now and then.

    Args:
        clock: monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, tuple[int, int]] = {}  # when, and how often unsaid since

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the loop reports."""
        del loop
        error = context.get("exception")
        message, now_ns = str(context.get("message")), self._clock.monotonic_ns()
        when_ns, unsaid = self._said.get(message, (None, 0))
        if when_ns is not None and now_ns - when_ns < limits.TOLD_EVERY_S * limits.CLOCK_NS_PER_S:
            self._said[message] = when_ns, unsaid + 1
            return
        self._said[message] = now_ns, 0
        more = f" (and {unsaid:,} times since it was said last)" if unsaid else ""
        bug = None if isinstance(error, OSError) else error
        _log.error("%s: %s%s", message, error, more, exc_info=bug)
