"""The fresh path: a new segment that takes the place of one whose last bytes are in doubt."""

from collections.abc import Callable, Iterable

from wald import limits
from wald.core.frame import Section, SegmentHeader, SegmentKind
from wald.core.recovery import Predecessor
from wald.model import Lsn
from wald.ports import File
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.identity import Identity
from wald.storage.prepare import Place, disk_full, is_full, quietly
from wald.storage.segment import Draft, SegmentWriter


def fresh_header(
    place: Place, number: int, predecessor: Predecessor, first_lsn: Lsn
) -> SegmentHeader:
    """Return the header of a fresh segment."""
    return SegmentHeader(
        SegmentKind.FRESH,
        place.alignment,
        place.log_id,
        number,
        place.salt(),
        first_lsn,
        predecessor.segment,
        predecessor.end_bytes,
        predecessor.last_lsn,
        place.clock.wall_ns(),
    )


def make_fresh(
    place: Place,
    header: SegmentHeader,
    snapshot: Iterable[Section],
    group: Draft | None,
    release_one: Callable[[], bool],
) -> SegmentWriter:
    """Make a fresh segment; when this returns, all of it and its name are durable.

    Temporary file, header, snapshot, the group in doubt, sync; final name; directory sync;
    identity. In that order, and from there on the log goes on in it.

    Args:
        place: where.
        header: its header.
        snapshot: the state before ``group``.
        group: the group in doubt, with the LSNs, payload and commit time that it had.
        release_one: gives room back to the file system; False when there is none to give.

    Raises:
        DiskFull: there is no room even for what must be written.
        OSError: as the system does.
    """
    fs = place.fs
    path = f"{place.log_dir}/fresh-{header.segment:010d}{segments.TEMPORARY_SUFFIX}"
    writer = SegmentWriter(header)
    writer.stage_snapshot(snapshot, place.clock.wall_ns())
    if group is not None:
        writer.stage(group)
    file = fs.create(path)
    try:
        writer.attach(file, _allocate(place, file, writer.need_bytes, release_one))
        _zero_ahead(file, writer)
        writer.flush()
        fs.rename(path, place.path(header.segment))
        fs.sync_directory(place.log_dir)
        identities.write(fs, place.data_dir, identity_of(place, header.segment))
    except BaseException:
        file.close()
        raise
    return writer


def identity_of(place: Place, segment: int) -> Identity:
    """Return what the identity file shall say from now on."""
    found = place.fs.stat(place.data_dir)
    return Identity(
        place.log_id, segment, place.fs.machine_id(), 0 if found is None else found.inode
    )


def _allocate(place: Place, file: File, need_bytes: int, release_one: Callable[[], bool]) -> int:
    """Reserve room: a whole segment; on a full disk with the pool's, else only what is needed.

    A log that starts may use the reserve: with a little room it serves duplicates, frontier and
    drainer, and refuses appends by type until there is more.
    """
    for wanted in (max(place.segment_bytes, need_bytes), need_bytes):
        while True:
            try:
                file.allocate(0, wanted)
            except OSError as error:
                if not is_full(error):
                    raise
                if not release_one():
                    break
            else:
                return wanted
    raise disk_full(place.data_dir, "a fresh segment")


def _zero_ahead(file: File, writer: SegmentWriter) -> None:
    """Fill what is written next with zeros: the first groups must not wait for the steps.

    The sync of the header makes it durable with the rest.
    """
    begin = writer.need_bytes
    end = min(writer.capacity_bytes, begin + limits.FRESH_ZERO_BYTES)
    for offset in range(begin, end, limits.ZERO_STEP_BYTES):
        file.pwritev([bytes(min(limits.ZERO_STEP_BYTES, end - offset))], offset)


def cut_tail(place: Place, number: int, end_bytes: int) -> None:
    """Give back what a finished segment does not use; harmless if it cannot be done."""

    def cut() -> None:
        file = place.fs.open(place.path(number), write=True)
        try:
            if file.size() > end_bytes:
                file.truncate(end_bytes)
        finally:
            file.close()

    quietly(cut)
