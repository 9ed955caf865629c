"""De-duplication by id: which records of a group are stored already, decided at its commit.

The requests of a group are looked at in the order in which they will be stored, so that every LSN
is known: a record whose id an earlier one has, durable or in this very group, is taken out of its
request, and its client is told whose duplicate it is. What is sent again is answered from the same
table (``answer_again``): nothing is kept for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import NamedTuple, Protocol, cast

from wald.core import body as bodies
from wald.core import frame
from wald.core.events import WHOLE_REQUEST, Duplicate, DuplicateRecords
from wald.core.frame import Section
from wald.core.ids import Id, IdTable, NewIds, StreamIds
from wald.core.state import Run
from wald.model import Lsn, StreamId

_REQUEST = Struct("<IIII")
assert _REQUEST.size == frame.REQUEST_BYTES


class Identified(NamedTuple):
    """A request whose records have dedup ids.

    Attributes:
        request: its index in its section.
        ids: one for each of its records that are not refused.
        places: the indexes of these in the request.
    """

    request: int
    ids: Sequence[Id | None]
    places: Sequence[int]


class Claimant(Protocol):
    """What one connection has in a group, with the ids of its requests."""

    sections: list[Section]
    identified: Mapping[int, Sequence[Identified]]  # by the index of a section, in order
    records: int
    duplicates: list[DuplicateRecords]


class _Seen:
    """What is stored of a stream: durable, or before in this group."""

    def __init__(self, known: StreamIds) -> None:
        self._known = known
        self.new: dict[Id, Lsn] = {}

    def claim_all(self, ids: Sequence[Id | None], lsn: Lsn) -> bool:
        """Give all ids to the records from ``lsn`` on, if each has one and all are new: usual."""
        fresh = set(ids)
        if (
            len(fresh) != len(ids)
            or None in fresh
            or not self._known.knows_none(fresh)
            or not self.new.keys().isdisjoint(fresh)
        ):
            return False
        self.new.update(zip(cast("Sequence[Id]", ids), range(lsn, lsn + len(ids)), strict=True))
        return True

    def claim(self, dedup_id: Id, lsn: Lsn) -> Lsn | None:
        """Return the LSN of the record that has the id; None if the one at ``lsn`` has it now."""
        earlier = self.new.get(dedup_id) or self._known.get(dedup_id)
        if earlier is None:
            self.new[dedup_id] = lsn
        return earlier


def settle(claimants: Iterable[Claimant], first_lsn: Lsn, table: IdTable) -> list[NewIds]:
    """Take what is stored already out of a group; return the ids that it will make known.

    Args:
        claimants: in the order of the group; sections, records and duplicates are changed.
        first_lsn: of the group's first record.
        table: what is durable; expired ids are gone from it.
    """
    seen: dict[StreamId, _Seen] = {}
    lsn = first_lsn
    for claimant in claimants:
        for index, found in claimant.identified.items():
            section = claimant.sections[index]
            known = table.known(section.stream)
            assert known is not None, "ids of a stream that compares none"
            stream = seen.setdefault(section.stream, _Seen(known))
            before = lsn + sum(each.records for each in claimant.sections[:index])
            cut, told = _settle_section(section, found, before, stream)
            claimant.sections[index] = cut
            claimant.duplicates += told
            claimant.records -= section.records - cut.records
        lsn += claimant.records
    return [
        NewIds(stream, list(each.new.values()), list(each.new))
        for stream, each in seen.items()
        if each.new
    ]


def _settle_section(
    section: Section, found: Sequence[Identified], first_lsn: Lsn, stream: _Seen
) -> tuple[Section, list[DuplicateRecords]]:
    rows = [list(row) for row in _REQUEST.iter_unpack(section.requests)]
    told: list[DuplicateRecords] = []
    gone: dict[int, list[int]] = {}  # by request: which of its stored records
    lsn, at = first_lsn, 0
    for request, ids, places in found:
        lsn += sum(row[1] for row in rows[at:request])
        at = request + 1
        duplicates, lsn = _claim(ids, places, lsn, stream)
        if duplicates:
            sequence = section.first_sequence + request
            named = tuple(Duplicate(places[place], earlier) for place, earlier in duplicates)
            told.append(DuplicateRecords(sequence, named))
            gone[request] = [place for place, _ in duplicates]
    return (_without(section, rows, gone) if gone else section), told


def _claim(
    ids: Sequence[Id | None], places: Sequence[int], lsn: Lsn, stream: _Seen
) -> tuple[list[tuple[int, Lsn]], Lsn]:
    """Return which records of a request are duplicates, of which LSN; and the next LSN."""
    assert len(ids) == len(places)
    if stream.claim_all(ids, lsn):
        return [], lsn + len(ids)
    duplicates = []
    for place, dedup_id in enumerate(ids):
        earlier = None if dedup_id is None else stream.claim(dedup_id, lsn)
        if earlier is None:
            lsn += 1
        else:
            duplicates.append((place, earlier))
    return duplicates, lsn


def _without(section: Section, rows: list[list[int]], gone: Mapping[int, list[int]]) -> Section:
    """Return the section without some stored records of some requests."""
    parts: list[bytes] = []
    at = 0
    for request, row in enumerate(rows):
        data = section.bodies[at : at + row[2]]
        at += row[2]
        places = gone.get(request)
        if places:
            data = bodies.encode(bodies.without(bodies.decode(data), places))
            row[1] -= len(places)
            row[2] = len(data)
        parts.append(data)
    return section._replace(
        records=sum(row[1] for row in rows),
        requests=b"".join(_REQUEST.pack(*row) for row in rows),
        bodies=b"".join(parts),
    )


# --- what is sent again -------------------------------------------------------------------------


def lacks_records(run: Run, sequence: int) -> bool:
    """Tell whether a request of a durable run had duplicates: some are neither stored nor refused.

    What was refused as a whole had none.
    """
    at = sequence - run.first_sequence
    records, stored, _, _ = _REQUEST.unpack_from(run.requests, at * frame.REQUEST_BYTES)
    refused = [each.record for each in run.refusals if each.request == at]
    return bool(records > stored + len(refused) and WHOLE_REQUEST not in refused)


def answer_again(
    run: Run, sequence: int, body: bytes, table: IdTable
) -> tuple[Duplicate, ...] | None:
    """Return which records of a request that is sent again were duplicates, and of which LSNs.

    An id leads to the record that has it: to one of the request's own, or to an earlier one. None
    where an id is forgotten, or given again since: then nobody knows any more.

    Args:
        run: the durable run that holds the request.
        sequence: its sequence.
        body: as it was sent, both times.
        table: what is durable.
    """
    known = table.known(run.stream_id)
    if known is None:
        return None
    at = sequence - run.first_sequence
    entries = list(_REQUEST.iter_unpack(run.requests[: (at + 1) * frame.REQUEST_BYTES]))
    lsn = run.first_lsn + sum(stored for _, stored, _, _ in entries[:-1])
    end = lsn + entries[-1][1]
    refused = {each.record for each in run.refusals if each.request == at}
    ids = bodies.decode(body).dedup_ids or ()  # it was decoded when it came first
    duplicates = []
    for place, dedup_id in enumerate(ids):
        if place in refused:
            continue
        found = lsn if dedup_id is None else known.get(dedup_id)
        if found is None or found > lsn or (found == lsn and lsn >= end):
            return None
        if found == lsn:
            lsn += 1
        else:
            duplicates.append(Duplicate(place, found))
    return tuple(duplicates) if lsn == end else None
