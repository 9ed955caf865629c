"""The identity file: the log id, the newest segment of a fresh path, and where the directory was.

    0  magic 8s b"WALDIDEN"   8  format u16  10  oldest_reader u16  12  length u32
    16 msgpack map of ``length`` bytes, then its CRC-32C u32 (of everything before)

It is replaced as a whole: temporary file, sync, rename, directory sync.
"""

from dataclasses import dataclass
from struct import Struct

from wald.core import frame
from wald.errors import DataDirectoryForeign, FormatDamaged, FormatNewer
from wald.ports import FileSystem

FORMAT = 1
MAGIC = b"WALDIDEN"
NAME = "identity"
FILE_MAX_BYTES = 4096
LOG_ID_BYTES = 16

_HEAD = Struct("<8sHHI")
_CRC = Struct("<I")

assert _HEAD.size == 16


@dataclass(frozen=True, slots=True)
class Identity:
    """What the file says.

    Attributes:
        log_id: 128 random bits, made with the directory.
        segment: the newest segment that a fresh path made; 0 before the first.
        machine: what named the machine then.
        inode: the data directory's then. A copy has another one.
    """

    log_id: bytes
    segment: int
    machine: str
    inode: int


def encode(identity: Identity) -> bytes:
    """Pack the file."""
    body = frame.pack_statement(
        {
            "log_id": identity.log_id,
            "segment": identity.segment,
            "machine": identity.machine,
            "inode": identity.inode,
        }
    )
    packed = _HEAD.pack(MAGIC, FORMAT, FORMAT, len(body)) + body
    return packed + _CRC.pack(frame.crc32c(packed))


def decode(data: bytes) -> Identity:
    """Unpack the file.

    Raises:
        FormatNewer: whole, but of a format that this release cannot read.
        FormatDamaged: torn, foreign, or empty.
    """
    said = frame.unpack_statement(_checked_body(data))
    log_id, segment = said.get("log_id"), said.get("segment")
    machine, inode = said.get("machine"), said.get("inode")
    if (
        type(log_id) is not bytes
        or len(log_id) != LOG_ID_BYTES
        or type(segment) is not int
        or type(machine) is not str
        or type(inode) is not int
    ):
        msg = "the identity file lacks a field"
        raise FormatDamaged(msg)
    return Identity(log_id, segment, machine, inode)


def _checked_body(data: bytes) -> bytes:
    if len(data) < _HEAD.size + _CRC.size:
        msg = "the identity file is cut short"
        raise FormatDamaged(msg)
    magic, _, oldest_reader, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    if magic != MAGIC or len(data) != end + _CRC.size:
        msg = "the identity file is not one"
        raise FormatDamaged(msg)
    if _CRC.unpack_from(data, end)[0] != frame.crc32c(data[:end]):
        msg = "the identity file does not match its checksum"
        raise FormatDamaged(msg)
    if oldest_reader > FORMAT:
        msg = f"the data directory needs a reader of format {oldest_reader}, this is {FORMAT}"
        raise FormatNewer(msg, needs_format=oldest_reader, has_format=FORMAT)
    return data[_HEAD.size : end]


def read(fs: FileSystem, data_dir: str) -> Identity | None:
    """Return what the file says; None if there is none.

    Raises:
        FormatNewer: of a newer format.
        FormatDamaged: not readable.
        OSError: as the system does.
    """
    path = f"{data_dir}/{NAME}"
    if fs.stat(path) is None:
        return None
    file = fs.open(path)
    try:
        return decode(file.pread(FILE_MAX_BYTES, 0))
    finally:
        file.close()


def required(fs: FileSystem, data_dir: str) -> Identity:
    """Return what the file says.

    Raises:
        DataDirectoryForeign: there is none, or no such directory.
        FormatNewer, FormatDamaged, OSError: as ``read``.
    """
    known = read(fs, data_dir)
    if known is None:
        msg = f"{data_dir} is not a data directory: it has no identity file"
        if fs.stat(data_dir) is None:
            msg = f"{data_dir} is not a data directory: there is no such directory"
        raise DataDirectoryForeign(msg, path=data_dir)
    return known


def write(fs: FileSystem, data_dir: str, identity: Identity) -> None:
    """Replace the file; durable on return.

    Raises:
        OSError: as the system does; the file is then the old or the new one.
    """
    write_whole_file(fs, data_dir, NAME, encode(identity))


def write_whole_file(fs: FileSystem, directory: str, name: str, data: bytes) -> None:
    """Put a small file in place of any of that name: whole or not at all, durable on return."""
    temporary = f"{directory}/{name}.tmp"
    if fs.stat(temporary) is not None:
        fs.unlink(temporary)
    file = fs.create(temporary)
    try:
        file.pwritev([data], 0)
        file.sync()
    finally:
        file.close()
    fs.replace(temporary, f"{directory}/{name}")
    fs.sync_directory(directory)
