"""The closed segments of a log: each header names its predecessor and where that ended."""

from collections.abc import Sequence
from typing import NamedTuple

from wald.core.frame import SegmentHeader, SegmentKind
from wald.core.retention import FinishedSegment
from wald.model import Frontier
from wald.ports import FileSystem
from wald.storage.segment import (
    LOG_DIRECTORY,
    POOL_DIRECTORY,
    read_header,
    segment_number,
    segment_path,
)


class Finished(NamedTuple):
    """The closed segments, oldest first.

    ``complete`` is False where there are older ones that cannot be put in order, or none at all
    are known: then nothing may be concluded from a segment that is not among them.
    ``log_bytes`` is what all files of the log take, prepared and retired ones too.
    """

    segments: Sequence[FinishedSegment]
    complete: bool
    log_bytes: int = 0


class FinishedSegments:
    """Finds them beside a running ingest; remembers headers, which do not change. One thread."""

    def __init__(self, fs: FileSystem, data_dir: str, log_id: bytes) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._log_id = log_id
        self._headers: dict[int, SegmentHeader] = {}

    def find(self, frontier: Frontier) -> Finished:
        """Return the segments before the frontier's own.

        Raises:
            FormatNewer: one is of a newer release.
            OSError: as the system does.
        """
        names = self._fs.list_directory(f"{self._data_dir}/{LOG_DIRECTORY}")
        present = set(filter(None, map(segment_number, names)))
        self._headers = {n: each for n, each in self._headers.items() if n in present}
        found: list[FinishedSegment] = []
        number, last_lsn = frontier.segment, frontier.lsn
        oldest = number
        while number in present:
            header = self._header(number)
            stat = self._fs.stat(segment_path(self._data_dir, number))
            if header is None or stat is None:
                break
            before = header.pred_last_lsn
            found.append(FinishedSegment(number, before, last_lsn, stat.size_bytes))
            oldest, number, last_lsn = number, header.pred_segment, before
        complete = bool(found) and min(present) >= oldest
        return Finished(found[:0:-1], complete, self._log_bytes(names))

    def _log_bytes(self, names: Sequence[str]) -> int:
        log, pool = (f"{self._data_dir}/{name}" for name in (LOG_DIRECTORY, POOL_DIRECTORY))
        pooled = self._fs.list_directory(pool) if self._fs.stat(pool) is not None else []
        paths = [f"{log}/{name}" for name in names] + [f"{pool}/{name}" for name in pooled]
        stats = filter(None, map(self._fs.stat, paths))
        return sum(stat.size_bytes for stat in stats if not stat.is_directory)

    def _header(self, number: int) -> SegmentHeader | None:
        """Return the header of a segment in use; None where there is none to be read."""
        known = self._headers.get(number)
        if known is not None:
            return known
        try:
            file = self._fs.open(segment_path(self._data_dir, number))
        except FileNotFoundError:
            return None
        try:
            header = read_header(file).header
        finally:
            file.close()
        ours = header is not None and (header.segment, header.log_id) == (number, self._log_id)
        if header is None or not ours or header.kind is SegmentKind.PREP:
            return None
        self._headers[number] = header
        return header
