"""What is damaged in a data directory, what is lost by it, and what a start would do about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wald.errors import LedgerDamaged, LedgerFailed
from wald.ports import FileSystem
from wald.storage.inspect import Damage, inspect_log
from wald.storage.lmdb_store import walk_in_a_child
from wald.storage.notices import unseen
from wald.storage.scrub import FileDamage, inspect_rest

_OF_A_SEGMENT = "set aside in quarantine/, each lost LSN reported; all else is kept"
_OF_AN_EMPTY_PLACE = "no record is lost by it; the file stays as it is until it retires"
_OF_A_PACKED_FILE = "routes that still need it get dead letters 'damaged'; all else is kept"
_OF_DEAD_LETTERS = "the dead letters of which the bodies stood there have none any more"
_OF_A_LEDGER = (
    "set aside, and made anew: by their progress rows where targets have one, else by 'progress' "
    "and the dead log; what cannot be known is held as uncertain, for a person"
)
_OF_AN_IDENTITY = "the log id is taken from a segment header; LSNs jump, lanes ask for a takeover"


@dataclass(frozen=True, slots=True)
class SalvageStep:
    """Something damaged: what, why, what is known of it, and what is done about it."""

    what: str
    reason: str
    action: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SalvagePlan:
    """What would be done; ``unseen`` are reports that nobody has acknowledged yet."""

    steps: tuple[SalvageStep, ...]
    unseen: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is to be done."""
        return not self.steps


def plan_salvage(fs: FileSystem, data_dir: str) -> SalvagePlan:
    """Read everything and say what is to be done; nothing is changed.

    Works beside a running daemon, except that a ledger that is in use is not looked at.

    Raises:
        DataDirectoryForeign: there is no log, or a segment of another one.
        DataDirectoryUnusable: it cannot be read.
        FormatNewer: a newer release wrote it.
    """
    log = inspect_log(fs, data_dir)
    steps = [_of_log(damage) for damage in log.damages if not damage.set_aside]
    if log.log_id:
        rest = inspect_rest(fs, data_dir, bytes.fromhex(log.log_id))
        steps += [_of_file(damage) for damage in rest.damages]
    steps += _of_ledger(fs, data_dir)
    return SalvagePlan(tuple(steps), tuple(unseen(fs, data_dir)))


def _of_log(damage: Damage) -> SalvageStep:
    facts = {
        "offset": damage.offset_bytes,
        "LSNs": _lsns(damage.first_lsn, damage.last_lsn),
        "records": damage.records,
        "streams": damage.streams,
        "producers": damage.producers,
        "bytes": damage.size_bytes,
    }
    action = _OF_A_SEGMENT if damage.last_lsn >= damage.first_lsn else _OF_AN_EMPTY_PLACE
    if not damage.segment:
        action = _OF_AN_IDENTITY
    return SalvageStep(damage.file, damage.reason, action, facts)


def _of_file(damage: FileDamage) -> SalvageStep:
    facts = {
        "offset": damage.offset_bytes,
        "LSNs": _lsns(damage.first_lsn, damage.last_lsn),
        "records": damage.records,
    }
    action = _OF_DEAD_LETTERS if damage.file.startswith("dead/") else _OF_A_PACKED_FILE
    return SalvageStep(damage.file, damage.reason, action, facts)


def _lsns(first: int, last: int) -> str:
    return f"{first:,} .. {last:,}" if last >= first else ""


def _of_ledger(fs: FileSystem, data_dir: str) -> Iterator[SalvageStep]:
    if fs.stat(f"{data_dir}/ledger") is None or _is_in_use(fs, data_dir):
        return
    try:
        walk_in_a_child(f"{data_dir}/ledger")
    except LedgerDamaged as error:
        yield SalvageStep("ledger", error.message, _OF_A_LEDGER)
    except LedgerFailed as error:
        yield SalvageStep("ledger", error.message, "none: the system refuses to read it")


def _is_in_use(fs: FileSystem, data_dir: str) -> bool:
    if fs.stat(f"{data_dir}/ledger.lock") is None:
        return False
    lock = fs.open(f"{data_dir}/ledger.lock", write=True)
    try:
        return not lock.lock()
    finally:
        lock.close()
