"""Which records a stream has, for audits: read by a script in pages, of which ids alone come back.

The id of an entry is its LSN; a record that came behind its turn stands under a later id and says
its LSN itself. Those are looked for once, from the first LSN that is asked for to the end, and then
followed. What was trimmed or deleted cannot be told from what never came.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wald import limits
from wald.model import Lsn
from wald.sinks.redis import scripts

if TYPE_CHECKING:
    from wald.sinks.redis.link import Link

PAGE_RECORDS: Final = 1_000  # a page holds up everybody else at the server: some milliseconds
PAGE_BYTES: Final = limits.MIB
LATE_MAX_RECORDS: Final = 200_000  # no more are remembered: then nothing is called missing
_END: Final = "+"


@dataclass(slots=True)
class _Late:
    """The records of one stream that stand under another id than their own."""

    first: Lsn
    after: str = ""  # the id up to which they were looked for
    found: Counter[Lsn] = field(default_factory=Counter)


class Held:
    """Asks the streams of a route's lanes; one for each sink, which an audit makes for itself."""

    def __init__(self, link: "Link", stream_key: str) -> None:
        self._link = link
        self._stream_key = stream_key
        self._late: dict[str, _Late] = {}

    def count(self, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int | None]:
        """Return how often each record is there; None where it may have been, and is gone.

        Args:
            log_id: of the log that they are of.
            lsns: in order.

        Raises:
            CallFailed: the server cannot be asked.
        """
        found: Counter[Lsn] = Counter()
        gone_below = 0
        for key in self._streams():
            late = self._follow(key, log_id, lsns[0])
            found.update({lsn: late[lsn] for lsn in lsns if lsn in late})
            for lsn in self._pages(key, log_id, f"{lsns[0]}-0", f"{lsns[-1]}-0", late="")[0]:
                found[lsn] += 1
            gone_below = max(gone_below, self._gone_below(key))
        return {lsn: found[lsn] or (None if lsn < gone_below else 0) for lsn in lsns}

    def _streams(self) -> list[str]:
        lanes = ("", *(f":{lane}" for lane in range(1, limits.LANES_MAX)))
        keys = [self._stream_key + lane for lane in lanes]
        return [key for key in keys if self._link.call("TYPE", key) == b"stream"]

    def _follow(self, key: str, log_id: bytes, first: Lsn) -> Mapping[Lsn, int]:
        """Look for what came late behind what was seen; returns all of it."""
        late = self._late.get(key)
        if late is None or first < late.first:
            late = self._late[key] = _Late(first)
        begin = f"({late.after}" if late.after else f"{first}-0"
        if len(late.found) < LATE_MAX_RECORDS:
            found, last = self._pages(key, log_id, begin, _END, late="1")
            late.found.update(found)
            late.after = last or late.after
        return late.found

    def _pages(
        self, key: str, log_id: bytes, begin: str, end: str, *, late: str
    ) -> tuple[list[Lsn], str]:
        """Return the LSNs of the entries between two ids, in turn or late, and the last id."""
        found: list[Lsn] = []
        last, more = "", "1"
        while more and len(found) < LATE_MAX_RECORDS:
            more, seen, *lsns = self._page(key, log_id, begin, end, late)
            found += map(int, lsns)
            if seen:
                last, begin = seen, f"({seen}"
        return found, last

    def _page(self, key: str, log_id: bytes, begin: str, end: str, late: str) -> list[str]:
        bounds = (str(PAGE_RECORDS), str(PAGE_BYTES))
        said = self._link.call(
            "EVAL", scripts.HELD, 1, key, log_id.hex(), begin, end, late, *bounds
        )
        return [word.decode("ascii") for word in said]

    def _gone_below(self, key: str) -> Lsn:
        """Return the LSN below which entries were trimmed or deleted; 0 if all are there."""
        words = self._link.call("XINFO", "STREAM", key)
        said: dict[bytes, Any] = dict(zip(words[::2], words[1::2], strict=True))
        late = self._late.get(key)
        if late is not None and len(late.found) >= LATE_MAX_RECORDS:
            return limits.LSN_MAX
        length, first = said[b"length"], said[b"first-entry"]
        if said.get(b"entries-added") == length:  # Redis 7 and Valkey say it
            return 0
        begin = _lsn_of(first[0]) if first else _lsn_of(said[b"last-generated-id"]) + 1
        return max(begin, _lsn_of(said.get(b"max-deleted-entry-id", b"0-0")) + 1)


def _lsn_of(entry_id: bytes) -> Lsn:
    return int(entry_id.partition(b"-")[0])
