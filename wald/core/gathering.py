"""Records that are submitted one by one and go out together, as one request. No I/O.

A producer's driver gathers what is submitted while enough is on its way already, and sends it
when there is a request's worth, or when anything else is to be sent or waited for.
"""

from typing import Any, Final, NamedTuple

from wald import limits
from wald.core import body as bodies
from wald.core.body import Body, Headers, Text
from wald.core.events import WHOLE_REQUEST, Duplicate
from wald.core.outbox import Request
from wald.errors import REFUSAL_HINTS
from wald.model import Lsn, Refused

_NOTHING = (None, None, None)
_PREFIX_BYTES: Final = 6  # msgpack's header of a value, at most


class Entry(NamedTuple):
    """A record, encoded: what ``Gathered`` takes; a column that is not used is None."""

    content: int
    value: bytes
    key: Text | None = None
    headers: Headers | None = None
    dedup_id: Text | None = None
    size: int = 0  # bytes that key, headers and id take in a request, at most
    urgent: bool = False  # it is sent at once


class Gathered:
    """The records of one stream that go out as one request, in order.

    Attributes:
        stream: its name.
        request: once it is sent.
    """

    __slots__ = (
        "_codes",
        "_dedup_ids",
        "_headers",
        "_keys",
        "_size",
        "_values",
        "_withdrawn",
        "request",
        "stream",
    )

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.request: Request | None = None
        self._codes = bytearray()
        self._values: list[bytes] = []
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
        content, value, key, headers, dedup_id, size, _ = entry
        at = len(self._values)
        self._codes.append(content)
        self._values.append(value)
        self._size += len(value) + size + _PREFIX_BYTES
        if (key, headers, dedup_id) != _NOTHING or not self._is_plain:
            self._keys = _put(self._keys, at, key)
            self._headers = _put(self._headers, at, headers)
            self._dedup_ids = _put(self._dedup_ids, at, dedup_id)
        return at

    @property
    def _is_plain(self) -> bool:
        return self._keys is None and self._headers is None and self._dedup_ids is None

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
        if len(values) == 1 and self._is_plain:
            return bodies.encode_one(codes[0], values[0])
        one = codes[0] if codes.count(codes[0]) == len(codes) else None
        content = bytes(codes) if one is None else one
        body = Body(content, values, self._keys, self._headers, self._dedup_ids)
        if self._withdrawn:
            body = bodies.only(body, [at for at in range(len(values)) if at not in self._withdrawn])
        return bodies.encode(body)

    def sent_as(self, request: Request) -> None:
        """It is on its way: the request holds the bytes from now on."""
        self.request = request
        self._values = []
        self._codes = bytearray()
        self._keys = self._headers = self._dedup_ids = None


def _put(column: list[Any] | None, at: int, entry: object) -> list[Any] | None:
    """Return a column with one more entry; it begins with the first that is not None."""
    if column is None:
        return None if entry is None else [*[None] * at, entry]
    column.append(entry)
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
