"""Ends a drainer that stands still: its successor finds the open batches and goes on.

An attempt that never ends, as in a driver's endless loop, would keep its lane for ever, and so
would a transform. The process ends itself instead; the attempt was counted, so that a batch of
which this happens again and again is tried in a process of its own (``drainer.guarded``). For a
driver that does not even let the main thread run, a timer of the interpreter's own does it.
"""

import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

from wald import limits
from wald.ports import Clock

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_REARM_NS = 5 * _NS
EXIT_STALLED = 70  # EX_SOFTWARE


class Watched(Protocol):
    """A lane, as far as it is watched."""

    @property
    def busy_since_ns(self) -> int:
        """When its call of sink or transform began, by the monotonic clock; 0 between calls."""
        ...

    @property
    def attempt_timeout_s(self) -> float:
        """How long an attempt may take."""
        ...

    @property
    def name(self) -> str:
        """Its name, for the log."""
        ...


class Watchdog:
    """Looks at the lanes now and then; ``end`` ends the process, ``rearm`` sets its timer anew."""

    def __init__(
        self,
        clock: Clock,
        end: Callable[[], None],
        rearm: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._end = end
        self._rearm = rearm
        self._rearmed_ns = 0

    def look(self, lanes: Iterable[Watched]) -> None:
        """End the process if a lane's attempt takes far longer than it may."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._rearmed_ns >= _REARM_NS:
            self._rearmed_ns = now_ns
            self._rearm()
        for lane in lanes:
            began_ns = lane.busy_since_ns
            bound_s = limits.HUNG_ATTEMPT_FACTOR_COUNT * lane.attempt_timeout_s
            if began_ns and now_ns - began_ns > bound_s * _NS:
                _log.critical(
                    "route %s: an attempt has not ended within %g s: the drainer ends itself, and "
                    "its successor goes on",
                    lane.name,
                    bound_s,
                )
                self._end()


def watch_process(clock: Clock) -> Watchdog:
    """Return the watchdog of a drain process; where its threads stand goes to standard error."""

    def end() -> None:
        faulthandler.dump_traceback(sys.stderr)
        os._exit(EXIT_STALLED)

    def rearm() -> None:
        faulthandler.dump_traceback_later(limits.DRAIN_STALL_S, exit=True)

    return Watchdog(clock, end, rearm)
