"""A ledger in memory: the real one over a store that keeps its contract, less its durability."""

import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

from wald.ports import Transaction, Underway
from wald.storage.ledger import StoreLedger, found_ledger
from wald.storage.tickets import Ticket

_T = TypeVar("_T")
Tables: TypeAlias = dict[str, dict[bytes, bytes]]


class MemoryStore:
    """See ``wald.ports.Store``. Survives its users, so that tests may restart them on it."""

    is_usable = True

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tables: Tables = {}

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction that changes nothing."""
        with self._lock:
            return work(MemoryTransaction(copied(self._tables)))

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction; it takes effect whole, or not at all if it raises."""
        with self._lock:
            tables = copied(self._tables)
            result = work(MemoryTransaction(tables))
            self._tables = tables
            return result

    def write_later(self, work: Callable[[Transaction], _T]) -> Underway[_T]:
        """Run a transaction: here nothing takes time."""
        ticket = Ticket(work)
        try:
            ticket.settle(self.write(work))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            ticket.fail(error)
        return ticket

    def close(self) -> None:
        """Do nothing: there is nothing to let go."""


def copied(tables: Tables) -> Tables:
    """Return tables that may be changed without changing these."""
    return {name: dict(rows) for name, rows in tables.items()}


class MemoryTransaction:
    """See ``wald.ports.Transaction``."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a value; None if the key has none."""
        return self._tables.get(table, {}).get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        self._tables.setdefault(table, {})[key] = value

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; False if it had no value."""
        return self._tables.get(table, {}).pop(key, None) is not None

    def scan(
        self, table: str, prefix: bytes = b"", *, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys with a prefix, from ``start`` on, in order, with their values."""
        rows = self._tables.get(table, {})
        for key in sorted(key for key in rows if key.startswith(prefix) and key >= start):
            yield key, rows[key]


class MemoryLedger(StoreLedger):
    """See ``wald.ports.Ledger``."""

    def __init__(self, log_id: bytes = bytes(16)) -> None:
        store = MemoryStore()
        store.write(lambda txn: found_ledger(txn, log_id))
        super().__init__(store, log_id)
