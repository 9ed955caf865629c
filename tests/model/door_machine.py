"""The real door over the real log on the simulated file system: clients, names, dedup ids, crashes.

Clients are simulated, and speak the protocol to real connections (``tests.turns``): they lose
connections before or behind an answer, come back by session, send again, take a name over. Process
and machine end at any operation. After each start everything that was told is compared with what
the log holds:

- a record that was acknowledged stands at the LSN it was told, with its value;
- no LSN was told to two requests, whoever sent them;
- a dedup id is in the log at most once, and a duplicate was told the LSN of that record;
- what is sent again is told the same;
- a record stands in the log once, also where its client forgot it as soon as it was received, and
  skipped what a crash took.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from tests.model.log_reader import Misread, read_log
from tests.model.promises import Violation
from tests.turns import OPTIONS, Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body, Text
from wald.core.events import (
    Ack,
    Append,
    AppendFlag,
    Capability,
    DuplicateRecords,
    Event,
    Failed,
    Hello,
    Received,
    Skip,
    Welcome,
)
from wald.core.ids import DedupPolicy
from wald.core.rules import StreamRules
from wald.errors import WaldError
from wald.model import Lsn
from wald.testing import ManualClock, SimFileSystem, Stopped

DATA = "/var/wald"
STREAM = 1
CAPABILITIES = Capability.RECEIVED | Capability.DUPLICATES | Capability.EPOCH
RULES = {"orders": StreamRules(compares_ids=True)}
ID_POOL_COUNT = 60
TWINS = b"p2"  # clients of one name, whose records are the same


@dataclass(slots=True)
class Sent:
    """A request of a client: its records as (value, id), and what it was told."""

    sequence: int
    records: list[tuple[bytes, str | None]]
    body: bytes
    duplicates: dict[int, Lsn] = field(default_factory=dict)
    first_told: tuple[Lsn, dict[int, Lsn]] | None = None


@dataclass(slots=True)
class Producer:
    """A simulated client. ``label`` is in the values of what it sends; twins send the same.

    One that is ``early`` forgets what was answered as received, up to ``forgotten``.
    """

    label: bytes
    name: str = ""
    session: int = 0
    epoch: int = 0
    early: bool = False
    forgotten: int = 0
    made: int = 0
    last: int = 0
    sent_through: int = 0
    ended: bool = False
    unanswered: list[Sent] = field(default_factory=list)
    answered: list[Sent] = field(default_factory=list)
    client: Client | None = None


class DoorMachine:
    """See the module. ``chance`` decides every detail."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        write_back = self.chance.choice((0.0, 0.05))
        self.fs = SimFileSystem(Random(seed + 1), directories=["/var"], write_back=write_back)
        self.clock = ManualClock()
        self.options = replace(
            OPTIONS,
            segment_bytes=1 << 20,
            snapshot_every_sections=self.chance.choice((2, 5, 8_192)),
            dedup={"orders": DedupPolicy(10 * 86_400.0, 100_000)},
        )
        self.site: Site | None = None
        self.producers = [Producer(b"p%d" % at, name) for at, name in enumerate(("", "", "bill"))]
        self.producers.insert(0, Producer(b"early", early=True))
        self.told: dict[Lsn, tuple[int, int]] = {}  # LSN to the producer and sequence it was told
        self.values: dict[Lsn, tuple[bytes, str | None]] = {}
        self.ids: dict[str, Lsn] = {}  # as duplicates were told
        self.history: list[str] = []
        self.counts: Counter[str] = Counter()

    # --- what can happen ------------------------------------------------------------------------

    def step(self) -> None:
        """Take one step of any kind."""
        if self.site is None:
            self.start(stop_at=self.chance.choice((0, 0, 0, self.chance.randint(1, 60))))
            return
        roll = self.chance.random()
        if roll < 0.03:
            self.fs.stop(self.chance.randint(1, 12))
            self._note("stop soon")
        elif roll < 0.06:
            kind = self.chance.choice(("sync", "pwritev", "sync_directory", None))
            self.fs.fail(self.chance.randint(1, 6), kind=kind)
            self._note(f"fail {kind} soon")
        elif roll < 0.10:
            self.end(cut=self.chance.random() < 0.5)
        elif roll < 0.12:
            self._guarded(self.site.log.close)
            self.end(cut=False)
        elif roll < 0.16:
            self._replace_one()
        else:
            self._guarded(lambda: self._act(self.chance.choice(self.producers)))

    def start(self, *, stop_at: int = 0) -> None:
        """Start the door over what is on the disk, and compare everything."""
        self._note(f"start stop_at={stop_at}")
        if stop_at:
            self.fs.stop(stop_at)
        else:
            self.fs.heal()
        try:
            site = Site(self.options, self.fs, self.clock, rules=RULES)
        except Stopped:
            self.end(cut=self.chance.random() < 0.5)
            return
        except (WaldError, OSError) as error:
            self._note(f"  failed: {error!r}")
            self.end(cut=False)
            return
        self.fs.heal()
        self.site = site
        self.counts["starts"] += 1
        self.check()

    def end(self, *, cut: bool) -> None:
        """End the process by force, or the machine."""
        self._note("power cut" if cut else "kill")
        self.counts["power cuts" if cut else "kills"] += 1
        if cut:
            self.fs.crash()
            self.clock.reboot()
        else:
            self.fs.kill()
        self.clock.advance(1)
        self.site = None
        for producer in self.producers:
            producer.client = None

    def finish(self) -> None:
        """Let everybody get the last answers, and compare once more."""
        self.fs.heal()
        if self.site is None:
            self.start()
        for _ in range(3):
            for producer in self.producers:
                if self.site is not None and not producer.ended:
                    self._guarded(lambda: self._connect(producer))  # noqa: B023 - used at once
        if self.site is not None:
            self.end(cut=True)
        self.start()

    def _guarded(self, action: object) -> None:
        """Do something of the door; an end of process or machine within it is one."""
        assert callable(action)
        try:
            action()
        except Stopped:
            self.end(cut=self.chance.random() < 0.5)
        except (WaldError, OSError) as error:
            self._note(f"  the log failed: {error!r}")
            self.counts["failed logs"] += 1
            self.end(cut=self.chance.random() < 0.5)

    def _replace_one(self) -> None:
        """A second client of a name comes, and sends what the first one sends."""
        older = self.producers[-1]
        self._note("a second client of the name")
        self.counts["takeovers"] += 1
        if len(self.producers) > 5:
            gone = self.producers.pop(3)
            if gone.client is not None:
                gone.client.leave()
        self.producers.append(Producer(TWINS, older.name))

    # --- clients --------------------------------------------------------------------------------

    def _act(self, producer: Producer) -> None:
        site, chance = self.site, self.chance
        assert site is not None
        if producer.ended:
            return
        if producer.client is None:
            self._connect(producer)
            return
        roll = chance.random()
        if roll < 0.45:
            self._send(producer)
        elif roll < 0.75:
            site.loop.turn()
            self._hear_all()
        elif roll < 0.85:
            site.loop.turn()  # answered, and not heard
            self._lose(producer)
        elif roll < 0.93:
            self._lose(producer)
        elif producer.answered:
            self._ask_again(producer)

    def _lose(self, producer: Producer) -> None:
        if producer.client is not None:
            producer.client.leave()
            producer.client = None

    def _send(self, producer: Producer) -> None:
        assert producer.client is not None
        chance = self.chance
        producer.last += 1
        producer.made += 1
        number = producer.last if producer.label == TWINS else producer.made
        records: list[tuple[bytes, str | None]] = []
        for at in range(chance.choice((1, 1, 2, 4))):
            value = producer.label + b":%d:%d" % (number, at)
            with_id = chance.random() < 0.6 and producer.label != TWINS
            records.append((value, f"id-{chance.randrange(ID_POOL_COUNT)}" if with_id else None))
        ids: list[Text | None] = [each for _, each in records]
        values = [value for value, _ in records]
        body = bodies.encode(Body(0, values, None, None, ids if any(ids) else None))
        request = Sent(producer.last, records, body)
        producer.unanswered.append(request)
        self._put(producer, request)
        if producer.early:
            self._hear_all()  # before the turn's commit

    def _put(self, producer: Producer, request: Sent) -> None:
        assert producer.client is not None
        producer.sent_through = max(producer.sent_through, request.sequence)
        answered = producer.unanswered[0].sequence - 1 if producer.unanswered else 0
        lag = max(1, min(request.sequence - answered, limits.WINDOW_REQUESTS))
        request.duplicates = {}
        flags = AppendFlag.RECEIVED if producer.early else 0
        producer.client.send(Append(STREAM, request.sequence, lag, request.body, flags).encode())

    def _ask_again(self, producer: Producer) -> None:
        """Send something that was answered once more, as if the answer had been lost."""
        request = producer.answered[-1]
        if producer.unanswered or producer.client is None:
            return
        again = Sent(request.sequence, request.records, request.body)
        again.first_told = request.first_told
        producer.client.send(Append(STREAM, again.sequence, 1, again.body).encode())
        assert self.site is not None
        self.site.loop.turn()
        for event in producer.client.wire.events():
            if isinstance(event, DuplicateRecords):
                again.duplicates = {each.record: each.lsn for each in event.duplicates}
            elif isinstance(event, Ack):
                self._same(again, event.first_lsn)
                self.counts["asked again"] += 1

    def _connect(self, producer: Producer) -> None:
        site = self.site
        assert site is not None
        self._lose(producer)
        client = site.client()
        hello = Hello(1, producer.name, producer.session, CAPABILITIES, epoch=producer.epoch)
        client.send(hello.encode())
        site.loop.turn()
        events = client.wire.events()
        self._hear_all()
        if not events:
            return
        first = events[0]
        if isinstance(first, Failed):
            self._turned_away(producer, first.code)
            return
        assert isinstance(first, Welcome), first
        self._welcomed(producer, client, first)

    def _turned_away(self, producer: Producer, code: str) -> None:
        self._note(f"  {producer.label!r} is refused: {code}")
        if code == "fenced":
            producer.ended = True
            self.counts["fenced"] += 1
        elif code == "outcome-unknown":
            producer.session = producer.epoch = producer.last = producer.sent_through = 0
            producer.unanswered, producer.answered, producer.forgotten = [], [], 0

    def _welcomed(self, producer: Producer, client: Client, first: Welcome) -> None:
        assert self.site is not None
        if producer.session and first.last_sequence > producer.sent_through:
            producer.ended = True
            client.leave()
            return
        if not producer.session:
            producer.last = producer.sent_through = first.last_sequence
        producer.session, producer.epoch = first.session, first.epoch
        producer.client = client
        if producer.forgotten > first.last_sequence:
            self.counts["skipped"] += 1
            client.send(Skip(producer.forgotten).encode())
        for request in list(producer.unanswered):
            self._put(producer, request)
        if producer.unanswered:
            self.site.loop.turn()
            self._hear_all()

    def _hear_all(self) -> None:
        for producer in self.producers:
            if producer.client is not None:
                for event in producer.client.wire.events():
                    self._hear(producer, event)

    def _hear(self, producer: Producer, event: Event) -> None:
        waiting = producer.unanswered
        if isinstance(event, Received):
            while waiting and waiting[0].sequence <= event.through:
                producer.forgotten = waiting.pop(0).sequence
        elif isinstance(event, DuplicateRecords):
            for request in waiting:
                if request.sequence == event.sequence:
                    request.duplicates = {each.record: each.lsn for each in event.duplicates}
        elif isinstance(event, Ack):
            self._hear_ack(producer, event)
        elif isinstance(event, Failed):
            self._failed(producer, event)

    def _hear_ack(self, producer: Producer, ack: Ack) -> None:
        waiting = producer.unanswered
        lsn = ack.first_lsn  # (the requests of an early one are forgotten by now)
        while waiting and waiting[0].sequence <= ack.through:
            request = waiting.pop(0)
            lsn = self._acknowledged(producer, request, lsn)
            producer.answered.append(request)

    def _failed(self, producer: Producer, event: Failed) -> None:
        self._note(f"  {producer.label!r} is told {event.code}")
        if event.closing:
            producer.ended = event.code == "fenced"
            self._lose(producer)
        elif event.not_stored:
            producer.unanswered.clear()
            producer.last = event.request - 1
            producer.forgotten = min(producer.forgotten, producer.last)
        else:
            msg = f"{producer.label!r} is told {event}"
            raise Violation(msg)

    def _acknowledged(self, producer: Producer, request: Sent, lsn: Lsn) -> Lsn:
        self.counts["acknowledged"] += 1
        request.first_told = (lsn, dict(request.duplicates))
        key = (self.producers.index(producer) + 10 * id(producer), request.sequence)
        for at, (value, dedup_id) in enumerate(request.records):
            earlier = request.duplicates.get(at)
            if earlier is not None:
                assert dedup_id is not None
                self.counts["duplicates"] += 1
                self._expect(
                    self.ids.setdefault(dedup_id, earlier) == earlier,
                    f"{dedup_id} was told to be LSN {self.ids[dedup_id]} and {earlier}",
                )
                continue
            owner = self.told.setdefault(lsn, key)
            self._expect(owner == key, f"LSN {lsn} was told to two clients")
            self.values[lsn] = (value, dedup_id)
            lsn += 1
        return lsn

    def _same(self, again: Sent, first_lsn: Lsn) -> None:
        assert again.first_told is not None
        lsn, duplicates = again.first_told
        self._expect(duplicates == again.duplicates, "other duplicates when asked again")
        stores = len(again.records) > len(duplicates)
        self._expect(not stores or lsn == first_lsn, f"LSN {lsn}, and {first_lsn} when asked again")

    # --- checking -------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare the log with what was told."""
        assert self.site is not None
        try:
            with self.fs.undisturbed():
                found = read_log(self.fs, DATA, self.site.log.frontier)
        except (Misread, WaldError) as error:
            raise Violation(str(error)) from error
        there: dict[Lsn, tuple[bytes, str | None]] = {}
        values: set[bytes] = set()
        of_id: dict[str, Lsn] = {}
        for request in found.requests:
            decoded = bodies.decode(request.body)
            ids = decoded.dedup_ids or [None] * len(decoded.values)
            for at, (value, dedup_id) in enumerate(zip(decoded.values, ids, strict=True)):
                lsn = request.first_lsn + at
                there[lsn] = (value, None if dedup_id is None else str(dedup_id))
                twin = value.startswith(TWINS)
                self._expect(twin or value not in values, f"{value!r} is stored twice")
                values.add(value)
                if dedup_id is not None:
                    first = of_id.setdefault(str(dedup_id), lsn)
                    self._expect(first == lsn, f"{dedup_id!r} is LSN {first} and LSN {lsn}")
        for lsn, record in self.values.items():
            self._expect(there.get(lsn) == record, f"LSN {lsn} is {there.get(lsn)}, not {record}")
        for dedup_id, lsn in self.ids.items():
            self._expect(of_id.get(dedup_id) == lsn, f"{dedup_id} is not LSN {lsn}")

    def _expect(self, holds: bool, message: str) -> None:  # noqa: FBT001 - as assert
        if not holds:
            raise Violation(message)

    def _note(self, what: str) -> None:
        self.history.append(f"[{self.fs.operations}] {what}")

    def story(self) -> str:
        """Return what happened last, for a failure's message."""
        return "\n".join(self.history[-40:])


def run(machine: DoorMachine, steps: int) -> None:
    """Let a machine take so many steps, and end well."""
    for _ in range(steps):
        machine.step()
    machine.finish()
