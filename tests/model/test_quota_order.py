"""A producer of two streams, one of which is full now and then, through kills and reconnects.

Against the real door: what is refused uses its sequence, and is sent again behind all answers to
its stream. Whatever happens, every record is stored once, each stream in the order in which its
records were made, and the stream without a quota never waits for the other.
"""

import random
import struct
from collections import deque
from collections.abc import Iterable, Iterator

import pytest

from tests.turns import Client, Site
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import Ack, Append, Capability, OpenStream, RefusedRecords, StreamOpened
from wald.core.frame import BlockKind, Section, SectionKind
from wald.core.quota import Marks, Pending, Quota, StreamQuota
from wald.model import StreamId
from wald.storage.segment import BlockReader, read_header, segment_number

RECORDS = 60  # of each stream


class Switch:
    """Stands for ``wald.ingest.quotas``: one stream's quota, full when the test says so."""

    def __init__(self) -> None:
        self.stream: StreamId = 0
        self.quota = StreamQuota(Quota(records=10), Marks())

    def of(self, stream: StreamId) -> StreamQuota | None:
        return self.quota if stream == self.stream else None

    def look(self) -> None:
        pass

    def set(self, *, full: bool) -> None:
        self.quota.settle()
        self.quota.look(Pending(10 if full else 0, 0, 0.0, "r"))


class Producer:
    """Sends the records of two streams; sends again what was refused, in order.

    Once something of a stream was refused, nothing more is sent to it before all is answered that
    was.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.left = {"full": deque(range(RECORDS)), "free": deque(range(RECORDS))}
        self.sent: dict[int, tuple[str, int]] = {}  # unanswered, by sequence
        self.refusals = {"full": 0, "free": 0}
        self.sequence = 0
        self.answered = 0
        self.session = 0
        self.streams: dict[str, StreamId] = {}
        self.connect()

    def connect(self) -> None:
        self.client: Client = self.site.client()
        capabilities = int(Capability.THROTTLE)
        welcome = self.client.hello("p", self.session, capabilities)
        self.session = welcome.session
        for number, name in enumerate(("full", "free"), 1):
            self.client.send(OpenStream(number, name).encode())
            self.client.turn()
            (opened,) = self.client.wire.events()
            assert isinstance(opened, StreamOpened)
            self.streams[name] = opened.stream
        for sequence in sorted(self.sent):
            self.client.send(self.frame(sequence))

    def frame(self, sequence: int) -> bytes:
        name, number = self.sent[sequence]
        body = bodies.encode(Body(0, [b"%s %d" % (name.encode(), number)]))
        lag = sequence - self.answered
        return Append(self.streams[name], sequence, lag, body).encode()

    def send(self, name: str) -> None:
        waits = {at for at, _ in self.sent.values()}
        if not self.left[name] or (self.is_refused(name) and name in waits):
            return
        self.sequence += 1
        self.sent[self.sequence] = name, self.left[name].popleft()
        self.client.send(self.frame(self.sequence))

    def is_refused(self, name: str) -> bool:
        """Whether something of the stream was refused, and waits to be sent again."""
        left = self.left[name]
        newest = max((n for at, n in self.sent.values() if at == name), default=-1)
        return bool(left) and left[0] < newest

    def hear(self) -> None:
        refused: set[int] = set()
        for event in self.client.wire.events():
            if isinstance(event, RefusedRecords):
                assert event.refusals[0].code == "backpressure"
                refused.add(event.sequence)
            elif isinstance(event, Ack):
                for sequence in sorted(self.sent):
                    if sequence <= event.through:
                        self.take(sequence, refused=sequence in refused)

    def take(self, sequence: int, *, refused: bool) -> None:
        name, number = self.sent.pop(sequence)
        self.answered = max(self.answered, sequence)
        if refused:
            self.refusals[name] += 1
            again = sorted([*self.left[name], number])
            self.left[name] = deque(again)

    @property
    def is_done(self) -> bool:
        return not (self.sent or self.left["full"] or self.left["free"])


def stored(site: Site) -> list[bytes]:
    """Return the values in the log, in the order of their LSNs; a start copies the last group."""
    found: dict[int, bytes] = {}
    for name in sorted(site.fs.list_directory("/var/wald/log")):
        number = segment_number(name)
        if number is None:
            continue
        file = site.fs.open(f"/var/wald/log/{name}")
        header = read_header(file).header
        assert header is not None
        for block in BlockReader(file, number, site.log.log_id, header):
            if block.header.kind is BlockKind.RECORDS:
                found.update(enumerate(values_in(block.sections()), block.header.first_lsn))
    return [found[lsn] for lsn in sorted(found)]


def values_in(sections: Iterable[Section]) -> Iterator[bytes]:
    for section in sections:
        if section.kind is SectionKind.APPEND:
            yield from values_of(section)


def values_of(section: Section) -> Iterator[bytes]:
    at = 0
    for _, _, length, _ in struct.iter_unpack("<IIII", section.requests):  # core.frame draws it
        yield from bodies.decode(section.bodies[at : at + length]).values
        at += length


def play(seed: int) -> tuple[Producer, list[bytes]]:
    chance, switch = random.Random(seed), Switch()
    producer = Producer(Site(quotas=switch))
    switch.stream = producer.streams["full"]
    for step in range(6_000):
        match chance.randrange(200):
            case 0:
                producer.site = producer.site.killed()
                producer.connect()
            case 1 | 2:
                producer.client.leave()
                producer.connect()
            case n if n < 12:
                switch.set(full=chance.random() < 0.6 and step < 5_000)
            case n if n < 90:
                producer.send("full")
            case n if n < 140:
                producer.send("free")
            case _:
                producer.client.turn()
                producer.hear()
        if producer.is_done:
            break
    producer.site.log.close()
    return producer, stored(producer.site)


@pytest.mark.parametrize("seed", range(12))
def test_each_stream_keeps_its_order_and_nothing_waits_for_the_full_one(seed: int) -> None:
    producer, values = play(seed)
    assert producer.is_done
    assert producer.refusals["full"] > 0
    assert producer.refusals["free"] == 0
    for name in ("full", "free"):
        mine = [value for value in values if value.startswith(name.encode())]
        assert mine == [b"%s %d" % (name.encode(), number) for number in range(RECORDS)]


def test_without_the_rule_the_order_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model finds what it is for: what is in flight behind a refusal must be refused too."""
    monkeypatch.setattr("wald.ingest.doorway.answered_through", lambda event: event.sequence)
    orders = []
    for seed in range(12):
        _, values = play(seed)
        mine = [int(value.split()[1]) for value in values if value.startswith(b"full")]
        orders.append(mine == sorted(mine))
    assert not all(orders)
