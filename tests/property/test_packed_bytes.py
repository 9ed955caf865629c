"""Whatever a log holds, a packed file holds the same; no bit can be flipped in it unnoticed."""

from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.logtools import DATA, append
from tests.packtools import PackedLog
from wald import limits
from wald.core import packed as codec
from wald.core.packed import ChunkBuilder, Entry, PackedBlock
from wald.model import Anchor, LostRange
from wald.storage.packed import packed_path

VALUES = st.lists(st.binary(max_size=60), min_size=1, max_size=4)
ANCHORS = st.builds(Anchor, st.integers(0, 2**32 - 1), st.integers(0, 2**63))
RECORDS = st.one_of(st.none(), st.integers(0, 2**32))
LOSSES = st.tuples(st.integers(1, 2**41), st.text("abc é·", max_size=40), RECORDS)


@st.composite
def entries(draw):
    """Blocks and losses in the order of their LSNs, with gaps between them."""
    found: list[Entry] = []
    lsn = draw(st.integers(1, 2**62))
    for index in range(draw(st.integers(1, 5))):
        lsn += draw(st.sampled_from((0, 0, 1, 2**24)))
        if draw(st.booleans()):
            lsns, reason, records = draw(LOSSES)
            found.append(LostRange(lsn, lsn + lsns - 1, index, 4096, reason, records))
        else:
            before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
            section = append(index + 1, *draw(VALUES), session=2**63 + index)
            lsns = before + section.records + after
            found.append(PackedBlock(lsn, lsns, draw(ANCHORS), ((lsn + before, section),)))
        lsn += lsns
    return found


# the machine may be busy: how long it takes to draw says nothing
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries())
def test_any_entries_come_back_as_they_were(found):
    builder = ChunkBuilder(bytes(16))
    for entry in found:
        builder.add(entry, codec.encode_entry(entry))
    chunk, data = builder.build(80, found[0].first_lsn - 1, found[-1].last_lsn)
    assert codec.decode_chunk_header(data) == chunk
    assert codec.decode_chunk(chunk, data[codec.CHUNK_HEADER_BYTES :]) == found
    assert chunk.records == sum(
        section.records
        for entry in found
        if isinstance(entry, PackedBlock)
        for _, section in entry.sections
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3_000), st.data())
def test_any_part_of_any_log_is_read_as_before_and_no_flipped_bit_gives_another_record(
    seed, chunk_bytes, data
):
    held = PackedLog()
    held.fill(2, seed=seed)
    last = held.segments()[data.draw(st.integers(0, 1))]
    lo = data.draw(st.integers(0, last.last_lsn - 1))
    with patch.object(limits, "PACKED_CHUNK_BYTES", chunk_bytes):
        packed = held.pack(1, last, lo=lo)
    for after in (0, lo, data.draw(st.integers(0, held.frontier.lsn))):
        assert held.read(1, after) == (held.expected(1, after), [])
    path = packed_path(DATA, packed)
    at = data.draw(st.integers(0, packed.size_bytes - 1))
    file = held.fs.open(path)
    byte = file.pread(1, at)[0]
    file.close()
    held.fs.damage(path, at, bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
    values, lost = held.read(1)
    missing = held.expected(1).keys() - values.keys()
    assert values == {lsn: value for lsn, value in held.expected(1).items() if lsn not in missing}
    assert len(lost) <= 1, "one flipped bit costs one chunk"
    named = {lsn for item in lost for lsn in range(item.first_lsn, item.last_lsn + 1)}
    assert missing <= named
