"""The ledger's table of packed files (T10): which there must be, so that a lost one is found.

packed   archive u8 stream u32 lo u64 -> PackedRange
"""

from collections.abc import Iterable, Sequence
from struct import Struct

from wald.model import PackedRange
from wald.ports import Store, Transaction
from wald.storage.ledger_rows import pack, unpack

TABLE = "packed"
_KEY = Struct(">BIQ")


class PackedIndex:
    """The packed files that the ledger names. Any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rows(self) -> Sequence[PackedRange]:
        """Return all of them, streams in order, each in the order of its LSNs.

        Raises:
            LedgerFailed: it cannot be read.
        """
        return self._store.read(
            lambda txn: [PackedRange(*unpack(value)) for _, value in txn.scan(TABLE)]
        )

    def replace(self, gone: Iterable[PackedRange], come: Iterable[PackedRange] = ()) -> None:
        """T10: forget some files and name others, in one transaction; durable on return.

        Raises:
            LedgerFailed: it cannot be written.
            DiskFull: there is no room; nothing changed.
        """
        gone, come = list(gone), list(come)

        def work(txn: Transaction) -> None:
            for packed in gone:
                txn.delete(TABLE, _key(packed))
            for packed in come:
                txn.put(TABLE, _key(packed), pack(packed))

        self._store.write(work)


def _key(packed: PackedRange) -> bytes:
    return _KEY.pack(packed.archive, packed.stream_id, packed.lo)
