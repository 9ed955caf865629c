"""The connection of a session: made, lost and made anew; one thread reads for all that wait.

The blocking driver of ``core.dialogue``. All state is guarded by one lock, which who waits lets go:
for what arrives (one thread reads for all), for a greeting, for room in the socket (one thread
connects or sends, and nothing goes out beside it).
"""

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from wald import limits
from wald.client.link import Carries, Deadline, Link, Rest
from wald.core.dialogue import Dialogue
from wald.core.events import Event, Failed, StreamOpened
from wald.errors import Backpressure, Closed, InputError, Unavailable
from wald.model import StreamId
from wald.ports import Chance

_T = TypeVar("_T")
_LOOK_S = 0.05
_STUCK_HINT = "it may wait for its disk: see its log, and 'wald status'"
_REENTERED_HINT = "in a signal handler set a flag, or use a producer that nothing else uses"


class Driver:
    """One session over one connection after another; used with its lock held.

    Args:
        path: the daemon's socket.
        name: the producer's name, or empty.
        patient: whether to wait for a daemon that was never there.
        chance: for the jitter between attempts to connect.
        single: whether it ends when the daemon loses the session.
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
        self._dialogue = Dialogue(path, name, patient=patient, single=single, throttle=throttle)
        self.outbox = self._dialogue.outbox
        self._path = path
        self._chance = chance
        self._lock = threading.RLock()  # it knows whose it is; nobody takes it twice: see ``_turn``
        self._changed = threading.Condition(self._lock)
        self._link: Carries | None = None
        self._greeting: Carries | None = None  # the next one, before its welcome
        self._reading = 0  # the thread that reads for all
        self._busy = 0  # the thread that connects or sends, and has let go of the lock
        self._waiting = 0  # threads that are to be told of a change; never too low
        self._closed = False
        self._streams = self._dialogue.streams

    def _turn(self) -> threading.RLock:
        """Return the lock, for a call of the producer to hold.

        Raises:
            InputError: this thread is in the middle of a call, and this is a signal handler or a
                finalizer: it would wait for what goes on only when it ends.
        """
        if self._is_reentered():
            msg = "this thread is in the middle of another call of the producer; nothing was sent"
            raise InputError(msg, hint=_REENTERED_HINT)
        return self._lock

    def _is_reentered(self) -> bool:
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as Condition asks it
            return True
        return threading.get_ident() in {self._reading, self._busy}

    def _let_go(self, wait: Callable[[], _T]) -> _T:
        """Connect, or send, with the lock let go: whoever else would do so waits for it."""
        try:
            self._busy = threading.get_ident()
            return self._unlocked(wait)
        finally:
            self._busy = 0
            self._locked_again()

    def _unlocked(self, wait: Callable[[], _T]) -> _T:
        """Wait with the lock let go."""
        try:
            self._lock.release()
            return wait()
        finally:
            self._lock_again()

    def _lock_again(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            self._lock.acquire()

    def _locked_again(self) -> None:
        """The wait is over; an interrupt may have come before the lock was taken again."""
        self._lock_again()
        if self._waiting:
            self._changed.notify_all()

    def _make_way(self, deadline: Deadline) -> None:
        """Wait while another thread connects or sends.

        Raises:
            Unavailable: it still does, and nothing was sent.
        """
        while self._busy:
            self._check_open()
            left_s = deadline.left_s()
            if left_s <= 0:
                msg = f"the daemon takes nothing, for {deadline.timeout_s:g} s: it does not answer"
                raise Unavailable(msg, hint=_STUCK_HINT, path=self._path)
            self._wait(left_s)

    def _open(self, stream: str, deadline: Deadline) -> StreamId:
        """Return the durable id of a stream."""
        self._connected(deadline)
        try:
            known = self._streams.get(stream)
        except TypeError:
            known = None  # not even hashable
        if known is not None:
            return known
        answer = self._call(lambda: self._dialogue.open_stream(stream), deadline)
        assert isinstance(answer, StreamOpened)
        self._streams[stream] = answer.stream
        return answer.stream

    def _call(self, ask: Callable[[], tuple[int, bytes]], deadline: Deadline) -> Event:
        """Send a frame that is answered by its number; ask again over a new connection."""
        dialogue = self._dialogue
        while True:
            link = self._connected(deadline)
            number, frame = ask()
            try:
                answer = self._answer(link, number, frame, deadline)
            finally:
                dialogue.forget(number)
            if answer is not None:
                return answer

    def _answer(self, link: Carries, number: int, frame: bytes, deadline: Deadline) -> Event | None:
        """Send a frame, and wait for its answer; None if the connection ended."""
        dialogue = self._dialogue
        if self._busy:
            self._make_way(deadline)
            return None  # the connection may be another one
        try:
            rest = link.send(frame)
        except OSError:
            self._hear_out(link)
            return None
        except BaseException:
            self._lose(link)
            raise
        if rest:
            self._send_rest(link, rest, deadline)
        if not self._drive(
            lambda: dialogue.is_answered(number) or self._link is not link, deadline
        ):
            msg = f"the daemon did not answer within {deadline.timeout_s:g} s"
            raise Unavailable(msg)
        return dialogue.answer(number)

    def _send_rest(self, link: Carries, rest: Rest, deadline: Deadline) -> None:
        """Send what the socket had no room for; if the connection ends, so be it.

        Where no other thread reads meanwhile, this one does: a daemon whose answers are not read
        does not read either.
        """
        try:
            while rest:
                self._wait_to_send(link, deadline)
                rest = link.send_more(rest)
        except OSError:
            self._hear_out(link)
        except BaseException:
            self._lose(link)  # a part of the frame may be out: nothing may follow it
            raise
        if self._link is not link:
            self._lose(link)  # another thread has given it up, and left it open for this one

    def _wait_to_send(self, link: Carries, deadline: Deadline) -> None:
        """Wait until more goes out; not long while another thread reads, which may leave.

        Raises:
            OSError: there is no time left, or the connection was given up.
        """
        left_s = deadline.left_s()
        if left_s <= 0:
            raise TimeoutError
        if self._reading:
            with contextlib.suppress(TimeoutError):
                self._let_go(partial(link.wait_for_room, min(left_s, _LOOK_S)))
        else:
            self._busy = threading.get_ident()
            try:
                self._read(link, left_s, writes=True)
            finally:
                self._busy = 0
        if self._link is not link:
            raise ConnectionResetError

    # --- reading for all ------------------------------------------------------------------------

    def _drive(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        """Read until ``done``; False at the deadline. One thread reads, the others wait for it."""
        while not done():
            if self._closed:
                msg = "the producer was closed while it waited"
                raise Closed(msg)
            left_s = deadline.left_s()
            if left_s <= 0:
                return False
            if self._link is None:
                self._connected(deadline)  # which may end what is waited for
            elif self._reading:
                self._wait(left_s)
            else:
                self._read(self._link, left_s)
        return True

    def _wait(self, timeout_s: float) -> None:
        """Wait until another thread has changed something."""
        self._waiting += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._waiting -= 1

    def _read(self, link: Carries, timeout_s: float, *, writes: bool = False) -> None:
        try:
            self._reading = threading.get_ident()
            self._unlocked(partial(link.wait, timeout_s, writes=writes))
        except TimeoutError:
            return
        finally:
            self._reading = 0
            self._locked_again()
        if self._link is not link:
            link.close()  # another thread has given it up
            return
        try:
            for event in link.events():
                self._take(link, event)
        except OSError:
            self._lose(link)
        except BaseException:  # of the daemon, or a signal's: what was read may be lost
            self._lose(link)
            raise

    def _take(self, link: Carries, event: Event) -> None:
        if isinstance(event, Failed) and event.closing:
            self._lose(link)
        self._dialogue.take(event)

    # --- the connection -------------------------------------------------------------------------

    def _connected(self, deadline: Deadline) -> Carries:
        """Return the connection; make it anew, and send again what is unanswered."""
        failures = 0
        told: Backpressure | None = None
        while self._link is None:
            self._check_open()
            if self._busy:
                self._make_way(deadline)
                continue
            try:
                self._connect(deadline)
            except (Backpressure, OSError) as error:
                failures += 1
                told = error if isinstance(error, Backpressure) else told
                left_s = deadline.left_s()
                pause_s = self._dialogue.pause_s(told or error, failures, left_s, self._chance)
                self._wait(pause_s)
        self._check_open()
        return self._link

    def _check_open(self) -> None:
        if self._closed:
            msg = "the producer is closed"
            raise Closed(msg)
        if self._dialogue.ended is not None:
            raise self._dialogue.ended

    def _make_link(self, timeout_s: float) -> Carries:
        return Link.connect(self._path, timeout_s)

    def _connect(self, deadline: Deadline) -> None:
        timeout_s = min(deadline.left_s(), limits.CONNECT_TIMEOUT_S)
        link = self._greeting = self._let_go(partial(self._make_link, timeout_s))
        try:
            self._check_open()
            self._greet(link, deadline)
            for frame in self._dialogue.again():
                self._say(link, frame, deadline)
            self._check_open()
        except BaseException:
            link.close()
            self._changed.notify_all()  # a session that is lost ends what others wait for
            raise
        finally:
            self._greeting = None
        self._link = link
        self._changed.notify_all()

    def _greet(self, link: Carries, deadline: Deadline) -> None:
        dialogue = self._dialogue
        self._say(link, dialogue.greet(), deadline)
        while True:
            self._let_go(lambda: link.wait(deadline.left_s()))
            for event in link.events():
                said = dialogue.take_greeting(event)
                if said:
                    self._say(link, said, deadline)
                if dialogue.greeted:
                    return

    def _say(self, link: Carries, frame: bytes, deadline: Deadline) -> None:
        """Send all of a frame over a connection that nobody else has yet."""
        rest = link.send(frame)
        if rest:
            self._let_go(partial(link.send_rest, rest, deadline))

    def _hear_out(self, link: Carries) -> None:
        """Nothing can be sent any more: take the last words of the daemon; they may fence us."""
        try:
            while link.has_more():
                for event in link.events():
                    self._take(link, event)
        except OSError:
            pass
        finally:
            self._lose(link)

    def _lose(self, link: Carries) -> None:
        """A connection is gone; what is unanswered is sent again over the next."""
        if self._link is link:
            self._link = None
            self._changed.notify_all()
        if self._reading or self._busy:
            link.shut()  # a thread waits on it: it wakes, and closes it
        else:
            link.close()
