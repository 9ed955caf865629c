"""Each kind of ledger there is: what one must do, all of them do."""

from pathlib import Path
from random import Random

from wald.storage.ledger import StoreLedger
from wald.storage.lmdb_store import open_ledger
from wald.system import PosixFileSystem
from wald.testing import SimFileSystem
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.sim_store import open_sim_ledger

KINDS = ("lmdb", "simulated", "memory")


def open_kind(kind: str, path: Path, log_id: bytes) -> StoreLedger:
    """Return an empty ledger of a kind."""
    if kind == "lmdb":
        return open_ledger(PosixFileSystem(), str(path), log_id)
    if kind == "simulated":
        return open_sim_ledger(SimFileSystem(Random(1), directories=["/data"]), "/data", log_id)
    return MemoryLedger(log_id)
