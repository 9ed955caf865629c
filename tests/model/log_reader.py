"""A reader of the log that shares nothing with recovery: what a person with the drawing would do.

It goes back from the frontier, from each segment to the one that its header names, and believes no
byte behind the end that the next header gives.
"""

from typing import NamedTuple

from wald.core import frame
from wald.core.frame import (
    BlockHeader,
    BlockKind,
    Section,
    SectionKind,
    SegmentHeader,
    SegmentKind,
)
from wald.errors import FormatDamaged
from wald.model import Frontier, Lsn
from wald.ports import FileSystem


class Misread(AssertionError):
    """The log below its frontier is not what the format says."""


class FoundRequest(NamedTuple):
    """A request in the log; its records have the LSNs from ``first_lsn``."""

    session: int
    sequence: int
    stream: int
    answered_through: int
    first_lsn: Lsn
    records: int
    body: bytes


class FoundLog(NamedTuple):
    """All requests below the frontier, in order, and the LSN before the oldest segment left."""

    requests: list[FoundRequest]
    before_lsn: Lsn
    segments: list[int]


def read_log(fs: FileSystem, data_dir: str, frontier: Frontier) -> FoundLog:
    """Read everything below the frontier."""
    parts: list[list[FoundRequest]] = []
    segments: list[int] = []
    number, end, last_lsn = frontier
    while number:
        path = f"{data_dir}/log/seg-{number:010d}.wal"
        if fs.stat(path) is None:
            break
        file = fs.open(path)
        try:
            data = file.pread(end, 0)
        finally:
            file.close()
        try:
            header = frame.decode_segment_header(data)
        except FormatDamaged:  # torn by a power cut in the roll: no group of it was durable
            number, end = _before_torn_header(fs, data_dir, number, last_lsn)
            continue
        if header.segment != number:
            msg = f"{path} says that it is segment {header.segment}"
            raise Misread(msg)
        if len(data) < end:
            msg = f"{path} is shorter than its end {end}"
            raise Misread(msg)
        found, seen_lsn = _read_segment(data, header, end)
        if seen_lsn != last_lsn:
            msg = f"{path} ends with LSN {seen_lsn}, not {last_lsn}"
            raise Misread(msg)
        parts.append(found)
        segments.append(number)
        number, end, last_lsn = header.pred_segment, header.pred_end, header.pred_last_lsn
    requests = [request for part in reversed(parts) for request in part]
    return FoundLog(requests, last_lsn, segments[::-1])


def _before_torn_header(
    fs: FileSystem, data_dir: str, number: int, last_lsn: Lsn
) -> tuple[int, int]:
    """Return the segment before one whose header is torn, and where it ends."""
    for before in range(number - 1, 0, -1):
        path = f"{data_dir}/log/seg-{before:010d}.wal"
        if fs.stat(path) is None:
            continue
        file = fs.open(path)
        data = file.pread(file.size(), 0)
        file.close()
        header = frame.decode_segment_header(data)
        if header.kind is SegmentKind.PREP:
            continue
        offset = end = header.alignment
        while (block := frame.decode_block_header(data, offset)) is not None:
            if not frame.belongs(block, header, offset) or block.last_lsn > last_lsn:
                break
            offset = end = block.end(header.alignment)
        return before, end
    return 0, 0


def _read_segment(data: bytes, header: SegmentHeader, end: int) -> tuple[list[FoundRequest], Lsn]:
    found: list[FoundRequest] = []
    offset, last_lsn = header.alignment, header.pred_last_lsn
    while offset < end:
        block = frame.decode_block_header(data, offset)
        if block is None or not frame.belongs(block, header, offset):
            msg = f"no block at offset {offset} of segment {header.segment}, below {end}"
            raise Misread(msg)
        payload = data[
            offset + frame.BLOCK_HEADER_BYTES : offset
            + frame.BLOCK_HEADER_BYTES
            + block.payload_length
        ]
        if frame.crc32c(payload) != block.payload_crc:
            msg = f"the payload at {offset} of segment {header.segment} does not match"
            raise Misread(msg)
        if block.prev_lsn != last_lsn:
            msg = f"block at {offset} follows LSN {block.prev_lsn}, not {last_lsn}"
            raise Misread(msg)
        found += _requests_of(block, payload)
        last_lsn = block.last_lsn
        offset = block.end(header.alignment)
    return found, last_lsn


def _requests_of(block: BlockHeader, payload: bytes) -> list[FoundRequest]:
    if block.kind not in {BlockKind.RECORDS, BlockKind.CONTROL}:
        return []
    found: list[FoundRequest] = []
    lsn = block.first_lsn
    for section in frame.decode_sections(payload, block.sections):
        if section.kind is not SectionKind.APPEND:
            continue
        requests = requests_of(section, lsn)
        found += requests
        lsn += section.records
    if lsn != block.first_lsn + block.records:
        msg = f"block of {block.records} records holds {lsn - block.first_lsn}"
        raise Misread(msg)
    return found


def requests_of(section: Section, first_lsn: Lsn) -> list[FoundRequest]:
    """Take a run of requests apart."""
    found: list[FoundRequest] = []
    lsn, at = first_lsn, 0
    for index, entry in enumerate(frame.request_entries(section)):
        body = section.bodies[at : at + entry.body_length]
        whole = entry.records == entry.stored  # else it was packed again, without some records
        if whole and frame.crc32c(body) != entry.body_crc:
            msg = f"request {section.first_sequence + index} does not match its checksum"
            raise Misread(msg)
        found.append(
            FoundRequest(
                section.session,
                section.first_sequence + index,
                section.stream,
                section.answered_through,
                lsn,
                entry.stored,
                body,
            )
        )
        lsn += entry.stored
        at += entry.body_length
    return found


def block_offsets(fs: FileSystem, path: str, end: int) -> list[int]:
    """Return where the blocks of a segment stand."""
    file = fs.open(path)
    data = file.pread(end, 0)
    file.close()
    header = frame.decode_segment_header(data)
    return [
        offset
        for offset in range(header.alignment, end, header.alignment)
        if (block := frame.decode_block_header(data, offset))
        and frame.belongs(block, header, offset)
    ]


def read_leniently(fs: FileSystem, data_dir: str, frontier: Frontier) -> list[FoundRequest]:
    """Read every whole block below the frontier, whatever stands between them."""
    found: list[FoundRequest] = []
    number, end, _ = frontier
    while number and fs.stat(path := f"{data_dir}/log/seg-{number:010d}.wal") is not None:
        file = fs.open(path)
        data = file.pread(end, 0)
        file.close()
        header = frame.decode_segment_header(data)
        for offset in range(header.alignment, end, header.alignment):
            block = frame.decode_block_header(data, offset)
            if block is None or not frame.belongs(block, header, offset):
                continue
            start = offset + frame.BLOCK_HEADER_BYTES
            payload = data[start : start + block.payload_length]
            if frame.crc32c(payload) == block.payload_crc:
                found += _requests_of(block, payload)
        number, end = header.pred_segment, header.pred_end
    return found
