"""A blocking producer that waits for room: asked to pause, refused for a quota or a full disk."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from wald.client.link import Deadline
from wald.client.requests import Outgoing
from wald.client.results import Sent
from wald.client.session import Session
from wald.core.outbox import Request
from wald.core.patience import Patience, again_s, first_without_room
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
        self._patience = Patience(session.outbox)

    def pause(self, stream: str, deadline: Deadline, *, urgent: bool = False) -> None:
        """Wait as long as the daemon asked to, before more of a stream is sent; not if urgent.

        Raises:
            Backpressure: longer than the caller can wait.
        """
        if self._patience.is_asked and not urgent:
            stream_id = self._session.id_of(stream)
            now_ns = self._clock.monotonic_ns()
            self._rest(stream, self._patience.pause_s(stream, stream_id, now_ns, deadline.left_s()))

    def append(
        self, stream: str, body: bytes, deadline: Deadline, *, urgent: bool = False
    ) -> Request:
        """Send a request of one record, and again while it finds no room; wait for its answer."""
        while True:
            self.pause(stream, deadline, urgent=urgent)
            request = self._session.append(stream, body, deadline)
            self._hear()
            if request.error is None or not request.done:
                return request
            if not self._rest(stream, again_s(request.error, deadline.left_s())):
                return request

    def append_early(
        self, stream: str, body: bytes, deadline: Deadline, *, urgent: bool = False
    ) -> Request:
        """Do as ``append``, and wait only until the daemon has the request."""
        while True:
            self.pause(stream, deadline, urgent=urgent)
            request = self._session.send(stream, Outgoing(body, range(1)), deadline, early=True)
            self._session.receive(request, deadline)
            if isinstance(request.error, Backpressure):
                # what is sent before its ACK is heard is in flight behind it, and refused too
                self._hear_out(request, request.error, deadline)
            request.left = request.error is None
            self._hear()
            if not self._rest(stream, again_s(request.error, deadline.left_s())):
                return request

    def _hear_out(self, request: Request, refused: Backpressure, deadline: Deadline) -> None:
        self._session.finish((request,), deadline)
        if not request.done:
            request.error = refused

    def append_all(self, stream: str, ready: Sequence[Outgoing], deadline: Deadline) -> list[Sent]:
        """Send requests in order, and again those that find no room; wait for their answers.

        Raises:
            WaldError: nothing could be sent.
        """
        sent = self._send_all(stream, ready, deadline, None)
        while True:
            requests = [each.request for each in sent]
            self._session.finish(requests, deadline)
            self._hear()
            at = first_without_room(requests)
            if at is None or not self._rest(stream, again_s(requests[at].error, deadline.left_s())):
                return sent
            behind = requests[at - 1] if at else None
            sent[at:] = self._send_all(stream, ready[at:], deadline, behind)

    def _send_all(
        self, stream: str, ready: Sequence[Outgoing], deadline: Deadline, behind: Request | None
    ) -> list[Sent]:
        sent: list[Sent] = []
        for each in ready:
            try:
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

    def _hear(self) -> None:
        if self._session.outbox.pauses_s:
            self._patience.hear(self._clock.monotonic_ns())

    def _rest(self, stream: str, pause_s: float) -> bool:
        """Wait, if there is something to wait for."""
        if not pause_s:
            return False
        if self._on_throttle is not None:
            self._on_throttle(stream, pause_s)
        self._clock.sleep(pause_s)
        return True
