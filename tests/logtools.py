"""What the tests of the log share: groups to append, and an independent look at the files."""

from random import Random

from wald.core import body, frame, state
from wald.core.events import APPEND_CODEC
from wald.core.frame import BlockKind, Section, SectionKind
from wald.model import Frontier
from wald.ports import Chance, Clock, FileSystem
from wald.storage import recover
from wald.storage import segment as segments
from wald.storage.log import Log, LogOptions
from wald.storage.segment import BlockReader
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem

DATA = "/var/wald"
SMALL = LogOptions(
    segment_bytes=64 * 1024,
    retain_after_delivery_s=0.0,
    retain_after_delivery_bytes=0,
    pool_max_segments=2,
    reserve_bytes=0,
)
SESSION = 7
STREAM = 1


def new_fs(seed: int = 1, **kwargs) -> SimFileSystem:
    return SimFileSystem(Random(seed), directories=("/var",), **kwargs)


def open_log(
    fs: FileSystem,
    *,
    clock: Clock | None = None,
    chance: Chance | None = None,
    options: LogOptions = SMALL,
    data_dir: str = DATA,
) -> Log:
    return Log.open(fs, data_dir, clock or ManualClock(), chance or Random(5), options)


def first_group(name: str = "orders") -> list[Section]:
    """A stream, a session and a route."""
    route = state.RouteState(1, name, STREAM, "target", "digest", 0, 0, 0)
    return [
        state.stream_opened(STREAM, name),
        state.session_issued(SESSION, "producer"),
        state.route_birth(route),
    ]


def append(sequence: int, *values: bytes, answered: int = 0, session: int = SESSION) -> Section:
    """One request as a section."""
    data = body.encode(body.Body(0, list(values)))
    entry = frame.RequestEntry(len(values), len(values), len(data), frame.crc32c(data))
    return Section(
        SectionKind.APPEND,
        APPEND_CODEC,
        STREAM,
        session,
        sequence,
        answered,
        len(values),
        frame._REQUEST.pack(*entry),
        (),
        data,
    )


def records_on_disk(
    fs: FileSystem, log_id: bytes, frontier: Frontier, data_dir: str = DATA
) -> dict[int, bytes]:
    """Read what the files hold up to the frontier, by headers alone, as a drainer would."""
    log_dir = f"{data_dir}/log"
    numbers = [n for n in map(segments.segment_number, fs.list_directory(log_dir)) if n]
    found = recover.find_segments(fs, data_dir, sorted(numbers), log_id)
    lineage = recover.lineage_of([item for item in found if item.number <= frontier.segment])
    seen: dict[int, bytes] = {}
    for index, item in enumerate(lineage):
        limit = recover.limit_of(lineage, index)
        if item.number == frontier.segment:
            limit = frontier.end_bytes
        file = fs.open(segments.segment_path(data_dir, item.number))
        for block in BlockReader(file, item.number, log_id, item.header, limit):
            if block.payload is None or block.header.kind is not BlockKind.RECORDS:
                continue
            lsn = block.header.first_lsn
            for section in block.sections():
                if section.kind is SectionKind.APPEND:
                    for value in body.decode(section.bodies).values:
                        assert lsn not in seen, f"LSN {lsn} twice"
                        seen[lsn] = value
                        lsn += 1
        file.close()
    return seen
