"""A blocking producer that waits for room: asked to pause, refused for a quota or a full disk."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from wald import limits
from wald.client.link import Deadline
from wald.client.requests import Outgoing
from wald.client.results import Sent
from wald.client.session import Session
from wald.core.outbox import Request
from wald.core.patience import Patience, too_long
from wald.errors import Backpressure, WaldError
from wald.ports import Clock

OnThrottle: TypeAlias = Callable[[str, float], object]


class Room:
    """Sends when there is room, and again what found none; within the caller's deadline.

    Args:
        session: the producer's.
        clock: to wait.
        on_throttle: called with stream and seconds before each wait.
    """

    def __init__(self, session: Session, clock: Clock, on_throttle: OnThrottle | None) -> None:
        self._session = session
        self._clock = clock
        self._on_throttle = on_throttle
        self._patience = Patience()

    @property
    def is_asked(self) -> bool:
        """Whether the daemon asked for a pause of some stream."""
        return bool(self._session.outbox.pauses_s) or self._patience.is_asked

    def pause(self, stream: str, deadline: Deadline) -> None:
        """Wait as long as the daemon asked to, before more of a stream is sent.

        Raises:
            Backpressure: longer than the caller can wait.
        """
        self.hear()
        now_ns = self._clock.monotonic_ns()
        left_s = self._patience.left_s(self._session.id_of(stream), now_ns)
        if left_s:
            if deadline.left_s() <= left_s:
                raise too_long(stream, left_s)
            self._rest(stream, left_s)

    def hear(self) -> None:
        """Take note of the pauses that the daemon asked for: they begin now."""
        outbox = self._session.outbox
        if outbox.pauses_s:
            pauses_s, outbox.pauses_s = outbox.pauses_s, {}
            self._patience.hear(pauses_s, self._clock.monotonic_ns())

    def append(self, stream: str, body: bytes, deadline: Deadline) -> Request:
        """Send a request of one record, and again while it finds no room; wait for its answer."""
        while True:
            if self.is_asked:
                self.pause(stream, deadline)
            request = self._session.append(stream, body, deadline)
            if self._session.outbox.pauses_s:
                self.hear()
            if request.error is None or not self._may_try_again(stream, request, deadline):
                return request

    def append_all(self, stream: str, ready: Sequence[Outgoing], deadline: Deadline) -> list[Sent]:
        """Send requests in order, and again those that find no room; wait for their answers.

        Raises:
            WaldError: nothing could be sent.
        """
        sent = self._send_all(stream, ready, deadline, None)
        while True:
            requests = [each.request for each in sent]
            self._session.finish(requests, deadline)
            self.hear()
            at = _first_without_room(requests)
            if at is None or not self._may_try_again(stream, requests[at], deadline):
                return sent
            behind = requests[at - 1] if at else None
            sent[at:] = self._send_all(stream, ready[at:], deadline, behind)

    def _send_all(
        self,
        stream: str,
        ready: Sequence[Outgoing],
        deadline: Deadline,
        behind: Request | None,
    ) -> list[Sent]:
        sent: list[Sent] = []
        for each in ready:
            try:
                if self.is_asked:
                    self.pause(stream, deadline)
                request = self._session.send(stream, each, deadline, behind=behind)
            except WaldError as error:
                if behind is None:
                    raise
                request = Request(0, 0, b"", len(each.indexes))
                request.fail(error)
            sent.append(Sent(request, each.indexes))
            behind = request
        return sent

    def _may_try_again(self, stream: str, request: Request, deadline: Deadline) -> bool:
        """Wait until a request that found no room may be sent again; False: not in time."""
        error = request.error
        if not isinstance(error, Backpressure) or not request.done:
            return False
        pause_s = max(error.retry_after_s, limits.QUOTA_PAUSE_MIN_S)
        if deadline.left_s() <= pause_s:
            return False
        self._rest(stream, pause_s)
        return True

    def _rest(self, stream: str, pause_s: float) -> None:
        if self._on_throttle is not None:
            self._on_throttle(stream, pause_s)
        self._clock.sleep(pause_s)


def _first_without_room(requests: Sequence[Request]) -> int | None:
    """Return from which one on all found no room: the daemon refuses what is behind one too."""
    for at, request in enumerate(requests):
        if isinstance(request.error, Backpressure):
            together = all(isinstance(each.error, Backpressure) for each in requests[at:])
            return at if together else None
    return None
