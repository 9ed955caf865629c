"""What a producer does while the daemon asks it to pause. No I/O; time is an argument."""

from collections.abc import Mapping

from wald import limits
from wald.errors import Backpressure
from wald.model import StreamId


class Patience:
    """Until when a producer sends nothing to which stream."""

    def __init__(self) -> None:
        self._until_ns: dict[StreamId, int] = {}

    def hear(self, pauses_s: Mapping[StreamId, float], now_ns: int) -> None:
        """Take what the daemon asked for."""
        for stream, pause_s in pauses_s.items():
            self._until_ns[stream] = now_ns + int(pause_s * limits.CLOCK_NS_PER_S)

    @property
    def is_asked(self) -> bool:
        """Whether some stream is to pause."""
        return bool(self._until_ns)

    def left_s(self, stream: StreamId | None, now_ns: int) -> float:
        """Return how long nothing is to be sent to a stream."""
        if stream is None:
            return 0.0
        left_ns = self._until_ns.get(stream, now_ns) - now_ns
        if left_ns <= 0:
            self._until_ns.pop(stream, None)
            return 0.0
        return left_ns / limits.CLOCK_NS_PER_S


def too_long(stream: str, pause_s: float) -> Backpressure:
    """Return what is said when a pause is longer than the caller can wait."""
    msg = f"the daemon asks for a pause before more of {stream!r}; nothing was sent"
    return Backpressure(msg, retry_after_s=pause_s)
