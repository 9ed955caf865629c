"""What a submit gives back: an answer that is still on its way."""

from typing import Generic, NamedTuple, TypeVar

from wald.client.carrier import Carrier, answered
from wald.client.link import Deadline
from wald.client.session import Session
from wald.errors import NotOurs, OutcomeUnknown, WaldError
from wald.model import Receipt
from wald.ports import Clock

_LOOK_S = 0.05  # a look may connect anew
_S = TypeVar("_S")


class Origin(NamedTuple, Generic[_S]):
    """Where the answers to what one producer has submitted are waited for."""

    session: _S
    clock: Clock
    timeout_s: float


class Answer:
    """The answer to one submitted record, wherever it is waited for."""

    __slots__ = ("_at", "_carrier")

    _carrier: Carrier
    _at: int

    @property
    def stream(self) -> str:
        """The stream that the record was submitted to."""
        return self._carrier.stream

    @property
    def is_known(self) -> bool:
        """Whether the answer is there already; nothing is read for it."""
        request = self._carrier.request
        return request is not None and request.done

    @property
    def was_sent(self) -> bool:
        """Whether the record went out, or will never."""
        return self._carrier.request is not None

    def _error(self) -> WaldError | None:
        """Return what is wrong, behind a wait for it; None for a receipt."""
        request = self._carrier.request
        if request is None:
            msg = "the record was not sent within the time; it goes out as soon as there is room"
            return self._unknown(msg)
        found = answered(request, self.stream, self._carrier.position(self._at))
        if isinstance(found, OutcomeUnknown) and not request.done:
            return self._unknown(found.message)
        return found if isinstance(found, WaldError) else None

    def _receipt(self) -> Receipt:
        request = self._carrier.request
        assert request is not None
        found = answered(request, self.stream, self._carrier.position(self._at))
        assert isinstance(found, Receipt)
        return found

    def _unknown(self, message: str) -> OutcomeUnknown:
        unknown = OutcomeUnknown(message, hint="'settle' it: the record is on its way")
        unknown.unsettled = self
        return unknown

    def __repr__(self) -> str:
        state = "answered" if self.is_known else "on its way"
        return f"<{type(self).__name__} of {self.stream!r}, {state}>"


def not_ours() -> NotOurs:
    """Return the error of the child of a fork."""
    return NotOurs("the record was submitted before a fork, by the parent process")


class Pending(Answer):
    """The answer to one submitted record. May be asked from several threads.

    There is no thread behind it: ``result`` reads the socket in the thread that asks, and so reads
    for all others too.
    """

    __slots__ = ("_origin",)

    def __init__(self, origin: Origin[Session], carrier: Carrier, at: int) -> None:
        self._origin = origin
        self._carrier = carrier
        self._at = at

    def done(self) -> bool:
        """Whether there is an answer. Takes in what has arrived, and waits for nothing."""
        session, clock, _ = self._origin
        if self.is_known or session.foreign:
            return True
        return session.look(self._carrier, Deadline(clock, _LOOK_S))

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the answer.

        Args:
            timeout: seconds; by default the producer's.

        Raises:
            RecordRefused: it was refused, and is not stored.
            Backpressure, DiskFull: there was no room; it is not stored.
            OutcomeUnknown: there is no answer yet; the record stays on its way, ask again. If the
                session is lost there will be none.
            NotOurs: it was submitted before a fork, by the parent process.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._receipt()

    def exception(self, timeout: float | None = None) -> WaldError | None:
        """Wait for the answer; return the error that ``result`` raises, None for a receipt."""
        self._carrier.asked = True
        if not self.is_known:
            session, clock, timeout_s = self._origin
            if session.foreign:
                return not_ours()
            try:
                limit_s = timeout_s if timeout is None else timeout
                session.claim(self._carrier, Deadline(clock, limit_s))
            except WaldError as error:
                return error
        return self._error()
