"""What a person has yet to see: loss reports, and ledgers that were set aside.

reports/loss-NNNNNNNNNN.json   by a start that found records lost
ledger.damaged-N/              by a drainer that found its ledger damaged
reports/NAME.seen              empty: a person has seen NAME, and status is silent about it
"""

from collections.abc import Sequence

from wald.errors import DataDirectoryUnusable
from wald.ports import FileSystem
from wald.storage.ledger_aside import list_aside

_REPORTS = "reports"
_SEEN = ".seen"


def unseen(fs: FileSystem, data_dir: str) -> Sequence[str]:
    """Return the paths, below the data directory, of what nobody has acknowledged."""
    reports = f"{data_dir}/{_REPORTS}"
    names = fs.list_directory(reports) if fs.stat(reports) is not None else []
    seen = {name.removesuffix(_SEEN) for name in names if name.endswith(_SEEN)}
    losses = [name for name in names if name.startswith("loss-") and name.endswith(".json")]
    found = [(name, f"{_REPORTS}/{name}") for name in losses]
    found += [(name, name) for name in list_aside(fs, data_dir)]
    return [path for name, path in found if name not in seen]


def acknowledge(fs: FileSystem, data_dir: str) -> Sequence[str]:
    """Let status be silent about everything that there is; return what it was.

    Raises:
        DataDirectoryUnusable: the system refuses.
    """
    try:
        paths = unseen(fs, data_dir)
        reports = f"{data_dir}/{_REPORTS}"
        if paths and fs.stat(reports) is None:
            fs.make_directory(reports)
        for path in paths:
            fs.create(f"{reports}/{path.rpartition('/')[2]}{_SEEN}").close()
        if paths:
            fs.sync_directory(reports)
    except OSError as error:
        msg = f"{data_dir}: {error.strerror or error}"
        raise DataDirectoryUnusable(msg, path=data_dir) from error
    return paths
