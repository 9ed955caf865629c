"""How much of a segment is payload: small groups are padded to whole pages."""

from wald import limits
from wald.core import frame
from wald.core.frame import BLOCK_HEADER_BYTES, BlockKind
from wald.ports import FileSystem
from wald.storage.segment import BlockReader, read_header, segment_path

_SAMPLE_BYTES = limits.MIB


def payload_share(fs: FileSystem, data_dir: str, log_id: bytes, number: int) -> float:
    """Return the share of payload in the first blocks of records of a segment; 1 if unknown.

    Raises:
        OSError: as the system does.
    """
    try:
        file = fs.open(segment_path(data_dir, number))
    except FileNotFoundError:
        return 1.0
    payload = taken = 0
    try:
        header = read_header(file).header
        if header is None:
            return 1.0
        for block in BlockReader(file, number, log_id, header, _SAMPLE_BYTES):
            if block.header.kind is BlockKind.RECORDS:
                length = block.header.payload_length
                payload += BLOCK_HEADER_BYTES + length
                taken += frame.block_bytes(length, header.alignment)
    finally:
        file.close()
    return payload / taken if taken else 1.0
