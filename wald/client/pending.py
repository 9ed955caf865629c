"""What a submit gives back: an answer that is still on its way."""

from wald.client.carrier import Carrier, answered
from wald.client.link import Deadline
from wald.client.session import Session
from wald.errors import NotOurs, OutcomeUnknown, WaldError
from wald.model import Receipt
from wald.ports import Clock

_LOOK_S = 0.05  # a look may connect anew


class Pending:
    """The answer to one submitted record. May be asked from several threads.

    There is no thread behind it: ``result`` reads the socket in the thread that asks, and so reads
    for all others too.
    """

    __slots__ = ("_at", "_carrier", "_clock", "_session", "_timeout_s")

    def __init__(
        self, session: Session, carrier: Carrier, at: int, clock: Clock, timeout_s: float
    ) -> None:
        self._session = session
        self._carrier = carrier
        self._at = at
        self._clock = clock
        self._timeout_s = timeout_s

    @property
    def stream(self) -> str:
        """The stream that the record was submitted to."""
        return self._carrier.stream

    def done(self) -> bool:
        """Whether there is an answer. Takes in what has arrived, and waits for nothing."""
        carrier = self._carrier
        request = carrier.request
        if (request is not None and request.done) or self._session.foreign:
            return True
        return self._session.look(carrier, Deadline(self._clock, _LOOK_S))

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
        request = self._carrier.request
        assert request is not None
        found = answered(request, self.stream, self._at)
        assert isinstance(found, Receipt)
        return found

    def exception(self, timeout: float | None = None) -> WaldError | None:
        """Wait for the answer; return the error that ``result`` raises, None for a receipt."""
        carrier = self._carrier
        carrier.asked = True
        request = carrier.request
        if request is None or not request.done:
            if self._session.foreign:
                msg = "the record was submitted before a fork, by the parent process"
                return NotOurs(msg)
            limit_s = self._timeout_s if timeout is None else timeout
            try:
                request = self._session.claim(carrier, Deadline(self._clock, limit_s))
            except WaldError as error:
                return error
        if request is None:
            msg = "the record was not sent within the time; it goes out as soon as there is room"
            return self._unknown(OutcomeUnknown(msg))
        found = answered(request, self.stream, self._at)
        if isinstance(found, OutcomeUnknown) and not request.done:
            return self._unknown(found)
        return found if isinstance(found, WaldError) else None

    def _unknown(self, error: OutcomeUnknown) -> OutcomeUnknown:
        unknown = OutcomeUnknown(error.message, hint="'settle' it: the record is on its way")
        unknown.unsettled = self
        return unknown

    def __repr__(self) -> str:
        request = self._carrier.request
        state = "answered" if request is not None and request.done else "on its way"
        return f"<Pending of {self.stream!r}, {state}>"
