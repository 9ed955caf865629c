"""Who we are to the targets: 64 random bits in the file ``owner``, outside the ledger.

    msgpack map {owner, inode, machine} and its CRC-32C u32

A copy of the data directory has another inode or machine: it draws an owner of its own, so that
only one of two ever moves a progress row.
"""

from dataclasses import dataclass

from wald.core import frame
from wald.errors import DataDirectoryUnusable, FormatDamaged
from wald.ports import Chance, FileSystem
from wald.storage.identity import write_whole_file

NAME = "owner"
_FILE_MAX_BYTES = 4096
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner, and whether it was drawn anew because the directory is not where it was."""

    value: int
    moved: bool


def load_owner(fs: FileSystem, data_dir: str, chance: Chance) -> Owner:
    """Return the owner of a data directory, drawn if there is none; durable on return.

    Raises:
        DataDirectoryUnusable: the directory is gone.
        OSError: as the system says.
    """
    stat = fs.stat(data_dir)
    if stat is None:
        msg = f"{data_dir}: no such directory"
        raise DataDirectoryUnusable(msg)
    place = {"inode": stat.inode, "machine": fs.machine_id()}
    said = _read(fs, f"{data_dir}/{NAME}")
    if said is not None and {name: said.get(name) for name in place} == place:
        value = said.get("owner")
        if type(value) is int:
            return Owner(value, moved=False)
    value = int.from_bytes(chance.randbytes(8), "little")
    data = frame.pack_statement({"owner": value, **place})
    write_whole_file(fs, data_dir, NAME, data + frame.crc32c(data).to_bytes(_CRC_BYTES, "little"))
    return Owner(value, moved=said is not None)


def _read(fs: FileSystem, path: str) -> dict[str, object] | None:
    """Return what the file says; None if there is none, an empty map if it is damaged."""
    if fs.stat(path) is None:
        return None
    file = fs.open(path)
    try:
        data = file.pread(_FILE_MAX_BYTES, 0)
    finally:
        file.close()
    body, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if frame.crc32c(body).to_bytes(_CRC_BYTES, "little") != crc:
        return {}
    try:
        return frame.unpack_statement(body)
    except FormatDamaged:
        return {}
