"""What is left of any file of a data directory: each record that can still be read.

A file of the log, a packed one or one of the dead log, in its place, in ``quarantine/`` or copied
elsewhere. What cannot be read is said where it stood, and reading goes on behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from wald.core import body, frame
from wald.core import packed as codec
from wald.core.frame import Section, SectionKind, SegmentKind
from wald.core.packed import PackedHead
from wald.core.state import LogState
from wald.errors import DataDirectoryForeign, DataDirectoryUnusable, FormatDamaged, InputError
from wald.model import Lsn, Record, StreamId
from wald.ports import File, FileSystem
from wald.storage import deadlog, segment
from wald.storage import identity as identities
from wald.storage.deadlog import DEAD_HEADER_BYTES
from wald.storage.packed import read_tail
from wald.storage.segment import BlockReader, SeenBlock, read_around


@dataclass(frozen=True, slots=True)
class Found:
    """A record, and its stream: the id, 0 where the file does not say it, and the name likewise."""

    stream_id: StreamId
    stream: str
    record: Record


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that cannot be read: where, why, and which LSNs, as far as anything says so."""

    offset_bytes: int
    reason: str
    first_lsn: Lsn = 1
    last_lsn: Lsn = 0


Item: TypeAlias = Found | Gap

_BESIDE = "put it into a directory log/, and a copy of its data directory's identity beside that"


def read_file(fs: FileSystem, path: str) -> Iterator[Item]:
    """Yield what a file holds, in its order.

    Raises:
        DataDirectoryUnusable: it cannot be opened.
        InputError: its name is none of a file of wald.
        FormatNewer: a newer release wrote it.
    """
    name = PurePosixPath(path).name
    try:
        file = fs.open(path)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise DataDirectoryUnusable(msg, path=path) from error
    try:
        if segment.segment_number(name) is not None:
            yield from _segment(fs, path, file)
        elif name.startswith("dead-"):
            yield from _dead(file)
        elif name.startswith("pack-"):
            yield from _packed(file)
        else:
            msg = f"{path} is no file of a log, no packed file and none of a dead log"
            raise InputError(msg, hint="such are log/seg-*.wal, packed/*, archive/*, dead/dead-*")
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise DataDirectoryUnusable(msg, path=path) from error
    finally:
        file.close()


# --- the log ------------------------------------------------------------------------------------


def _segment(fs: FileSystem, path: str, file: File) -> Iterator[Item]:
    number = segment.segment_number(PurePosixPath(path).name)
    assert number is not None
    header = segment.read_header(file).header
    if header is None:
        yield Gap(0, "the segment's header does not match its checksum")
    elif header.kind is SegmentKind.PREP:
        return
    log_id = _log_id_beside(fs, path) if header is None else header.log_id
    state = LogState()
    before = None if header is None else header.pred_last_lsn
    end = 0 if header is None else header.alignment
    for block in BlockReader(file, number, log_id, header):
        if before is not None and block.header.prev_lsn > before:
            yield Gap(end, "blocks between cannot be read", before + 1, block.header.prev_lsn)
        if block.payload is None:
            lsns = (block.header.first_lsn, block.header.last_lsn)
            yield Gap(block.header.offset, "the payload does not match its checksum", *lsns)
        else:
            try:
                yield from _block(block, state)
            except FormatDamaged as damage:
                yield Gap(block.header.offset, damage.message)
        before, end = block.header.last_lsn, block.header.offset


def _log_id_beside(fs: FileSystem, path: str) -> bytes:
    """Return the log's id of the data directory that a file lies in."""
    directory = str(PurePosixPath(path).parent.parent)
    try:
        return identities.required(fs, directory).log_id
    except (FormatDamaged, DataDirectoryForeign, DataDirectoryUnusable) as error:
        msg = f"{path}: its header is damaged, and {directory} has no identity that says its log"
        raise DataDirectoryUnusable(msg, hint=_BESIDE, path=path) from error


def _block(block: SeenBlock, state: LogState) -> Iterator[Found]:
    lsn, time_ns = block.header.first_lsn, block.header.commit_time_ns
    for section in block.sections():
        if section.kind is not SectionKind.APPEND:
            state.apply(section, lsn, time_ns)  # snapshots and statements name the streams
            continue
        stream = state.streams.get(section.stream)
        for record in records_of(section, lsn, time_ns):
            yield Found(section.stream, "" if stream is None else stream.name, record)
        lsn += section.records


def records_of(section: Section, lsn: Lsn, time_ns: int) -> Iterator[Record]:
    """Yield the records of a section of which the first has this LSN.

    Raises:
        FormatDamaged: a body is not what it should be.
    """
    at = 0
    for entry in frame.request_entries(section):
        data = section.bodies[at : at + entry.body_length]
        at += entry.body_length
        if entry.stored:
            columns = body.decode(data)
            if len(columns.values) != entry.stored:
                msg = "a request does not hold the records that its section says"
                raise FormatDamaged(msg)
            lsns = range(lsn, lsn + entry.stored)
            yield from body.records(time_ns, lsns, columns)
        lsn += entry.stored


# --- packed files, the dead log -----------------------------------------------------------------


def _packed(file: File) -> Iterator[Item]:
    try:
        head = _packed_head(file)
    except FormatDamaged as damage:
        yield Gap(0, damage.message)
        return
    offset = codec.PACKED_HEAD_BYTES
    size = file.size()
    while offset < size:
        chunk = codec.decode_chunk_header(read_around(file, codec.CHUNK_HEADER_BYTES, offset))
        if chunk is None or chunk.offset != offset:
            return  # the tail begins here, or what says where the next chunk is
        stored = read_around(file, chunk.stored_length, offset + codec.CHUNK_HEADER_BYTES)
        try:
            for entry in codec.decode_chunk(chunk, stored):
                yield from _entry(entry, head, offset)
        except FormatDamaged as damage:
            yield Gap(offset, damage.message)
        offset = chunk.end


def _entry(entry: codec.Entry, head: PackedHead, offset: int) -> Iterator[Item]:
    if not isinstance(entry, codec.PackedBlock):
        yield Gap(offset, entry.reason, entry.first_lsn, entry.last_lsn)
        return
    for lsn, section in entry.sections:
        for record in records_of(section, lsn, entry.anchor.commit_time_ns):
            yield Found(head.stream_id, "", record)


def _packed_head(file: File) -> PackedHead:
    try:
        return codec.decode_head(read_around(file, codec.PACKED_HEAD_BYTES, 0))
    except FormatDamaged:
        return read_tail(file).head  # it has it too


def _dead(file: File) -> Iterator[Item]:
    offset, size = 0, file.size()
    while offset < size:
        head = read_around(file, DEAD_HEADER_BYTES, offset)
        try:
            length = DEAD_HEADER_BYTES + deadlog.entry_length(head)
            entry = deadlog.decode_entry(read_around(file, length, offset))
        except FormatDamaged as damage:
            yield Gap(offset, damage.message)
            offset = deadlog.behind_damage(file, offset)
            continue
        for record in entry.excluded:
            yield Found(0, "", record)
        offset = deadlog.next_offset(file, offset + length)
