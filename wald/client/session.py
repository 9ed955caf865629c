"""A producer's session over one socket at a time: sends, gathers, waits, sends again.

There is no thread of its own: whoever waits reads for all (``client.driver``).
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from wald import limits
from wald.client.carrier import Carrier
from wald.client.driver import Driver
from wald.client.link import NO_REST, Carries, Deadline, NothingSent
from wald.client.requests import Outgoing
from wald.core.events import Goodbye
from wald.core.gathering import Entry, Flood
from wald.core.outbox import Request
from wald.errors import Backpressure, Closed, OutcomeUnknown, Refusal, Unavailable, WaldError
from wald.model import StreamId
from wald.ports import Chance

_LOOK_NS = int(limits.SUBMIT_LOOK_S * limits.CLOCK_NS_PER_S)


class Session(Driver):
    """One producer's session; used from several threads, in one process.

    Args:
        path: the daemon's socket.
        name: the producer's name, or empty.
        patient: whether to wait for a daemon that was never there.
        chance: for the jitter between attempts to connect.
        single: whether it ends when the daemon loses the session, instead of beginning another:
            what follows would not be known to continue what was sent.
        throttle: whether a full stream refuses single requests (``core.dialogue``).
    """

    def __init__(
        self,
        path: str,
        name: str,
        *,
        patient: bool,
        chance: Chance,
        single: bool = False,
        throttle: bool = True,
    ) -> None:
        super().__init__(
            path, name, patient=patient, chance=chance, single=single, throttle=throttle
        )
        self._gathered: Carrier | None = None  # submitted, and not sent yet
        self._owed: deque[Carrier] = deque()  # submitted and sent; the oldest ones not answered
        self._flood = Flood()
        self._looked_ns = 0
        self.foreign = False  # of the parent, in the child of a fork

    # --- for the producer -----------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> None:
        """Connect, if there is no connection."""
        with self._turn():
            self._connected(deadline)

    def flush(self, deadline: Deadline) -> bool:
        """Send what is gathered, and wait until nothing is unanswered; False at the deadline."""
        with self._turn():
            try:
                self._send_gathered(deadline)
                return self._drive(lambda: not self.outbox, deadline)
            except (Unavailable, Backpressure):
                return False
            finally:
                self._forget_answered()

    def ping(self, deadline: Deadline) -> None:
        """Wait for a sign of life."""
        with self._turn():
            self._call(self._dialogue.ping, deadline)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def owes(self) -> int:
        """How many submitted records have no answer; none once it is closed."""
        if self._closed:
            return 0
        held = len(self._gathered) if self._gathered is not None else 0
        return held + sum(
            each.request.records
            for each in self._owed
            if each.request is not None and not each.request.done
        )

    def close(self, deadline: Deadline) -> int:
        """Wait for what was submitted, say goodbye, and close; harmless to repeat.

        Returns:
            How many submitted records have no answer.
        """
        if not self._turn().acquire(timeout=max(deadline.left_s(), 0.001)):
            return self.owes  # another thread is at it, and has its own deadline
        try:
            if self._closed:
                return 0
            with contextlib.suppress(WaldError):
                self._send_gathered(deadline)
                self._drive(lambda: not self.owes, deadline)
            left = self.owes
            self._forget_answered()
            if self._gathered is not None:
                self._give_up(self._gathered, Closed("the producer was closed; it was never sent"))
            self._closed = True
            self._say_goodbye()
        finally:
            self._lock.release()
        return left

    def _say_goodbye(self) -> None:
        link = self._link
        if link is None:
            if self._greeting is not None:
                self._greeting.shut()  # the thread that waits for the welcome wakes
            self._changed.notify_all()
            return
        try:
            if not self.outbox and not self._busy:
                link.send(Goodbye().encode())
        except OSError:
            pass  # it is gone already
        finally:
            self._lose(link)

    def id_of(self, stream: str) -> StreamId | None:
        """Return the id of a stream that this session has used."""
        return self._streams.get(stream)

    def drop(self) -> None:
        """In the child of a fork: close this process's copy of the parent's connection."""
        self.foreign = True
        for link in (self._link, self._greeting):
            if link is not None:
                link.close()

    # --- requests on their way ------------------------------------------------------------------

    def append(self, stream: str, body: bytes, deadline: Deadline) -> Request:
        """Send a request of one record and wait for its answer: as ``send`` and ``finish`` do.

        The caller waits: where nothing is amiss, and no other thread reads, it takes the short way.
        """
        request = None
        with self._turn():
            link = self._link
            stream_id = self._streams.get(stream)
            if not (
                link is None
                or stream_id is None
                or self._reading
                or self._closed
                or self._busy
                or self._gathered is not None
                or not self.outbox.has_room
            ):
                request = self._put(link, stream_id, body, 1, deadline)
                if request is not None and self._link is link:
                    self._read(link, deadline.left_s())
        if request is None:
            request = self.send(stream, Outgoing(body, range(1)), deadline)
        if not request.done:
            self.finish((request,), deadline)
        return request

    def send(
        self,
        stream: str,
        each: Outgoing,
        deadline: Deadline,
        *,
        sequence: int | None = None,
        behind: Request | None = None,
        early: bool = False,
    ) -> Request:
        """Send a request as soon as the window has room; it is not yet answered.

        Args:
            stream: its name.
            each: the body.
            deadline: for finding room.
            sequence: to ask for an answer once more; else the next.
            behind: a request that this one must follow. If that one failed, also while this one
                waited for room, this one is not sent: it would take the place of that one.
            early: whether the daemon is to answer as soon as it has it, too.

        Raises:
            WaldError: the error of ``behind``, or why nothing could be sent.
        """
        request = None
        with self._turn():
            while request is None:
                self._send_gathered(deadline)
                link = self._link
                stream_id = self._streams.get(stream)
                if link is None or stream_id is None or self._closed or not self.outbox.has_room:
                    stream_id = self._find_room(stream, deadline)
                    link = self._connected(deadline)
                if behind is not None and behind.error is not None:
                    raise behind.error
                records = len(each.indexes)
                request = self._put(
                    link, stream_id, each.body, records, deadline, sequence=sequence, early=early
                )
            if early:
                self._owed.append(Carrier.of(stream, request))  # nobody else waits for its ACK
        return request

    def receive(self, request: Request, deadline: Deadline) -> None:
        """Wait until the daemon has a request; else it gets the error ``OutcomeUnknown``."""
        with self._turn():
            self._finish((request,), deadline, received=True)
            self._forget_answered()

    def finish(self, requests: Sequence[Request], deadline: Deadline) -> None:
        """Wait for the answers; requests without one get the error ``OutcomeUnknown``.

        They stay on their way: their sequences are in use. Who asks again waits again.
        """
        with self._turn():
            self._finish(requests, deadline)

    def _finish(
        self, requests: Sequence[Request], deadline: Deadline, *, received: bool = False
    ) -> None:
        def is_answered(each: Request) -> bool:
            return each.done or (received and each.received)

        try:
            for each in requests:  # answers come in the order of the requests, or all at once
                if not is_answered(each) and not self._drive(partial(is_answered, each), deadline):
                    why = f"not answered within {deadline.timeout_s:g} s"
                    break
            else:
                return
        except (Unavailable, Backpressure, Closed) as error:
            why = error.message
        unknown = OutcomeUnknown(f"the request was sent: {why}")
        for each in requests:
            if not is_answered(each):
                each.error = unknown

    # --- submitted records ----------------------------------------------------------------------

    def gather(self, stream: str, entry: Entry, now_ns: int) -> tuple[Carrier, int] | None:
        """Gather a record of a flood, where that is all there is to do; None: ``submit`` it.

        Args:
            stream: its name.
            entry: what to send.
            now_ns: by the monotonic clock.

        Returns:
            As ``submit``.
        """
        together = self._flood.count(now_ns)
        lock = self._lock
        if lock._is_owned() or ((self._reading or self._busy) and self._is_reentered()):  # type: ignore[attr-defined]  # noqa: SLF001 - as in ``_turn``
            return None
        with lock:
            gathered = self._gathered
            if (
                gathered is None
                or stream != gathered.stream
                or entry.urgent
                or self._link is None
                or now_ns - self._looked_ns >= _LOOK_NS
                or not (together or len(self.outbox) >= limits.SUBMIT_AT_ONCE_REQUESTS)
            ):
                return None
            at = gathered.add_below(entry)
            return None if at < 0 else (gathered, at)

    def submit(self, stream: str, entry: Entry, deadline: Deadline) -> tuple[Carrier, int]:
        """Send a record, or gather it while enough is on its way; do not wait for its answer.

        Args:
            stream: its name.
            entry: what to send; an urgent one is sent at once.
            deadline: for a connection and for room.

        Returns:
            What it is gathered in, and its index there.

        Raises:
            WaldError: the record was not taken, and will not be sent.
        """
        with self._turn():
            outbox = self.outbox
            flood = self._flood.is_on(deadline.began_ns)
            if flood or len(outbox) >= limits.SUBMIT_AT_ONCE_REQUESTS:
                self._look_now_and_then(deadline)
            while (
                (gathered := self._gathered) is None
                or self._link is None
                or self._busy
                or gathered.stream != stream
                or not gathered.has_room(entry)
            ):
                if self._busy:
                    self._make_way(deadline)
                elif self._link is None or stream not in self._streams:
                    self._open(stream, deadline)
                elif gathered is not None:
                    self._send_gathered(deadline)
                else:
                    self._check_open()
                    self._gathered = Carrier(stream)
            at = gathered.add(entry)
            alone = not flood and len(outbox) < limits.SUBMIT_AT_ONCE_REQUESTS
            if (alone or gathered.is_full or entry.urgent) and outbox.has_room:
                self._put_gathered(self._link, gathered, deadline)
            return gathered, at

    def claim(self, gathered: Carrier, deadline: Deadline) -> Request | None:
        """Wait for the answer to what was gathered; None if it could not even be sent.

        The request has the error ``OutcomeUnknown`` if there is no answer yet.
        """
        with self._turn():
            if gathered.request is None:
                with contextlib.suppress(Unavailable, Backpressure):
                    self._send_gathered(deadline)
            request = gathered.request
            if request is not None and not request.done:
                self._finish((request,), deadline)
            return request

    def look(self, gathered: Carrier, deadline: Deadline) -> bool:
        """Tell whether the answer is there, reading what has arrived, and waiting for nothing."""
        with self._turn(), contextlib.suppress(WaldError):
            if self._link is None:
                self._connected(deadline)
            if self._gathered is gathered and self.outbox.has_room:
                self._send_gathered(deadline)
            self._look()
        return gathered.request is not None and gathered.request.done

    def _look_now_and_then(self, deadline: Deadline) -> None:
        if deadline.began_ns - self._looked_ns >= _LOOK_NS:
            self._looked_ns = deadline.began_ns
            self._look()

    def _look(self) -> None:
        """Read what has arrived, if no other thread does."""
        link = self._link
        if link is not None and not self._reading and link.has_more():
            self._read(link, 0.0)
        self._forget_answered()

    def _forget_answered(self) -> None:
        owed = self._owed
        while owed and (request := owed[0].request) is not None and request.done:
            owed.popleft()

    def _send_gathered(self, deadline: Deadline) -> None:
        """Send what is gathered, as soon as there is room."""
        while (gathered := self._gathered) is not None:
            try:
                self._find_room(gathered.stream, deadline)
                link = self._connected(deadline)
            except Refusal as error:
                self._give_up(gathered, error)
                continue
            if self._gathered is gathered and gathered.stream in self._streams:
                self._put_gathered(link, gathered, deadline)

    def _put_gathered(self, link: Carries, gathered: Carrier, deadline: Deadline) -> None:
        body, stream_id = gathered.body(), self._streams[gathered.stream]

        def taken(request: Request) -> None:
            self._gathered = None
            self._owed.append(gathered)
            gathered.sent_as(request)

        self._put(link, stream_id, body, len(gathered), deadline, taken=taken)

    def _give_up(self, gathered: Carrier, error: WaldError) -> None:
        """It will never be sent."""
        if self._gathered is gathered:
            self._gathered = None
            never = Request(0, 0, b"", len(gathered))
            never.fail(error)
            gathered.sent_as(never)

    # --- sending --------------------------------------------------------------------------------

    def _put(
        self,
        link: Carries,
        stream_id: StreamId,
        body: bytes,
        records: int,
        deadline: Deadline,
        *,
        sequence: int | None = None,
        early: bool = False,
        taken: Callable[[Request], None] | None = None,
    ) -> Request | None:
        """Send a request; None if the connection has ended before a byte of it was out."""
        if self._busy:
            self._make_way(deadline)
            return None  # the connection may be another one
        outbox = self.outbox
        mark, withdrawn = outbox.mark(), False
        request: Request | None = None
        rest = NO_REST
        try:
            request = outbox.add(stream_id, body, records, sequence=sequence, early=early)
            outbox.sent(request)
            rest = link.send(outbox.frame(request))
        except NothingSent:
            assert request is not None
            outbox.withdraw(request, mark)
            withdrawn = True
            self._hear_out(link)
        except OSError:
            self._hear_out(link)  # it is sent again with the rest
        except BaseException:
            self._lose(link)  # a part of the frame may be out: nothing may follow it
            raise
        finally:
            if request is not None and taken is not None and not withdrawn:
                taken(request)
        if rest:
            self._send_rest(link, rest, deadline)
        return None if withdrawn else request

    def _find_room(self, stream: str, deadline: Deadline) -> StreamId:
        """Wait for room in the window; return the stream's id on the connection that has it."""
        stream_id = self._open(stream, deadline)
        while not self.outbox.has_room:
            if not self._drive(lambda: self.outbox.has_room, deadline):
                msg = "the window is full of unanswered requests; nothing was sent"
                raise Backpressure(msg, retry_after_s=limits.RETRY_AFTER_MS / 1000)
            stream_id = self._open(stream, deadline)
        return stream_id
