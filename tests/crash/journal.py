"""What ``recorder.c`` wrote down, in order: changes of files and names, and what ingest sent."""

import subprocess
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from wald.core.events import Ack, FrontierMoved
from wald.core.wire import FrameReader, Side
from wald.model import Lsn

_ENTRY = Struct("<IIIIQQQQ")
SOURCE = Path(__file__).with_name("recorder.c")


class Kind(IntEnum):
    """The kinds of entries, as in recorder.c."""

    CREATE = 1
    OPEN = 2
    WRITE = 3
    TRUNCATE = 4
    ALLOCATE = 5
    RENAME = 6
    LINK = 7
    UNLINK = 8
    MKDIR = 9
    RMDIR = 10
    SYNC_BEGIN = 11
    SYNC_END = 12
    SEND = 13
    BROKEN = 14


class Flag(IntFlag):
    """Their flags."""

    DIRECTORY = 1
    DURABLE = 2
    FAILED = 4


class Entry(NamedTuple):
    """One operation. ``path`` and ``target`` are names, ``data`` is what was written or sent."""

    kind: Kind
    process: int
    flags: Flag
    inode: int
    offset: int
    length: int
    path: str
    target: str
    data: bytes


_NAMES = {Kind.CREATE, Kind.OPEN, Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.MKDIR, Kind.RMDIR}


def build_recorder(directory: Path) -> Path:
    """Compile the recorder; ``FileNotFoundError`` where there is no gcc."""
    library = directory / "recorder.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-lpthread"], check=True)
    return library


def read_journal(path: Path) -> list[Entry]:
    """Read a journal whole; a last entry that a killed process left unfinished is left out."""
    data, at, entries = path.read_bytes(), 0, []
    while at + _ENTRY.size <= len(data):
        total, kind, process, flags, inode, offset, length, first = _ENTRY.unpack_from(data, at)
        if at + total > len(data):
            break
        rest = data[at + _ENTRY.size : at + total]
        named = kind in _NAMES
        entries.append(
            Entry(
                Kind(kind),
                process,
                Flag(flags),
                inode,
                offset,
                length,
                rest[:first].decode() if named else "",
                rest[first:].decode() if named else "",
                b"" if named else rest,
            )
        )
        at += total
    return entries


def durable_lsns(entries: list[Entry]) -> Iterator[Lsn]:
    """Yield for each entry the highest LSN that ingest has called durable up to and with it."""
    readers: dict[tuple[int, int], FrameReader] = {}
    highest = 0
    for entry in entries:
        if entry.kind is Kind.SEND:
            place = (entry.process, entry.inode)
            reader = readers.setdefault(place, FrameReader(Side.CLIENT))
            reader.receive_data(entry.data)
            while (event := reader.next_event()) is not None:
                if isinstance(event, Ack):
                    highest = max(highest, event.durable_lsn)
                elif isinstance(event, FrontierMoved):
                    highest = max(highest, event.frontier.lsn)
        yield highest
