"""An asynchronous producer that waits for room: the twin of ``client.room``."""

from collections.abc import Sequence

from wald.client.aio_session import AsyncSession
from wald.client.link import Deadline
from wald.client.requests import Outgoing
from wald.client.results import Sent
from wald.client.room import OnThrottle
from wald.core.outbox import Request
from wald.core.patience import Patience, again_s, first_without_room
from wald.errors import Backpressure, WaldError
from wald.ports import Clock


class AsyncRoom:
    """Sends when there is room, and again what found none; arguments as ``Room``'s."""

    def __init__(self, session: AsyncSession, clock: Clock, on_throttle: OnThrottle | None) -> None:
        self._session = session
        self._clock = clock
        self._on_throttle = on_throttle
        self._patience = Patience(session.outbox)

    async def pause(self, stream: str, deadline: Deadline, *, urgent: bool = False) -> None:
        """Wait as long as the daemon asked to, before more of a stream is sent; not if urgent.

        Raises:
            Backpressure: longer than the caller can wait.
        """
        if self._patience.is_asked and not urgent:
            stream_id = self._session.id_of(stream)
            now_ns = self._clock.monotonic_ns()
            pause_s = self._patience.pause_s(stream, stream_id, now_ns, deadline.left_s())
            await self._rest(stream, pause_s)

    async def may_try_again(self, stream: str, error: Backpressure, deadline: Deadline) -> bool:
        """Wait until what found no room may be sent again; False: not in time."""
        self._hear()
        return await self._rest(stream, again_s(error, deadline.left_s()))

    async def append_all(
        self, stream: str, ready: Sequence[Outgoing], deadline: Deadline
    ) -> list[Sent]:
        """Send requests in order, and again those that find no room; wait for their answers.

        Raises:
            WaldError: nothing could be sent.
        """
        sent = await self._send_all(stream, ready, deadline, None)
        while True:
            requests = [each.request for each in sent]
            await self._session.finish(requests, deadline)
            self._hear()
            at = first_without_room(requests)
            if at is None:
                return sent
            if not await self._rest(stream, again_s(requests[at].error, deadline.left_s())):
                return sent
            behind = requests[at - 1] if at else None
            sent[at:] = await self._send_all(stream, ready[at:], deadline, behind)

    async def _send_all(
        self, stream: str, ready: Sequence[Outgoing], deadline: Deadline, behind: Request | None
    ) -> list[Sent]:
        sent: list[Sent] = []
        for each in ready:
            try:
                await self.pause(stream, deadline)
                request = await self._session.send(stream, each, deadline, behind=behind)
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

    async def _rest(self, stream: str, pause_s: float) -> bool:
        """Wait, if there is something to wait for."""
        if not pause_s:
            return False
        if self._on_throttle is not None:
            self._on_throttle(stream, pause_s)
        await self._session.sleep(pause_s)
        return True
