"""Modes ``put`` and ``put-if-newer``: each record is an item, and sending it again is harmless.

The service answers for parts: what it did not take now is told as wanted again, so that what it
took is not sent (and paid) twice. Records with one key go in their order, none behind one that was
not taken.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from wald import limits
from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.dynamodb.calls import ANSWER_TIMEOUT_S, CONDITION_FAILED, CallFailed
from wald.sinks.dynamodb.checking import check, grants
from wald.sinks.dynamodb.items import LOG_ATTRIBUTE, LSN_ATTRIBUTE, Put, key_of, puts_of
from wald.sinks.dynamodb.notes import EXTRA_FIELDS, NOT_NEWER, Notes
from wald.sinks.dynamodb.options import Options

if TYPE_CHECKING:
    from wald.sinks.dynamodb.link import Link

MAX_RECORDS: Final = 500  # 20 calls
MAX_RECORDS_IF_NEWER: Final = 100  # a call each, some side by side
MAX_BYTES: Final = 4 * limits.MIB
CALL_MAX_ITEMS: Final = 25  # of one BatchWriteItem
CALL_MAX_BYTES: Final = 12 * limits.MIB  # of 16, for what JSON and base64 add
SIDE_BY_SIDE: Final = 8  # conditional puts at a time
THROTTLED: Final = "throttled"
_IF_NEWER: Final = "attribute_not_exists(#lsn) OR #log <> :log OR #lsn < :lsn"


@dataclass(slots=True)
class Tally:
    """What has become of the items of an attempt so far; filled by several threads."""

    taken: set[Lsn] = field(default_factory=set)
    rejected: list[RejectedRecord] = field(default_factory=list)
    failure: Systemic | Unknown | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, puts: Iterable[Put]) -> None:
        """Count items as written."""
        with self.lock:
            self.taken.update(put.lsn for put in puts)

    def reject(self, put: Put, failed: CallFailed) -> None:
        """Count an item as refused, with the service's own words."""
        with self.lock:
            self.rejected.append(RejectedRecord(put.lsn, failed.code, failed.message))

    def fail(self, outcome: Systemic | Unknown) -> None:
        """Remember why the rest is not sent."""
        with self.lock:
            self.failure = self.failure or outcome


class KeyedSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: Link | None = None
        self._notes = Notes()
        self._crew: ThreadPoolExecutor | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once per key: an item that is sent again meets itself."""
        is_put = self._options.mode == "put"
        most = MAX_RECORDS if is_put else MAX_RECORDS_IF_NEWER
        overwrites = is_put and self._options.key_from != "record-id"
        return Capabilities(ReplayClass.KEYED, most, MAX_BYTES, overwrites=overwrites)

    def close(self) -> None:
        """Close connections and threads; harmless to repeat."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.shutdown(cancel_futures=True)
        if self._made is not None:
            self._made.close()

    @property
    def _link(self) -> "Link":
        if self._made is None:
            from wald.sinks.dynamodb.link import Link  # noqa: PLC0415 - 25 MB, where it delivers

            self._made = Link(self._options)
        return self._made

    def check(self) -> Sequence[Finding]:
        """Look at the table."""
        return check(self._options, self._link)

    def grants(self) -> Sequence[str]:
        """Return the policy that gives the sink's identity what the route needs."""
        return [grants(self._options)]

    def read_row(self, _: LaneKey) -> ProgressRow | Outcome | None:
        """Return nothing: items remember records, and nobody a lane."""
        return None

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Return what cannot become an item; nothing can be tried and rolled back here."""
        return puts_of(self._options, attempt.key.log_id, records)[1]

    def deliver(self, attempt: Attempt) -> Outcome:
        """Write the items; what the service did not take now is wanted again."""
        now_s = time.monotonic  # noqa: TID251 - the driver's time: a factory gets no clock
        ends_s = now_s() + (attempt.timeout_s or ANSWER_TIMEOUT_S)
        puts, refused, extra = puts_of(self._options, attempt.key.log_id, attempt.records)
        self._notes.count(EXTRA_FIELDS, extra)
        tally = Tally(rejected=list(refused))
        left_s = lambda: ends_s - now_s()  # noqa: E731 - a clock of this attempt
        if self._options.mode == "put":
            _Batches(self._options, self._link, left_s).write(puts, tally)
        else:
            self._put_each(
                puts, tally, _Conditional(self._options, self._link, left_s, self._notes)
            )
        self._notes.count_calls(*self._link.take_counts())
        return self._outcome(puts, tally)

    def _put_each(self, puts: Sequence[Put], tally: Tally, conditional: "_Conditional") -> None:
        """Put items side by side, those with one key in their order."""
        by_key: dict[tuple[str, ...], list[Put]] = {}
        for put in puts:
            by_key.setdefault(put.key, []).append(put)
        if self._crew is None:
            self._crew = ThreadPoolExecutor(SIDE_BY_SIDE, "dynamodb put")
        for _ in self._crew.map(lambda group: conditional.write(group, tally), by_key.values()):
            pass

    def _outcome(self, puts: Sequence[Put], tally: Tally) -> Outcome:
        done = tally.taken | {item.lsn for item in tally.rejected}
        left = [put.lsn for put in puts if put.lsn not in done]
        failure = tally.failure
        if left and not tally.taken:
            busy = Systemic(SystemicKind.BUSY, f"{THROTTLED}: nothing was taken in time")
            return failure or busy
        rejected = tuple(sorted(tally.rejected, key=lambda item: item.lsn))
        if left:
            message = failure.message if failure is not None else THROTTLED
            wanted = tuple(RejectedRecord(lsn, THROTTLED, message) for lsn in left)
            return Partial(rejected, wanted, message)
        if not rejected:
            return Delivered(self._notes.take())
        if tally.taken:
            return Partial(rejected, message=rejected[0].message)
        return Rejected(rejected, rejected[0].message)


Clock: TypeAlias = Callable[[], float]  # seconds that an attempt still has


def _is_too_large(failed: CallFailed) -> bool:
    return isinstance(failed.outcome, TooLarge)


def _as_failure(failed: CallFailed) -> Systemic | Unknown:
    outcome = failed.outcome
    assert isinstance(outcome, Systemic | Unknown)
    return outcome


# --- mode "put" -----------------------------------------------------------------------------------


class _Batches:
    """Writes items by BatchWriteItem: unconditional, in calls of 25, each key once a call."""

    def __init__(self, options: Options, link: "Link", left_s: Clock) -> None:
        self._options = options
        self._table = options.table
        self._link = link
        self._left_s = left_s

    def write(self, puts: Sequence[Put], tally: Tally) -> None:
        """Write them in order until the time is over or the service fails."""
        waiting: set[tuple[str, ...]] = set()  # keys of which an older item was not taken
        for call in calls_of(puts):
            sent = [put for put in call if put.key not in waiting]
            if not sent:
                continue
            left_s = self._left_s()
            if left_s <= 0 or tally.failure is not None:
                return
            try:
                not_taken = self._write_call(sent, left_s)
            except CallFailed as failed:
                if failed.outcome is None or (len(sent) > 1 and _is_too_large(failed)):
                    self._write_alone(sent, tally)
                else:
                    tally.fail(_as_failure(failed))
                continue
            waiting |= not_taken
            tally.take(put for put in sent if put.key not in not_taken)

    def _write_call(self, sent: Sequence[Put], timeout_s: float) -> set[tuple[str, ...]]:
        """Write one call's items; returns the keys that the service did not process."""
        requests = [{"PutRequest": {"Item": put.item}} for put in sent]
        answer = self._link.call(
            "batch_write_item",
            timeout_s=timeout_s,
            RequestItems={self._table: requests},
            ReturnConsumedCapacity="TOTAL",
        )
        rest = answer.get("UnprocessedItems", {}).get(self._table, [])
        return {key_of(self._options, each["PutRequest"]["Item"]) for each in rest}

    def _write_alone(self, sent: Sequence[Put], tally: Tally) -> None:
        """Write the items of a refused call one by one, so that the service says which it means."""
        for put in sent:
            left_s = self._left_s()
            if left_s <= 0:
                return
            try:
                self._link.call(
                    "put_item",
                    timeout_s=left_s,
                    TableName=self._table,
                    Item=put.item,
                    ReturnConsumedCapacity="TOTAL",
                )
            except CallFailed as failed:
                if failed.outcome is not None and not _is_too_large(failed):
                    tally.fail(_as_failure(failed))
                    return
                tally.reject(put, failed)
            else:
                tally.take([put])


def calls_of(puts: Sequence[Put]) -> Iterator[list[Put]]:
    """Yield what one call can hold: 25 items, a bound of bytes, and each key once."""
    call: list[Put] = []
    keys: set[tuple[str, ...]] = set()
    size = 0
    for put in puts:
        full = len(call) == CALL_MAX_ITEMS or size + put.size_bytes > CALL_MAX_BYTES
        if call and (full or put.key in keys):
            yield call
            call, keys, size = [], set(), 0
        call.append(put)
        keys.add(put.key)
        size += put.size_bytes
    if call:
        yield call


# --- mode "put-if-newer" --------------------------------------------------------------------------


class _Conditional:
    """Puts items one by one, each only where no newer one of the same log is."""

    def __init__(self, options: Options, link: "Link", left_s: Clock, notes: Notes) -> None:
        self._table = options.table
        self._link = link
        self._left_s = left_s
        self._notes = notes

    def write(self, puts: Sequence[Put], tally: Tally) -> None:
        """Put items of one key in order, until one is not taken."""
        for put in puts:
            left_s = self._left_s()
            if left_s <= 0 or tally.failure is not None:
                return
            try:
                self._put(put, left_s)
            except CallFailed as failed:
                if failed.code in CONDITION_FAILED:
                    self._notes.count(NOT_NEWER)
                elif failed.outcome is None or _is_too_large(failed):
                    tally.reject(put, failed)
                    continue
                else:
                    tally.fail(_as_failure(failed))
                    return
            tally.take([put])

    def _put(self, put: Put, timeout_s: float) -> None:
        self._link.call(
            "put_item",
            timeout_s=timeout_s,
            TableName=self._table,
            Item=put.item,
            ConditionExpression=_IF_NEWER,
            ExpressionAttributeNames={"#lsn": LSN_ATTRIBUTE, "#log": LOG_ATTRIBUTE},
            ExpressionAttributeValues={
                ":lsn": put.item[LSN_ATTRIBUTE],
                ":log": put.item[LOG_ATTRIBUTE],
            },
            ReturnConsumedCapacity="TOTAL",
        )
