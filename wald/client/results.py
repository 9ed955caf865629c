"""What an append of many came to, record by record."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

from wald.core.events import WHOLE_REQUEST, Duplicate
from wald.core.outbox import Request
from wald.errors import REFUSAL_HINTS, OutcomeUnknown, RecordRefused
from wald.model import Lsn, Receipt, Refused

LEVEL = "durable"
RECEIVED = "received"


class Results(Sequence[Receipt | Refused]):
    """One ``Receipt`` or ``Refused`` for each value, in the order given."""

    __slots__ = ("_durable_lsn", "_entries", "_level", "_stream", "_unsettled")

    def __init__(
        self,
        stream: str,
        entries: list[Lsn | Duplicate | Refused],
        durable_lsn: Lsn,
        level: str = LEVEL,
    ) -> None:
        self._stream = stream
        self._level = level
        self._entries = entries
        self._durable_lsn = durable_lsn
        self._unsettled: tuple[list[Sent], list[Refused]] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Receipt | Refused: ...

    @overload
    def __getitem__(self, index: slice) -> "Results": ...

    def __getitem__(self, index: int | slice) -> "Receipt | Refused | Results":
        if isinstance(index, slice):
            return Results(self._stream, self._entries[index], self._durable_lsn, self._level)
        return self._result(self._entries[index])

    def __iter__(self) -> Iterator[Receipt | Refused]:
        return map(self._result, self._entries)

    def __repr__(self) -> str:
        refused = len(self.refused)
        return f"Results({self._stream!r}, {len(self) - refused} accepted, {refused} refused)"

    def _result(self, entry: Lsn | Duplicate | Refused) -> Receipt | Refused:
        if isinstance(entry, Refused):
            return entry
        if isinstance(entry, Duplicate):
            return Receipt(self._stream, entry.lsn, self._level, self._durable_lsn, duplicate=True)
        return Receipt(self._stream, entry, self._level, self._durable_lsn)

    def at_level(self, level: str) -> "Results":
        """Return the same, with receipts of another level."""
        return Results(self._stream, self._entries, self._durable_lsn, level)

    @property
    def accepted(self) -> list[Receipt]:
        """The receipts of the stored records."""
        return [each for each in self if isinstance(each, Receipt)]

    @property
    def refused(self) -> list[Refused]:
        """The refused records."""
        return [each for each in self._entries if isinstance(each, Refused)]

    @property
    def is_unsettled(self) -> bool:
        """Whether some were sent and not answered in time: ``Producer.settle`` goes on with them.

        Until then they are refusals with the code "outcome-unknown".
        """
        return self._unsettled is not None

    def what_was_sent(self) -> "tuple[str, int, list[Sent], list[Refused]]":
        """Return what ``results_of`` needs to make results of later answers."""
        assert self._unsettled is not None
        return self._stream, len(self), *self._unsettled

    def raise_for_refused(self) -> None:
        """Raise for the first refused record, if there is one.

        Raises:
            RecordRefused: with its index and code.
        """
        for each in self.refused:
            raise RecordRefused(
                each.message or each.code, reason=each.code, index=each.index, hint=each.hint
            )


class Sent(NamedTuple):
    """A request, and which of the application's values it holds."""

    request: Request
    indexes: Sequence[int]


def results_of(stream: str, count: int, sent: list[Sent], refused: list[Refused]) -> Results:
    """Put the answers of requests, and what was never sent, into the order of the values."""
    durable_lsn = max((each.request.durable_lsn for each in sent), default=0)
    if len(sent) == 1 and not refused and sent[0].request.stored == count:
        lsn = sent[0].request.first_lsn
        if sent[0].request.error is None:
            return Results(stream, list(range(lsn, lsn + count)), durable_lsn)
    entries: list[Lsn | Duplicate | Refused] = [0] * count
    for each in refused:
        entries[each.index] = each
    for request, indexes in sent:
        _place(entries, request, indexes)
    results = Results(stream, entries, durable_lsn)
    if not all(each.request.done for each in sent):
        results._unsettled = (sent, refused)  # noqa: SLF001 - of this module
    return results


def raise_if_nothing_stored(results: Results, sent: list[Sent], refused: list[Refused]) -> None:
    """Raise the error of an append of many of which nothing at all is stored, or known.

    Otherwise the answer is given value by value.
    """
    if sent and not refused and sent[0].request.error is not None:
        error = sent[0].request.error
        if isinstance(error, OutcomeUnknown) and results.is_unsettled:
            error.unsettled = results
        raise error


def _place(
    entries: list[Lsn | Duplicate | Refused], request: Request, indexes: Sequence[int]
) -> None:
    error = request.error
    if error is not None:
        for index in indexes:
            entries[index] = Refused(index, error.code, error.message, error.hint)
        return
    refusals = {each.record: each for each in request.refusals}
    duplicates = {each.record: each for each in request.duplicates}
    whole = refusals.get(WHOLE_REQUEST)
    lsn = request.first_lsn
    for at, index in enumerate(indexes):
        refusal = whole or refusals.get(at)
        if refusal is None and at in duplicates:
            entries[index] = duplicates[at]
        elif refusal is None:
            entries[index] = lsn
            lsn += 1
        else:
            hint = REFUSAL_HINTS.get(refusal.code, "")
            entries[index] = Refused(index, refusal.code, refusal.message, hint)
