"""What a lane of a route works with: what never changes in its life, and what it remembers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from wald import limits
from wald.config import RouteSettings, SinkSettings
from wald.core import delivery
from wald.core.batching import Bounds, due_in_s
from wald.core.delivery import Parked, RejectGuard
from wald.core.healing import Healing
from wald.core.lanes import WHOLE, Layout, Share
from wald.core.shaping import Frozen
from wald.core.told import Told
from wald.core.traffic import REQUESTS, Traffic
from wald.drainer.crew import Crew
from wald.drainer.faults import FaultBoard
from wald.drainer.frontier import FrontierBoard
from wald.drainer.guarded import GuardedSink
from wald.drainer.packed_files import PackedFiles
from wald.drainer.producers import LogPlace, Producers, trace_of
from wald.drainer.reader import Batch, LaneReader
from wald.drainer.shaping import Shaper, Shaping
from wald.drainer.targets import Targets
from wald.drainer.unread import Unread
from wald.errors import LedgerFailed
from wald.model import (
    NO_REVISION,
    REVISION_BYTES,
    Anchor,
    AttemptStamp,
    Capabilities,
    Checkpoint,
    DeadLetter,
    Delivered,
    Frontier,
    LaneKey,
    LaneProgress,
    LostRange,
    Lsn,
    Manifest,
    Outcome,
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RevisionId,
    RouteBirth,
    RouteId,
    RowMoved,
    Systemic,
    TooLarge,
    Unknown,
)
from wald.ports import Chance, Clock, FileSystem, Ledger, Sink, Underway
from wald.storage.deadlog import DeadEntry, DeadLog, Excluded, Reason
from wald.storage.stream import StreamReader, find_anchor

MakeSink = Callable[[RouteSettings, SinkSettings], Sink]
Guard = Callable[[RouteSettings, SinkSettings, Capabilities, str], Sink]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all lanes of a drainer share.

    ``owner`` is who we are, to the targets; ``released`` says up to where the log may have let
    the records of a route go; ``guard`` makes the sink of a batch in which the process died.
    """

    fs: FileSystem
    data_dir: str
    log_id: bytes
    owner: int
    clock: Clock
    chance: Chance
    ledger: Ledger
    dead_log: DeadLog
    board: FrontierBoard
    make_sink: MakeSink
    count_streams: Callable[[], int]
    released: Callable[[RouteId], Lsn]
    told_layouts: Callable[[RouteId], Sequence[Layout]] = lambda _: ()
    tell_layouts: Callable[[RouteId, Sequence[Layout]], None] = lambda *_: None
    told: Told | None = None  # what a ledger that went back does not know
    went_back_ns: int | None = None  # when that was found, by the wall clock
    reserve: Callable[[RouteId, Lsn], None] = lambda *_: None  # tells how far batches are sealed
    tell_paused: Callable[[Mapping[RouteId, int]], None] = lambda _: None
    faults: FaultBoard = field(default_factory=FaultBoard)
    targets: Targets = field(default_factory=Targets)
    packed: PackedFiles = field(default_factory=PackedFiles)
    guard: Guard = GuardedSink
    producers: Producers = field(default_factory=Producers)
    trace_sample: float = 0.0  # of the records, whose trace the manifest keeps

    @property
    def sealed_through(self) -> Lsn:
        """Return beyond which LSN a ledger that was lost had sealed nothing; 0 if none was."""
        return self.told.sealed_through if self.told is not None else 0


@dataclass(frozen=True, slots=True)
class Route:
    """One lane of a route: the birth as the ledger has it, its settings, and which lane it is.

    Attributes:
        shared: what all lanes of the drainer share.
        birth: the route.
        settings: the route's.
        sink: where it goes.
        layout: the division of the route that the lane belongs to.
        share: which records are the lane's.
        since: the lane's chain begins behind this LSN; None: at the birth of the route.
        crew: what the lanes of the route share.
        unread: which pages of the log the lane could not read, and how often.
        shaping: whether its transform works now, for other threads.
    """

    shared: Shared
    birth: RouteBirth
    settings: RouteSettings
    sink: SinkSettings
    layout: int = 0
    share: Share = WHOLE
    since: Lsn | None = None
    crew: Crew = field(default_factory=Crew)
    unread: Unread = field(default_factory=Unread, init=False, repr=False, compare=False)
    shaping: Shaping = field(default_factory=Shaping, init=False, repr=False, compare=False)

    @property
    def lane(self) -> int:
        """Which lane of its layout it is."""
        return self.share.lane

    @property
    def begin_lsn(self) -> Lsn:
        """Where the lane's chain begins: a target without its row holds nothing behind this."""
        return self.birth.birth_lsn if self.since is None else self.since

    @property
    def key(self) -> LaneKey:
        """What ledger and target know the lane by."""
        return LaneKey(self.shared.log_id, self.birth.route_id, self.layout, self.lane)

    def reader(self, after: Lsn) -> LaneReader:
        """Return a reader of the route's stream behind an LSN."""
        shared = self.shared
        return LaneReader(
            self.unread.files(shared.fs),
            shared.data_dir,
            shared.log_id,
            shared.clock,
            stream=self.birth.stream_id,
            after=after,
            share=self.share,
            files=partial(shared.packed.of, self.birth.stream_id),
        )

    def blocks(self, after: Lsn) -> StreamReader:
        """Return a reader of the stream's blocks behind an LSN, without their records."""
        shared, stream = self.shared, self.birth.stream_id
        return StreamReader(
            self.unread.files(shared.fs),
            shared.data_dir,
            shared.log_id,
            stream=stream,
            after=after,
            files=partial(shared.packed.of, stream),
            wants_block=lambda _: False,
        )

    def find_anchor(self, lsn: Lsn, frontier: Frontier) -> Anchor | None:
        """Return the anchor of the block that holds an LSN of the stream; None if it is gone."""
        return find_anchor(self.blocks(lsn - 1), lsn, frontier)

    def stamp(self, last_error: str = "", crashes: int = 0) -> AttemptStamp:
        """Return now, by the clocks that outlive a process."""
        clock = self.shared.clock
        return AttemptStamp(clock.boot_id(), clock.boot_ns(), clock.wall_ns(), last_error, crashes)

    def set_aside(
        self,
        manifest: Manifest,
        rev_id: RevisionId,
        previous: RevisionId,
        refused: Sequence[RejectedRecord],
        records: Sequence[Record],
    ) -> list[DeadLetter]:
        """Make the bodies of refused records durable in the dead log; return their letters."""
        by_lsn = {record.lsn: record for record in records}
        bodies = tuple(by_lsn[item.lsn] for item in refused)
        now_ns = self.shared.clock.wall_ns()
        producers = self._producers([record.lsn for record in bodies])
        reasons = tuple(
            Reason(
                item.lsn,
                item.code[: limits.ERROR_TEXT_MAX_CHARS],
                item.message[: limits.ERROR_TEXT_MAX_CHARS],
                manifest.number,
                manifest.attempts,
                now_ns,
                producers.get(item.lsn, ""),
                trace_of(by_lsn[item.lsn]),
            )
            for item in refused
        )
        entry = DeadEntry(rev_id, previous, bodies, reasons=reasons)
        place = self.shared.dead_log.append(entry)
        return [
            self.letter(Excluded(place, rev_id, record.key, record.time_ns, reason))
            for record, reason in zip(bodies, reasons, strict=True)
        ]

    def _producers(self, lsns: Collection[Lsn]) -> Mapping[Lsn, str]:
        shared, frontier = self.shared, self.frontier()
        if frontier is None:
            return {}
        place = LogPlace(shared.fs, shared.data_dir, shared.log_id, frontier)
        return shared.producers.of(place, lsns)

    def letter(self, item: Excluded) -> DeadLetter:
        """Return the dead letter of what an entry of the dead log holds."""
        reason = item.reason
        return DeadLetter(
            self.birth.name,
            reason.lsn,
            reason.code,
            reason.message,
            reason.batch_no,
            item.rev_id,
            reason.attempts,
            reason.time_ns,
            item.place.file,
            item.place.offset,
            through_lsn=reason.lsn,
            layout=self.layout,
            lane=self.lane,
            key=item.key,
            record_time_ns=item.record_time_ns,
            producer=reason.producer,
            trace=reason.trace,
        )

    def letters_of_lost(
        self,
        lost: Sequence[LostRange],
        batch_no: int,
        rev_id: RevisionId,
        excluded: Collection[Lsn] = (),
    ) -> list[DeadLetter]:
        """Return dead letters without bodies for what damage took, but for what was ``excluded``.

        How many of the lost records were the stream's is known where the sections could still be
        told, or where it is the only stream; else the letter says the range and counts none. It
        is written also where all was of other streams by what a damaged block tells of itself.
        """
        alone = self.shared.count_streams() == 1
        now_ns = self.shared.clock.wall_ns()
        return [
            DeadLetter(
                self.birth.name,
                item.first_lsn,
                "damaged",
                f"segment {item.segment}, offset {item.offset_bytes}: {item.reason}",
                batch_no,
                rev_id,
                0,
                now_ns,
                records=_count(item, alone=alone),
                through_lsn=item.last_lsn,
                layout=self.layout,
                lane=self.lane,
            )
            for item in delivery.without(lost, excluded)
        ]

    def frontier(self) -> Frontier | None:
        """Return the newest frontier."""
        return self.shared.board.current()

    def new_revision(self) -> RevisionId:
        """Return a new revision id: random, so that no two histories share one."""
        return self.shared.chance.randbytes(REVISION_BYTES)


class Sealing(NamedTuple):
    """T5 with T2 on its way, and what the ledger held before."""

    underway: Underway[bool]
    before: LaneProgress


@dataclass(slots=True)
class LaneMemory:
    """What a lane knows beside the ledger: rebuilt from it and the log after any failure.

    ``counted`` is the revision whose attempt is durable and was not begun yet; ``verdict_of`` the
    number of the batch of which an attempt came to an end in this process; ``guarded_batch`` the
    one whose sink has a process of its own.
    """

    held: LaneProgress = LaneProgress(Checkpoint(), None)  # noqa: RUF009 - both are frozen
    batch: Batch | None = None
    reader: LaneReader | None = None
    sink: Sink | None = None
    sealing: Sealing | None = None  # ``held`` is then not durable yet
    replay: ReplayClass = ReplayClass.NONE
    outcome: Outcome | None = None
    counted: RevisionId = NO_REVISION
    verdict_of: int = 0
    took: RevisionId = NO_REVISION  # took effect, and T5 may not have been possible
    guarded_batch: int = 0
    guard: RejectGuard = field(default_factory=RejectGuard)
    notes: dict[str, int] = field(default_factory=dict)
    traffic: Traffic = Traffic()  # noqa: RUF009 - a tuple
    last_error: str = ""
    parked: Parked | None = None
    timeout_s: float | None = None  # how long the next attempt may take
    sent: tuple[Lsn, ...] = ()  # in the last attempt
    frozen: tuple[RevisionId, Frozen] = (NO_REVISION, Frozen())  # what a revision sends
    shaper: Shaper | None = None
    cleared: tuple[int, int] = (0, 0)  # (batch, attempt): up to it is known what took effect
    healing: Healing | None = None  # the last time that the target's row was adopted
    pause_s: float = 0.0  # behind it
    moving: tuple[ProgressRow, ProgressRow] | None = None  # a row, and what a takeover makes of it
    unsendable: tuple[RejectedRecord, ...] = ()  # of an open redrive
    halted: tuple[Lsn, ...] = ()  # refused records at which the lane stops
    recalled: bool = False  # what was told of it beside the ledger
    unsure_through: Lsn = 0  # batches up to it may have been sent before the ledger was lost
    unsure_redrives: tuple[Lsn, ...] = ()  # dead letters that may have been
    died_making: int = 0  # the process before ended while what this batch sends was made

    def afresh(self) -> "LaneMemory":
        """Return what is kept where all else is found again: in ledger and log, at the target."""
        return LaneMemory(
            held=self.held,
            guard=self.guard,
            notes=self.notes,
            traffic=self.traffic,
            last_error=self.last_error,
            verdict_of=self.verdict_of,
            took=self.took,
            healing=self.healing,
            cleared=self.cleared,
            died_making=self.died_making,
        )

    def settle_seal(self) -> None:
        """Wait until what was sealed last is durable; return at once if it is.

        Raises:
            LedgerFailed: it did not become so; the lane begins anew. ``DiskFull`` likewise.
        """
        sealing, self.sealing = self.sealing, None
        if sealing is None:
            return
        try:
            must(done=sealing.underway.wait())
        except BaseException:
            self.held = sealing.before
            raise

    def rest_s(self, bounds: Bounds, now_ns: int, look_ns: int) -> float:
        """Return how long it may rest while it collects; ``look_ns``: when it looks at its row."""
        assert self.reader is not None
        if not self.reader.is_empty:
            return due_in_s(self.reader.waiting(), bounds, now_ns)
        behind = self.reader.through > self.held.checkpoint.lsn
        look_s = max(0.0, (look_ns - now_ns) / limits.CLOCK_NS_PER_S)
        idle_s = limits.LANE_IDLE_S
        return min(look_s or idle_s, limits.ADVANCE_EVERY_S if behind else idle_s)

    @property
    def manifest(self) -> Manifest:
        """The open manifest; there must be one."""
        assert self.held.manifest is not None
        return self.held.manifest

    def note(self, outcome: Outcome) -> None:
        """Keep what an outcome says, for status and for the next attempt's stamp."""
        self.outcome = outcome
        match outcome:
            case Delivered():
                for reason, count in outcome.notes.items():
                    if reason != REQUESTS:
                        self.count(reason, count)
                self.say("")
            case RowMoved():
                self.say(f"the progress row moved: {outcome.row!r}")
            case Systemic():
                self.say(f"{outcome.kind.value}: {outcome.message}")
            case Partial() | Rejected() | TooLarge() | Unknown():
                self.say(outcome.message)

    def count(self, reason: str, count: int = 1) -> None:
        """Count what is worth a note: nothing is ignored silently."""
        reason = reason[: limits.NOTE_MAX_CHARS]
        if reason not in self.notes and len(self.notes) >= limits.NOTES_MAX_COUNT:
            reason = "other"
        self.notes[reason] = self.notes.get(reason, 0) + count

    def say(self, text: str) -> None:
        """Keep the last error, bounded."""
        self.last_error = text[: limits.ERROR_TEXT_MAX_CHARS]

    def park(self, code: Parked, why: str) -> None:
        """Remember why a person is needed."""
        self.parked = code
        self.say(why)


def _count(item: LostRange, *, alone: bool) -> int:
    """Return how many records of the stream a range held; 0 if nobody knows."""
    if item.records is not None:
        return item.records
    lsns = item.last_lsn - item.first_lsn + 1
    return lsns if alone and lsns < limits.LSN_JUMP_UNCLEAN else 0  # longer ones hold a jump


def must(*, done: bool) -> None:
    """Go on only if a transaction found what we worked on.

    Raises:
        LedgerFailed: the ledger holds something else; the lane begins anew from it.
    """
    if not done:
        msg = "the ledger does not hold what the lane worked on"
        raise LedgerFailed(msg)
