"""Which streams and routes there are: learned from the log itself, snapshot and statements."""

from collections.abc import Iterable

from wald.core.frame import BlockFlag, BlockHeader, BlockKind, Section, SectionKind
from wald.core.state import LogState, RouteState
from wald.model import Frontier, LostRange, RouteId, StreamId
from wald.ports import FileSystem
from wald.storage.tail import TailReader

_STATEMENTS = frozenset(
    {SectionKind.STREAM, SectionKind.ROUTE_BIRTH, SectionKind.ROUTE_DEATH, SectionKind.SNAPSHOT}
)


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

    @property
    def routes(self) -> dict[RouteId, RouteState]:
        """The routes that were born and have not died."""
        return self._state.routes

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
            self._tail = TailReader(
                self._fs,
                self._data_dir,
                self._log_id,
                after=frontier.lsn,
                wants_block=_has_statements,
                wants_section=lambda section: section.kind in _STATEMENTS,
            )
            self._tail.begin_at_head(frontier)
        for item in self._tail.read(frontier):
            if isinstance(item, LostRange):
                continue  # the lanes report it; routes are also known from the ledger
            for _, section in item.sections:
                if not _is_of_sessions(section):
                    self._state.apply(section, 0, item.header.commit_time_ns)

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
