"""What reads bytes that somebody else wrote: each takes any bytes, or refuses them by type.

A target returns, or raises one of ``wald.errors``; anything else is found. Where a checksum stands
before what is to be tried, the target sets it right: else nothing behind it would ever be reached.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.logtools import DATA
from tests.packtools import PackedLog
from wald.config import Places, load_text
from wald.core import body, frame, packed, shaping
from wald.core.body import Body
from wald.core.events import Append, Hello, pack_ack
from wald.core.frame import BlockKind, Section, SectionKind
from wald.core.packed import ChunkCodec, ChunkHeader, PackedBlock
from wald.core.state import LogState
from wald.core.wire import FrameReader, Side
from wald.model import NO_REVISION, Anchor, Record
from wald.storage import deadlog, identity
from wald.storage.deadlog import DeadEntry
from wald.storage.packed import packed_path, read_tail
from wald.storage.salvage import read_file, records_of
from wald.testing import SimFileSystem

_GOLDEN = Path(__file__).parents[1] / "golden" / "disk-1"
_LOG_ID = bytes(range(16))
_PLACES = Places("/run/wald.sock", "/var/lib/wald")

Target = Callable[[bytes], None]


def wire_from_client(data: bytes) -> None:
    """Frames, in two reads."""
    _read(data, Side.DAEMON)


def wire_from_daemon(data: bytes) -> None:
    """Frames, in two reads."""
    _read(data, Side.CLIENT)


def _read(data: bytes, side: Side) -> None:
    reader, cut = FrameReader(side), data[0] if data else 0
    for part in (data[1:cut], data[max(1, cut) :]):
        reader.receive_data(part)
        while reader.next_event() is not None:
            pass


def request_body(data: bytes) -> None:
    """The body of an append: decoded, looked through, made records."""
    columns = body.decode(data)
    bad = {each.index for each in body.find_bad_records(columns)}
    good = [index for index in range(len(columns.values)) if index not in bad]
    kept = body.only(columns, good)
    body.decode(body.encode(kept))
    body.records(1, range(len(kept.values)), kept)


def block_header(data: bytes) -> None:
    """A block's header behind a right checksum."""
    size = frame.BLOCK_HEADER_BYTES - 4
    data = data[:size].ljust(size, b"\0")
    frame.decode_block_header(data + frame.crc32c(data).to_bytes(4, "little"))


def segment_header(data: bytes) -> None:
    """A segment's header behind a right checksum."""
    size = frame.SEGMENT_HEADER_BYTES - 4
    data = data[:size].ljust(size, b"\0")
    frame.decode_segment_header(data + frame.crc32c(data).to_bytes(4, "little"))


def sections(data: bytes) -> None:
    """The payload of a block: requests to records, statements and snapshots to a state."""
    state = LogState()
    for section in frame.decode_sections(data[1:], data[0] if data else 0):
        if section.kind is SectionKind.APPEND:
            list(records_of(section, 1, 1))
        state.apply(section, 1, 1)


def segment_file(data: bytes) -> None:
    """A whole segment."""
    _file(data, "/var/log/seg-0000000001.wal")


def dead_file(data: bytes) -> None:
    """A file of the dead log."""
    _file(data, "/var/log/dead-0000000000.log")


def packed_file(data: bytes) -> None:
    """A packed file, from its head on; and its tail."""
    name = "/var/log/pack-0000000001-0000000000000000001-0000000000000000009.wpk"
    fs = _file(data, name)
    file = fs.open(name)
    try:
        read_tail(file)
    finally:
        file.close()


def _file(data: bytes, path: str) -> SimFileSystem:
    fs = SimFileSystem(_Never(), directories=("/var", "/var/log"))  # type: ignore[arg-type]
    file = fs.create(path)
    file.pwritev([data], 0)
    file.close()
    for _ in read_file(fs, path):
        pass
    return fs


class _Never:
    """Nothing is left to chance here."""

    def random(self) -> float:
        return 1.0


def packed_chunk(data: bytes) -> None:
    """A chunk of a packed file behind a right checksum, compressed or not."""
    if len(data) < 4:
        return
    codec = ChunkCodec.ZLIB if data[0] & 1 else ChunkCodec.STORED
    raw_length, stored = int.from_bytes(data[1:3], "little"), data[4:]
    log_id, crc = frame.short_log_id(_LOG_ID), frame.crc32c(stored)
    raw_length = len(stored) if codec is ChunkCodec.STORED else max(raw_length, len(stored))
    fields = (codec, 0, 0, 9, 1, data[3], raw_length, len(stored), log_id, crc)
    for entry in packed.decode_chunk(ChunkHeader(*fields), stored):
        if isinstance(entry, PackedBlock):
            for lsn, section in entry.sections:
                list(records_of(section, lsn, 1))


def dead_entry(data: bytes) -> None:
    """An entry of the dead log behind a right checksum."""
    head = deadlog.encode_entry(DeadEntry(NO_REVISION, NO_REVISION, ()))[:8]
    head += len(data).to_bytes(4, "little")
    crc = frame.crc32c(head + data)
    deadlog.decode_entry(head + crc.to_bytes(4, "little") + data)


def frozen_batch(data: bytes) -> None:
    """A file of batches/."""
    shaping.unpack(data)


def identity_file(data: bytes) -> None:
    """The identity, behind a right checksum."""
    identity.decode(data + frame.crc32c(data).to_bytes(4, "little"))


def configuration(data: bytes) -> None:
    """A configuration file."""
    load_text([("fuzz.toml", data.decode("utf-8", "replace"))], _PLACES, {"SECRET": "x"})


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        wire_from_client,
        wire_from_daemon,
        request_body,
        block_header,
        segment_header,
        sections,
        segment_file,
        dead_file,
        packed_file,
        packed_chunk,
        dead_entry,
        frozen_batch,
        identity_file,
        configuration,
    )
}


# --- seeds --------------------------------------------------------------------------------------


def seeds(name: str) -> Sequence[bytes]:
    """Return inputs that a target takes: what a fuzzer begins with."""
    return list(_SEEDS[name]())


def _bodies() -> Iterator[bytes]:
    yield body.encode_one(1, b"\x81\xa1a\x01")
    yield body.encode(Body(1, [b"\x01", b"\x02"], ["k", b"k"], [{"h": "v"}, None], ["id", None]))
    yield body.encode(Body(bytes([0, 1, 2]), [b"x", b"\x01", b"{}"]))


def _from_client() -> Iterator[bytes]:
    hello = Hello(1, "till-1").encode()
    append = Append(3, 1, 1, next(_bodies())).encode()
    yield b"\x20" + hello + append


def _from_daemon() -> Iterator[bytes]:
    yield b"\x30" + pack_ack(1, 2, 3, 4)


def _segments() -> Iterator[bytes]:
    for path in sorted(_GOLDEN.glob("*/log/seg-*.wal")):
        yield path.read_bytes().rstrip(b"\0")


def _payloads() -> Iterator[bytes]:
    for data in _segments():
        for at in range(0, len(data), 4096):
            header = frame.decode_block_header(data, at)
            if header is not None and header.kind is not BlockKind.SEAL:
                start = at + frame.BLOCK_HEADER_BYTES
                count = min(header.sections, 255)
                yield bytes([count]) + data[start : start + header.payload_length]


def _block_headers() -> Iterator[bytes]:
    for data in _segments():
        for at in range(4096, len(data), 4096):
            yield data[at : at + frame.BLOCK_HEADER_BYTES - 4]


def _packed_log() -> Iterator[bytes]:
    log = PackedLog()
    log.fill(2)
    done = log.pack(1, log.segments()[0])
    file = log.fs.open(packed_path(DATA, done))
    yield file.pread(file.size(), 0)
    file.close()


def _chunks() -> Iterator[bytes]:
    section = Section(SectionKind.APPEND, 1, 1, 7, 1, 0, 0, b"", (), b"")
    block = PackedBlock(1, 1, Anchor(1, 2), ((1, section),))
    stored = packed.encode_entry(block)
    yield bytes([0, 0, 0, 1]) + stored


def _entries() -> Iterator[bytes]:
    record = Record(5, 1, 1, b"\x01", "k", {"h": "v"}, None)
    yield deadlog.encode_entry(DeadEntry(b"a" * 16, NO_REVISION, (record,), (3,)))[16:]


def _dead_files() -> Iterator[bytes]:
    record = Record(5, 1, 1, b"\x01", "k", {"h": "v"}, None)
    yield deadlog.encode_entry(DeadEntry(b"a" * 16, NO_REVISION, (record,), (3,))) * 2


def _configurations() -> Iterator[bytes]:
    yield Path(__file__).parents[2].joinpath("config", "wald.toml").read_bytes()
    yield (
        b'[sinks.a]\ntype = "sqlite"\npath = "x"\n[routes.r]\nstream = "s"\nsink = "a"\nlanes = 2\n'
    )


def _identities() -> Iterator[bytes]:
    yield (_GOLDEN / "clean" / "identity").read_bytes()[:-4]


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "wire_from_client": _from_client,
    "wire_from_daemon": _from_daemon,
    "request_body": _bodies,
    "block_header": _block_headers,
    "segment_header": lambda: (data[: frame.SEGMENT_HEADER_BYTES - 4] for data in _segments()),
    "sections": _payloads,
    "segment_file": _segments,
    "dead_file": _dead_files,
    "packed_file": _packed_log,
    "packed_chunk": _chunks,
    "dead_entry": _entries,
    "frozen_batch": lambda: iter([shaping.pack(shaping.Frozen(None, b"x"))]),
    "identity_file": _identities,
    "configuration": _configurations,
}
assert _SEEDS.keys() == TARGETS.keys()
