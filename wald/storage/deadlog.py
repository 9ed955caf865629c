"""The dead log: bodies of records set aside, append-only, in files of the drainer's own.

    file dead/dead-%010d.log | entry | room | entry | room | ...

An entry begins on a page of its own (DEAD_ALIGNMENT_BYTES): the page that is being written may
tear in a power cut, and must hold nothing that is durable already. Files of an older release have
no room between entries.

    entry (DEAD_HEADER_BYTES, then the body)
      0  magic u32 b"WDED"   4  version u16   6  0 u16   8  length u32   12  crc u32 (of bytes
      0..11 and the body)
     16  body: one msgpack map
           rev        bin   the revision that excluded or redrove
           prev       bin   the previous dead_rev of the lane's chain
           excluded   array of [LSN, time, content, value, key, headers, dedup id]
           redriven   array of LSN
           dropped    array of LSN: purged, and left out where a chain was written anew
           reasons    array of [LSN, code, message, batch, attempts, time, producer, trace], of
                      what is excluded; an entry of an older release has none
           final      [[route, layout, lane], batch, revision, LSN]: of a lane whose target has no
                      row, the revision that took effect; nothing else is in such an entry
           purges     [[route, layout, lane], time, [[LSN, records, file], ...]]: purged by then, in
                      the ledger too; for one that is lost; nothing else is in such an entry

An entry is durable before the revision is (T3). It counts only if a target's row names it, by
``dead_rev`` and then entry by entry (where there is no row: if the ledger does, or a ``final``
that is durable before T5), so that a torn or a superfluous one harms nothing. Of two with one
revision the newer counts: a chain is written anew (``wald.drainer.burying``), so that files that
only the older entries needed may go. Each process begins a new file, and so does each failed write:
nothing is ever written behind bytes whose fate is unknown.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, TypeAlias, cast

from wald import limits
from wald.core import frame
from wald.errors import DiskFull, FormatDamaged, FormatNewer, LedgerFailed
from wald.model import NO_REVISION, Lsn, Record, RevisionId, RouteId
from wald.ports import File, FileSystem
from wald.storage.segment import read_around

DEAD_MAGIC = 0x44454457  # "WDED" as bytes on disk
DEAD_VERSION = 1
_HEAD = Struct("<IHHI")
_CRC = Struct("<I")
_MAGIC = Struct("<I")
DEAD_HEADER_BYTES = _HEAD.size + _CRC.size
DEAD_ALIGNMENT_BYTES = 4096
_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT
UNKNOWN_REASON = "unknown"

assert DEAD_HEADER_BYTES == 16


class DeadPlace(NamedTuple):
    """Where an entry begins."""

    file: int
    offset: int


class Reason(NamedTuple):
    """Why a record was set aside, so that a lost ledger loses no word of it."""

    lsn: Lsn
    code: str
    message: str
    batch_no: int
    attempts: int
    time_ns: int
    producer: str = ""
    trace: str = ""


class Final(NamedTuple):
    """The end of the chain of a lane whose target has no row: it took effect."""

    lane: tuple[RouteId, int, int]  # route, layout, lane
    batch_no: int
    rev_id: RevisionId
    lsn: Lsn


class Purges(NamedTuple):
    """Dead letters of a lane that were purged, with their records, and where their bodies lay."""

    lane: tuple[RouteId, int, int]  # route, layout, lane
    time_ns: int
    letters: tuple[tuple[Lsn, int, int], ...]  # LSN, records, file


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """What one revision excluded or redrove, and the entry before it in the lane's chain."""

    rev_id: RevisionId
    previous: RevisionId
    excluded: tuple[Record, ...]
    redriven: tuple[Lsn, ...] = ()
    reasons: tuple[Reason, ...] = ()
    dropped: tuple[Lsn, ...] = ()
    final: Final | None = None
    purges: Purges | None = None


class Excluded(NamedTuple):
    """A record that a chain set aside and did not redrive; its value stays in the dead log."""

    place: DeadPlace
    rev_id: RevisionId
    key: str | bytes | None
    record_time_ns: int
    reason: Reason


class Chain(NamedTuple):
    """What a row's ``dead_rev`` leads to.

    ``letters`` are the dead letters of exactly this chain, ``ever`` all that it once set aside,
    ``dropped`` what was purged and is not in it any more.
    """

    letters: Mapping[Lsn, Excluded]
    ever: frozenset[Lsn]
    dropped: frozenset[Lsn] = frozenset()


Entries: TypeAlias = Mapping[RevisionId, tuple[DeadPlace, RevisionId]]


def encode_entry(entry: DeadEntry) -> bytes:
    """Pack an entry with its header."""
    said: dict[str, object] = {
        "rev": entry.rev_id,
        "prev": entry.previous,
        "excluded": [list(record) for record in entry.excluded],
        "redriven": list(entry.redriven),
        "reasons": [list(reason) for reason in entry.reasons],
        "dropped": list(entry.dropped),
    }
    if entry.final is not None:
        said["final"] = list(entry.final)
    if entry.purges is not None:
        said["purges"] = [*entry.purges[:2], [list(each) for each in entry.purges.letters]]
    body = frame.pack_statement(said)
    head = _HEAD.pack(DEAD_MAGIC, DEAD_VERSION, 0, len(body))
    return head + _CRC.pack(frame.crc32c(head + body)) + body


def decode_entry(data: bytes) -> DeadEntry:
    """Unpack an entry from its header on; bytes behind it are not looked at.

    Raises:
        FormatNewer: whole, of a newer version.
        FormatDamaged: torn, or not an entry.
    """
    length, crc = _entry_length(data)
    body = data[DEAD_HEADER_BYTES : DEAD_HEADER_BYTES + length]
    if len(body) != length or frame.crc32c(data[: _HEAD.size] + body) != crc:
        msg = "an entry of the dead log does not match its checksum"
        raise FormatDamaged(msg)
    version = _HEAD.unpack_from(data)[1]
    if version > DEAD_VERSION:
        msg = f"an entry of the dead log has version {version}, this release reads {DEAD_VERSION}"
        raise FormatNewer(msg, needs_format=version, has_format=DEAD_VERSION)
    said = frame.unpack_statement(body)
    try:
        return DeadEntry(
            cast("bytes", said["rev"]),
            cast("bytes", said["prev"]),
            tuple(Record(*row) for row in cast("list[list[object]]", said["excluded"])),  # type: ignore[arg-type]
            tuple(cast("list[int]", said["redriven"])),
            tuple(Reason(*row) for row in cast("list[list[object]]", said.get("reasons", []))),  # type: ignore[arg-type]
            tuple(cast("list[int]", said.get("dropped", []))),
            _final(said.get("final")),
            _purges(said.get("purges")),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = "an entry of the dead log is incomplete"
        raise FormatDamaged(msg) from error


def _final(said: object) -> Final | None:
    if said is None:
        return None
    lane, batch_no, rev_id, lsn = cast("tuple[list[int], int, bytes, int]", said)
    route_id, layout, number = lane
    return Final((route_id, layout, number), batch_no, rev_id, lsn)


def _purges(said: object) -> Purges | None:
    if said is None:
        return None
    lane, time_ns, letters = cast("tuple[list[int], int, list[list[int]]]", said)
    route_id, layout, number = lane
    rows = tuple((lsn, records, file) for lsn, records, file in letters)
    return Purges((route_id, layout, number), time_ns, rows)


def entry_length(head: bytes) -> int:
    """Return how long the body is that follows a header; its checksum is not looked at.

    Raises:
        FormatDamaged: there is no header of an entry.
    """
    return _entry_length(head)[0]


def _entry_length(head: bytes) -> tuple[int, int]:
    if len(head) < DEAD_HEADER_BYTES:
        msg = "an entry of the dead log is cut short"
        raise FormatDamaged(msg)
    magic, _, _, length = _HEAD.unpack_from(head)
    if magic != DEAD_MAGIC or length > limits.DEAD_LOG_ENTRY_MAX_BYTES:
        msg = "there is no entry of the dead log at this place"
        raise FormatDamaged(msg)
    return length, _CRC.unpack_from(head, _HEAD.size)[0]


class DeadLog:
    """Appends entries and reads them back; any thread. The holder of ``ledger.lock`` alone."""

    def __init__(
        self, fs: FileSystem, data_dir: str, *, file_bytes: int = limits.DEAD_LOG_FILE_BYTES
    ) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._directory = f"{data_dir}/dead"
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._file: File | None = None
        self._number = 0
        self._end = 0

    def append(self, entry: DeadEntry) -> DeadPlace:
        """Add an entry; durable on return.

        Raises:
            DiskFull: there is no room; the entry does not count.
            LedgerFailed: it cannot be written; the entry does not count.
        """
        data = encode_entry(entry)
        with self._lock:
            try:
                return self._append(data)
            except OSError as error:
                self._drop_file()
                if error.errno in _NO_ROOM:
                    msg = "no room for the dead log"
                    raise DiskFull(msg, retry_after_s=limits.RETRY_CAP_S) from error
                msg = f"the dead log cannot be written: {error.strerror}"
                raise LedgerFailed(msg) from error

    def _append(self, data: bytes) -> DeadPlace:
        if self._file is None or self._end >= self._file_bytes:
            self._begin_file()
        assert self._file is not None
        place = DeadPlace(self._number, self._end)
        self._file.pwritev([data], self._end)
        self._file.sync()
        self._end = _aligned(self._end + len(data))
        return place

    def _begin_file(self) -> None:
        self._drop_file()
        if self._fs.stat(self._directory) is None:
            self._fs.make_directory(self._directory)
        self._fs.sync_directory(self._data_dir)
        number = max([self._number, *self.files()]) + 1
        self._file = self._fs.create(self._path(number))
        self._fs.sync_directory(self._directory)
        self._number, self._end = number, 0

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, place: DeadPlace) -> DeadEntry:
        """Return the entry at a place.

        Raises:
            FormatDamaged: it is not there, or not whole.
        """
        try:
            file = self._fs.open(self._path(place.file))
        except FileNotFoundError as error:
            msg = f"the dead log's file {place.file} is not there"
            raise FormatDamaged(msg, file=place.file) from error
        try:
            return _read_at(file, place.offset)[0]
        finally:
            file.close()

    def entries(self) -> Iterator[tuple[DeadPlace, DeadEntry]]:
        """Yield all whole entries, oldest first; one that is torn or damaged hides no other."""
        for number in self.files():
            file = self._fs.open(self._path(number))
            try:
                offset = 0
                while offset < file.size():
                    try:
                        entry, end = _read_at(file, offset)
                    except FormatDamaged:
                        offset = behind_damage(file, offset)
                        continue
                    yield DeadPlace(number, offset), entry
                    offset = next_offset(file, end)
            finally:
                file.close()

    def walk(self, dead_rev: RevisionId, known: Entries | None = None) -> Chain | None:
        """Follow a chain from its newest entry back, then carry it out, oldest first.

        Returns None if an entry is missing or not whole: nobody knows then what it set aside.
        ``known`` is what ``index`` returned, for several walks.
        """
        steps = self.steps(dead_rev, known)
        if steps is None:
            return None
        letters: dict[Lsn, Excluded] = {}
        ever: set[Lsn] = set()
        dropped: set[Lsn] = set()
        for place in reversed(steps):
            entry = self.read(place)
            reasons = {reason.lsn: reason for reason in entry.reasons}
            for record in entry.excluded:
                why = reasons.get(record.lsn) or Reason(record.lsn, UNKNOWN_REASON, "", 0, 0, 0)
                letters[record.lsn] = Excluded(place, entry.rev_id, record.key, record.time_ns, why)
                ever.add(record.lsn)
            for lsn in entry.redriven:
                letters.pop(lsn, None)
            dropped.update(entry.dropped)
        return Chain(letters, frozenset(ever | dropped), frozenset(dropped))

    def index(self) -> Entries:
        """Return where each revision's entry is, and the one before it; the newest counts."""
        return {entry.rev_id: (place, entry.previous) for place, entry in self.entries()}

    def finals(self) -> list[Final]:
        """Return the revisions that are known to have taken effect where there is no row."""
        return [entry.final for _, entry in self.entries() if entry.final is not None]

    def purges(self) -> list[tuple[DeadPlace, Purges]]:
        """Return what was purged and where that is told, oldest first, as far as it is kept."""
        return [(at, entry.purges) for at, entry in self.entries() if entry.purges is not None]

    def steps(self, dead_rev: RevisionId, known: Entries | None = None) -> list[DeadPlace] | None:
        """Return where the entries of a chain are, newest first; None if one is missing."""
        steps, missing = self.trace(dead_rev, known)
        return steps if missing == NO_REVISION else None

    def trace(
        self, dead_rev: RevisionId, known: Entries | None = None
    ) -> tuple[list[DeadPlace], RevisionId]:
        """Return the entries of a chain up to the first that is missing, and its revision."""
        if dead_rev == NO_REVISION:
            return [], NO_REVISION
        left = dict(self.index() if known is None else known)
        steps: list[DeadPlace] = []
        while dead_rev != NO_REVISION:
            found = left.pop(dead_rev, None)  # an entry is passed once: a circle ends here
            if found is None:
                return steps, dead_rev
            steps.append(found[0])
            dead_rev = found[1]
        return steps, NO_REVISION

    def find(self, lsns: Collection[Lsn]) -> dict[Lsn, DeadPlace]:
        """Look through all entries for bodies; the newest of each. For places that lead nowhere."""
        return {
            record.lsn: place
            for place, entry in self.entries()
            for record in entry.excluded
            if record.lsn in lsns
        }

    def bodies(self) -> frozenset[Lsn]:
        """Return which records have a body in any entry, of whatever route."""
        return frozenset(record.lsn for _, entry in self.entries() for record in entry.excluded)

    def roll(self) -> int:
        """Go on in a new file; return its number: every entry so far lies in older ones."""
        with self._lock:
            try:
                self._begin_file()
            except OSError as error:
                self._drop_file()
                msg = f"the dead log cannot be written: {error.strerror}"
                raise LedgerFailed(msg) from error
            return self._number

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove files that nothing leads to, never the one that is written."""
        with self._lock:
            gone = [number for number in numbers if number != self._number]
            for number in gone:
                self._fs.unlink(self._path(number))
            if gone:
                self._fs.sync_directory(self._directory)

    def size_bytes(self, since: int = 0) -> int:
        """Return how large the files are, from a number on."""
        stats = [self._fs.stat(self._path(number)) for number in self.files() if number >= since]
        return sum(stat.size_bytes for stat in stats if stat is not None)

    def files(self) -> Sequence[int]:
        """Return the numbers of the files there are, in order."""
        if self._fs.stat(self._directory) is None:
            return []
        names = self._fs.list_directory(self._directory)
        return sorted(
            int(name[5:15])
            for name in names
            if name.startswith("dead-") and name.endswith(".log") and name[5:15].isdigit()
        )

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._lock:
            self._drop_file()

    def _path(self, number: int) -> str:
        return f"{self._directory}/dead-{number:010d}.log"


def next_offset(file: File, end: int) -> int:
    """Return where the entry begins that follows one which ends here, if there is another one."""
    return end if _begins_at(file, end) else _aligned(end)


def behind_damage(file: File, offset: int) -> int:
    """Return where an entry may begin behind one that cannot be read; the file's end if nowhere.

    The length that it tells is tried first: its body may hold what looks like an entry.
    """
    size = file.size()
    head = read_around(file, DEAD_HEADER_BYTES, offset)
    with contextlib.suppress(FormatDamaged):
        end = offset + DEAD_HEADER_BYTES + entry_length(head)
        at = next_offset(file, end)
        if end <= size and (at >= size or _begins_at(file, at)):
            return at
    at = _aligned(offset + 1)
    while at < size and not _begins_at(file, at):
        at += DEAD_ALIGNMENT_BYTES
    return at


def _begins_at(file: File, offset: int) -> bool:
    return read_around(file, _MAGIC.size, offset) == _MAGIC.pack(DEAD_MAGIC)


def _aligned(offset: int) -> int:
    return -(-offset // DEAD_ALIGNMENT_BYTES) * DEAD_ALIGNMENT_BYTES


def _read_at(file: File, offset: int) -> tuple[DeadEntry, int]:
    length, _ = _entry_length(read_around(file, DEAD_HEADER_BYTES, offset))
    size = DEAD_HEADER_BYTES + length
    return decode_entry(read_around(file, size, offset)), offset + size
