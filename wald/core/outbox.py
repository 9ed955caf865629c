"""A producer's requests on their way: sequences, the window, answers. No I/O.

The blocking client and its asynchronous twin are thin drivers of this: ``frame`` gives bytes to
send, ``take`` takes an event, ``unanswered`` says what to send again after a lost connection, under
the same sequences.
"""

from collections import deque
from typing import Final, TypeAlias

from wald import limits
from wald.core.events import (
    WHOLE_REQUEST,
    Ack,
    Append,
    AppendFlag,
    Duplicate,
    DuplicateRecords,
    Failed,
    Received,
    Refusal,
    RefusedRecords,
    Throttle,
    Welcome,
)
from wald.errors import (
    AccessDenied,
    Backpressure,
    DiskFull,
    Fenced,
    OutcomeUnknown,
    ProtocolMismatch,
    SequenceConflict,
    SequenceGap,
    WaldError,
)
from wald.model import Lsn, StreamId

Answer: TypeAlias = Ack | Received | RefusedRecords | DuplicateRecords | Failed | Throttle
_ERRORS: Final[dict[str, type[WaldError]]] = {
    kind.code: kind
    for kind in (OutcomeUnknown, SequenceConflict, SequenceGap, Fenced, AccessDenied)
}


def error_of(failed: Failed) -> WaldError:
    """Return the error that an ERROR frame stands for."""
    if failed.code in {Backpressure.code, DiskFull.code}:
        room = DiskFull if failed.code == DiskFull.code else Backpressure
        return room(failed.message, retry_after_s=failed.retry_after_ms / 1000, hint=failed.hint)
    kind = _ERRORS.get(failed.code)
    if kind is not None:
        return kind(failed.message, hint=failed.hint)
    return ProtocolMismatch(failed.message, hint=failed.hint, reason=failed.code)


def refused_at_the_door(refusals: tuple[Refusal, ...], pause_s: float) -> WaldError | None:
    """Return the error of a request that quota or rights refused as a whole; None: it was not."""
    if not refusals or refusals[0].record != WHOLE_REQUEST:
        return None
    _, code, message = refusals[0]
    if code == Backpressure.code:
        return Backpressure(message or "the quota of the stream is used", retry_after_s=pause_s)
    if code == AccessDenied.code:
        return AccessDenied(message or "not allowed to append to the stream")
    return None


class Request:
    """One request, until it is answered and after.

    Attributes:
        sequence: its number in the session.
        records: how many records it has.
        done: whether it is answered, or given up.
        refusals: of single records, or one of ``WHOLE_REQUEST``.
        duplicates: records that are stored already, by their dedup ids.
        early: whether it asks to be answered before the flush.
        received: whether it is: what of it is refused is known, what is duplicate is not.
        left: whether nobody waits for more, behind that.
        first_lsn: of its first stored record.
        durable_lsn: of the frontier when it was answered.
        error: why nothing of it is stored, or known.
    """

    __slots__ = (
        "body",
        "done",
        "duplicates",
        "durable_lsn",
        "early",
        "error",
        "first_lsn",
        "left",
        "received",
        "records",
        "refusals",
        "sequence",
        "stream",
    )

    def __init__(self, stream: StreamId, sequence: int, body: bytes, records: int) -> None:
        self.stream = stream
        self.sequence = sequence
        self.body = body
        self.records = records
        self.done = False
        self.refusals: tuple[Refusal, ...] = ()
        self.duplicates: tuple[Duplicate, ...] = ()
        self.early = self.received = self.left = False
        self.first_lsn: Lsn = 0
        self.durable_lsn: Lsn = 0
        self.error: WaldError | None = None

    @property
    def stored(self) -> int:
        """How many of its records it has stored itself, once it is answered."""
        if self.refusals and self.refusals[0].record == WHOLE_REQUEST:
            return 0  # (and no record is a duplicate)
        return self.records - len(self.refusals) - len(self.duplicates)

    @property
    def refused(self) -> int:
        """How many of its records are refused, once it is answered."""
        return self.records - self.stored - len(self.duplicates)

    def fail(self, error: WaldError) -> None:
        """End without a receipt."""
        self.error = error
        self.done = True
        self.body = b""


class Outbox:
    """The unanswered requests of one session."""

    def __init__(self) -> None:
        self.session = 0
        self.epoch = 0  # which takeover of the session is this client's
        self.last_sequence = 0  # the last that was assigned
        self.in_flight_bytes = 0
        self.lost_records = 0  # answered as received, and not stored, or nobody knows
        self._sent_through = 0  # the last that the daemon may have seen
        self._acked_through = 0  # the last that it has stored, as it said
        self._window = limits.WINDOW_REQUESTS
        self._bytes_max = limits.REQUEST_MAX_BYTES
        self._waiting: deque[Request] = deque()
        self.pauses_s: dict[StreamId, float] = {}  # asked for, and not taken note of yet

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether another request may be sent now."""
        return len(self._waiting) < self._window and self.in_flight_bytes < self._bytes_max

    def welcome(self, welcome: Welcome) -> None:
        """Take the daemon's answer to HELLO.

        Raises:
            Fenced: another client has sent requests in this session.
            OutcomeUnknown: the daemon knows less of the session than it acknowledged: its log
                went back. What is sent under the old sequences would be gaps for ever.
        """
        if self.session and welcome.last_sequence > self._sent_through:
            msg = "another client has used this producer's name"
            raise Fenced(msg)
        if self.session and welcome.last_sequence < self._acked_through:
            msg = (
                f"the daemon knows {welcome.last_sequence} requests of this session and has "
                f"acknowledged {self._acked_through}: its log went back"
            )
            raise OutcomeUnknown(msg)
        if not self.session:
            self.last_sequence = welcome.last_sequence
            self._sent_through = self._acked_through = welcome.last_sequence
        self.session, self.epoch = welcome.session, welcome.epoch
        self._window = welcome.window
        self._bytes_max = welcome.in_flight_max_bytes

    def lose_session(self, hint: str = "") -> None:
        """The daemon does not know the session: nobody can tell what became of its requests."""
        for request in self._waiting:
            msg = "the daemon no longer knows the session; the request may or may not be stored"
            self._fail_one(request, OutcomeUnknown(msg, hint=hint))
        self._waiting.clear()
        self.in_flight_bytes = 0
        self.session = self.epoch = 0
        self.last_sequence = 0

    def add(
        self,
        stream: StreamId,
        body: bytes,
        records: int,
        *,
        sequence: int | None = None,
        early: bool = False,
    ) -> Request:
        """Assign the next sequence; or take a given one, to ask for an answer once more."""
        request = Request(stream, sequence or self.last_sequence + 1, body, records)
        request.early = early
        self.last_sequence = max(self.last_sequence, request.sequence)
        self._waiting.append(request)
        self.in_flight_bytes += len(body)
        return request

    def frame(self, request: Request) -> bytes:
        """Return the frame of an unanswered request."""
        answered_through = self._waiting[0].sequence - 1
        lag = max(request.sequence - answered_through, 1)
        flags = AppendFlag.RECEIVED if request.early else 0
        return Append(request.stream, request.sequence, lag, request.body, flags).encode()

    def sent(self, request: Request) -> None:
        """A request is about to go out: from now on the daemon may know its sequence."""
        self._sent_through = max(self._sent_through, request.sequence)

    def mark(self) -> tuple[int, int]:
        """Return where ``withdraw`` goes back to."""
        return self.last_sequence, self._sent_through

    def withdraw(self, request: Request, mark: tuple[int, int]) -> None:
        """No byte of the newest request went out: it never was. The mark was made before it."""
        assert self._waiting[-1] is request
        self._waiting.pop()
        self.in_flight_bytes -= len(request.body)
        self.last_sequence, self._sent_through = mark

    def unanswered(self) -> list[Request]:
        """Return the requests to send again over a new connection, in order."""
        return list(self._waiting)

    def take(self, event: Answer) -> None:
        """Take an answer of the daemon to requests."""
        match event:
            case Ack():
                self._acknowledge(event)
            case Received():
                for request in self._waiting:
                    if request.early and request.sequence <= event.through:
                        request.received = True
                        request.error = self._why_refused(request)
            case RefusedRecords() | DuplicateRecords():
                self._note(event)
            case Throttle():
                self.pauses_s[event.stream] = event.retry_after_ms / 1000
            case Failed(not_stored=True):
                self._not_stored(event)
            case _:
                self._fail(event)

    def _note(self, event: RefusedRecords | DuplicateRecords) -> None:
        """Note what of a request is not stored; its ACK follows."""
        for request in self._waiting:
            if request.sequence == event.sequence:
                if isinstance(event, RefusedRecords):
                    request.refusals = event.refusals
                else:
                    request.duplicates = event.duplicates

    def _acknowledge(self, ack: Ack) -> None:
        self._acked_through = max(self._acked_through, ack.through)
        waiting = self._waiting
        lsn = ack.first_lsn
        while waiting and waiting[0].sequence <= ack.through:
            request = waiting.popleft()
            self.in_flight_bytes -= len(request.body)
            request.body = b""
            request.first_lsn = lsn
            request.durable_lsn = ack.durable_lsn
            request.error = self._why_refused(request)  # who gave up waiting may ask again
            request.done = True
            lsn += request.stored

    def _why_refused(self, request: Request) -> WaldError | None:
        if not request.refusals:
            return None  # nearly always
        pause_s = self.pauses_s.get(request.stream, limits.QUOTA_PAUSE_MAX_S)
        return refused_at_the_door(request.refusals, pause_s)

    def _not_stored(self, failed: Failed) -> None:
        """This request and all behind it were not stored: their sequences are free again."""
        waiting = self._waiting
        while waiting and waiting[-1].sequence >= failed.request:
            request = waiting.pop()
            self.in_flight_bytes -= len(request.body)
            self._fail_one(request, error_of(failed))
            self.last_sequence = request.sequence - 1

    def _fail_one(self, request: Request, error: WaldError) -> None:
        if request.left:
            self.lost_records += request.stored
        request.fail(error)

    def _fail(self, failed: Failed) -> None:
        for request in self._waiting:
            if request.sequence == failed.request:
                self._waiting.remove(request)
                self.in_flight_bytes -= len(request.body)
                self._fail_one(request, error_of(failed))
                return
