"""What a producer and the daemon say to each other, whatever carries the bytes. No I/O.

The blocking session and its asynchronous twin are drivers of this: they connect, send what it
gives, hand it what arrives, and wait. What a greeting, an answer, a lost session or a refused
connection means is decided here, once.
"""

from collections.abc import Iterator
from typing import Final

from wald import limits
from wald.core.events import (
    Ack,
    Capability,
    DuplicateRecords,
    Event,
    Failed,
    FrameType,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    Received,
    RefusedRecords,
    StreamOpened,
    Throttle,
    Welcome,
)
from wald.core.outbox import Outbox, error_of
from wald.errors import Backpressure, Fenced, OutcomeUnknown, Unavailable, UnknownStream, WaldError
from wald.model import StreamId
from wald.ports import Chance

CAPABILITIES: Final = Capability.RECEIVED | Capability.DUPLICATES | Capability.EPOCH
BACKOFF_BASE_S: Final = 0.01
BACKOFF_CAP_S: Final = 0.5
_HINTS: dict[type[Exception], str] = {
    PermissionError: "the socket is for its owner and group: run as one of them",
    TimeoutError: "it runs and does not answer: see its log, and 'wald status'",
}
_WHY: dict[type[Exception], str] = {
    TimeoutError: "it does not answer",
    ConnectionResetError: "it closed the connection",
}
_HOPELESS = (FileNotFoundError, ConnectionRefusedError, PermissionError)
_SINGLE_HINT = "see what the target holds of it, and append the rest under another name"


class Dialogue:
    """One producer's session with the daemon, over one connection after another.

    Args:
        path: the daemon's socket, for messages.
        name: the producer's name, or empty.
        patient: whether to wait for a daemon that was never there.
        single: whether it ends when the daemon loses the session, instead of beginning another:
            what follows would not be known to continue what was sent.
        throttle: whether a full stream refuses single requests, which use their sequences; else
            none is used, and what is in flight behind one that is refused is not stored either.

    Attributes:
        ended: why this session is over for good.
        greeted: whether the connection at hand has been welcomed.
        streams: the ids of streams by name.
    """

    def __init__(
        self, path: str, name: str, *, patient: bool, single: bool = False, throttle: bool = True
    ) -> None:
        self.outbox = Outbox()
        self.ended: WaldError | None = None
        self.greeted = False
        self.streams: dict[str, StreamId] = {}
        self._path = path
        self._name = name
        self._patient = patient
        self._single = single
        self._capabilities = int(CAPABILITIES | (Capability.THROTTLE if throttle else 0))
        self._log_id = b""
        self._last_call = 0
        self._asked: set[int] = set()
        self._answers: dict[int, Event] = {}

    # --- a connection begins --------------------------------------------------------------------

    def greet(self) -> bytes:
        """Return the HELLO of a new connection."""
        self.greeted = False
        return self._hello(self.outbox.session)

    def take_greeting(self, event: Event) -> bytes:
        """Take what comes before the welcome; return what to send then, if anything.

        Raises:
            WaldError: the daemon refuses.
            ConnectionResetError: it stops, or the next connection begins another session.
        """
        if isinstance(event, Welcome):
            self._welcome(event)
            self.greeted = True
        elif isinstance(event, Failed):
            error = error_of(event)
            if isinstance(error, Fenced):
                self.ended = error
            if not (self.outbox.session and isinstance(error, OutcomeUnknown)):
                raise error
            self._lose_session("the daemon no longer knows the session")
            return self._hello(0)
        elif isinstance(event, Goodbye):
            raise ConnectionResetError
        return b""

    def again(self) -> Iterator[bytes]:
        """Yield what is unanswered, to be sent again behind the welcome, in order."""
        for request in self.outbox.unanswered():
            self.outbox.sent(request)
            yield self.outbox.frame(request)

    def _hello(self, session: int) -> bytes:
        self._last_call += 1
        epoch = self.outbox.epoch if session else 0
        return Hello(self._last_call, self._name, session, self._capabilities, epoch=epoch).encode()

    def _welcome(self, welcome: Welcome) -> None:
        try:
            self.outbox.welcome(welcome)
        except Fenced as error:
            self.ended = error
            raise
        except OutcomeUnknown as error:
            self._lose_session(error.message)
            raise ConnectionResetError from error  # a new session begins with a new connection
        if welcome.log_id != self._log_id:
            self._log_id = welcome.log_id
            self.streams.clear()

    def _lose_session(self, why: str) -> None:
        hint = _SINGLE_HINT if self._single else ""
        self.outbox.lose_session(hint)
        self.streams.clear()  # a log that lost its sessions may have lost these ids too
        if self._single:
            msg = f"{why}: what was sent before may or may not be stored"
            self.ended = OutcomeUnknown(msg, hint=hint)
            raise self.ended

    # --- frames that are answered by their number -----------------------------------------------

    def ping(self) -> tuple[int, bytes]:
        """Return the number of a sign of life asked for, and its frame."""
        number = self._ask()
        return number, Ping(number).encode()

    def open_stream(self, name: str) -> tuple[int, bytes]:
        """Return the number of the question for a stream's id, and its frame.

        Raises:
            UnknownStream: it is not a name.
        """
        given: object = name
        if not isinstance(given, str):
            msg = f"a stream's name is text, not {type(given).__name__}"
            raise UnknownStream(msg)
        if limits.STREAM_NAME.fullmatch(name) is None:
            msg = f"{name!r} is not a stream's name"
            raise UnknownStream(msg)
        number = self._ask()
        return number, OpenStream(number, name).encode()

    def _ask(self) -> int:
        self._last_call += 1
        self._asked.add(self._last_call)
        return self._last_call

    def is_answered(self, number: int) -> bool:
        """Tell whether the answer is there."""
        return number in self._answers

    def answer(self, number: int) -> Event | None:
        """Return an answer, once; None while there is none.

        Raises:
            WaldError: what was said instead.
        """
        answer = self._answers.pop(number, None)
        if isinstance(answer, Failed):
            if answer.code == UnknownStream.code:
                raise UnknownStream(answer.message, hint=answer.hint)
            raise error_of(answer)
        return answer

    def forget(self, number: int) -> None:
        """Nobody waits for an answer any more: it would be kept for ever."""
        self._asked.discard(number)
        self._answers.pop(number, None)

    # --- what arrives ---------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Take what arrives behind the welcome.

        Raises:
            WaldError: the daemon ends the connection, and would only say the same again.
        """
        match event:
            case Ack() | Received() | RefusedRecords() | DuplicateRecords() | Throttle():
                self.outbox.take(event)
            case Failed() if event.closing:
                error = error_of(event)
                if isinstance(error, Fenced):
                    self.ended = error
                if not error.retryable:
                    raise error
            case Failed() if event.answers == FrameType.APPEND:
                self.outbox.take(event)
            case Failed() | Pong() | StreamOpened() if event.request in self._asked:
                self._answers[event.request] = event
            case _:
                pass  # what nobody waits for; or a goodbye: the end of the connection follows

    # --- nobody answers -------------------------------------------------------------------------

    def pause_s(
        self, error: OSError | Backpressure, failures: int, left_s: float, chance: Chance
    ) -> float:
        """Return how long to wait before the next attempt to connect.

        Args:
            error: why this one failed.
            failures: in a row, this one included.
            left_s: until the deadline.
            chance: for the jitter.

        Raises:
            Unavailable, Backpressure: there is no time left, or no hope.
        """
        hopeless = isinstance(error, _HOPELESS) and not self._patient and not self.outbox.session
        if left_s <= 0 or hopeless:
            if isinstance(error, Backpressure):
                raise error
            why = error.strerror or _WHY.get(type(error), type(error).__name__)
            msg = f"no daemon answers at {self._path!r}: {why}"
            raise Unavailable(msg, hint=_HINTS.get(type(error), ""), path=self._path) from error
        cap_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(failures, 16))
        return min(chance.uniform(cap_s / 2, cap_s), left_s)
