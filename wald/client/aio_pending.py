"""What a submit gives back in an event loop."""

from collections.abc import Generator
from typing import Any

from wald.client.aio_session import AsyncSession
from wald.client.carrier import Carrier
from wald.client.pending import Answer, Origin, not_ours
from wald.errors import WaldError
from wald.model import Receipt


class AsyncPending(Answer):
    """The answer to one submitted record; ``await`` it, or its ``result``."""

    __slots__ = ("_origin",)

    def __init__(self, origin: Origin[AsyncSession], carrier: Carrier, at: int) -> None:
        self._origin = origin
        self._carrier = carrier
        self._at = at

    def done(self) -> bool:
        """Whether there is an answer."""
        return self.is_known or self._origin.session.foreign

    async def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the answer; raises as ``Pending.result``.

        Args:
            timeout: seconds; by default the producer's.
        """
        error = await self.exception(timeout)
        if error is not None:
            raise error
        return self._receipt()

    async def exception(self, timeout: float | None = None) -> WaldError | None:
        """Wait for the answer; return the error that ``result`` raises, None for a receipt."""
        self._carrier.asked = True
        if not self.is_known:
            session, clock, timeout_s = self._origin
            if session.foreign:
                return not_ours()
            try:
                limit_s = timeout_s if timeout is None else timeout
                await session.claim(self._carrier, session.deadline(clock, limit_s))
            except WaldError as error:
                return error
        return self._error()

    def __await__(self) -> Generator[Any, None, Receipt]:
        return self.result().__await__()


def take_back(pending: AsyncPending) -> None:
    """Leave the record of a pending out, which was not sent."""
    session, carrier, at = pending._origin.session, pending._carrier, pending._at  # noqa: SLF001
    carrier.asked = True
    session.withdraw(carrier, at)
