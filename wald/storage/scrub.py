"""Reading everything at rest and checking it: packed files, the archive, the dead log.

The log itself is read by ``wald.storage.inspect``. No lock is taken and nothing is changed, so
that it works beside a running daemon: what is deleted or merged meanwhile is left out, and what
is being written is no damage.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wald.core import packed as codec
from wald.errors import DataDirectoryForeign, DataDirectoryUnusable, FormatDamaged
from wald.model import LostRange, Lsn, PackedRange, StreamId
from wald.ports import File, FileSystem
from wald.storage import deadlog
from wald.storage.deadlog import DEAD_HEADER_BYTES, DeadLog
from wald.storage.packed import OpenPack, list_packed, packed_path, read_tail
from wald.storage.segment import read_around

RESTING_DIRECTORIES = ("log", "packed", "archive", "dead")


@dataclass(frozen=True, slots=True)
class FileDamage:
    """Something at rest that does not match its checksum.

    Attributes:
        file: its path in the data directory.
        offset_bytes: where.
        reason: what does not match.
        first_lsn: the first LSN of which nothing can be read; none if ``last_lsn`` is below it.
        last_lsn: the last one.
        records: how many records that are; None if nobody knows.
    """

    file: str
    offset_bytes: int
    reason: str
    first_lsn: Lsn = 1
    last_lsn: Lsn = 0
    records: int | None = None


@dataclass(frozen=True, slots=True)
class RestingFile:
    """A packed file or a file of the dead log, and how much is in it: records, or entries."""

    file: str
    size_bytes: int
    count: int
    stream_id: StreamId = 0
    lo: Lsn = 0
    hi: Lsn = 0


@dataclass(frozen=True, slots=True)
class RestReport:
    """What lies beside the log.

    Attributes:
        packed: packed files and archive.
        dead: the files of the dead log.
        damages: what is wrong with them; empty if all is well.
    """

    packed: tuple[RestingFile, ...]
    dead: tuple[RestingFile, ...]
    damages: tuple[FileDamage, ...]


def inspect_rest(fs: FileSystem, data_dir: str, log_id: bytes) -> RestReport:
    """Read packed files, archive and dead log, and say what they hold and what is damaged.

    Raises:
        DataDirectoryUnusable: they cannot be read.
        FormatNewer: a newer release wrote one.
    """
    try:
        damages: list[FileDamage] = []
        packed = tuple(_packed(fs, data_dir, log_id, damages))
        dead = tuple(_dead(fs, data_dir, damages))
    except OSError as error:
        msg = f"cannot read the data directory {data_dir}: {error.strerror or error}"
        raise DataDirectoryUnusable(
            msg, hint="it is its daemon's: run the command as that user or root", path=data_dir
        ) from error
    return RestReport(packed, dead, tuple(damages))


# --- packed files -------------------------------------------------------------------------------


def _packed(
    fs: FileSystem, data_dir: str, log_id: bytes, damages: list[FileDamage]
) -> Iterator[RestingFile]:
    for packed in list_packed(fs, data_dir):
        path = packed_path(data_dir, packed)
        name = path.removeprefix(f"{data_dir}/")
        try:
            file = fs.open(path)
        except FileNotFoundError:
            continue
        try:
            found = list(_copies(file, name))
        finally:
            file.close()
        try:
            found += _chunks(fs, data_dir, log_id, packed, name)
        except DataDirectoryForeign:
            found.append(FileDamage(name, 0, "it is of another log, or not what its name says"))
        if fs.stat(path) is not None:
            damages += found
            rest = (packed.stream_id, packed.lo, packed.hi)
            yield RestingFile(name, packed.size_bytes, packed.records, *rest)


def _chunks(
    fs: FileSystem, data_dir: str, log_id: bytes, packed: PackedRange, name: str
) -> Iterator[FileDamage]:
    """Yield the chunks of which nothing can be read."""
    pack = OpenPack(fs, data_dir, log_id, packed)
    try:
        for span in pack.spans:
            lost = pack.load(span)
            if isinstance(lost, LostRange):
                reason = lost.reason.partition(": ")[2]
                lsns = (lost.first_lsn, lost.last_lsn)
                yield FileDamage(name, lost.offset_bytes, reason, *lsns, lost.records)
    finally:
        pack.close()


def _copies(file: File, name: str) -> Iterator[FileDamage]:
    """Yield what is damaged of head, chunk headers and tail: each stands there twice."""
    try:
        codec.decode_head(read_around(file, codec.PACKED_HEAD_BYTES, 0))
    except FormatDamaged as damage:
        yield FileDamage(name, 0, f"{damage.message}; the tail has it too")
    try:
        chunks = read_tail(file).chunks
    except FormatDamaged as damage:
        yield FileDamage(name, file.size(), f"{damage.message}; the chunks tell the same")
        return
    for chunk in chunks:
        data = read_around(file, codec.CHUNK_HEADER_BYTES, chunk.offset)
        if codec.decode_chunk_header(data) != chunk:
            reason = "the header of a packed chunk does not match; the tail has it too"
            yield FileDamage(name, chunk.offset, reason)


# --- the dead log -------------------------------------------------------------------------------


def _dead(fs: FileSystem, data_dir: str, damages: list[FileDamage]) -> Iterator[RestingFile]:
    for number in DeadLog(fs, data_dir).files():
        name = f"dead/dead-{number:010d}.log"
        try:
            file = fs.open(f"{data_dir}/{name}")
        except FileNotFoundError:
            continue
        try:
            yield RestingFile(name, file.size(), _entries(file, name, damages))
        finally:
            file.close()


def _entries(file: File, name: str, damages: list[FileDamage]) -> int:
    """Count whole entries. One cut short by the end was being written, and never counted."""
    offset = entries = 0
    size = file.size()
    while offset < size:
        head = read_around(file, DEAD_HEADER_BYTES, offset)
        try:
            length = DEAD_HEADER_BYTES + deadlog.entry_length(head)
            deadlog.decode_entry(read_around(file, length, offset))
        except FormatDamaged as damage:
            behind = deadlog.behind_damage(file, offset)
            if behind < size or not _is_cut_short(head, size - offset):
                damages.append(FileDamage(name, offset, damage.message))
            offset = behind
            continue
        offset = deadlog.next_offset(file, offset + length)
        entries += 1
    return entries


def _is_cut_short(head: bytes, left: int) -> bool:
    if len(head) < DEAD_HEADER_BYTES:
        return True
    try:
        return DEAD_HEADER_BYTES + deadlog.entry_length(head) > left
    except FormatDamaged:
        return False
