"""The records of a stream from a past range, wherever they lie: packed files, archive, log.

Works beside a running drainer, which may pack, merge and delete files meanwhile: the directories
say what there is at any moment.
"""

from collections.abc import Iterator

from wald import limits
from wald.core.batching import Bounds
from wald.core.lanes import Share
from wald.core.packing import of_stream
from wald.drainer.reader import LaneReader
from wald.model import Frontier, LostRange, Lsn, PackedRange, Record, StreamId
from wald.ports import Clock, FileSystem
from wald.storage.packed import named_packed

_BOUNDS = Bounds(limits.BATCH_MAX_RECORDS, limits.GROUP_MAX_BYTES, 0.0)


def open_records(  # noqa: PLR0913 - the doors of a reader, and what it reads
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    clock: Clock,
    *,
    stream_id: StreamId,
    after: Lsn,
    until: Lsn,
    frontier: Frontier,
) -> Iterator[Record | LostRange]:
    """Yield a stream's records above one LSN up to another, in order; and what is lost of them.

    Memory is bounded by a batch and a block. What was retired and neither packed nor archived is
    a loss like damage: a ``LostRange``, in its place.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        log_id: 16 bytes.
        clock: time.
        stream_id: whose records.
        after: the LSN before the first.
        until: the last LSN; what lies above the frontier is not there yet.
        frontier: the newest.

    Raises:
        FormatNewer: a newer release wrote a file.
        DataDirectoryForeign: a packed file is of another log.
        OSError: as the system does.
    """

    def files() -> list[PackedRange]:
        return of_stream(named_packed(fs, data_dir), stream_id)

    reader = LaneReader(
        fs,
        data_dir,
        log_id,
        clock,
        stream=stream_id,
        after=after,
        share=Share(until=until),
        files=files,
    )
    try:
        while not reader.is_empty or reader.through < min(until, frontier.lsn):
            reader.fill(frontier, _BOUNDS)
            if reader.is_empty:
                yield from reader.take_lost()
                return
            batch = reader.take(_BOUNDS)
            found: list[Record | LostRange] = [*batch.lost, *batch.records]
            yield from sorted(found, key=_first_lsn)
    finally:
        reader.close()


def _first_lsn(item: Record | LostRange) -> Lsn:
    return item.lsn if isinstance(item, Record) else item.first_lsn
