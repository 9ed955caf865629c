"""Making one packed file, a step at a time: from packed files and the log to a new file."""

from collections.abc import Iterator

from wald import limits
from wald.core import frame
from wald.core.packed import PackedHead
from wald.core.packing import PackJob
from wald.errors import DiskFull
from wald.model import Frontier, LostRange, PackedRange
from wald.ports import FileSystem
from wald.storage.packed import PackWriter
from wald.storage.stream import Files, StreamReader
from wald.storage.tail import SEGMENT_GONE, TailBlock


class PackRun:
    """Carries one job out. Either the last ``step`` or ``abandon`` ends it; one thread.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        log_id: 16 bytes.
        job: what to make.
        files: the packed files of the stream, at the moment it is called.
        frontier: above everything that the job asks for.
        created_ns: now, for the head.

    Raises:
        OSError: as the system does, from every method; ``abandon`` then.
    """

    def __init__(  # noqa: PLR0913 - a composition of ports
        self,
        fs: FileSystem,
        data_dir: str,
        log_id: bytes,
        job: PackJob,
        *,
        files: Files,
        frontier: Frontier,
        created_ns: int,
    ) -> None:
        assert job.hi < frontier.lsn or frontier.segment > job.segment, "the segment is in use"
        self.job = job
        self._fs = fs
        self._data_dir = data_dir
        self._reader = StreamReader(
            fs, data_dir, log_id, stream=job.stream_id, after=job.lo, files=files
        )
        self._items: Iterator[TailBlock | LostRange] = self._reader.read(frontier)
        head = PackedHead(log_id, job.stream_id, job.lo, job.hi, job.segment, created_ns)
        self._writer = PackWriter(fs, data_dir, head, archive=job.archive)

    def step(self, most_bytes: int) -> PackedRange | None:
        """Go on until so many bytes were read; return the file once it is durable, else None.

        Raises:
            DiskFull: room gets short; what is there of the file is of no use.
            Stale: what the job asks for is not there any more.
            FormatNewer: an older packed file is of a newer release.
        """
        self._check_room()
        read_bytes = 0
        while self._reader.cursor < self.job.hi:
            if read_bytes >= most_bytes:
                return None
            item = next(self._items, None)
            if item is None or (isinstance(item, LostRange) and item.reason == SEGMENT_GONE):
                raise Stale
            read_bytes += _cost_bytes(item)
            self._writer.add(item)
        self._reader.close()
        return self._writer.finish()

    def abandon(self) -> None:
        """Leave nothing behind; harmless to repeat."""
        self._reader.close()
        self._writer.abandon()

    def _check_room(self) -> None:
        free = self._fs.free_bytes(self._data_dir)
        if free < limits.PACK_SPARE_BYTES:
            msg = f"only {free:,} bytes are free: nothing is packed"
            raise DiskFull(msg, retry_after_s=limits.RETRY_CAP_S)


class Stale(Exception):
    """What a job asks for was passed by every route meanwhile, and retired."""


def _cost_bytes(item: TailBlock | LostRange) -> int:
    if isinstance(item, LostRange):
        return limits.ALIGNMENT_MIN_BYTES
    payload = sum(len(section.bodies) for _, section in item.sections)
    return frame.block_bytes(max(payload, item.header.payload_length), limits.ALIGNMENT_MIN_BYTES)
