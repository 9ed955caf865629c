"""The blocking client: a thin driver of ``core.outbox`` over one Unix socket.

No background thread: whoever waits reads for all. A lost connection is made anew and every
unanswered request sent again under its old sequence, so that a restart of the daemon costs time
and nothing else. After a fork the child opens a session of its own.
"""

import os
from collections.abc import Sequence
from typing import TypeVar, overload

from wald import limits
from wald.client.carrier import Carrier, answered, receipt_of
from wald.client.delivery import (
    DELIVERED,
    Ack,
    OneAck,
    RecordStatus,
    check_ack,
    check_receipt,
    read_status,
    wait_for,
    waiting,
)
from wald.client.identity import socket_of
from wald.client.lifetime import Lifetime
from wald.client.link import Deadline
from wald.client.pending import Pending
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
from wald.client.streams import Stream
from wald.core import body as bodies
from wald.core.body import Body, Headers, Text
from wald.core.outbox import Request
from wald.errors import OutcomeUnknown, RecordRefused, Unavailable, WaldError
from wald.model import Lsn, Receipt, Refused

_T = TypeVar("_T")


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = limits.APPEND_TIMEOUT_S,
    wait_for_daemon: bool = False,
    on_throttle: OnThrottle | None = None,
) -> "Producer":
    """Return a producer; it connects when it is first used.

    Args:
        path: the daemon's socket; by default ``WALD_SOCKET``, else root's or the user's place.
        name: makes the session one that a later process of the same name goes on with; a second
            client of the name fences the first.
        timeout: seconds for each call, unless it says otherwise.
        wait_for_daemon: whether to wait for a daemon that does not run yet.
        on_throttle: called with stream and seconds before a call waits because there is no room:
            the stream's quota is nearly used, or used, or the disk is full.
    """
    return Producer(
        socket_of(path),
        name=name or "",
        timeout=timeout,
        wait_for_daemon=wait_for_daemon,
        on_throttle=on_throttle,
    )


class Producer(Lifetime):
    """Appends records to the daemon's streams. May be used from several threads.

    Every call raises, beside what it says itself: ``Unavailable`` (nothing was sent),
    ``OutcomeUnknown`` (sent, not answered), ``Backpressure`` and ``DiskFull`` (nothing stored, come
    back), ``Fenced``, ``ProtocolMismatch``, ``Closed``; ``InputError`` in a signal handler that
    interrupts another call.
    """

    # --- appending ------------------------------------------------------------------------------

    def append(
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
        """Append one record; it is on stable storage when this returns.

        Args:
            stream: 1 to 64 of a-z 0-9 . _ -
            value: bytes are stored as they are, anything else as msgpack.
            key: records of one key are delivered in order.
            headers: names to text or bytes.
            dedup_id: the application's own identifier of the record.
            urgent: its batch waits for no others; the record gets the header "wald-urgent".
            ack: "delivered" waits on, until every route of the stream has delivered the record; it
                may wait for company in its batch (the routes' ``max_age``), unless it is urgent.
                "received" waits only until the daemon has it, and may lose it in a crash.
            timeout: seconds; by default the producer's.

        Raises:
            RecordRefused: value, key or headers cannot be stored.
            UnknownStream: no route takes the stream.
            DeliveryTimeout, DeliveryRefused: as ``wait``; the record was durable.
        """
        if ack not in {LEVEL, RECEIVED}:
            check_ack(ack)
        deadline = Deadline(self._clock, self._timeout_s if timeout is None else timeout)
        headers = with_urgent(headers) if urgent else headers
        body = body_of_one(value, columns_of_one(key, headers, dedup_id))
        if isinstance(body, Refused):
            raise RecordRefused(body.message, reason=body.code, index=0)
        send = self._room.append_early if ack == RECEIVED else self._room.append
        request = send(stream, body, deadline, urgent=urgent)
        if request.error is not None or request.refusals:
            raise self._failed(stream, request)
        receipt = receipt_of(stream, request)
        return self._delivered(receipt, deadline) if ack == DELIVERED else receipt

    def _failed(self, stream: str, request: Request) -> WaldError:
        error = answered(request, stream, 0)
        assert isinstance(error, WaldError)
        if isinstance(error, OutcomeUnknown) and not request.done:
            carrier = Carrier.of(stream, request)
            error.unsettled = Pending(self._origin, carrier, 0)
        return error

    def submit(
        self,
        stream: str,
        value: object,
        *,
        key: Text | None = None,
        headers: Headers | None = None,
        dedup_id: Text | None = None,
        urgent: bool = False,
        timeout: float | None = None,
    ) -> Pending:
        """Send one record as ``append`` does, and go on: its answer is asked for later.

        It is sent at once while no more than 32 requests are unanswered, and no more than 40,000
        records a second come for longer than a moment. Beyond, records are gathered and go out
        together, up to 128 or 64 KiB of them; those left over go out with the next call of this
        producer, whatever it is, or ``flush``. What is on its way is bounded: at the bound this
        waits.

        Args:
            stream: as in ``append``; so are value, key, headers and dedup_id.
            value: see there.
            key: see there.
            headers: see there.
            dedup_id: see there.
            urgent: sent at once, and its batch waits for no others.
            timeout: seconds to wait for a connection and for room; by default the producer's.

        Raises:
            RecordRefused: value, key or headers cannot be stored.
            UnknownStream: no route takes the stream.
            Backpressure, Unavailable: the record was not taken, and will not be sent.
        """
        headers = with_urgent(headers) if urgent else headers
        entry = entry_of(value, key, headers, dedup_id, urgent=urgent)
        if isinstance(entry, Refused):
            raise RecordRefused(entry.message, reason=entry.code, index=0)
        taken = self._session.gather(stream, entry, self._clock.monotonic_ns())
        if taken is None:
            deadline = self._deadline(timeout)
            self._room.pause(stream, deadline, urgent=urgent)
            taken = self._session.submit(stream, entry, deadline)
        return Pending(self._origin, *taken)

    def append_many(
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
        """Append many records, in as few requests as the limits allow.

        Args:
            stream: as in ``append``.
            values: as in ``append``.
            key: for all, or a function of the value.
            keys: one for each value, instead of ``key``.
            headers: for all.
            dedup_ids: one for each value.
            urgent: as in ``append``.
            ack: "delivered" waits on, until every route of the stream has delivered what was
                accepted.
            timeout: seconds for all of it; by default the producer's.

        Returns:
            A receipt or a refusal for each value. If only the first requests found room, the
            others are refusals with the code of the error.

        Raises:
            UnknownStream: no route takes the stream.
            DeliveryTimeout, DeliveryRefused: as ``wait``, of the first record that is not
                delivered; ``results`` has what was stored and what was refused.
        """
        check_ack(ack)
        deadline = self._deadline(timeout)
        count, ready, refused = many(
            values, key=key, keys=keys, headers=headers, dedup_ids=dedup_ids, urgent=urgent
        )
        sent = self._room.append_all(stream, ready, deadline)
        results = self._results(stream, count, sent, refused, deadline)
        if ack == LEVEL:
            return results
        steps = waiting(results.accepted, deadline, self._chance, results)
        wait_for(self._asker, steps, deadline)
        return results.at_level(ack)

    def append_request(
        self,
        stream: str,
        body: Body | bytes,
        *,
        sequence: int,
        timeout: float | None = None,
    ) -> Results:
        """Send one request under a sequence of the caller's choice: for ``append --once``.

        A request that an earlier process of the same name has sent is answered as it was then, if
        it is the last one, and has the same body.

        Args:
            stream: as in ``append``.
            body: a body of ``wald.core.body``, packed or not.
            sequence: at most one above the session's last.
            timeout: seconds; by default the producer's.

        Raises:
            SequenceConflict: the sequence was used with another body: the input has changed.
        """
        deadline = self._deadline(timeout)
        packed = body if isinstance(body, bytes) else bodies.encode(body)
        count = len(bodies.decode(packed).values)
        each = Outgoing(packed, range(count))
        request = self._session.send(stream, each, deadline, sequence=sequence)
        return self._results(stream, count, [Sent(request, each.indexes)], [], deadline)

    def _results(
        self,
        stream: str,
        count: int,
        sent: list[Sent],
        refused: list[Refused],
        deadline: Deadline,
    ) -> Results:
        self._session.finish([each.request for each in sent], deadline)
        results = results_of(stream, count, sent, refused)
        raise_if_nothing_stored(results, sent, refused)
        return results

    def stream(self, name: str, type: type[_T]) -> Stream[_T]:  # noqa: A002 - as in words
        """Return a handle of one stream for values of one type.

        Args:
            name: the stream's.
            type: of every value: a dataclass, a msgspec.Struct, a pydantic model, or any type whose
                values can be appended.
        """
        return Stream(self, name, type)

    @overload
    def settle(self, unknown: Results, timeout: float | None = None) -> Results: ...

    @overload
    def settle(
        self, unknown: OutcomeUnknown, timeout: float | None = None
    ) -> Receipt | Results: ...

    def settle(
        self, unknown: OutcomeUnknown | Results, timeout: float | None = None
    ) -> Receipt | Results:
        """Go on waiting for what was sent and not answered in time.

        Args:
            unknown: the error that ``append``, ``append_many`` or a ``Pending`` raised; or results
                with refusals of the code "outcome-unknown".
            timeout: seconds; by default the producer's.

        Returns:
            What the call would have returned.

        Raises:
            OutcomeUnknown: still no answer; or, where ``unsettled`` is None, there will be none.
            RecordRefused, Backpressure, DiskFull: the record is not stored.
        """
        unsettled = unknown if isinstance(unknown, Results) else unknown.unsettled
        if isinstance(unsettled, Pending):
            return unsettled.result(timeout)
        if not isinstance(unsettled, Results):
            assert isinstance(unknown, OutcomeUnknown)
            raise unknown
        if not unsettled.is_unsettled:
            return unsettled
        stream, count, sent, refused = unsettled.what_was_sent()
        return self._results(stream, count, sent, refused, self._deadline(timeout))

    # --- behind the log -------------------------------------------------------------------------

    def wait(
        self, receipt: Receipt, level: Ack = DELIVERED, timeout: float | None = None
    ) -> Receipt:
        """Wait until a record has reached a level; return its receipt at that level.

        Args:
            receipt: of the record.
            level: "delivered": every route of the stream has delivered it, or a newer record of
                its key in its place. A receipt says "durable" from the beginning.
            timeout: seconds; by default the producer's. With 0 it is asked once.

        Raises:
            DeliveryTimeout: not within the time; the record is durable all the same.
            DeliveryPending: a lane waits for a person, said at once; the record is durable.
            DeliveryRefused: it became a dead letter; the target's words are in the message.
            InputError: it is no receipt, or one of level "received", which has no LSN.
        """
        check_ack(level)
        check_receipt(receipt)
        if level == LEVEL or receipt.level == DELIVERED:
            return receipt
        return self._delivered(receipt, self._deadline(timeout))

    def _delivered(self, receipt: Receipt, deadline: Deadline) -> Receipt:
        wait_for(self._asker, waiting((receipt,), deadline, self._chance), deadline)
        return Receipt(receipt.stream, receipt.lsn, DELIVERED, receipt.durable_lsn)

    def status(self, lsn: Lsn, timeout: float | None = None) -> RecordStatus:
        """Ask where a record is, at each route of its stream.

        Raises:
            NoRecord: no record has the LSN.
            Unavailable: the daemon, or its delivering part, does not answer.
        """
        try:
            said = self._asker.ask("drain.where", self._deadline(timeout), lsn=lsn)
        except PermissionError as error:
            msg = f"the control socket of {self._path!r}: {error.strerror}"
            hint = "it answers only its own user and root"
            raise Unavailable(msg, hint=hint) from error
        return read_status(said)
