"""Records that are submitted one by one and go out together, as one request. No I/O.

A producer's driver gathers what is submitted while enough is on its way already, and sends it
when there is a request's worth, or when anything else is to be sent or waited for.
"""

from functools import partial
from typing import Any, Final, NamedTuple

from wald import limits
from wald.core import body as bodies
from wald.core.body import Body, Headers, Text
from wald.core.events import WHOLE_REQUEST, Duplicate
from wald.core.outbox import Request
from wald.errors import REFUSAL_HINTS
from wald.model import Lsn, Refused

PREFIX_BYTES: Final = 6  # msgpack's header of a value, key or id, at most
_FLOOD_NS: Final = int(limits.SUBMIT_FLOOD_S * limits.CLOCK_NS_PER_S)
_NO_BOUND: Final = 1 << 62
_BURST_NS: Final = limits.SUBMIT_AT_ONCE_REQUESTS * _FLOOD_NS


class Entry(NamedTuple):
    """A record, encoded: what ``Gathered`` takes; a column that is not used is None."""

    content: int
    value: bytes
    key: Text | None = None
    headers: Headers | None = None
    dedup_id: Text | None = None
    size: int = 0  # bytes that key, headers and id take in a request, at most
    urgent: bool = False  # it is sent at once


new_entry = partial(tuple.__new__, Entry)  # of a whole tuple: no Python call per record


class Flood:
    """Whether records come so fast that it is better to send them together.

    A request of its own costs both sides some 20 us: what comes more slowly than that is sent at
    once, and so are the first ones of a burst. A pause of a millisecond ends a flood.
    """

    __slots__ = ("_due_ns",)

    def __init__(self) -> None:
        self._due_ns = 0  # when it ends, if no more come

    def count(self, now_ns: int) -> bool:
        """Count a record that comes now; return whether it is one of a flood."""
        due_ns = self._due_ns + _FLOOD_NS
        if due_ns > now_ns:
            self._due_ns = min(due_ns, now_ns + _BURST_NS)
            return True
        self._due_ns = max(due_ns, now_ns - _BURST_NS)
        return False

    def is_on(self, now_ns: int) -> bool:
        """Whether the last record that was counted was one of a flood, and it has not ended."""
        return self._due_ns > now_ns


class Gathered:
    """The records of one stream that go out as one request, in order.

    Attributes:
        stream: its name.
        request: once it is sent.
    """

    __slots__ = (
        "_codes",
        "_content",
        "_dedup_ids",
        "_headers",
        "_keys",
        "_plain",
        "_size",
        "_values",
        "_withdrawn",
        "request",
        "stream",
    )

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.request: Request | None = None
        self._values: list[bytes] = []  # a record is in it once its value is here
        self._content = 0  # of all, or
        self._codes: list[int] | None = None  # one for each
        self._plain = True  # no column beside the values
        self._keys: list[Text | None] | None = None
        self._headers: list[Headers | None] | None = None
        self._dedup_ids: list[Text | None] | None = None
        self._size = 0
        self._withdrawn: list[int] = []

    def __len__(self) -> int:
        return len(self._values) - len(self._withdrawn)

    @property
    def is_full(self) -> bool:
        """Whether it is a request's worth."""
        return (
            len(self._values) >= limits.SUBMIT_TOGETHER_RECORDS
            or self._size >= limits.SUBMIT_TOGETHER_BYTES
        )

    def has_room(self, entry: Entry) -> bool:
        """Whether one more record leaves it a request within the limits."""
        size = self._size + len(entry.value) + entry.size
        return not self._values or (not self.is_full and size <= limits.SUBMIT_TOGETHER_BYTES)

    def add(self, entry: Entry) -> int:
        """Take a record; return its index."""
        return self.add_below(entry, _NO_BOUND, _NO_BOUND)

    def add_below(
        self,
        entry: Entry,
        records: int = limits.SUBMIT_TOGETHER_RECORDS,
        size_bytes: int = limits.SUBMIT_TOGETHER_BYTES,
    ) -> int:
        """Take a record that leaves it below so many records and bytes; return its index, or -1.

        The bounds are by default a request's worth.
        """
        content, value, key, headers, dedup_id, size, _ = entry
        values = self._values
        at = len(values)
        size += self._size + len(value) + PREFIX_BYTES
        if at + 1 >= records or size >= size_bytes:
            return -1
        if content != self._content or self._codes is not None:
            self._take_content(at, content)
        if not self._plain or key is not None or headers is not None or dedup_id is not None:
            self._plain = False
            self._keys = _put(self._keys, at, key)
            self._headers = _put(self._headers, at, headers)
            self._dedup_ids = _put(self._dedup_ids, at, dedup_id)
        self._size = size
        values.append(value)
        return at

    def _take_content(self, at: int, content: int) -> None:
        if self._codes is not None:
            self._codes[at:] = (content,)
        elif at:
            self._codes = [*[self._content] * at, content]
        else:
            self._content = content

    def withdraw(self, at: int) -> None:
        """Leave a record out that was not sent yet; the others keep their indexes."""
        assert self.request is None
        self._withdrawn.append(at)

    def position(self, at: int) -> int:
        """Return where in the request the record of an index is."""
        return at - sum(each < at for each in self._withdrawn)

    def body(self) -> bytes:
        """Return the body of the request."""
        codes, values = self._codes, self._values
        if len(values) == 1 and self._plain:
            return bodies.encode_one(self._content, values[0])
        for column in (codes, self._keys, self._headers, self._dedup_ids):
            if column is not None:
                del column[len(values) :]  # of a record that a signal's exception kept out
        content = self._content if codes is None else bytes(codes)
        body = Body(content, values, self._keys, self._headers, self._dedup_ids)
        if self._withdrawn:
            body = bodies.only(body, [at for at in range(len(values)) if at not in self._withdrawn])
        return bodies.encode(body)

    def sent_as(self, request: Request) -> None:
        """It is on its way: the request holds the bytes from now on."""
        self.request = request
        self._values = []
        self._codes = self._keys = self._headers = self._dedup_ids = None


def _put(column: list[Any] | None, at: int, entry: object) -> list[Any] | None:
    """Return a column with one more entry; it begins with the first that is not None."""
    if column is None:
        return None if entry is None else [*[None] * at, entry]
    column[at:] = (entry,)  # as in ``body``, nothing is behind the last record
    return column


def outcome_of(request: Request, at: int) -> Lsn | Duplicate | Refused:
    """Return what became of one record of an answered request: its LSN, or why it is refused."""
    lsn = request.first_lsn + at
    for refusal in request.refusals:
        if refusal.record in (at, WHOLE_REQUEST):
            hint = REFUSAL_HINTS.get(refusal.code, "")
            return Refused(at, refusal.code, refusal.message, hint)
        if refusal.record < at:
            lsn -= 1
    for duplicate in request.duplicates:
        if duplicate.record == at:
            return duplicate
        lsn -= duplicate.record < at
    return lsn
