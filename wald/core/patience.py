"""What a producer does where there is no room: pauses, and sends again. No I/O.

The rooms of the blocking producer and of its asynchronous twin are thin drivers of this. Time is
an argument.
"""

from collections.abc import Sequence

from wald import limits
from wald.core.outbox import Outbox, Request
from wald.errors import Backpressure
from wald.model import StreamId


class Patience:
    """Until when a producer sends nothing to which stream.

    Args:
        outbox: of its session; it holds the pauses that the daemon asked for just now.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._until_ns: dict[StreamId, int] = {}

    @property
    def is_asked(self) -> bool:
        """Whether some stream is to pause."""
        return bool(self._outbox.pauses_s or self._until_ns)

    def hear(self, now_ns: int) -> None:
        """Take note of the pauses that the daemon asked for: they begin now."""
        if self._outbox.pauses_s:
            pauses_s, self._outbox.pauses_s = self._outbox.pauses_s, {}
            for stream, pause_s in pauses_s.items():
                self._until_ns[stream] = now_ns + int(pause_s * limits.CLOCK_NS_PER_S)

    def pause_s(self, name: str, stream: StreamId | None, now_ns: int, left_s: float) -> float:
        """Return how long nothing is to be sent to a stream.

        Args:
            name: of the stream.
            stream: its id; None if it was not used yet.
            now_ns: the monotonic clock.
            left_s: how long the caller can wait.

        Raises:
            Backpressure: not as long as that.
        """
        self.hear(now_ns)
        if stream is None or stream not in self._until_ns:
            return 0.0
        pause_s = (self._until_ns[stream] - now_ns) / limits.CLOCK_NS_PER_S
        if pause_s <= 0:
            del self._until_ns[stream]
            return 0.0
        if left_s <= pause_s:
            msg = f"the daemon asks for a pause before more of {name!r}; nothing was sent"
            raise Backpressure(msg, retry_after_s=pause_s)
        return pause_s


def again_s(error: object, left_s: float) -> float:
    """Return after what time a request that found no room may be sent again; 0: not in time."""
    if not isinstance(error, Backpressure):
        return 0.0
    pause_s = max(error.retry_after_s, limits.QUOTA_PAUSE_MIN_S)
    return pause_s if left_s > pause_s else 0.0


def first_without_room(requests: Sequence[Request]) -> int | None:
    """Return from which one on all found no room: the daemon refuses what is behind one too."""
    for at, request in enumerate(requests):
        if isinstance(request.error, Backpressure):
            together = all(isinstance(each.error, Backpressure) for each in requests[at:])
            return at if together and request.done else None
    return None
