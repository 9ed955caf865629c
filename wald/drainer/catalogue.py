"""Which streams and routes there are: learned from the log itself, snapshot and statements.

Where damage took a statement, or the snapshot that told of all before, ingest's figures say what
there is, once they are from behind that place. Until then routes may be missing: nothing may be
deleted or forgotten for want of a route that needs it.
"""

from collections.abc import Iterable

from wald.core.frame import BlockFlag, BlockHeader, BlockKind, Section, SectionKind
from wald.core.state import LogState, RouteState
from wald.model import Frontier, LostRange, RouteId, StreamId
from wald.ports import FileSystem
from wald.storage.refill import Catalogue as Figures
from wald.storage.refill import read_catalogue
from wald.storage.tail import TailBlock, TailReader

_STATEMENTS = frozenset(
    {SectionKind.STREAM, SectionKind.ROUTE_BIRTH, SectionKind.ROUTE_DEATH, SectionKind.SNAPSHOT}
)
_Place = tuple[int, int]  # segment, offset


class Catalogue:
    """Follows the log's statements up to the frontier; one thread.

    It begins at the head of the frontier's segment, whose snapshot says all that was before.
    """

    def __init__(self, fs: FileSystem, data_dir: str, log_id: bytes) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._log_id = log_id
        self._tail: TailReader | None = None
        self._state = LogState()
        self._figures: Figures | None = None  # what it began with, instead of a snapshot
        self._snapshot: _Place | None = None  # where one begins that was not read to its end
        self._since: _Place | None = None  # what was said before is known from there on

    @property
    def routes(self) -> dict[RouteId, RouteState]:
        """The routes that were born and have not died."""
        return self._state.routes

    @property
    def is_whole(self) -> bool:
        """Whether no route can be missing: all was read since a snapshot, or figures, told all."""
        if self._tail is None or self._since is None:
            return False
        return self._tail.damaged_at is None or self._tail.damaged_at < self._since

    @property
    def is_current(self) -> bool:
        """Whether all was read up to the frontier of the last ``update``."""
        return self._tail is not None and self._tail.is_through

    def has_heard_of(self, route_ids: Iterable[RouteId]) -> bool:
        """Tell whether these were born, as far as the log was read; some may have died since."""
        return all(route_id < self._state.next_route_id for route_id in route_ids)

    def stream_name(self, stream_id: StreamId) -> str:
        """Return a stream's name; its id as text if its statement was lost."""
        stream = self._state.streams.get(stream_id)
        return stream.name if stream else str(stream_id)

    def streams(self) -> dict[StreamId, str]:
        """Return the names of all streams."""
        return {stream_id: stream.name for stream_id, stream in self._state.streams.items()}

    def count_streams(self) -> int:
        """Return how many streams there are."""
        return len(self._state.streams)

    def update(self, frontier: Frontier) -> None:
        """Take in what was said up to the frontier."""
        if self._tail is None:
            self._begin(frontier, None)
        self._read_to(frontier)
        if self.is_whole:
            return
        assert self._tail is not None
        damaged_at = self._tail.damaged_at or (frontier.segment, 0)
        figures = read_catalogue(self._fs, f"{self._data_dir}/ingest.page", self._log_id)
        if figures is not None and figures.frontier[:2] > damaged_at:
            self._begin(frontier, figures)
            self._read_to(frontier)

    def _begin(self, frontier: Frontier, figures: Figures | None) -> None:
        """Begin at the head of the frontier's segment; behind what figures tell, if need be."""
        self.close()
        tail = TailReader(
            self._fs,
            self._data_dir,
            self._log_id,
            after=frontier.lsn,
            wants_block=_has_statements,
            wants_section=lambda section: section.kind in _STATEMENTS,
        )
        tail.begin_at_head(frontier)  # if it cannot be read, nothing has begun
        self._tail = tail
        self._figures = figures
        self._state = LogState() if figures is None else figures.state
        self._since = None if figures is None else figures.frontier[:2]
        self._snapshot = None

    def _read_to(self, frontier: Frontier) -> None:
        assert self._tail is not None
        for item in self._tail.read(frontier):
            if isinstance(item, LostRange):
                continue  # the lanes report it
            if self._figures is None or not self._figures.covers(item.header):
                self._apply(item)
            if item.header.kind is BlockKind.SNAPSHOT:
                self._follow_snapshot(item.header)

    def _apply(self, block: TailBlock) -> None:
        for _, section in block.sections:
            if not _is_of_sessions(section):
                self._state.apply(section, 0, block.header.commit_time_ns)

    def _follow_snapshot(self, block: BlockHeader) -> None:
        """A snapshot tells all that was said before it, once it was read from first to last."""
        assert self._tail is not None
        if block.flags & BlockFlag.SNAPSHOT_FIRST:
            self._snapshot = block.segment, block.offset
        begun, damaged_at = self._snapshot, self._tail.damaged_at
        if begun is None or not block.flags & BlockFlag.SNAPSHOT_LAST:
            return
        if damaged_at is None or damaged_at < begun:
            self._since = max(begun, self._since or begun)  # figures may have told more

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        if self._tail is not None:
            self._tail.close()


def _has_statements(header: BlockHeader) -> bool:
    return header.kind in {BlockKind.SNAPSHOT, BlockKind.CONTROL} or bool(
        header.flags & BlockFlag.HAS_CONTROL
    )


def _is_of_sessions(section: Section) -> bool:
    return section.kind is SectionKind.SNAPSHOT and "sessions" in section.statement()
