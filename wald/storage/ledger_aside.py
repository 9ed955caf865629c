"""A damaged ledger is set aside, whole, and a new one takes its place.

It holds nothing that log, dead log and targets do not: see ``docs/how-to/restore.md``.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from wald import limits
from wald.ports import FileSystem

_ASIDE = re.compile(r"ledger\.damaged-(\d{1,9})")


def list_aside(fs: FileSystem, data_dir: str) -> Sequence[str]:
    """Return the names of the ledgers that were set aside, oldest first."""
    if fs.stat(data_dir) is None:
        return ()
    found = [match for name in fs.list_directory(data_dir) if (match := _ASIDE.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def set_aside(fs: FileSystem, data_dir: str) -> str:
    """Move the ledger away and return its name from now on; holds ``ledger.lock``.

    Only so many are kept (``limits.LEDGERS_ASIDE_MAX``): the oldest goes.

    Raises:
        OSError: the system refuses.
    """
    before = list_aside(fs, data_dir)
    number = 1 + max((int(name.rpartition("-")[2]) for name in before), default=0)
    name = f"ledger.damaged-{number}"
    fs.rename(f"{data_dir}/ledger", f"{data_dir}/{name}")
    fs.sync_directory(data_dir)
    for old in before[: max(0, len(before) + 1 - limits.LEDGERS_ASIDE_MAX)]:
        with contextlib.suppress(OSError):  # a person put something there: it is theirs
            _remove(fs, f"{data_dir}/{old}")
    return name


def _remove(fs: FileSystem, path: str) -> None:
    found = fs.stat(path)
    if Path(path).is_symlink() or (found is not None and not found.is_directory):
        fs.unlink(path)
        return
    for file in fs.list_directory(path):
        fs.unlink(f"{path}/{file}")
    Path(path).rmdir()
