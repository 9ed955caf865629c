"""The fast path of appends comes to what the general path comes to: same blocks, same answers."""

from dataclasses import dataclass
from typing import TypeVar

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logtools import DATA
from tests.turns import Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    APPEND_KIND,
    HEADER,
    Append,
    Event,
    Goodbye,
    OpenStream,
    Ping,
    StreamOpened,
)
from wald.ingest.channel import Phase
from wald.storage.log import LogOptions

T = TypeVar("T")
VALUES = tuple(b"x" * size for size in (0, 1, 128, 247, 248, 255, 256, 5_000))


def plain(value: bytes, content: int = 0) -> bytes:
    return bodies.encode(Body(content, [value]))


PLAIN = [plain(value, content) for value in VALUES for content in (0, 1, 2)]
BODIES = [
    plain(b"v", 3),
    bodies.encode(Body(0, [b"a", b"b"])),
    bodies.encode(Body(0, [b"a"], ["key"])),
    bodies.encode(Body(b"\0", [b"a"])),
    msgpack.packb([0, [b"a", "text", b"c"], None, None, None]),
    msgpack.packb([0, ["text"], None, None, None]),
    msgpack.packb([0, [], None, None, None]),
    plain(b"x" * 128)[:-1],
    plain(b"x" * 128) + b"\xc0",
    b"\xc5\x00\x05".join([b"\x95\x00\x91", b"short\xc0\xc0\xc0"]),
    plain(b"x" * 128)[:-3] + b"\xc0\xc0\xc1",
    b"",
]


@dataclass(frozen=True)
class Sent:
    """A frame: of the next sequence plus ``off``; ``cut`` bytes of it are in this read."""

    body: bytes
    off: int = 0
    lag: int = 1
    stream: int = 1
    kind: int = APPEND_KIND
    control: bytes | None = None

    @property
    def count(self) -> int:
        """How many sequences it uses."""
        return int(self.off == 0 and self.control is None)

    def encode(self, sequence: int) -> bytes:
        if self.control is not None:
            return self.control
        number = max(0, sequence + self.off)
        return HEADER.pack(len(self.body), self.kind, self.stream, self.lag, number) + self.body


@dataclass(frozen=True)
class Burst:
    """Consecutive appends with bodies of one length; bits of one byte of them may be flipped."""

    values: tuple[bytes, ...]
    content: int = 0
    first_lag: int = 1
    flip_at: float = 0.0
    flip: int = 0

    @property
    def count(self) -> int:
        """How many sequences it uses."""
        return len(self.values)

    def encode(self, sequence: int) -> bytes:
        frames = [
            Append(1, sequence + at, at + self.first_lag, plain(value, self.content)).encode()
            for at, value in enumerate(self.values)
        ]
        data = bytearray(b"".join(frames))
        data[int(self.flip_at * len(data))] ^= self.flip
        return bytes(data)


SMALL = LogOptions(reserve_bytes=0, segment_bytes=1 << 20)


def mostly(usual: st.SearchStrategy[T], *rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Seven of eight are usual."""
    weights = [0] * 7 * len(rare) + list(range(1, len(rare) + 1))
    return st.sampled_from(weights).flatmap(lambda index: (usual, *rare)[index])


LAGS = mostly(st.just(1), st.sampled_from([0, 2, 3, 256, 257, 1 << 31]))
ANY_BODY = st.one_of(st.sampled_from(PLAIN), st.sampled_from(BODIES))
STREAMS = mostly(st.just(1), st.just(2))
NEXT = st.builds(Sent, ANY_BODY, lag=LAGS, stream=STREAMS)
AGAIN = st.builds(Sent, st.sampled_from(BODIES), off=st.sampled_from([-1, -2, -7]), lag=LAGS)
GAP = st.builds(Sent, ANY_BODY, off=st.sampled_from([1, 5, 1 << 40]))
STRANGE = st.sampled_from(
    [
        Sent(plain(b"a"), stream=99),
        Sent(plain(b"a"), kind=APPEND_KIND | 1 << 8),
        Sent(plain(b"a"), kind=1),
        Sent(plain(b"a"), kind=9),
        Sent(b"", control=Ping(7, b"p").encode()),
        Sent(b"", control=OpenStream(8, "orders").encode()),
        Sent(b"", control=OpenStream(9, "more").encode()),
        Sent(b"", control=Goodbye().encode()),
        Sent(b"", control=HEADER.pack(limits.REQUEST_MAX_BYTES + 1, APPEND_KIND, 1, 1, 1)),
    ]
)
LENGTHS = st.sampled_from([0, 1, 128, 247, 248, 255, 256])
BURSTS = st.builds(
    Burst,
    st.tuples(LENGTHS, st.integers(1, 40), st.randoms()).map(
        lambda drawn: tuple(drawn[2].randbytes(drawn[0]) for _ in range(drawn[1]))
    ),
    content=st.sampled_from([0, 1, 2]),
    first_lag=st.sampled_from([1, 2, 200]),
    flip_at=st.floats(0, 0.9999),
    flip=mostly(st.just(0), st.sampled_from([1, 0x40, 0xFF])),
)
FRAMES = mostly(NEXT, BURSTS, st.one_of(GAP, AGAIN, STRANGE))


@dataclass(frozen=True)
class Step:
    """What is sent, whether a read ends there or so many bytes before, and a turn behind it."""

    sent: Sent | Burst
    cut: bool = True
    early: int = 0
    turn: bool = True


YES, NO = st.just(value=True), st.just(value=False)
STEPS = st.builds(
    Step,
    FRAMES,
    cut=mostly(YES, NO),
    early=mostly(st.just(0), st.sampled_from([1, 3, 20, 140, 160])),
    turn=mostly(YES, NO),
)


def reads_of(steps: list[Step]) -> list[tuple[bytes, bool]]:
    """The reads, and whether a turn of the loop follows each."""
    reads: list[tuple[bytes, bool]] = []
    held, sequence = b"", 1
    for step in steps:
        frame = step.sent.encode(sequence)
        sequence += step.sent.count
        held += frame
        if step.cut:
            end = len(held) - min(step.early, len(held) - 1)
            reads.append((held[:end], step.turn))
            held = held[end:]
    return [*reads, (held, True)] if held else reads


class General(Client):
    """A client whose reads all go the general way, frame by frame."""

    def received(self, size: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "ALIKE_MIN_COUNT", limits.RECEIVE_BUFFER_BYTES)
            self.connection.take_read(size)


def begun(client: Client) -> Client:
    """Greet, and open two streams."""
    client.hello()
    client.send(OpenStream(1, "orders").encode(), OpenStream(2, "other").encode())
    client.turn()
    assert client.wire.events() == [StreamOpened(1, 1), StreamOpened(2, 2)]
    return client


def outcome(client: Client, reads: list[tuple[bytes, bool]]) -> tuple[object, ...]:
    """What is answered after each read, and what is stored in the end."""
    site = client.site
    answers: list[list[Event]] = []
    for data, turn in reads:
        if client.connection.phase is Phase.CLOSING:
            break
        client.send(data)
        if turn:
            client.turn()
        answers.append(client.wire.events())
    client.turn()
    answers.append(client.wire.events())
    assert site.failures == []
    refused = site.house.refused + site.committer.refused
    return answers, client.wire.closed, refused, stored(site), list(site.log.state.snapshot())


def stored(site: Site) -> bytes:
    """The segment up to the frontier, byte by byte."""
    number, end, _ = site.log.frontier
    file = site.fs.open(f"{DATA}/log/seg-{number:010d}.wal")
    data = file.pread(end, 0)
    file.close()
    return data


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, min_size=4, max_size=30))
def test_fast_and_general_path_store_and_answer_the_same(steps: list[Step]):
    reads = reads_of(steps)
    fast, general = begun(Client(Site(SMALL))), begun(General(Site(SMALL)))
    assert outcome(fast, reads) == outcome(general, reads)
    fast.site.log.close()
    general.site.log.close()
