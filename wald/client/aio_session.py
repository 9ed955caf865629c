"""A producer's session in an event loop: the asynchronous driver of ``core.dialogue``.

Frames are written whole, and answers are matched by their numbers: a task that is cancelled while
it waits leaves its request on its way, and nothing out of step. There is no task of its own:
whoever waits connects anew for all, one at a time.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence

from wald import limits
from wald.client.aio_link import AsyncLink, wake, woken
from wald.client.carrier import Carrier
from wald.client.link import Deadline
from wald.client.requests import Outgoing
from wald.core.dialogue import Dialogue
from wald.core.events import Event, Failed, Goodbye, StreamOpened
from wald.core.gathering import Entry
from wald.core.outbox import Request
from wald.errors import (
    Backpressure,
    Closed,
    InputError,
    OutcomeUnknown,
    Refusal,
    Unavailable,
    WaldError,
)
from wald.model import StreamId
from wald.ports import Chance, Clock

_WOKEN = 2 * limits.SUBMIT_TOGETHER_RECORDS  # of those that wait for room, at a time


class AsyncSession:
    """One producer's session, used by the tasks of one event loop; arguments as ``Session``'s."""

    def __init__(self, path: str, name: str, *, patient: bool, chance: Chance) -> None:
        self._dialogue = Dialogue(path, name, patient=patient)
        self.outbox = self._dialogue.outbox
        self._path = path
        self._chance = chance
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._failures = 0  # to connect, in a row, whoever tried
        self._trouble: OSError | Backpressure | None = None  # the last one's
        self._link: AsyncLink | None = None
        self._greeting: AsyncLink | None = None
        self._streams = self._dialogue.streams
        self._gathered: Carrier | None = None
        self._armed = False  # what is gathered goes out at the end of this turn of the loop
        self._owed: deque[Carrier] = deque()  # on their way, until they are answered
        self._waiters: dict[Carrier | None, list[asyncio.Future[None]]] = {}
        self._for_greeting: asyncio.Future[None] | None = None
        self._for_room: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.foreign = False  # of the parent, in the child of a fork

    # --- for the producer -----------------------------------------------------------------------

    def enter(self) -> None:
        """Take the running event loop for its own, the first time.

        Raises:
            InputError: it was another one then.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                msg = "a producer belongs to the event loop that used it first"
                raise InputError(msg, hint="make one producer for each event loop")
            self._loop, self._connecting = loop, asyncio.Lock()

    async def connect(self, deadline: Deadline) -> None:
        """Connect, if there is no connection."""
        await self._connected(deadline)

    async def submit(self, stream: str, entry: Entry, deadline: Deadline) -> tuple[Carrier, int]:
        """Gather a record; it goes out with what else this turn of the loop submits.

        Raises:
            WaldError: the record was not taken, and will not be sent.
        """
        while True:
            gathered = self._gathered
            if self._link is None or self._closed or stream not in self._streams:
                await self._open(stream, deadline)
            elif gathered is None:
                gathered = self._gathered = Carrier(stream)
                break
            elif gathered.stream == stream and gathered.has_room(entry):
                break
            elif not self._put_gathered():
                await self._room(deadline)
        at = gathered.add(entry)
        if entry.urgent or gathered.is_full:
            self._put_gathered()
        else:
            self._arm()
        return gathered, at

    async def send(
        self,
        stream: str,
        each: Outgoing,
        deadline: Deadline,
        *,
        behind: Request | None = None,
        early: bool = False,
    ) -> Request:
        """Send a request as soon as there is room; not if the one that it must follow failed."""
        while True:
            if self._link is None or self._closed or stream not in self._streams:
                await self._open(stream, deadline)
            elif not self._put_gathered() or not self.outbox.has_room:
                await self._room(deadline)
            else:
                break
        if behind is not None and behind.error is not None:
            raise behind.error
        carrier = Carrier(stream)
        carrier.asked = True
        return self._put(carrier, each.body, len(each.indexes), early=early)

    async def receive(self, request: Request, deadline: Deadline) -> None:
        """Wait until the daemon has a request; else it gets the error ``OutcomeUnknown``."""
        why = f"not answered within {deadline.timeout_s:g} s"
        try:
            if await self._until(lambda: request.received or request.done, deadline, None):
                return
        except (Unavailable, Backpressure, Closed) as error:
            why = error.message
        request.error = OutcomeUnknown(f"the request was sent: {why}")

    async def claim(self, carrier: Carrier, deadline: Deadline) -> Request | None:
        """Wait for the answer to what was gathered; None if it could not even be sent.

        The request has the error ``OutcomeUnknown`` if there is no answer yet.
        """
        why = f"not answered within {deadline.timeout_s:g} s"
        try:
            if await self._until(lambda: self._is_answered(carrier), deadline, carrier):
                return carrier.request
        except (Unavailable, Backpressure, Closed) as error:
            why = error.message
        request = carrier.request
        if request is not None and not request.done:
            request.error = OutcomeUnknown(f"the request was sent: {why}")
        return request

    async def finish(self, requests: Sequence[Request], deadline: Deadline) -> None:
        """Wait for the answers to all; see ``claim``."""
        for each in requests:
            await self.claim(Carrier.of("", each), deadline)

    async def flush(self, deadline: Deadline) -> bool:
        """Wait until nothing is unanswered; False at the deadline."""
        try:
            return await self._until(lambda: self.owes == 0, deadline, None)
        except (Unavailable, Backpressure):
            return False

    async def ping(self, deadline: Deadline) -> None:
        """Wait for a sign of life."""
        await self._call(self._dialogue.ping, deadline)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def owes(self) -> int:
        """How many records have no answer; none once it is closed."""
        if self._closed:
            return 0
        held = len(self._gathered) if self._gathered is not None else 0
        return held + sum(
            each.request.records
            for each in self._owed
            if each.request is not None and not each.request.done
        )

    async def close(self, deadline: Deadline) -> int:
        """Wait for what was submitted, say goodbye, and close; harmless to repeat.

        Returns:
            How many records have no answer.
        """
        if self._closed:
            return 0
        with contextlib.suppress(WaldError):
            await self.flush(deadline)
        left = self.owes
        if self._gathered is not None:
            self._give_up(self._gathered, Closed("the producer was closed; it was never sent"))
        self._closed = True
        if self._greeting is not None:
            self._greeting.end()
            self._end_greeting(Closed("the producer was closed while it connected"))
        link, self._link = self._link, None
        if link is not None and link.transport is not None:
            if not left:
                link.send(Goodbye().encode())
            link.ended = True
            link.transport.close()
            if not await woken(link.closed, deadline):
                link.transport.abort()
        self._wake_all()
        return left

    def id_of(self, stream: str) -> StreamId | None:
        """Return the id of a stream that this session has used."""
        return self._streams.get(stream)

    def drop(self) -> None:
        """In the child of a fork: the connection is the parent's."""
        self.foreign = True
        for link in (self._link, self._greeting):
            if link is not None:
                link.forget()

    # --- what arrives ---------------------------------------------------------------------------

    def arrived(self, link: AsyncLink, event: Event) -> None:
        """Take an event of a connection."""
        if link is self._greeting:
            said = self._dialogue.take_greeting(event)
            if said:
                link.send(said)
            if self._dialogue.greeted:
                self._greeting, self._link = None, link
                for frame in self._dialogue.again():
                    link.send(frame)
                self._end_greeting(None)
        elif link is self._link:
            self._dialogue.take(event)  # what it raises is told to all that wait, by ``lost``
            if isinstance(event, Failed) and event.closing:
                link.ended = True
                self._link = None

    def took(self, link: AsyncLink) -> None:
        """Some events were taken: answers end waits, and make room."""
        if link.ended:
            link.end()
            self._wake_all()
            return
        self._put_gathered()
        self._wake_answered()
        self._wake_for_room()

    def lost(self, link: AsyncLink, error: Exception | None) -> None:
        """A connection has ended; what is unanswered is sent again over the next."""
        if link is self._greeting:
            self._greeting = None
            self._end_greeting(error or ConnectionResetError())
            self._wake_all()  # a session that is lost ends what others wait for
        elif link is self._link:
            self._link = None
            self._wake_all(error if isinstance(error, WaldError) else None)

    # --- sending --------------------------------------------------------------------------------

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._turn_ends)

    def _turn_ends(self) -> None:
        self._armed = False
        self._put_gathered()
        self._wake_for_room()

    def _put_gathered(self) -> bool:
        """Send what is gathered, if it can be sent; tell whether nothing is left."""
        gathered = self._gathered
        if gathered is None:
            return True
        if self._link is None or gathered.stream not in self._streams or not self.outbox.has_room:
            return False
        self._gathered = None
        self._put(gathered, gathered.body(), len(gathered))
        return True

    def _put(self, carrier: Carrier, body: bytes, records: int, *, early: bool = False) -> Request:
        assert self._link is not None
        request = self.outbox.add(self._streams[carrier.stream], body, records, early=early)
        carrier.sent_as(request)
        self._owed.append(carrier)
        self.outbox.sent(request)
        self._link.send(self.outbox.frame(request))
        return request

    def withdraw(self, gathered: Carrier, at: int) -> None:
        """Take back one of the records that were not sent yet."""
        gathered.withdraw(at)
        if not len(gathered):
            self._give_up(gathered, Closed("it was taken back"))

    def _give_up(self, gathered: Carrier, error: WaldError) -> None:
        """It will never be sent."""
        if self._gathered is gathered:
            self._gathered = None
            never = Request(0, 0, b"", len(gathered))
            never.fail(error)
            gathered.sent_as(never)

    async def _open(self, stream: str, deadline: Deadline) -> None:
        await self._connected(deadline)
        with contextlib.suppress(TypeError):  # a name of another type is refused below
            if stream in self._streams:
                return
        answer = await self._call(lambda: self._dialogue.open_stream(stream), deadline)
        assert isinstance(answer, StreamOpened)
        self._streams[stream] = answer.stream

    async def _call(self, ask: Callable[[], tuple[int, bytes]], deadline: Deadline) -> Event:
        """Send a frame that is answered by its number; ask again over a new connection."""
        dialogue = self._dialogue
        while True:
            link = await self._connected(deadline)
            number, frame = ask()
            link.send(frame)
            try:
                while not dialogue.is_answered(number) and self._link is link:
                    if not await self._change(None, deadline):
                        msg = f"the daemon did not answer within {deadline.timeout_s:g} s"
                        raise Unavailable(msg)
                answer = dialogue.answer(number)
            finally:
                dialogue.forget(number)
            if answer is not None:
                return answer

    # --- waiting --------------------------------------------------------------------------------

    def _is_answered(self, carrier: Carrier) -> bool:
        return carrier.request is not None and carrier.request.done

    async def _until(
        self, done: Callable[[], bool], deadline: Deadline, carrier: Carrier | None
    ) -> bool:
        """Wait until ``done``; False at the deadline. Connects anew if need be."""
        while not done():
            await self._connected(deadline)
            gathered = self._gathered
            if gathered is not None and gathered.stream not in self._streams:
                try:
                    await self._open(gathered.stream, deadline)
                except Refusal as error:
                    self._give_up(gathered, error)
                continue
            if not self._armed:
                self._put_gathered()
            if not done() and not await self._change(carrier, deadline):
                return False
        return True

    async def _change(self, carrier: Carrier | None, deadline: Deadline) -> bool:
        """Wait for what concerns a request, or anything at all; False at the deadline."""
        waiting = self._waiters.setdefault(carrier, [])
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        try:
            return await woken(future, deadline)
        finally:
            waiting.remove(future)
            if not waiting and self._waiters.get(carrier) is waiting:
                del self._waiters[carrier]

    async def _room(self, deadline: Deadline) -> None:
        """Wait until there may be room in the window."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._for_room.append(future)
        try:
            in_time = await woken(future, deadline)
        except BaseException:
            self._wake_for_room()  # another one may take this place
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._for_room.remove(future)
        if not in_time:
            msg = "the window is full of unanswered requests; nothing was sent"
            raise Backpressure(msg, retry_after_s=limits.RETRY_AFTER_MS / 1000)

    def _wake_answered(self) -> None:
        """Wake those whose requests are answered; they end in order, or an error ends some."""
        owed = self._owed
        while owed and self._is_answered(owed[0]):
            wake(self._waiters.get(owed.popleft(), ()))
        for carrier, waiting in list(self._waiters.items()):
            if carrier is None or self._is_answered(carrier):
                wake(waiting)

    def _wake_for_room(self) -> None:
        """Wake some of those that wait for room, and others if these leave room behind.

        Not all that are woken send: then no answer will come that wakes the others.
        """
        if self._for_room and self._put_gathered() and self.outbox.has_room:
            for _ in range(min(_WOKEN, len(self._for_room))):
                wake((self._for_room.popleft(),))
            self._arm()

    def _wake_all(self, error: WaldError | None = None) -> None:
        for waiting in [*self._waiters.values(), list(self._for_room)]:
            wake(waiting, error)
        self._for_room.clear()

    # --- the connection -------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            msg = "the producer is closed"
            raise Closed(msg)
        if self._dialogue.ended is not None:
            raise self._dialogue.ended

    async def _connected(self, deadline: Deadline) -> AsyncLink:
        """Return the connection; make it anew, and send again what is unanswered.

        One task tries, and rests behind a failure; the others wait for it, however many they are.
        """
        assert self._connecting is not None
        while self._link is None:
            self._check_open()
            try:
                async with asyncio.timeout(deadline.left_s()), self._connecting:
                    if self._link is None:
                        await self._try_to_connect(deadline)
            except TimeoutError as error:
                if self._link is None:
                    self._dialogue.pause_s(self._trouble or error, 0, 0.0, self._chance)  # raises
        self._check_open()
        return self._link

    async def _try_to_connect(self, deadline: Deadline) -> None:
        try:
            await self._connect()
        except (Backpressure, OSError) as error:
            self._failures += 1
            self._trouble = error
            left_s = deadline.left_s()
            pause_s = self._dialogue.pause_s(error, self._failures, left_s, self._chance)
            await self.sleep(pause_s)
        else:
            self._failures, self._trouble = 0, None

    def deadline(self, clock: Clock, timeout_s: float) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline(clock, timeout_s)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _make_link(self) -> AsyncLink:
        if len(os.fsencode(self._path)) > limits.SOCKET_PATH_MAX_BYTES:
            bound = limits.SOCKET_PATH_MAX_BYTES
            msg = f"a socket's path has at most {bound} bytes: {self._path!r}"
            raise Unavailable(msg, hint="name a shorter path", path=self._path)
        link = AsyncLink(self)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: link, self._path)
        return link

    async def _connect(self) -> None:
        link = await self._make_link()
        loop = asyncio.get_running_loop()
        self._greeting = link
        self._for_greeting = loop.create_future()
        try:
            self._check_open()
            link.send(self._dialogue.greet())
            async with asyncio.timeout(limits.CONNECT_TIMEOUT_S):
                await self._for_greeting
        finally:
            self._for_greeting = None
            if self._link is not link:
                self._greeting = None
                link.end()

    def _end_greeting(self, error: Exception | None) -> None:
        waiting = self._for_greeting
        if waiting is not None and not waiting.done():
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)
