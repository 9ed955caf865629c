"""The producer in an event loop: the asynchronous twin of ``client.blocking``, same names.

A task that is cancelled while it waits leaves its record on its way: it may be stored. What is
appended or submitted in one turn of the loop goes out together.
"""

import os
import random
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, overload

from wald import limits
from wald.client.aio_asking import AsyncAsker
from wald.client.aio_pending import AsyncPending, take_back
from wald.client.aio_room import AsyncRoom
from wald.client.aio_session import AsyncSession
from wald.client.carrier import Carrier, answered, receipt_of
from wald.client.delivery import (
    DELIVERED,
    Ack,
    OneAck,
    RecordStatus,
    check_ack,
    check_receipt,
    read_status,
    waiting,
)
from wald.client.identity import SessionInfo, check_name, socket_of
from wald.client.link import Deadline
from wald.client.pending import Origin
from wald.client.requests import (
    Key,
    Outgoing,
    body_of_one,
    columns_of_one,
    entry_of,
    many,
    with_urgent,
)
from wald.client.results import LEVEL, RECEIVED, Results, Sent, raise_if_nothing_stored, results_of
from wald.client.room import OnThrottle
from wald.client.streams import AsyncStream
from wald.clock import SystemClock
from wald.core.body import Headers, Text
from wald.errors import (
    Backpressure,
    NotOurs,
    OutcomeUnknown,
    RecordRefused,
    Unavailable,
    WaitTimeout,
    WaldError,
)
from wald.model import Lsn, Receipt, Refused
from wald.ports import Chance, Clock

_T = TypeVar("_T")
_producers: "weakref.WeakSet[AsyncProducer]" = weakref.WeakSet()


def connect_async(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = limits.APPEND_TIMEOUT_S,
    wait_for_daemon: bool = False,
    on_throttle: OnThrottle | None = None,
) -> "AsyncProducer":
    """Return a producer for tasks; it connects when it is first used. As ``wald.connect``.

    Args:
        path: the daemon's socket; by default ``WALD_SOCKET``, else root's or the user's place.
        name: makes the session one that a later process of the same name goes on with; a second
            client of the name fences the first.
        timeout: seconds for each call, unless it says otherwise.
        wait_for_daemon: whether to wait for a daemon that does not run yet.
        on_throttle: called with stream and seconds before a call waits because there is no room.
    """
    return AsyncProducer(
        socket_of(path),
        name=name or "",
        timeout=timeout,
        wait_for_daemon=wait_for_daemon,
        on_throttle=on_throttle,
    )


class AsyncProducer:
    """Appends records to the daemon's streams, from the tasks of one event loop.

    Every call raises what the same call of ``Producer`` does. A cancelled call leaves its record
    on its way: it may be stored.
    """

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
        self._begin()
        _producers.add(self)

    def _begin(self) -> None:
        self._session = self._new_session()
        self._origin = Origin(self._session, self._clock, self._timeout_s)
        self._room = AsyncRoom(self._session, self._clock, self._on_throttle)
        self._asker = self._new_asker()

    def _new_session(self) -> AsyncSession:
        return AsyncSession(self._path, self._name, patient=self._patient, chance=self._chance)

    def _new_asker(self) -> AsyncAsker:
        return AsyncAsker(self._path)

    def _deadline(self, timeout: float | None) -> Deadline:
        self._session.enter()
        limit_s = self._timeout_s if timeout is None else timeout
        return self._session.deadline(self._clock, limit_s)

    # --- appending ------------------------------------------------------------------------------

    async def append(
        self,
        stream: str,
        value: object,
        *,
        key: Text | None = None,
        headers: Headers | None = None,
        dedup_id: Text | None = None,
        urgent: bool = False,
        ack: OneAck = "durable",
        timeout: float | None = None,
    ) -> Receipt:
        """Append one record; it is on stable storage when this returns. As ``Producer.append``."""
        if ack != RECEIVED:
            check_ack(ack)
        deadline = self._deadline(timeout)
        if ack == RECEIVED:
            headers = with_urgent(headers) if urgent else headers
            body = body_of_one(value, columns_of_one(key, headers, dedup_id))
            return await self._received(stream, body, deadline)
        beside = (key, headers, dedup_id)
        receipt: Receipt | None = None
        while receipt is None:
            pending = await self._submit(stream, value, beside, deadline, urgent=urgent)
            try:
                receipt = await pending.result(deadline.left_s())
            except Backpressure as error:
                if not await self._room.may_try_again(stream, error, deadline):
                    raise
            except OutcomeUnknown as error:
                if pending.was_sent or isinstance(error, NotOurs):
                    raise
                take_back(pending)
                msg = f"nothing was sent to {self._path!r} within {deadline.timeout_s:g} s"
                raise Unavailable(msg, path=self._path) from error
        return receipt if ack == LEVEL else await self._delivered(receipt, deadline)

    async def _received(self, stream: str, body: bytes | Refused, deadline: Deadline) -> Receipt:
        if isinstance(body, Refused):
            raise RecordRefused(body.message, reason=body.code, index=0)
        while True:
            await self._room.pause(stream, deadline)
            each = Outgoing(body, range(1))
            request = await self._session.send(stream, each, deadline, early=True)
            await self._session.receive(request, deadline)
            error = request.error
            if not isinstance(error, Backpressure):
                break
            await self._session.finish([request], deadline)  # as ``Room.append_early``
            if not request.done:
                request.error = error
            if not await self._room.may_try_again(stream, error, deadline):
                break
        if request.error is None and not request.refusals:
            request.left = True
            return receipt_of(stream, request)
        failed = answered(request, stream, 0)
        assert isinstance(failed, WaldError)
        if isinstance(failed, OutcomeUnknown) and not request.done:
            carrier = Carrier.of(stream, request)
            failed.unsettled = AsyncPending(self._origin, carrier, 0)
        raise failed

    async def submit(
        self,
        stream: str,
        value: object,
        *,
        key: Text | None = None,
        headers: Headers | None = None,
        dedup_id: Text | None = None,
        urgent: bool = False,
        timeout: float | None = None,
    ) -> AsyncPending:
        """Send one record, and go on: its answer is asked for later. As ``Producer.submit``.

        It goes out at the end of this turn of the event loop, whoever asks for its answer or not.
        """
        deadline = self._deadline(timeout)
        return await self._submit(stream, value, (key, headers, dedup_id), deadline, urgent=urgent)

    async def _submit(
        self,
        stream: str,
        value: object,
        beside: tuple[Text | None, Headers | None, Text | None],
        deadline: Deadline,
        *,
        urgent: bool,
    ) -> AsyncPending:
        key, headers, dedup_id = beside
        headers = with_urgent(headers) if urgent else headers
        entry = entry_of(value, key, headers, dedup_id, urgent=urgent)
        if isinstance(entry, Refused):
            raise RecordRefused(entry.message, reason=entry.code, index=0)
        await self._room.pause(stream, deadline, urgent=urgent)
        carrier, at = await self._session.submit(stream, entry, deadline)
        return AsyncPending(self._origin, carrier, at)

    async def append_many(
        self,
        stream: str,
        values: Sequence[object],
        *,
        key: Key = None,
        keys: Sequence[Text | None] | None = None,
        headers: Headers | None = None,
        dedup_ids: Sequence[Text | None] | None = None,
        urgent: bool = False,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Results:
        """Append many records, in as few requests as allowed. As ``Producer.append_many``."""
        check_ack(ack)
        deadline = self._deadline(timeout)
        count, ready, refused = many(
            values, key=key, keys=keys, headers=headers, dedup_ids=dedup_ids, urgent=urgent
        )
        sent = await self._room.append_all(stream, ready, deadline)
        results = await self._results(stream, count, sent, refused, deadline)
        if ack == LEVEL:
            return results
        steps = waiting(results.accepted, deadline, self._chance, results)
        await self._asker.wait_for(steps, deadline)
        return results.at_level(ack)

    async def _results(
        self,
        stream: str,
        count: int,
        sent: list[Sent],
        refused: list[Refused],
        deadline: Deadline,
    ) -> Results:
        await self._session.finish([each.request for each in sent], deadline)
        results = results_of(stream, count, sent, refused)
        raise_if_nothing_stored(results, sent, refused)
        return results

    def stream(self, name: str, type: type[_T]) -> AsyncStream[_T]:  # noqa: A002 - as in words
        """Return a handle of one stream for values of one type. As ``Producer.stream``."""
        return AsyncStream(self, name, type)

    @overload
    async def settle(self, unknown: Results, timeout: float | None = None) -> Results: ...

    @overload
    async def settle(
        self, unknown: OutcomeUnknown, timeout: float | None = None
    ) -> Receipt | Results: ...

    async def settle(
        self, unknown: OutcomeUnknown | Results, timeout: float | None = None
    ) -> Receipt | Results:
        """Go on waiting for what was sent and not answered in time. As ``Producer.settle``."""
        unsettled = unknown if isinstance(unknown, Results) else unknown.unsettled
        if isinstance(unsettled, AsyncPending):
            return await unsettled.result(timeout)
        if not isinstance(unsettled, Results):
            assert isinstance(unknown, OutcomeUnknown)
            raise unknown
        if not unsettled.is_unsettled:
            return unsettled
        stream, count, sent, refused = unsettled.what_was_sent()
        return await self._results(stream, count, sent, refused, self._deadline(timeout))

    # --- behind the log -------------------------------------------------------------------------

    async def wait(
        self, receipt: Receipt, level: Ack = DELIVERED, timeout: float | None = None
    ) -> Receipt:
        """Wait until a record has reached a level. As ``Producer.wait``."""
        check_ack(level)
        check_receipt(receipt)
        if level == LEVEL or receipt.level == DELIVERED:
            return receipt
        return await self._delivered(receipt, self._deadline(timeout))

    async def _delivered(self, receipt: Receipt, deadline: Deadline) -> Receipt:
        await self._asker.wait_for(waiting((receipt,), deadline, self._chance), deadline)
        return Receipt(receipt.stream, receipt.lsn, DELIVERED, receipt.durable_lsn)

    async def status(self, lsn: Lsn, timeout: float | None = None) -> RecordStatus:
        """Ask where a record is, at each route of its stream. As ``Producer.status``."""
        try:
            said = await self._asker.ask("drain.where", self._deadline(timeout), lsn=lsn)
        except PermissionError as error:
            msg = f"the control socket of {self._path!r}: {error.strerror}"
            raise Unavailable(msg, hint="it answers only its own user and root") from error
        return read_status(said)

    # --- the rest of the public face ------------------------------------------------------------

    async def session(self) -> SessionInfo:
        """Return the session with the daemon; connects if need be."""
        session = self._session
        await session.connect(self._deadline(None))
        outbox = session.outbox
        return SessionInfo(outbox.session, self._name, outbox.last_sequence, outbox.lost_records)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._session.is_closed

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until nothing is unanswered. As ``Producer.flush``."""
        session = self._session
        if not await session.flush(self._deadline(timeout)):
            msg = f"{session.owes} records are unanswered"
            raise WaitTimeout(msg)

    async def ping(self, timeout: float | None = None) -> float:
        """Ask the daemon for a sign of life; return the seconds it took."""
        began_ns = self._clock.monotonic_ns()
        await self._session.ping(self._deadline(timeout))
        return (self._clock.monotonic_ns() - began_ns) / limits.CLOCK_NS_PER_S

    async def close(self, timeout: float = limits.CLOSE_TIMEOUT_S) -> None:
        """Wait for what was submitted, say goodbye and close. As ``Producer.close``."""
        self._asker.close()
        left = await self._session.close(self._deadline(timeout))
        if left:
            import logging  # noqa: PLC0415 - only where something went wrong

            said = "%r was closed with %s submitted records unanswered"
            logging.getLogger("wald").warning(said, self, left)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and session.owes:
            msg = f"{self!r} was not closed, and {session.owes} submitted records are unanswered"
            warnings.warn(msg, ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        return f"<AsyncProducer {self._name or 'without a name'} of {self._path!r}>"

    # --- fork -----------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: the connection, the session and the event loop are the parent's."""
        self._session.drop()
        self._asker.forget()
        self._name = ""
        self._begin()


def _after_fork_in_child() -> None:
    for producer in list(_producers):
        producer._after_fork()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
