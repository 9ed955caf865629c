"""What the tests of packing share: a log of small segments with two streams, and its packing."""

from dataclasses import dataclass, field
from random import Random

from tests.logtools import DATA, SESSION, append, new_fs, open_log
from wald.core import body, frame, state
from wald.core.packing import PackJob, of_stream
from wald.core.retention import FinishedSegment
from wald.model import Frontier, LostRange, PackedRange
from wald.storage.finished import FinishedSegments
from wald.storage.log import Log
from wald.storage.repack import PackRun
from wald.storage.stream import StreamReader
from wald.testing import SimFileSystem

ROUTES = {1: 11, 2: 12}  # a route for each stream


@dataclass
class PackedLog:
    """A log on a simulated disk; two streams with a route each, packed by hand."""

    fs: SimFileSystem = field(default_factory=new_fs)
    files: list[PackedRange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log: Log = open_log(self.fs)
        self.sequence = 0
        self.values: dict[int, dict[int, bytes]] = {1: {}, 2: {}}
        self.log.append_group([state.session_issued(SESSION, "producer")])
        for stream, name in ((1, "orders"), (2, "clicks")):
            route = state.RouteState(ROUTES[stream], name, stream, name, "digest", 0, 0, 0)
            self.log.append_group([state.stream_opened(stream, name), state.route_birth(route)])

    @property
    def frontier(self) -> Frontier:
        return self.log.frontier

    def add(self, stream: int, *values: bytes) -> int:
        """Append a group of one request; return its last LSN."""
        self.sequence += 1
        section = append(self.sequence, *values)._replace(stream=stream)
        self.log.preallocator.step()
        receipt = self.log.append_group([section])
        for lsn, value in enumerate(values, receipt.first_lsn):
            self.values[stream][lsn] = value
        return receipt.first_lsn + len(values) - 1

    def fill(self, segments: int, seed: int = 1) -> None:
        """Append groups of either stream until so many segments are closed."""
        chance = Random(seed)
        while len(self.segments()) < segments:
            stream = chance.choice((1, 2, 2))
            count = chance.choice((1, 1, 5))
            self.add(stream, *(b"%d " % chance.getrandbits(64) for _ in range(count)))
        self.add(1, b"last")

    def segments(self) -> list[FinishedSegment]:
        found = FinishedSegments(self.fs, DATA, self.log.log_id).find(self.frontier)
        assert found.complete
        return list(found.segments)

    def of(self, stream: int) -> list[PackedRange]:
        return of_stream(self.files, stream)

    def run(self, job: PackJob) -> PackRun:
        files = lambda: self.of(job.stream_id)  # noqa: E731 - as the drainer does
        return PackRun(
            self.fs,
            DATA,
            self.log.log_id,
            job,
            files=files,
            frontier=self.frontier,
            created_ns=123,
        )

    def pack(self, stream: int, segment: FinishedSegment, **changes) -> PackedRange:
        job = PackJob(stream, segment.before_lsn, segment.last_lsn, segment.number)
        run = self.run(job._replace(**changes))
        done = None
        try:
            while done is None:
                done = run.step(4096)
        except Exception:
            run.abandon()
            raise
        self.files.append(done)
        return done

    def reader(self, stream: int, after: int = 0) -> StreamReader:
        return StreamReader(
            self.fs,
            DATA,
            self.log.log_id,
            stream=stream,
            after=after,
            files=lambda: self.of(stream),
        )

    def read(self, stream: int, after: int = 0) -> tuple[dict[int, bytes], list[LostRange]]:
        """Read a stream to the frontier: values by LSN, and what is lost."""
        reader = self.reader(stream, after)
        found: dict[int, bytes] = {}
        lost: list[LostRange] = []
        for item in reader.read(self.frontier):
            if isinstance(item, LostRange):
                lost.append(item)
                continue
            for first, section in item.sections:
                lsn = first
                at = 0
                for entry in frame.request_entries(section):
                    data = section.bodies[at : at + entry.body_length]
                    assert frame.crc32c(data) == entry.body_crc
                    for value in body.decode(data).values:
                        assert lsn not in found
                        found[lsn] = value
                        lsn += 1
                    at += entry.body_length
        assert reader.cursor == self.frontier.lsn
        reader.close()
        return {lsn: value for lsn, value in found.items() if lsn > after}, lost

    def expected(self, stream: int, after: int = 0) -> dict[int, bytes]:
        return {lsn: value for lsn, value in self.values[stream].items() if lsn > after}

    def retire(self, floor: int) -> int:
        """Let the log retire what lies below an LSN, as ingest would when it is told."""
        return self.log.retire(dict.fromkeys(ROUTES.values(), floor))
