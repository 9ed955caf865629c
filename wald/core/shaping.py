"""What is sent of a batch: coalescing, and what a transform makes of its records.

``coalesce = "last"`` keeps the newest record of each key. A transform is a function of a list of
records; it yields what is sent, each with the LSN of a record it was given, or a pair of the
records that it stands for and it. Whatever is not sent counts as delivered with the batch, as
``superseded``; what the target refuses is a dead letter with every record that it stands for.

Pure, but for the transform, which is given.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack

from wald import limits
from wald.core.delivery import find_refused
from wald.errors import FormatDamaged
from wald.model import Content, Lsn, Record, Rejected, RejectedRecord

Transform: TypeAlias = Callable[[list[Record]], Iterable[object]]

TRANSFORM_FAILED = "transform-failed"
ENCODE_FAILED = "encode-failed"


class Output(NamedTuple):
    """A record that is sent, and the records of the log that it stands for."""

    record: Record
    sources: tuple[Lsn, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a revision sends: the outputs of a shaped route, the body of a sink that freezes it."""

    outputs: tuple[Output, ...] | None = None
    body: bytes | None = None


class WrongOutput(Exception):
    """A transform made something that is no record, or of no record that it was given."""


def coalesced(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each key, in order; those without a key stay."""
    newest = {record.key: record.lsn for record in records if record.key is not None}
    return [each for each in records if each.key is None or newest[each.key] == each.lsn]


def shaped(
    records: Sequence[Record],
    without: Collection[Lsn],
    *,
    coalesce: bool,
    transform: Transform | None,
) -> tuple[Output, ...]:
    """Return what is sent of a batch, without some of its records.

    Those are left out behind coalescing: what the newest of a key has superseded stays so,
    although the newest itself was refused.

    Raises:
        WrongOutput: the transform made something else than records.
        Exception: whatever the transform raises.
    """
    kept = coalesced(records) if coalesce else list(records)
    if without:
        kept = [record for record in kept if record.lsn not in without]
    if transform is None:
        return tuple(Output(record, (record.lsn,)) for record in kept)
    return transformed(kept, transform) if kept else ()


def transformed(records: Sequence[Record], transform: Transform) -> tuple[Output, ...]:
    """Return what a transform makes of records.

    Raises:
        WrongOutput: it is no record, or stands for none of them.
        Exception: whatever the transform raises.
    """
    given = {record.lsn for record in records}
    outputs: list[Output] = []
    for made in transform(list(records)):
        outputs.append(_read(made, given))
        if len(outputs) > limits.TRANSFORM_OUTPUT_MAX_RECORDS:
            msg = f"it makes more than {limits.TRANSFORM_OUTPUT_MAX_RECORDS:,} records of a batch"
            raise WrongOutput(msg)
    return tuple(outputs)


def superseded(
    records: Sequence[Record], outputs: Sequence[Output], excluded: Collection[Lsn]
) -> int:
    """Return how many records are covered by others, or by none: neither sent nor refused."""
    sent = {output.record.lsn for output in outputs}
    return sum(record.lsn not in sent and record.lsn not in excluded for record in records)


def standing_for(outputs: Sequence[Output], lsns: Collection[Lsn]) -> set[Lsn]:
    """Return the records of the log that stand behind what is sent under some LSNs."""
    return {lsn for each in outputs if each.record.lsn in lsns for lsn in each.sources}


def spread(
    outputs: Sequence[Output], refused: Iterable[RejectedRecord]
) -> tuple[RejectedRecord, ...]:
    """Return refusals of what was sent as refusals of the records that stand behind it."""
    found: dict[Lsn, RejectedRecord] = {}
    for item in refused:
        for lsn in standing_for(outputs, {item.lsn}):
            found.setdefault(lsn, RejectedRecord(lsn, item.code, item.message))
    return tuple(found[lsn] for lsn in sorted(found))


def less(outputs: Sequence[Output], lsns: Collection[Lsn]) -> tuple[Output, ...]:
    """Return the outputs that stand for none of some records."""
    return tuple(each for each in outputs if not any(lsn in lsns for lsn in each.sources))


# --- records at which it fails ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failing:
    """The records at which a function fails; ``always`` if nothing shows that it ever works."""

    refused: tuple[RejectedRecord, ...]
    always: str = ""


def find_failing(
    records: Sequence[Record],
    attempt: Callable[[list[Record]], object],
    code: str,
    *,
    worked: bool,
) -> Failing:
    """Search for the records at which ``attempt`` raises, by bisection.

    If it raises for every record of several, or for more than half of many, it is at fault and
    not the records; unless it ``worked`` for others before, and they are few.
    """
    said: Rejected = Rejected((), "")
    taken: set[Lsn] = set()
    steps = find_refused(records)
    count = 0
    refused: tuple[RejectedRecord, ...] = ()
    try:
        asked = next(steps)
        while True:
            try:
                attempt(asked)
            except BaseException as error:  # noqa: BLE001 - anybody's code
                said = Rejected((), f"{error!r}"[: limits.ERROR_TEXT_MAX_CHARS], code)
                asked = steps.send(said)
            else:
                taken.update(record.lsn for record in asked)
                asked = steps.send(())
            count += 1
            if len(records) >= limits.REJECT_GUARD_RECORDS and count > limits.SHAPING_PROBES_MAX:
                return Failing((), said.message)
    except StopIteration as end:
        refused = end.value
    many = len(records) >= limits.REJECT_GUARD_RECORDS
    if many and len(refused) > len(records) * limits.REJECT_GUARD_SHARE:
        return Failing((), said.message)
    if len(records) > 1 and not taken and not worked:
        return Failing((), said.message)
    return Failing(refused)


# --- the form in which it is kept ---------------------------------------------------------------


def pack(frozen: Frozen) -> bytes:
    """Pack what is sent: [outputs or nil, body or nil], each output [record, sources]."""
    outputs = frozen.outputs
    rows = None if outputs is None else [[list(each.record), each.sources] for each in outputs]
    return cast("bytes", msgpack.packb([rows, frozen.body], use_bin_type=True))


def unpack(content: bytes) -> Frozen:
    """Unpack what ``pack`` packed.

    Raises:
        FormatDamaged: it is something else.
    """
    try:
        rows, body = cast("Any", msgpack.unpackb(content, strict_map_key=False))
        outputs = None
        if rows is not None:
            outputs = tuple(Output(Record(*row), tuple(sources)) for row, sources in rows)
    except (ValueError, TypeError) as error:
        msg = "a frozen batch is not what it should be"
        raise FormatDamaged(msg) from error
    return Frozen(outputs, body)


def _read(made: object, given: Collection[Lsn]) -> Output:
    if isinstance(made, Record):
        sources: tuple[Lsn, ...] = (made.lsn,)
        record = made
    elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Record):
        record = made[1]
        sources = _sources(made[0])
    else:
        msg = f"it makes {made!r:.100}: neither a record nor (records, record)"
        raise WrongOutput(msg)
    foreign = {*sources, record.lsn} - set(given)
    if foreign or not sources:
        msg = f"it makes a record of LSN {min(foreign, default=0)}, which it was not given"
        raise WrongOutput(msg)
    _check(record)
    return Output(record, tuple(sorted({*sources, record.lsn})))


def _sources(said: object) -> tuple[Lsn, ...]:
    if not isinstance(said, Iterable):
        msg = f"it makes (records, record) with {said!r:.100} for the records"
        raise WrongOutput(msg)
    items = list(said)
    if not all(isinstance(item, Record) for item in items):
        msg = "it makes (records, record) of things that are no records"
        raise WrongOutput(msg)
    return tuple(item.lsn for item in items)


def _check(record: Record) -> None:
    """Check what a producer's record is checked for at the door."""
    wrong, value = "", cast("object", record.value)
    if not isinstance(value, bytes) or len(value) > limits.RECORD_MAX_BYTES:
        wrong = f"a value that is not bytes, or more than {limits.RECORD_MAX_BYTES:,} of them"
    elif record.content not in set(Content):
        wrong = f"content code {record.content!r}"
    elif not (record.key is None or _is_text(record.key, limits.KEY_MAX_BYTES)):
        wrong = "a key that is neither text nor bytes, or too long"
    elif not _are_headers(record.headers):
        wrong = "headers that are not names to text or bytes"
    if wrong:
        msg = f"it makes a record with {wrong}"
        raise WrongOutput(msg)


def _is_text(value: object, most_bytes: int) -> bool:
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass")) <= most_bytes
    return isinstance(value, bytes) and len(value) <= most_bytes


def _are_headers(headers: object) -> bool:
    if headers is None:
        return True
    return isinstance(headers, Mapping) and all(
        isinstance(name, str) and isinstance(text, str | bytes) for name, text in headers.items()
    )
