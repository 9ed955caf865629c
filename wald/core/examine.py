"""What of a request is stored, and what is refused: each record by its index, or all of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from wald import limits
from wald.core import body as bodies
from wald.core.body import BadRecord, Body
from wald.core.events import WHOLE_REQUEST, Refusal
from wald.core.ids import Id
from wald.core.rules import StreamRules, find_unruly
from wald.errors import FormatDamaged

EMPTY_BODY: Final = bodies.encode(Body(0, []))


class Examined(NamedTuple):
    """What of a request is stored, and what is refused; the dedup ids of what is, if they count."""

    records: int
    stored: int
    body: bytes
    refusals: tuple[Refusal, ...]
    ids: Sequence[Id | None] = ()
    places: Sequence[int] = ()  # of the stored records in the request; of those with ids


def examine(body: bytes, rules: StreamRules | None = None) -> Examined:
    """Check a request's body whole and record by record.

    A request that is refused as a whole is stored without records: it uses its sequence, so that
    the requests behind it do not become gaps.
    """
    try:
        decoded = bodies.decode(body)
    except FormatDamaged as error:
        return _refused_whole(0, "request.malformed", error.message)
    bad = bodies.find_bad_records(decoded)
    if rules is not None:
        if rules.checks:
            bad = _with_unruly(decoded, bad, rules)
        if rules.compares_ids and decoded.dedup_ids is not None:
            return _examine_ids(body, decoded, bad, rules)
    return _without_bad(body, decoded, bad)


def _with_unruly(decoded: Body, bad: list[BadRecord], rules: StreamRules) -> list[BadRecord]:
    """Add what does not fit the stream; what is wrong in itself is not looked at."""
    if not bad:
        return list(find_unruly(decoded, rules))
    gone = {each.index for each in bad}
    right = [index for index in range(len(decoded.values)) if index not in gone]
    unruly = find_unruly(bodies.only(decoded, right), rules)
    bad = bad + [replace(each, index=right[each.index]) for each in unruly]
    return sorted(bad, key=lambda each: each.index)


def _examine_ids(body: bytes, decoded: Body, bad: list[BadRecord], rules: StreamRules) -> Examined:
    """Note the ids of what is stored: the commit compares them."""
    assert decoded.dedup_ids is not None
    if not rules.tells_duplicates:
        msg = "the stream compares dedup ids, and the client did not ask in HELLO to be told"
        return _refused_whole(len(decoded.values), "request.dedup", msg)
    found = _without_bad(body, decoded, bad)
    if not found.stored:
        return found
    gone = {each.index for each in bad}
    places = [index for index in range(found.records) if index not in gone]
    return found._replace(ids=[decoded.dedup_ids[index] for index in places], places=places)


def _without_bad(body: bytes, decoded: Body, bad: list[BadRecord]) -> Examined:
    count = len(decoded.values)
    if not bad:
        return Examined(count, count, body, ())
    if len(bad) > limits.REFUSALS_KEPT_PER_REQUEST:
        msg = f"{len(bad):,} of {count:,} records would be refused, the first: {bad[0].message}"
        return _refused_whole(count, "request.refusals", msg)
    kept = bodies.without(decoded, [record.index for record in bad])
    return Examined(
        count,
        len(kept.values),
        bodies.encode(kept),
        tuple(Refusal(record.index, record.code, record.message) for record in bad),
    )


def _refused_whole(records: int, code: str, message: str) -> Examined:
    return Examined(records, 0, EMPTY_BODY, (Refusal(WHOLE_REQUEST, code, message),))
