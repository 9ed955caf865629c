"""Streams and routes as ingest last told them: for a log whose every snapshot is damaged."""

from typing import NamedTuple, cast

from wald import limits
from wald.core import frame
from wald.core.frame import BlockHeader, SectionKind
from wald.core.state import LogState
from wald.errors import FormatDamaged
from wald.model import Frontier
from wald.ports import FileSystem
from wald.storage.progress import TwoSlotPage


class Catalogue(NamedTuple):
    """Streams and routes after the last group before a frontier."""

    frontier: Frontier
    state: LogState

    def covers(self, block: BlockHeader) -> bool:
        """Tell whether the state holds a group already, or the one that it is a copy of."""
        if block.records:
            return block.last_lsn <= self.frontier.lsn
        return (block.segment, block.offset) < self.frontier[:2]


def read_catalogue(fs: FileSystem, path: str, log_id: bytes) -> Catalogue | None:
    """Return what the figures say of streams and routes; None if they are not of this log."""
    try:
        page = TwoSlotPage.open(
            fs,
            path,
            offset=limits.FIGURES_OFFSET_BYTES,
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=False,
        )
    except OSError:
        return None
    try:
        said = page.read()
    except OSError:
        return None
    finally:
        page.close()
    if said is None or said.get("log_id") != log_id.hex():
        return None
    try:
        return _catalogue(said)
    except (FormatDamaged, KeyError, TypeError, ValueError):
        return None


def _catalogue(said: dict[str, object]) -> Catalogue:
    """Take the figures as the snapshot that they could be."""
    births = {row[0]: row[1:] for row in cast("list[list[object]]", said["births"])}
    routes = []
    for row in cast("list[list[object]]", said["routes"]):
        route_id, name, stream_id, sink, lsn, records = row
        digest, size = births[route_id]
        routes.append(
            {
                "route": route_id,
                "name": name,
                "stream": stream_id,
                "sink": sink,
                "digest": digest,
                "birth_lsn": lsn,
                "birth_records": records,
                "birth_bytes": size,
            }
        )
    state = LogState()
    part: dict[str, object] = {"streams": said["streams"], "routes": routes}
    state.apply(frame.control_section(SectionKind.SNAPSHOT, part), 0, 0)
    segment, end_bytes, lsn = map(int, cast("list[int]", said["frontier"]))
    return Catalogue(Frontier(segment, end_bytes, lsn), state)
