"""The clock of the machine, on any system: producers need nothing else of ``wald.system``."""

import time
from functools import cache

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class SystemClock:
    """The clock of the machine."""

    def wall_ns(self) -> int:
        """Return the wall clock, nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return a clock that never goes back, in nanoseconds."""
        return time.monotonic_ns()

    def boot_ns(self) -> int:
        """Return nanoseconds since boot, suspend included where the system can tell."""
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic_ns() if clock is None else time.clock_gettime_ns(clock)

    def boot_id(self) -> str:
        """Return what names this boot; empty where the system has no such name."""
        return _boot_id()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@cache
def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:  # (pathlib is an import of 10 ms)
            return file.read().strip()  # no process outlives its boot
    except (OSError, ValueError):
        return ""
