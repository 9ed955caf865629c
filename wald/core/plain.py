"""Bodies that are one record and nothing but a value: told by their first and last bytes.

Nearly every body of a producer that appends single records is one. Such a body is whole and right
if it begins and ends as it must for its length, so that it need not be unpacked.
"""

from typing import Final

from wald import limits
from wald.model import Content

PLAIN_END: Final = b"\xc0\xc0\xc0"  # no keys, no headers, no dedup ids
PLAIN_MAX_BYTES: Final = 4 * limits.KIB  # beyond, the bytes cost more than the request
_CODES: Final = sorted(int(code) for code in Content)


def _plain_starts(length: int) -> tuple[bytes, ...]:
    """Return how a body of so many bytes begins if it is one record and nothing but a value.

    With ``PLAIN_END`` behind the value that leaves no byte undetermined. One beginning for each
    content code.
    """
    small, medium = length - 8, length - 9  # msgpack: bin 8 has a head of 2 bytes, bin 16 of 3
    if 0 <= small < 1 << 8:
        head = bytes((0xC4, small))
    elif medium >= 1 << 8:
        head = bytes((0xC5, medium >> 8, medium & 0xFF))
    else:
        return ()
    return tuple(bytes((0x95, code, 0x91)) + head for code in _CODES)


PLAIN_STARTS: Final = [_plain_starts(length) for length in range(PLAIN_MAX_BYTES + 1)]
assert PLAIN_MAX_BYTES < 1 << 16
assert PLAIN_MAX_BYTES <= limits.RECORD_MAX_BYTES
