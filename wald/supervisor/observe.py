"""``status``: what the pages of the two writing processes say, put together.

The supervisor touches no data, so it answers while a disk stalls or a child is down; what a child
that is down wrote last is marked stale.
"""

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from wald import limits
from wald.core.books import balance
from wald.core.healing import from_numbers
from wald.core.traffic import Traffic
from wald.ports import FileSystem
from wald.storage.notices import unseen
from wald.storage.progress import TwoSlotPage
from wald.supervisor.policy import policy_said

INGEST_PAGE = "ingest.page"
DRAIN_PAGE = "drain.page"


def read_ingest_figures(fs: FileSystem, data_dir: str) -> dict[str, Any] | None:
    """Return what ingest says of streams and routes; None before its first statement."""
    return _read(fs, posixpath.join(data_dir, INGEST_PAGE), limits.FIGURES_OFFSET_BYTES)


def read_hint(fs: FileSystem, data_dir: str) -> dict[str, Any] | None:
    """Return the frontier that the log notes after each group: newer than the figures."""
    return _read(fs, posixpath.join(data_dir, INGEST_PAGE), 0, limits.PAGE_SLOT_BYTES)


def read_drain_figures(fs: FileSystem, data_dir: str) -> dict[str, Any] | None:
    """Return what drain says of routes; None before its first statement."""
    return _read(fs, posixpath.join(data_dir, DRAIN_PAGE), 0)


class Figures(NamedTuple):
    """What the pages hold; None for a page without a statement. ``unseen``: see ``notices``."""

    hint: Mapping[str, Any] | None
    ingest: Mapping[str, Any] | None
    drain: Mapping[str, Any] | None
    unseen: Sequence[str] = ()


def read_figures(fs: FileSystem, data_dir: str) -> Figures:
    """Read all pages."""
    return Figures(
        read_hint(fs, data_dir),
        read_ingest_figures(fs, data_dir),
        read_drain_figures(fs, data_dir),
        unseen(fs, data_dir),
    )


def is_gone(fs: FileSystem, data_dir: str) -> bool:
    """Tell whether somebody removed the data directory: its processes go on in what has no name."""
    return fs.stat(f"{data_dir}/identity") is None


def build_status(
    figures: Figures,
    processes: Mapping[str, Mapping[str, Any]],
    now_ns: int,
) -> dict[str, Any]:
    """Return what ``status`` answers.

    Args:
        figures: the pages.
        processes: by role, what the supervisor knows of its children; their pid decides whether
            the figures are of the running process.
        now_ns: the wall clock.
    """
    ingest, drain = figures.ingest or {}, figures.drain or {}
    figures_lsn = (ingest.get("frontier") or [0, 0, 0])[2]
    stale = {
        "ingest": _is_stale(ingest, processes.get("ingest", {})),
        "drain": _is_stale(drain, processes.get("drain", {})),
    }
    streams = {row[0]: row for row in ingest.get("streams", [])}
    finished = cast("Mapping[str, Mapping[str, Any]]", drain.get("routes") or {})
    routes = {
        row[1]: _route(row, streams.get(row[2]), finished.get(row[1], {}), now_ns)
        for row in ingest.get("routes", [])
    }
    return {
        "log_id": ingest.get("log_id", ""),
        "frontier_lsn": max(figures_lsn, (figures.hint or {}).get("lsn", 0)),
        "figures_lsn": figures_lsn,
        "routes": routes,
        "streams": {
            row[1]: {"records": row[2], "bytes": row[3], "last_lsn": row[4]}
            for row in streams.values()
        },
        "disk": drain.get("disk") or {},
        "dead_log": drain.get("dead_log") or {},
        "ledger_went_back_ns": drain.get("ledger_went_back_ns"),
        "paused_all_ns": drain.get("paused_all_ns"),
        "connections": ingest.get("connections", 0),
        "groups": ingest.get("groups", 0),
        "refused": ingest.get("refused", {}),
        "duplicates": ingest.get("duplicates", 0),
        "no_room": ingest.get("no_room"),
        "dedup": ingest.get("dedup", {}),
        "quotas": ingest.get("quotas", {}),
        "recovery": ingest.get("recovery", {}),
        "write_failures": _write_failures(ingest.get("write_failures")),
        "unseen": list(figures.unseen),
        "stale": any(stale.values()),
        "processes": {
            role: {
                **process,
                "stale": stale.get(role, False),
                "resident_bytes": resident_bytes(process.get("pid")),
            }
            for role, process in processes.items()
        },
    }


def _write_failures(said: Sequence[Any] | None) -> dict[str, Any]:
    """Say what of the log failed since ingest was started."""
    count, last = said or (0, "")
    return {"count": count, "last": last}


def resident_bytes(pid: int | None) -> int | None:
    """Return the memory that a process has in use; None where the system does not say."""
    if pid is None:
        return None
    try:
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _route(
    row: list[Any], stream: list[Any] | None, finished: Mapping[str, Any], now_ns: int
) -> dict[str, Any]:
    route_id, _, stream_id, sink, birth_lsn, birth_records = row
    if finished.get("route_id") != route_id:  # another life of the name, or not begun
        finished = {}
    delivered = int(finished.get("delivered", 0))
    dead_letters = int(finished.get("dead_letters", 0))
    purged = int(finished.get("purged", 0))
    # the pages are written at different moments: what is finished was accepted before
    settled = delivered + dead_letters + purged
    accepted = max((stream[2] if stream else 0) - birth_records, settled)
    through_lsn = max(int(finished.get("through_lsn", 0)), birth_lsn)
    pending, lost = balance(accepted - settled, through_lsn, stream[4] if stream else 0)
    oldest_ns = finished.get("oldest_pending_ns")
    oldest_s = None
    if oldest_ns is not None and pending:
        oldest_s = max(0.0, (now_ns - oldest_ns) / limits.CLOCK_NS_PER_S)
    return {
        "stream": stream[1] if stream else str(stream_id),
        "sink": sink,
        "class": finished.get("class", ""),
        "state": finished.get("state", "starting"),
        "accepted": accepted,
        "delivered": delivered,
        "pending": pending,
        "dead_letters": dead_letters,
        "purged": purged,
        "redrives": finished.get("redrives", 0),
        "halted": finished.get("halted", []),
        "alarm": finished.get("alarm"),
        "lost": lost,
        "oldest_pending_s": oldest_s,
        "through_lsn": through_lsn,
        "batch_no": finished.get("batch_no", 0),
        "attempts": finished.get("attempts", 0),
        "last_error": finished.get("last_error", ""),
        "parked": finished.get("parked"),
        "healing": _healing(finished),
        "paused_ns": finished.get("paused_ns"),
        "lane_count": finished.get("lane_count", 1),
        "workers": finished.get("workers", 1),
        "lanes": finished.get("lanes", []),
        "change": finished.get("change"),
        "fallback": finished.get("fallback"),
        "traffic": _traffic(finished.get("traffic")),
        "faults": (finished.get("policy") or {}).get("faults", []),
        "guarded_batch": (finished.get("policy") or {}).get("guarded_batch", 0),
        **policy_said(finished.get("policy", {}), pending, oldest_s, now_ns),
    }


def _traffic(said: Sequence[Any] | None) -> dict[str, Any]:
    *counts, cost = said or (0, 0, 0, None)
    total = Traffic(*counts)
    per_request = total.records_per_request
    return {
        "requests": total.requests,
        "records": total.records,
        "bytes": total.size_bytes,
        "records_per_request": None if per_request is None else round(per_request, 2),
        "cost": cost,
    }


def _healing(finished: Mapping[str, Any]) -> dict[str, Any] | None:
    note = from_numbers((finished.get("policy") or {}).get("healing"))
    return note.said() if note else None


def _is_stale(figures: Mapping[str, Any], process: Mapping[str, Any]) -> bool:
    pid = process.get("pid")
    hung = process.get("answers") is False
    return pid is None or hung or not process.get("ready") or figures.get("pid") != pid


def _read(
    fs: FileSystem, path: str, offset: int, slot_bytes: int = limits.FIGURES_SLOT_BYTES
) -> dict[str, Any] | None:
    try:
        page = TwoSlotPage.open(fs, path, offset=offset, slot_bytes=slot_bytes, write=False)
    except OSError:
        return None
    try:
        return page.read()
    except OSError:
        return None
    finally:
        page.close()
