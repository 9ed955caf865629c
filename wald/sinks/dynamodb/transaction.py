"""Mode ``transaction``: a batch and the lane's progress item in one TransactWriteItems.

Of several records with one key only the last is put: in one transaction nobody could see the
others. Twice the write units of ``put``, and 99 records at a time.

No ClientRequestToken of ours: the service forgets one after 10 minutes, and the condition on the
progress item holds for ever.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from wald import limits
from wald.model import (
    Anchor,
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.dynamodb.calls import (
    ANSWER_TIMEOUT_S,
    CANCELLED,
    CONDITION_FAILED,
    REFUSALS,
    CallFailed,
    systemic,
)
from wald.sinks.dynamodb.checking import LANE_ATTRIBUTE, check, grants
from wald.sinks.dynamodb.items import Put, puts_of
from wald.sinks.dynamodb.notes import EXTRA_FIELDS, Notes
from wald.sinks.dynamodb.options import Options

if TYPE_CHECKING:
    from wald.sinks.dynamodb.link import Link

MAX_RECORDS: Final = 99  # of 100 actions one is the progress item
MAX_BYTES: Final = 3 * limits.MIB  # of 4, as items count them
_STANDS_ON: Final = "batch_no = :number AND rev_id = :revision AND #owner = :owner"
_NOT_YET: Final = f"attribute_not_exists({LANE_ATTRIBUTE})"
_PROBE_LANE: Final = "probe"  # there is never such an item, so that a probe is always cancelled


class TransactionSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: Link | None = None
        self._notes = Notes()

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once for ever: the progress item moves with the records."""
        overwrites = self._options.key_from != "record-id"
        return Capabilities(
            ReplayClass.TRANSACTIONAL,
            MAX_RECORDS,
            MAX_BYTES,
            overwrites=overwrites,
            awaits_seal=True,
        )

    def close(self) -> None:
        """Close the connections; harmless to repeat."""
        if self._made is not None:
            self._made.close()

    @property
    def _link(self) -> "Link":
        if self._made is None:
            from wald.sinks.dynamodb.link import Link  # noqa: PLC0415 - 25 MB, where it delivers

            self._made = Link(self._options)
        return self._made

    def check(self) -> Sequence[Finding]:
        """Look at both tables."""
        return check(self._options, self._link)

    def grants(self) -> Sequence[str]:
        """Return the policy that gives the sink's identity what the route needs."""
        return [grants(self._options)]

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's progress item."""
        try:
            answer = self._link.call(
                "get_item",
                TableName=self._options.progress_table,
                Key={LANE_ATTRIBUTE: {"S": lane_text(key)}},
                ConsistentRead=True,
            )
            return parse_row(answer.get("Item"))
        except CallFailed as failed:
            return _told(failed)
        except (KeyError, ValueError) as error:
            return Systemic(SystemicKind.DAMAGED, f"the progress item cannot be read: {error!r}")

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the progress item and put the records in one transaction."""
        puts, refused, extra = puts_of(self._options, attempt.key.log_id, attempt.records)
        if refused:
            return Rejected(refused, refused[0].message)
        last = newest(puts)
        attempt.await_seal()
        try:
            self._transact([self._row_action(attempt), *self._actions(last)], attempt)
        except CallFailed as failed:
            return _judge(failed, last)
        self._notes.count(EXTRA_FIELDS, extra)
        self._notes.count_calls(1, self._link.take_counts()[1])
        return Delivered(self._notes.take())

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Try records in a transaction that a condition cancels, whatever comes of it."""
        puts, refused, _ = puts_of(self._options, attempt.key.log_id, records)
        if refused:
            return refused
        last = newest(puts)
        cancels = {
            "TableName": self._options.progress_table,
            "Key": {LANE_ATTRIBUTE: {"S": _PROBE_LANE}},
            "ConditionExpression": f"attribute_exists({LANE_ATTRIBUTE})",
        }
        try:
            self._transact([*self._actions(last), {"ConditionCheck": cancels}], attempt)
        except CallFailed as failed:
            if failed.code != CANCELLED:
                return failed.outcome or _refused_whole(failed)
            return _refused(failed.reasons, last) or _trouble(failed) or ()
        return Unknown("a probe was not cancelled")

    def _transact(self, actions: Sequence[Mapping[str, Any]], attempt: Attempt) -> None:
        self._link.call(
            "transact_write_items",
            timeout_s=attempt.timeout_s or ANSWER_TIMEOUT_S,
            TransactItems=actions,
            ReturnConsumedCapacity="TOTAL",
        )  # COMMIT POINT: the transaction

    def _actions(self, puts: Sequence[Put]) -> list[Mapping[str, Any]]:
        table = self._options.table
        return [{"Put": {"TableName": table, "Item": put.item}} for put in puts]

    def _row_action(self, attempt: Attempt) -> Mapping[str, Any]:
        number, revision, owner = attempt.stands_on
        put: dict[str, Any] = {
            "TableName": self._options.progress_table,
            "Item": row_item(attempt),
            "ConditionExpression": _STANDS_ON if number else _NOT_YET,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if number:
            put["ExpressionAttributeNames"] = {"#owner": "owner"}
            put["ExpressionAttributeValues"] = {
                ":number": {"N": str(number)},
                ":revision": {"B": revision},
                ":owner": {"N": str(owner)},
            }
        return {"Put": put}


def newest(puts: Sequence[Put]) -> list[Put]:
    """Return the last item of each key, in the order of their records."""
    return sorted({put.key: put for put in puts}.values(), key=lambda put: put.lsn)


# --- outcomes -------------------------------------------------------------------------------------


def _told(failed: CallFailed) -> Outcome:
    """Return what a question came to: one that was not answered changed nothing."""
    outcome = failed.outcome
    if outcome is None or isinstance(outcome, Unknown):
        kind = SystemicKind.CONFIGURATION if outcome is None else SystemicKind.UNREACHABLE
        return Systemic(kind, failed.message or getattr(outcome, "message", ""))
    return outcome


def _judge(failed: CallFailed, puts: Sequence[Put]) -> Outcome:
    """Return what a transaction came to; its first action was the row's, then ``puts``."""
    if failed.code != CANCELLED:
        return failed.outcome or _refused_whole(failed)
    if not failed.reasons:
        return Unknown(failed.message)
    of_the_row, *reasons = failed.reasons
    if of_the_row.get("Code") in CONDITION_FAILED:
        return _row_moved(of_the_row)
    refused = _refused(reasons, puts)
    if refused:
        return Rejected(refused, refused[0].message)
    return _trouble(failed) or Unknown(failed.message)


def _refused_whole(failed: CallFailed) -> Rejected:
    """Return a refusal that does not say which record it means."""
    return Rejected((), failed.message, failed.code)


def _refused(
    reasons: Sequence[Mapping[str, Any]], puts: Sequence[Put]
) -> tuple[RejectedRecord, ...]:
    """Return the records that a cancelled transaction names; further reasons are of others."""
    return tuple(
        RejectedRecord(put.lsn, reason["Code"], str(reason.get("Message", ""))[:_TEXT])
        for put, reason in zip(puts, reasons, strict=False)
        if reason.get("Code") in REFUSALS
    )


def _trouble(failed: CallFailed) -> Systemic | None:
    """Return the first trouble of the service that a cancelled transaction tells of."""
    for reason in failed.reasons:
        code = str(reason.get("Code"))
        trouble = systemic(code, f"{code}: {reason.get('Message')}")
        if trouble is not None:
            return trouble
    return None


def _row_moved(reason: Mapping[str, Any]) -> Outcome:
    try:
        return RowMoved(parse_row(reason.get("Item")))
    except (KeyError, ValueError) as error:
        return Systemic(SystemicKind.DAMAGED, f"the progress item cannot be read: {error!r}")


_TEXT: Final = limits.ERROR_TEXT_MAX_CHARS


# --- the progress item ----------------------------------------------------------------------------


def lane_text(key: LaneKey) -> str:
    """Return the key of a lane's progress item."""
    return f"{key.log_id.hex()}/{key.route_id}/{key.layout}/{key.lane}"


def row_item(attempt: Attempt) -> Mapping[str, Any]:
    """Return the progress item that an attempt moves to."""
    row = attempt.row
    numbers = {
        "batch_no": row.batch_no,
        "hi_lsn": row.hi_lsn,
        "anchor_crc": row.anchor.payload_crc,
        "anchor_ns": row.anchor.commit_time_ns,
        "owner": row.owner,
        "applied": len(attempt.records),
    }
    return {
        LANE_ATTRIBUTE: {"S": lane_text(attempt.key)},
        "rev_id": {"B": row.rev_id},
        "dead_rev": {"B": row.dead_rev},
        **{name: {"N": str(number)} for name, number in numbers.items()},
    }


def parse_row(item: Mapping[str, Any] | None) -> ProgressRow | None:
    """Return the row that a progress item says; None for none.

    Raises:
        KeyError, ValueError: it is none of ours.
    """
    if not item:
        return None
    number = {name: int(held["N"]) for name, held in item.items() if "N" in held}
    return ProgressRow(
        number["batch_no"],
        bytes(item["rev_id"]["B"]),
        number["hi_lsn"],
        Anchor(number["anchor_crc"], number["anchor_ns"]),
        number["owner"],
        bytes(item["dead_rev"]["B"]),
    )
