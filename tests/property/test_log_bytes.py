"""Any prefix of a log recovers a prefix of its records; no flipped bit yields a wrong record."""

import random
from dataclasses import dataclass

import pytest

from tests.model.log_machine import DATA, SEGMENT_BYTES
from tests.model.log_reader import FoundRequest, block_offsets, read_log, requests_of
from wald.core import frame
from wald.core.frame import RequestEntry, Section, SectionKind
from wald.core.state import session_issued, stream_opened
from wald.model import Frontier, LostRange, Lsn
from wald.storage.log import Log, LogOptions
from wald.storage.tail import TailReader
from wald.testing import ManualClock, SimFileSystem

SESSION = 77
SEED = 20_261_122
PAGE = f"{DATA}/ingest.page"


@dataclass(frozen=True)
class Written:
    """A log with a few segments, what is in it, and where its groups end."""

    fs: SimFileSystem
    frontier: Frontier
    requests: tuple[FoundRequest, ...]
    ends: tuple[Frontier, ...]

    def path(self, segment: int) -> str:
        return f"{DATA}/log/seg-{segment:010d}.wal"


def open_log(fs: SimFileSystem) -> Log:
    chance = random.Random(SEED)
    return Log.open(fs, DATA, ManualClock(), chance, LogOptions(segment_bytes=SEGMENT_BYTES))


def append_section(first: int, bodies: list[bytes]) -> Section:
    entries = [RequestEntry(2, 2, len(body), frame.crc32c(body)) for body in bodies]
    table = b"".join(frame._REQUEST.pack(*entry) for entry in entries)
    records = 2 * len(bodies)
    return Section(
        SectionKind.APPEND, 1, 1, SESSION, first, 0, records, table, (), b"".join(bodies)
    )


def write_log(groups: int = 24) -> Written:
    chance = random.Random(SEED)
    fs = SimFileSystem(random.Random(SEED), directories=["/var", DATA])
    log = open_log(fs)
    log.append_group([session_issued(SESSION, "s"), stream_opened(1, "events")])
    requests: list[FoundRequest] = []
    ends = [log.frontier]
    sequence = 1
    for _ in range(groups):
        lengths = [chance.choice((10, 700, 9000)) for _ in range(chance.randint(1, 3))]
        bodies = [chance.randbytes(length) for length in lengths]
        section = append_section(sequence, bodies)
        receipt = log.append_group([section])
        requests += requests_of(section, receipt.first_lsn)
        ends.append(log.frontier)
        sequence += len(bodies)
    frontier = log.frontier
    fs.kill()
    fs.settle()
    return Written(fs, frontier, tuple(requests), tuple(ends))


@pytest.fixture(scope="module")
def written() -> Written:
    return write_log()


def forget_hints(fs: SimFileSystem) -> None:
    fs.unlink(PAGE)
    fs.settle()


def cut(fs: SimFileSystem, path: str, at: int, *, zeros: bool) -> None:
    file = fs.open(path, write=True)
    size = file.size()
    file.truncate(at)
    if zeros:
        file.truncate(size)
    file.close()
    fs.settle()


def blocks_of(written: Written) -> list[tuple[int, int, Lsn]]:
    """Offset, end without padding, and last LSN of each block of the last segment."""
    path = written.path(written.frontier.segment)
    file = written.fs.open(path)
    data = file.pread(written.frontier.end_bytes, 0)
    file.close()
    found = []
    for offset in block_offsets(written.fs, path, len(data)):
        block = frame.decode_block_header(data, offset)
        assert block is not None
        end = offset + frame.BLOCK_HEADER_BYTES + block.payload_length
        found.append((offset, end, block.last_lsn))
    return found


def cuts_of(written: Written) -> list[int]:
    """Offsets in the last segment: around every block's edges, and anywhere."""
    chance = random.Random(SEED)
    edges = [edge for offset, end, _ in blocks_of(written) for edge in (offset, end)]
    last = max(edges)
    near = {edge + step for edge in edges for step in (-512, -1, 0, 1, 40, 96, 512)}
    anywhere = {chance.randint(0, last) for _ in range(40)}
    return sorted(at for at in near | anywhere if 0 <= at <= last)


@pytest.mark.parametrize("zeros", [False, True], ids=["cut-off", "zeros"])
def test_any_prefix_of_a_log_recovers_a_prefix_of_its_records(written: Written, *, zeros: bool):
    print(f"seed {SEED}")
    segment, blocks = written.frontier.segment, blocks_of(written)
    before_lsn = max(end.lsn for end in written.ends if end.segment < segment)
    seen = set()
    for at in cuts_of(written):
        fs = written.fs.clone()
        cut(fs, written.path(segment), at, zeros=zeros)
        forget_hints(fs)
        log = open_log(fs)
        assert not log.recovery.losses, (at, log.recovery)
        found = read_log(fs, DATA, log.frontier).requests
        whole = max((lsn for _, end, lsn in blocks if end <= at), default=before_lsn)
        expected = [each for each in written.requests if each.first_lsn <= whole]
        assert found == expected, at
        assert log.state.streams_by_name["events"].records == 2 * len(expected)
        assert log.state.sessions[SESSION].last_sequence == len(expected)
        assert log.next_lsn > log.frontier.lsn
        seen.add(len(found))
        log.close()
    assert len(seen) > 3


def test_a_prefix_below_the_hint_is_reported_as_a_loss(written: Written):
    segment = written.frontier.segment
    whole = max(end for _, end, _ in blocks_of(written))
    for at in cuts_of(written)[::5]:
        if at >= whole:
            continue
        fs = written.fs.clone()
        cut(fs, written.path(segment), at, zeros=True)
        log = open_log(fs)
        kept = read_kept(fs, log)
        check_nothing_wrong(written, kept)
        assert len(kept.requests) < len(written.requests)
        assert not log.state.sessions, "a resend of a lost record must not look new"
        assert log.next_lsn > written.frontier.lsn
        log.close()


@dataclass(frozen=True)
class Kept:
    """What the drainer would read of a log, and every LSN range said to be lost."""

    requests: list[FoundRequest]
    lost: list[tuple[Lsn, Lsn]]


def read_kept(fs: SimFileSystem, log: Log) -> Kept:
    reader = TailReader(fs, DATA, log.log_id, after=0)
    kept = Kept([], [(each.first_lsn, each.last_lsn) for each in log.recovery.losses])
    for item in reader.read(log.frontier):
        if isinstance(item, LostRange):
            kept.lost.append((item.first_lsn, item.last_lsn))
            continue
        for first_lsn, section in item.sections:
            if section.kind is SectionKind.APPEND:
                kept.requests.extend(requests_of(section, first_lsn))
    reader.close()
    return kept


def check_nothing_wrong(written: Written, kept: Kept, *, silent_above: Lsn | None = None) -> None:
    """What is read was written; what was written and is not read is in a reported range.

    Above ``silent_above`` it may be gone without a word.
    """
    truth = {each.first_lsn: each for each in written.requests}
    for each in kept.requests:
        assert truth.pop(each.first_lsn, None) == each, f"a wrong record at LSN {each.first_lsn}"
    for lsn in truth:
        if silent_above is not None and lsn > silent_above:
            continue
        assert any(first <= lsn <= last for first, last in kept.lost), f"LSN {lsn} gone silently"


def flips_of(written: Written) -> list[tuple[int, int]]:
    """(segment, bit): every byte of one block's header, and bits anywhere below the end."""
    chance = random.Random(SEED)
    block = written.ends[5]
    flips = [
        (block.segment, 8 * (block.end_bytes + byte) + chance.randrange(8))
        for byte in range(frame.BLOCK_HEADER_BYTES + frame.SECTION_BYTES)
    ]
    flips += [(end.segment, chance.randrange(8 * end.end_bytes)) for end in written.ends]
    segments = sorted({end.segment for end in written.ends})
    for segment in segments:
        flips += [(segment, 8 * byte + chance.randrange(8)) for byte in range(0, 100, 5)]
    for end in written.ends[:-1]:
        flips += [(end.segment, 8 * (end.end_bytes - 1 - chance.randrange(400)))] * 2
    return flips


@pytest.mark.parametrize("hint", ["exact", "stale"])
def test_no_flipped_bit_yields_a_wrong_record(written: Written, hint: str):
    """With a stale hint the last group cannot be told from a torn tail: the one known limit."""
    print(f"seed {SEED}")
    last_group = written.ends[-2].lsn
    for segment, bit in flips_of(written):
        fs = written.fs.clone()
        path = written.path(segment)
        file = fs.open(path)
        byte = file.pread(1, bit // 8)
        file.close()
        fs.damage(path, bit // 8, bytes([byte[0] ^ 1 << bit % 8]))
        if hint == "stale":
            forget_hints(fs)
        log = open_log(fs)
        silent_above = last_group if hint == "stale" else None
        try:
            check_nothing_wrong(written, read_kept(fs, log), silent_above=silent_above)
        except AssertionError as error:
            pytest.fail(f"segment {segment}, byte {bit // 8}, bit {bit % 8}: {error}")
        log.close()


@pytest.mark.parametrize("hint", ["exact", "stale"])
def test_a_lost_segment_is_reported_with_all_that_it_held(written: Written, hint: str):
    for segment in sorted({end.segment for end in written.ends}):
        fs = written.fs.clone()
        fs.unlink(written.path(segment))
        if hint == "stale":
            fs.unlink(PAGE)
        fs.settle()
        log = open_log(fs)
        kept = read_kept(fs, log)
        truth = {each.first_lsn for each in written.requests}
        assert {each.first_lsn for each in kept.requests} < truth
        said = [*kept.lost, *((each.first_lsn, 0) for each in log.recovery.losses)]
        assert said, f"segment {segment} is gone silently"
        if hint == "exact":
            check_nothing_wrong(written, kept)
        assert log.next_lsn > written.frontier.lsn
        log.close()
