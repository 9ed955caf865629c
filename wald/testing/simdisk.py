"""The bytes of one simulated file: what programs see, and what the disk holds.

``live`` is the page cache, ``durable`` the platter. A write changes ``live`` and marks its sectors
dirty; ``flush`` copies the dirty ones. Between the two anything may happen to a dirty sector, and
nothing to any other.
"""

from collections.abc import Iterable
from enum import Enum
from random import Random

SECTOR_BYTES = 512
PAGE_BYTES = 4096
SECTORS_PER_PAGE = PAGE_BYTES // SECTOR_BYTES


class Fate(Enum):
    """What a power cut makes of a dirty sector or page."""

    SURVIVES = "survives"
    LOST = "lost"
    TORN = "torn"
    GARBAGE = "garbage"


class SimBytes:
    """Live and durable bytes of a file, dirty sectors, and the changes of size not yet durable."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.sizes: list[int] = []  # sizes since the last flush, in order
        self.pages: set[int] = set()  # pages that take room on the disk

    # --- what a program does --------------------------------------------------------------------

    def write(self, data: bytes, offset: int) -> None:
        """Write to the cache."""
        end = offset + len(data)
        if not data:
            return
        if end > len(self.live):
            self.resize(end)
        elif end > len(self.durable) and not self.sizes:  # its size was lost in a failed flush
            self.sizes.append(len(self.live))
        self.live[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))
        self.pages.update(pages_of(offset, len(data)))

    def resize(self, size: int) -> None:
        """Cut, or extend with zeros, in the cache."""
        if size == len(self.live):
            return
        if size < len(self.live):
            last = -(-size // SECTOR_BYTES)
            self.dirty = {sector for sector in self.dirty if sector < last}
            self.pages = {page for page in self.pages if page * PAGE_BYTES < size}
        _resize(self.live, size)
        self.sizes.append(size)

    def flush(self) -> None:
        """Make everything dirty durable."""
        self._apply_sizes(len(self.sizes))
        self._write_through(self.dirty)
        self.dirty.clear()

    # --- what may happen to it ------------------------------------------------------------------

    def write_back(self, chance: Random) -> None:
        """Make some of what is dirty durable, as the kernel does when it likes."""
        self._apply_sizes(chance.randint(0, len(self.sizes)))
        some = {sector for sector in sorted(self.dirty) if chance.random() < 0.5}
        self._write_through(some)
        if not self.sizes:  # a sector behind the durable end cannot be durable yet
            self.dirty -= some

    def fail_flush(self, chance: Random) -> None:
        """Fail a flush: any part reaches the disk, and all is marked clean.

        The cache goes on to show it, and no later flush writes it.
        """
        self._apply_sizes(chance.randint(0, len(self.sizes)))
        self._tear(chance)
        self.dirty.clear()
        self.sizes.clear()

    def drop_clean_cache(self) -> None:
        """Forget the cached copies of clean sectors: reading shows the disk again."""
        dirty = {sector: self._sector(self.live, sector) for sector in self.dirty}
        size = len(self.live)
        self.live = bytearray(self.durable)
        _resize(self.live, size if self.sizes or dirty else len(self.durable))
        for sector, data in dirty.items():
            self.live[sector * SECTOR_BYTES : sector * SECTOR_BYTES + len(data)] = data

    def crash(self, chance: Random) -> None:
        """Lose the power: the cache goes, each dirty sector meets its fate."""
        self._apply_sizes(chance.randint(0, len(self.sizes)))
        self._tear(chance)
        self.sizes.clear()
        self.dirty.clear()
        self.live = bytearray(self.durable)

    # --- how ------------------------------------------------------------------------------------

    def _apply_sizes(self, count: int) -> None:
        for size in self.sizes[:count]:
            _resize(self.durable, size)
        del self.sizes[:count]

    def _write_through(self, sectors: Iterable[int]) -> None:
        for first, last in _runs(sorted(sectors)):
            start = first * SECTOR_BYTES
            stop = min((last + 1) * SECTOR_BYTES, len(self.durable), len(self.live))
            if start < stop:
                self.durable[start:stop] = self.live[start:stop]

    def _tear(self, chance: Random) -> None:
        """Decide each dirty unit's fate; the grain and the mood are the same for all of them."""
        per_unit = chance.choice((1, SECTORS_PER_PAGE))
        fates, weights = _mood(chance)
        units: dict[int, list[int]] = {}
        for sector in sorted(self.dirty):
            units.setdefault(sector // per_unit, []).append(sector)
        for sectors in units.values():
            self._meet(chance.choices(fates, weights)[0], sectors, chance)

    def _meet(self, fate: Fate, sectors: list[int], chance: Random) -> None:
        match fate:
            case Fate.SURVIVES:
                self._write_through(sectors)
            case Fate.LOST:
                pass
            case Fate.TORN if len(sectors) > 1:
                self._write_through(sector for sector in sectors if chance.random() < 0.5)
            case Fate.TORN:
                self._tear_sector(sectors[0], chance)
            case Fate.GARBAGE:
                for sector in sectors:
                    self._put(sector, chance.randbytes(SECTOR_BYTES))

    def _tear_sector(self, sector: int, chance: Random) -> None:
        cut = chance.randint(0, SECTOR_BYTES)
        new, old = self._sector(self.live, sector), self._sector(self.durable, sector)
        self._put(sector, new[:cut] + old[cut:])

    def _sector(self, source: bytearray, sector: int) -> bytes:
        return bytes(source[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])

    def _put(self, sector: int, data: bytes) -> None:
        start = sector * SECTOR_BYTES
        room = max(0, min(len(data), len(self.durable) - start))
        self.durable[start : start + room] = data[:room]


def pages_of(offset: int, length: int) -> range:
    """Return the pages that a range of bytes touches."""
    return range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _runs(sectors: list[int]) -> Iterable[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    start = 0
    for index in range(1, len(sectors) + 1):
        if index == len(sectors) or sectors[index] != sectors[index - 1] + 1:
            yield sectors[start], sectors[index - 1]
            start = index


def _mood(chance: Random) -> tuple[tuple[Fate, ...], tuple[float, ...]]:
    """Return fates and weights for one event: all, nothing, or a mixture."""
    fates = (Fate.SURVIVES, Fate.LOST, Fate.TORN, Fate.GARBAGE)
    kind = chance.random()
    if kind < 0.25:
        return fates, (1, 0, 0, 0)
    if kind < 0.5:
        return fates, (0, 1, 0, 0)
    if kind < 0.75:
        return fates, (chance.random(), chance.random(), 0, 0.001)
    return fates, (chance.random(), chance.random(), chance.random(), chance.random())
