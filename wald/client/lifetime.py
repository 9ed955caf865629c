"""A blocking producer from its first connection to its end: flush, close, fork, exit."""

import atexit
import os
import random
import warnings
import weakref
from types import TracebackType
from typing import Self

from wald import limits
from wald.client.asking import Asker, Asks
from wald.client.identity import SessionInfo, check_name
from wald.client.link import Deadline
from wald.client.pending import Origin
from wald.client.room import OnThrottle, Room
from wald.client.session import Session
from wald.clock import SystemClock
from wald.errors import WaitTimeout
from wald.ports import Chance, Clock

_producers: "weakref.WeakSet[Lifetime]" = weakref.WeakSet()


class Lifetime:
    """What a producer is beside what it appends; arguments as ``wald.connect``."""

    def __init__(
        self,
        path: str,
        *,
        name: str = "",
        timeout: float = limits.APPEND_TIMEOUT_S,
        wait_for_daemon: bool = False,
        on_throttle: OnThrottle | None = None,
        clock: Clock | None = None,
        chance: Chance | None = None,
    ) -> None:
        check_name(name)
        self._path = path
        self._name = name
        self._timeout_s = timeout
        self._patient = wait_for_daemon
        self._on_throttle = on_throttle
        self._clock: Clock = clock or SystemClock()
        self._chance: Chance = chance or random.Random()  # noqa: S311 - jitter, not a secret
        self._use(self._new_session(name))
        self._asker = self._new_asker()
        _producers.add(self)

    def _new_asker(self) -> Asks:
        return Asker(self._path)

    def _new_session(self, name: str) -> Session:
        return Session(self._path, name, patient=self._patient, chance=self._chance)

    def _use(self, session: Session) -> None:
        self._session = session
        self._origin = Origin(session, self._clock, self._timeout_s)
        self._room = Room(session, self._clock, self._on_throttle)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._clock, self._timeout_s if timeout is None else timeout)

    @property
    def session(self) -> SessionInfo:
        """The session with the daemon; connects if need be."""
        session = self._session
        session.connect(self._deadline(None))
        outbox = session.outbox
        return SessionInfo(outbox.session, self._name, outbox.last_sequence, outbox.lost_records)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._session.is_closed

    def flush(self, timeout: float | None = None) -> None:
        """Wait until nothing is unanswered, what earlier calls gave up included.

        Raises:
            WaitTimeout: some still is.
        """
        if not self._session.flush(self._deadline(timeout)):
            sent = len(self._session.outbox)
            msg = f"{sent} requests are unanswered" if sent else "what was submitted is not sent"
            raise WaitTimeout(msg)

    def ping(self, timeout: float | None = None) -> float:
        """Ask the daemon for a sign of life; return the seconds it took."""
        began_ns = self._clock.monotonic_ns()
        self._session.ping(self._deadline(timeout))
        return (self._clock.monotonic_ns() - began_ns) / limits.CLOCK_NS_PER_S

    def close(self, timeout: float = limits.CLOSE_TIMEOUT_S) -> None:
        """Wait for what was submitted, say goodbye and close; harmless to repeat.

        What is unanswered then is logged, and stays of unknown outcome.
        """
        self._asker.close()
        left = self._session.close(self._deadline(timeout))
        if left:
            import logging  # noqa: PLC0415 - only where something went wrong

            said = "%r was closed with %s submitted records unanswered"
            logging.getLogger("wald").warning(said, self, left)

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not session.foreign and session.owes:
            msg = f"{self!r} was not closed, and {session.owes} submitted records are unanswered"
            warnings.warn(msg, ResourceWarning, stacklevel=1, source=self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name or 'without a name'} of {self._path!r}>"

    # --- fork -----------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: the connection and the session are the parent's."""
        self._session.drop()
        self._asker.drop()
        self._asker = self._new_asker()
        self._name = ""
        self._use(self._new_session(""))


def _after_fork_in_child() -> None:
    for producer in list(_producers):
        producer._after_fork()  # noqa: SLF001 - of this module


def _at_exit() -> None:
    """The interpreter ends: what was submitted may still go out, within a bound for all."""
    deadline = Deadline(SystemClock(), limits.EXIT_TIMEOUT_S)
    for producer in list(_producers):
        if producer._session.owes:  # noqa: SLF001 - of this module
            producer.close(deadline.left_s())


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
