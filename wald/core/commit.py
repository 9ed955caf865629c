"""Group commit: appends to runs, runs to one group, a durable group to answers.

``RunBuilder.take`` is the hot loop of the daemon: consecutive appends of one connection to one
stream become one run, so that everything but reading the header, checking the body and its CRC
happens once per run. ``Group`` keeps what was accepted since the last commit and says what is to
be written and whom to answer what.
"""

from collections.abc import Iterator, Mapping, Sequence
from struct import Struct, pack
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from wald import limits
from wald.core import frame
from wald.core.dedup import Identified, settle
from wald.core.events import (
    APPEND_CODEC,
    APPEND_KIND,
    HEADER,
    HEADER_BYTES,
    DuplicateRecords,
    Refusal,
    RefusedRecords,
    pack_ack,
)
from wald.core.examine import EMPTY_BODY, Examined, examine
from wald.core.frame import RefusedRecord, Section, SectionKind, crc32c
from wald.core.ids import IdTable, NewIds
from wald.core.plain import PLAIN_END, PLAIN_MAX_BYTES, PLAIN_STARTS, take_alike
from wald.core.rules import StreamRules
from wald.model import Lsn, StreamId

Holder = TypeVar("Holder")

NOTHING_IDENTIFIED: Final[Mapping[int, Sequence[Identified]]] = MappingProxyType({})
_APPEND: Final = SectionKind.APPEND
_new_tuple: Final = tuple.__new__  # a named tuple without its keyword arguments: half the time
_PACK_ONE: Final = Struct("<IIII").pack  # a row of a section's table of requests
REFUSALS_MAX_BYTES: Final = frame.REFUSAL_BYTES * limits.REFUSALS_KEPT_PER_REQUEST
# What a read may add to a group beside its own bytes: one section header, and the refusals of the
# one request after which ``take`` returns. A table row is smaller than the frame header it is for.
READ_SLACK_BYTES: Final = frame.SECTION_BYTES + REFUSALS_MAX_BYTES
assert frame.REQUEST_BYTES <= HEADER_BYTES
assert limits.REQUEST_MAX_BYTES + HEADER_BYTES + READ_SLACK_BYTES <= limits.GROUP_MAX_BYTES


class RunBuilder:
    """Collects consecutive requests of one session to one stream into one section.

    Args:
        stream: of all of them.
        first_sequence: of the first.
        kind: type, flags and codec that the header of each has.
        rules: of the stream; None: it has none.

    Attributes:
        refused: what is refused, request by request.
        identified: the requests whose records have dedup ids that count.
    """

    __slots__ = (
        "_bodies",
        "_lag",
        "_records",
        "_refusals",
        "_rules",
        "_table",
        "first_sequence",
        "identified",
        "kind",
        "next_sequence",
        "refused",
        "size_bytes",
        "stream",
    )

    def __init__(
        self,
        stream: StreamId,
        first_sequence: int,
        kind: int = APPEND_KIND,
        rules: StreamRules | None = None,
    ) -> None:
        self.stream = stream
        self._rules = rules
        self.identified: list[Identified] = []
        self.kind = kind
        self.first_sequence = first_sequence
        self.next_sequence = first_sequence
        self._records = 0
        self.size_bytes = frame.SECTION_BYTES
        self.refused: list[RefusedRecords] = []
        self._lag = 1
        self._bodies: list[bytes] = []
        self._table: list[int] = []
        self._refusals: list[RefusedRecord] = []

    def take(self, data: bytes, at: int) -> int:
        """Take the complete appends from ``at`` on that continue the run; return where it ends.

        It ends at a frame that is no append, of another kind or stream, out of sequence or
        incomplete, and behind a request of which something was refused. The length of the frame at
        ``at`` must be within its bound.
        """
        kind, plain_max = self.kind, PLAIN_MAX_BYTES
        if self._rules is not None and self._rules.checks:
            plain_max = -1  # each is looked at
        else:
            alike = take_alike(data, at, self.stream, self.next_sequence, kind)
            if alike:
                at = self._add_alike(alike, data, at)
        unpack, plain_starts = HEADER.unpack_from, PLAIN_STARTS
        stream, sequence, last_lag = self.stream, self.next_sequence, self._lag
        add_plain = self._bodies.append
        total = len(data)
        last_header = total - HEADER_BYTES
        while at <= last_header:
            length, of_kind, of_stream, lag, of_sequence = unpack(data, at)
            start = at + HEADER_BYTES
            at_next = start + length
            if of_sequence != sequence or of_kind != kind or of_stream != stream or at_next > total:
                break
            body = data[start:at_next]
            at = at_next
            last_lag = lag
            if (
                length <= plain_max
                and body.startswith(plain_starts[length])
                and body.endswith(PLAIN_END)
            ):
                add_plain(body)
                self.size_bytes += length
            elif self._add_examined(sequence, body):
                sequence += 1
                break
            sequence += 1
        self.size_bytes += frame.REQUEST_BYTES * (sequence - self.next_sequence)
        self._lag = last_lag
        self.next_sequence = sequence
        return at

    def add(self, body: bytes, *, lag: int) -> None:
        """Add one plain request that continues the run."""
        self._bodies.append(body)
        self.size_bytes += len(body) + frame.REQUEST_BYTES
        self._lag = lag
        self.next_sequence += 1

    def take_one(self, body: bytes, *, lag: int, refusal: Refusal | None = None) -> None:
        """Take one request that continues the run, whatever it is; or refuse it as a whole."""
        found = Examined(0, 0, EMPTY_BODY, () if refusal is None else (refusal,))
        if refusal is None:
            found = examine(body, self._rules)
        self._count_plain()
        self._add_found(self.next_sequence, body, found)
        self.size_bytes += frame.REQUEST_BYTES
        self._lag = lag
        self.next_sequence += 1

    @property
    def records(self) -> int:
        """How many records are stored of what was taken."""
        self._count_plain()
        return self._records

    def _add_alike(self, bodies: list[bytes], data: bytes, at: int) -> int:
        """Add plain requests of one length, found at ``at``; return where they end."""
        self._count_plain()
        length, count = len(bodies[0]), len(bodies)
        end = at + count * (HEADER_BYTES + length)
        _, _, _, self._lag, _ = HEADER.unpack_from(data, end - HEADER_BYTES - length)
        rows = [1, 1, length, 0] * count
        rows[3::4] = map(crc32c, bodies)
        self._table += rows
        self._bodies += bodies
        self._records += count
        self.size_bytes += count * (length + frame.REQUEST_BYTES)
        self.next_sequence += count
        return end

    def _count_plain(self) -> None:
        """Make the rows of the bodies since the last row: one plain record each, in C speed."""
        table, bodies = self._table, self._bodies
        counted = len(table) // 4
        count = len(bodies) - counted
        if count == 1:
            body = bodies[counted]
            table += (1, 1, len(body), crc32c(body))
        elif count:
            plain = bodies[counted:]
            rows = [1, 1, 0, 0] * count
            rows[2::4] = map(len, plain)
            rows[3::4] = map(crc32c, plain)
            table += rows
        self._records += count

    def _add_examined(self, sequence: int, body: bytes) -> bool:
        """Add a request that is not one plain record; tell whether something of it is refused."""
        self._count_plain()
        return self._add_found(sequence, body, examine(body, self._rules))

    def _add_found(self, sequence: int, body: bytes, found: Examined) -> bool:
        self._bodies.append(found.body)
        self._table += (found.records, found.stored, len(found.body), crc32c(body))
        self._records += found.stored
        self.size_bytes += len(found.body) + frame.REFUSAL_BYTES * len(found.refusals)
        if found.ids:
            request = sequence - self.first_sequence
            self.identified.append(Identified(request, found.ids, found.places))
        if not found.refusals:
            return False
        request = sequence - self.first_sequence
        self._refusals += [
            RefusedRecord(request, each.record, each.code) for each in found.refusals
        ]
        self.refused.append(RefusedRecords(sequence, found.refusals))
        return True

    def section(self, session: int) -> Section:
        """Return the run as a section of a block; it must hold a request."""
        last = self.next_sequence - 1
        lag = self._lag
        if not 1 <= lag <= limits.WINDOW_REQUESTS or lag > last:
            lag = min(max(lag, 1), limits.WINDOW_REQUESTS, last)
        self._count_plain()
        table, parts = self._table, self._bodies
        if len(parts) == 1:  # a client with one request in flight
            requests, joined = _PACK_ONE(*table), parts[0]
        else:
            requests, joined = pack(f"<{len(table)}I", *table), b"".join(parts)
        fields = (
            _APPEND,
            APPEND_CODEC,
            self.stream,
            session,
            self.first_sequence,
            last - lag,
            self._records,
            requests,
            tuple(self._refusals),
            joined,
        )
        return _new_tuple(Section, fields)


class Contribution(Generic[Holder]):
    """What one connection has in a group: its sections, kept together and in request order."""

    __slots__ = (
        "duplicates",
        "first_sequence",
        "holder",
        "identified",
        "records",
        "refused",
        "sections",
        "through",
    )

    def __init__(
        self,
        holder: Holder,
        sections: list[Section],
        refused: list[RefusedRecords],
        first_sequence: int,
        through: int,
        identified: Mapping[int, Sequence[Identified]] = NOTHING_IDENTIFIED,
    ) -> None:
        self.holder = holder
        self.identified = identified
        self.duplicates: list[DuplicateRecords] = []
        self.sections = sections
        self.refused = refused
        self.first_sequence = first_sequence
        self.through = through
        self.records = sections[0].records
        if len(sections) > 1:
            self.records = sum(section.records for section in sections)

    def answer(self, first_lsn: Lsn, durable_lsn: Lsn) -> bytes:
        """Return the frames of the answer."""
        ack = pack_ack(self.first_sequence, self.through, first_lsn, durable_lsn)
        if self.refused or self.duplicates:
            before = [each.encode() for each in self.refused]
            before += [each.encode() for each in self.duplicates]
            return b"".join(before) + ack
        return ack


class Group(Generic[Holder]):
    """What was accepted since the last commit."""

    __slots__ = ("_contributions", "_controls")

    def __init__(self, controls: list[Section], contributions: list[Contribution[Holder]]) -> None:
        self._controls = controls
        self._contributions = contributions

    def settle(self, first_lsn: Lsn, table: IdTable) -> list[NewIds]:
        """Take out what is stored already, by its dedup id; return the ids that are new.

        Args:
            first_lsn: of the group's first record.
            table: what is durable.
        """
        having = [each for each in self._contributions if each.identified]
        return settle(self._contributions, first_lsn, table) if having else []

    def sections(self) -> list[Section]:
        """Return what is to be written, in order: statements stand before all appends."""
        sections = list(self._controls)
        for contribution in self._contributions:
            sections += contribution.sections
        return sections

    def answers(self, first_lsn: Lsn, durable_lsn: Lsn) -> Iterator[tuple[Holder, bytes]]:
        """Yield whom to answer what, once the group is durable."""
        lsn = first_lsn
        for contribution in self._contributions:
            yield contribution.holder, contribution.answer(lsn, durable_lsn)
            lsn += contribution.records
