"""Reading one stream wherever its records lie: in packed files, in the archive, in the log.

Where a packed file answers for an LSN it is read; what lies above all of them comes from the log.
A segment may retire while it is read, because a packed file has taken over what was needed of
it: so whatever the log calls lost is first looked for in the packed files of this moment.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from wald.core.frame import BlockHeader
from wald.core.packing import covered_through
from wald.model import NO_ANCHOR, Anchor, Frontier, LostRange, Lsn, PackedRange, StreamId
from wald.ports import FileSystem
from wald.storage.packed import OpenPack
from wald.storage.tail import TailBlock, TailReader, anchor_among, records_of_stream

Files = Callable[[], Sequence[PackedRange]]


def no_files() -> Sequence[PackedRange]:
    """Return no packed files."""
    return ()


class StreamReader:
    """A cursor of its own over a stream; one thread.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        log_id: 16 bytes; what is of another log is damage.
        stream: whose records.
        after: read what has a higher LSN.
        files: the packed files of the stream, in order, at the moment it is called.
        wants_block: whether a block's payload is read at all; by default where it has records.
    """

    def __init__(  # noqa: PLR0913 - what a cursor needs
        self,
        fs: FileSystem,
        data_dir: str,
        log_id: bytes,
        *,
        stream: StreamId,
        after: Lsn,
        files: Files = no_files,
        wants_block: Callable[[BlockHeader], bool] | None = None,
    ) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._log_id = log_id
        self._files = files
        self._open: OpenPack | None = None
        self._tail = TailReader(
            fs,
            data_dir,
            log_id,
            after=after,
            wants_block=wants_block,
            wants_section=records_of_stream(stream),
        )

    @property
    def cursor(self) -> Lsn:
        """Everything up to here was read."""
        return self._tail.cursor

    def close(self) -> None:
        """Close the files; harmless to repeat."""
        self._tail.close()
        self._close_pack()

    def holds_after(self, lsn: Lsn, frontier: Frontier) -> bool:
        """Tell whether every LSN above ``lsn`` up to the frontier is still there, or was packed."""
        return self._tail.holds_after(covered_through(lsn, self._files()), frontier)

    def read(self, frontier: Frontier) -> Iterator[TailBlock | LostRange]:
        """Yield what lies between the cursor and the frontier, in order.

        As ``TailReader.read``: the cursor stands behind an item when it is yielded. Of a packed
        file only blocks with records of the stream come, and the last block of its range.
        """
        while True:
            packed = self._answering(self.cursor)
            if packed is not None:
                yield from self._read_packed(packed, frontier)
                continue
            self._close_pack()
            yield from self._read_log(frontier)
            if self._answering(self.cursor) is None:
                return

    def _answering(self, lsn: Lsn) -> PackedRange | None:
        """Return the packed file that answers for what follows an LSN."""
        return next((file for file in self._files() if file.lo <= lsn < file.hi), None)

    def _read_packed(
        self, packed: PackedRange, frontier: Frontier
    ) -> Iterator[TailBlock | LostRange]:
        if self._open is None or self._open.packed != packed:
            self._close_pack()
            self._open = OpenPack(self._fs, self._data_dir, self._log_id, packed)
        pack = self._open
        if pack.is_missing and packed not in self._files():
            self._close_pack()  # a larger one has taken it in, or everybody has passed it
            return
        while self.cursor < packed.hi:
            item = pack.next_after(self.cursor)
            if item is None:
                self._tail.skip_to(packed.hi)
                return
            if isinstance(item, LostRange):
                yield from self._instead_of(item, frontier)
                continue
            self._tail.skip_to(item.header.last_lsn)
            yield item

    def _instead_of(self, lost: LostRange, frontier: Frontier) -> Iterator[TailBlock | LostRange]:
        """Read from the log what a packed file has lost, while the log still holds it."""
        if self._tail.holds_after(lost.first_lsn - 1, frontier):
            self._tail.skip_to(lost.first_lsn - 1)
            for item in self._tail.read(frontier):
                yield item
                if self.cursor >= lost.last_lsn:
                    return
        left = max(self.cursor + 1, lost.first_lsn)
        self._tail.skip_to(lost.last_lsn)
        yield lost if left == lost.first_lsn else replace(lost, first_lsn=left, records=None)

    def _read_log(self, frontier: Frontier) -> Iterator[TailBlock | LostRange]:
        """Read the log, until a packed file is found to have taken over what is not in it."""
        for item in self._tail.read(frontier):
            if isinstance(item, LostRange):
                packed = self._overlapping(item)
                if packed is not None:
                    self._tail.skip_to(max(packed.lo, item.first_lsn - 1))
                    if item.first_lsn <= packed.lo:
                        yield replace(item, last_lsn=packed.lo, records=None)
                    return
            yield item

    def _overlapping(self, lost: LostRange) -> PackedRange | None:
        """Return the first packed file that answers for a part of what is lost in the log."""
        return next(
            (
                file
                for file in self._files()
                if file.lo < lost.last_lsn and file.hi >= lost.first_lsn
            ),
            None,
        )

    def _close_pack(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def find_anchor(reader: StreamReader, lsn: Lsn, frontier: Frontier) -> Anchor | None:
    """Return the anchor of the block that holds an LSN of the stream; None if it is gone.

    Args:
        reader: made with ``after = lsn - 1`` and blocks not wanted; it is closed.
        lsn: at or below the frontier.
        frontier: the newest.
    """
    if lsn == 0:
        return NO_ANCHOR
    with closing(reader):
        return anchor_among(reader.read(frontier), lsn)
