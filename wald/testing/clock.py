"""A clock that stands still until it is told to go."""

from wald.limits import CLOCK_NS_PER_S

_START_NS = 1_750_000_000 * CLOCK_NS_PER_S


class ManualClock:
    """Time as a test wants it; see ``wald.ports.Clock``.

    ``sleep`` advances it, so that code that waits ends at once.
    """

    def __init__(self, wall_ns: int = _START_NS) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = CLOCK_NS_PER_S
        self._boot_ns = CLOCK_NS_PER_S
        self._boots = 1

    def wall_ns(self) -> int:
        """Return the wall clock."""
        return self._wall_ns

    def monotonic_ns(self) -> int:
        """Return the clock that never goes back."""
        return self._monotonic_ns

    def boot_ns(self) -> int:
        """Return nanoseconds since the simulated boot."""
        return self._boot_ns

    def boot_id(self) -> str:
        """Return what names the simulated boot."""
        return f"boot-{self._boots}"

    def sleep(self, seconds: float) -> None:
        """Advance by as much."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass on all three clocks."""
        passed = round(seconds * CLOCK_NS_PER_S)
        self._wall_ns += passed
        self._monotonic_ns += passed
        self._boot_ns += passed

    def set_wall(self, wall_ns: int) -> None:
        """Let the wall clock jump, either way."""
        self._wall_ns = wall_ns

    def reboot(self) -> None:
        """Begin a new boot: its clocks start again, the wall clock goes on."""
        self._boots += 1
        self._monotonic_ns = CLOCK_NS_PER_S
        self._boot_ns = CLOCK_NS_PER_S
