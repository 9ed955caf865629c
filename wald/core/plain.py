"""Bodies that are one record and nothing but a value: told by their first and last bytes.

Nearly every body of a producer that appends single records is one. Such a body is whole and right
if it begins and ends as it must for its length, so that it need not be unpacked.
"""

from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Final, NamedTuple

from wald import limits
from wald.core.events import APPEND_KIND, HEADER, HEADER_BYTES
from wald.model import Content, StreamId

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


# --- frames alike -------------------------------------------------------------------------------

_CHUNK_COUNT: Final = 16
_LAG_AT: Final = 12  # in a header, drawn in core.events
_SEQUENCE_AT: Final = 16
# bytes 0 and 1 of all sequences that share the others, so that a slice is what a column must be
_LOW: Final = bytes(range(256)) * 256
_HIGH: Final = b"".join(bytes((high,)) * 256 for high in range(256))


class _Shape(NamedTuple):
    """Of appends with a body of one length."""

    known: tuple[int, ...]  # where bytes stand that are those of the first frame
    chunk: Struct  # cuts the bodies out of a chunk of frames


@lru_cache(maxsize=256)
def _shape_of(length: int) -> _Shape:
    body, step = HEADER_BYTES, HEADER_BYTES + length
    starts = range(body, body + len(PLAIN_STARTS[length][0]))
    ends = range(step - len(PLAIN_END), step)
    known = (*range(_LAG_AT), *range(_SEQUENCE_AT + 2, body), *starts, *ends)
    return _Shape(known, Struct("<" + f"{body}x{length}s" * _CHUNK_COUNT))


def take_alike(
    data: bytes, at: int, stream: StreamId, sequence: int, kind: int = APPEND_KIND
) -> list[bytes]:
    """Return the bodies of all complete frames from ``at`` on if they are alike; else none.

    They are alike if they are plain appends of one kind, length and content, in sequence, from
    ``sequence`` on: then every byte but those of lags and values is known, and a column of it is
    compared at once. Not every run of such frames is found.
    """
    if len(data) - at < limits.ALIKE_MIN_COUNT * HEADER_BYTES:
        return []
    length, of_kind, of_stream, _, of_sequence = HEADER.unpack_from(data, at)
    step = HEADER_BYTES + length
    count = (len(data) - at) // step
    begin = sequence % len(_LOW)
    if (
        count < limits.ALIKE_MIN_COUNT
        or of_sequence != sequence
        or of_kind != kind
        or of_stream != stream
        or length > PLAIN_MAX_BYTES
        or begin + count > len(_LOW)
    ):
        return []
    frames = data[at : at + count * step]
    first = frames[:step]
    if (
        not first.startswith(PLAIN_STARTS[length], HEADER_BYTES)
        or not first.endswith(PLAIN_END)
        or frames[_SEQUENCE_AT::step] != _LOW[begin : begin + count]
        or frames[_SEQUENCE_AT + 1 :: step] != _HIGH[begin : begin + count]
    ):
        return []
    known, chunk = _shape_of(length)
    for i in known:
        if frames[i::step] != first[i : i + 1] * count:
            return []
    whole = (count - count % _CHUNK_COUNT) * step
    bodies = list(chain.from_iterable(chunk.iter_unpack(frames[:whole])))
    bodies += [frames[i + HEADER_BYTES : i + step] for i in range(whole, len(frames), step)]
    return bodies
