"""A past range of a stream delivered again, with no daemon: by a lane of its own.

The lane is one like any other, so that all that holds of batches, refusals, crashes and restored
targets holds here too; only its key is new, its end is known, and it has no part in its route's
cursors. Refused records go to a report of their own, not to the route's dead letters.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from wald import limits
from wald.config import RouteSettings, Settings, SinkSettings
from wald.config.settings import DeliverSettings
from wald.core.lanes import Share
from wald.drainer.auditing import held_at
from wald.drainer.fleet import settings_of
from wald.drainer.frontier import FrontierBoard
from wald.drainer.lane import Lane
from wald.drainer.opening import Doors, locked, open_shared
from wald.drainer.range_count import Count, KeyShare, notes_of, refusal_of_held
from wald.drainer.records import open_records
from wald.drainer.released import ProgressPage
from wald.drainer.replay import LogLike
from wald.drainer.route import MakeSink, Route, Shared
from wald.errors import InputError, RangeGone
from wald.model import (
    DeadLetter,
    LostRange,
    Lsn,
    Record,
    ReplayClass,
    RouteBirth,
)
from wald.ports import Chance, Clock, FileSystem
from wald.storage.identity import write_whole_file
from wald.storage.replays import Replay, Replays
from wald.storage.segment import REPORTS_DIRECTORY
from wald.storage.stream import StreamReader
from wald.storage.tail import SEGMENT_GONE

_POLL_S = 0.01
_NS = limits.CLOCK_NS_PER_S
_UUID_BYTES = 16


class Point(NamedTuple):
    """Where a range begins or ends: at an LSN, or at a moment of the wall clock."""

    lsn: Lsn | None = None
    time_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: a new replay, or one to be resumed or forgotten by the hex of its uuid."""

    route: str = ""
    begin: Point = Point()  # noqa: RUF009 - a tuple
    end: Point = Point()  # noqa: RUF009 - a tuple
    sink: str | None = None
    key: str | None = None
    dry_run: bool = False
    resume: str = ""
    forget: str = ""


def replay_range(  # noqa: PLR0913 - a composition of ports
    settings: Settings,
    log: LogLike,
    asked: Asked,
    *,
    make_sink: MakeSink,
    fs: FileSystem,
    clock: Clock,
    chance: Chance,
    patience_s: float = limits.RETRY_CAP_S,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Deliver a past range again, or resume or forget one that was interrupted.

    Args:
        settings: the daemon's.
        log: opened by the caller, who holds ``log.lock``.
        asked: what.
        make_sink: makes the sink.
        fs: the door to the files.
        clock: time.
        chance: randomness.
        patience_s: how long it is tried without progress.
        on_progress: told what is done, how much of it, and of how much.

    Raises:
        InputError: there is no such route, sink, range or replay.
        RangeGone: the log does not hold the range any more.
        ReplayRefused: it would come to nothing.
        DataDirectoryHeld: a drainer holds ``ledger.lock``.
    """
    doors = Doors(settings, make_sink, fs, clock, chance)
    with locked(doors), ExitStack() as stack:
        board = FrontierBoard()
        board.pin(log.frontier)
        progress = ProgressPage(fs, settings.data_dir)
        stack.callback(progress.close)
        shared = open_shared(
            doors, log.log_id, board, lambda: len(log.state.streams), progress, stack
        )
        work = _Work(settings, shared, patience_s, on_progress)
        if asked.forget:
            replay = work.find(asked.forget)
            work.replays.forget(replay)
            return {"replay": replay.uuid.hex(), "forgotten": True}
        if asked.resume:
            return work.deliver(work.find(asked.resume))
        return work.begin(asked)


class _Work:
    """One call of ``replay_range``, with the ledger open."""

    def __init__(
        self,
        settings: Settings,
        shared: Shared,
        patience_s: float,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._patience_s = patience_s
        self._tell = tell
        self.replays = Replays(shared.ledger.store, shared.log_id)
        frontier = shared.board.current()
        assert frontier is not None
        self._frontier = frontier
        self._gone_through: Lsn = 0  # before a range that begins at a time

    # --- what is meant --------------------------------------------------------------------------

    def find(self, uuid: str) -> Replay:
        """Return an unfinished replay by the beginning of its hex.

        Raises:
            InputError: none has it, or several.
        """
        wanted = uuid.removeprefix("replay:").replace("-", "").lower()
        unfinished = self.replays.all()
        found = [each for each in unfinished if wanted and each.uuid.hex().startswith(wanted)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(each.uuid.hex() for each in unfinished) or "none"
        msg = f"no unfinished replay, or more than one, is {uuid!r}"
        raise InputError(msg, hint=f"unfinished: {names}")

    def begin(self, asked: Asked) -> dict[str, Any]:
        """Count the range, pin it, deliver it; with ``dry_run`` only count."""
        birth = self._birth(asked.route)
        route, sink = self._targets(birth, asked.sink)
        after, until = self._range(birth, asked)
        replay = Replay(
            self._shared.chance.randbytes(_UUID_BYTES),
            birth.name,
            birth.stream_id,
            birth.stream,
            sink.name,
            after,
            until,
            asked.key,
            self._shared.owner,
            self._shared.clock.wall_ns(),
            0,
        )
        count, replay_class = self._count(replay, route, sink)
        replay = replace(replay, records=count.records)
        said = {
            **_said(replay),
            "records": count.records,
            "bytes": count.bytes,
            "lost_ranges": count.lost,
            "first_lsn": count.first_lsn,
            "last_lsn": count.last_lsn,
            "class": replay_class.value,
            "already_there": count.held,
            "notes": [*self._note_of_gone(), *notes_of(replay_class, count)],
        }
        if asked.dry_run:
            return {**said, "dry_run": True}
        if count.held:
            raise refusal_of_held(count)
        self.replays.begin(replay)  # COMMIT POINT: the range is pinned
        return {**said, **self.deliver(replay)}

    def _birth(self, name: str) -> RouteBirth:
        births = self._shared.ledger.births()
        found = [birth for birth in births if birth.name == name]
        if not found:
            known = ", ".join(sorted({birth.name for birth in births})) or "none yet"
            msg = f"there is no route {name!r}"
            raise InputError(msg, hint=f"routes: {known}")
        return max(found, key=lambda birth: birth.route_id)

    def _targets(self, birth: RouteBirth, name: str | None) -> tuple[RouteSettings, SinkSettings]:
        """Return the settings of the replay's lane, and its sink."""
        known = settings_of(self._settings, birth)
        if known is None:
            msg = f"the configuration does not name route {birth.name!r}"
            raise InputError(msg, hint="a replay goes by the route's settings: name it there")
        sink = self._settings.sinks.get(name or known.sink)
        if sink is None:
            names = ", ".join(sorted(self._settings.sinks))
            msg = f"there is no sink {name!r}"
            raise InputError(msg, hint=f"sinks: {names}")
        same_kind = sink.type == self._settings.sinks[known.sink].type
        route = replace(
            known,
            sink=sink.name,
            lanes=1,
            on_reject="dead-letter",
            deliver=DeliverSettings(),  # a person wants it now
            fallback=None,
            options=known.options if same_kind else {},
        )
        return route, sink

    # --- which range ----------------------------------------------------------------------------

    def _range(self, birth: RouteBirth, asked: Asked) -> tuple[Lsn, Lsn]:
        """Return the LSN before the first, and the last.

        Raises:
            InputError: it is empty, or ends in the future.
        """
        after, until = 0, self._frontier.lsn
        if asked.begin.lsn is not None:
            after = asked.begin.lsn - 1
        elif asked.begin.time_ns is not None:
            after, self._gone_through = self._before(birth, asked.begin.time_ns)
        if asked.end.lsn is not None:
            until = asked.end.lsn
        elif asked.end.time_ns is not None:
            until, _ = self._before(birth, asked.end.time_ns + 1)
        if until > self._frontier.lsn:
            msg = f"LSN {until:,} is not used yet: the highest is {self._frontier.lsn:,}"
            raise InputError(msg)
        if until <= after:
            msg = "the range holds no LSN: it ends before it begins"
            raise InputError(msg)
        return after, until

    def _before(self, birth: RouteBirth, time_ns: int) -> tuple[Lsn, Lsn]:
        """Return the last LSN of the stream's that was durable before a moment.

        By what is still there; of a clock that was set back the first block at or behind it counts.
        With it comes up to where the log is gone, if it begins behind the moment; else 0.
        """
        shared = self._shared
        reader = StreamReader(
            shared.fs,
            shared.data_dir,
            shared.log_id,
            stream=birth.stream_id,
            after=0,
            files=lambda: shared.packed.of(birth.stream_id),
            wants_block=lambda _: False,
        )
        last = gone_through = 0
        try:
            for item in reader.read(self._frontier):
                if isinstance(item, LostRange):
                    last = item.last_lsn
                    gone_through = last if item.reason == SEGMENT_GONE else gone_through
                elif item.header.records:
                    if item.header.commit_time_ns >= time_ns:
                        return max(last, item.header.first_lsn - 1), gone_through
                    last, gone_through = item.header.last_lsn, 0
        finally:
            reader.close()
        return self._frontier.lsn, 0

    def _note_of_gone(self) -> list[str]:
        if not self._gone_through:
            return []
        gone = f"the log does not hold LSN 1 to {self._gone_through:,} any more"
        return [f"{gone}: what of it was accepted since that time is not sent"]

    # --- counting -------------------------------------------------------------------------------

    def _count(
        self, replay: Replay, route: RouteSettings, settings: SinkSettings
    ) -> tuple[Count, ReplayClass]:
        count, lsns = Count(), list[Lsn]()
        sink = self._shared.make_sink(route, settings)
        try:
            for item in self._records(replay):
                if isinstance(item, LostRange):
                    self._refuse_gone(replay, item)
                    count.lost += 1
                    continue
                count.records += 1
                count.bytes += len(item.value)
                count.first_lsn = count.first_lsn or item.lsn
                count.last_lsn = item.lsn
                lsns.append(item.lsn)
                if len(lsns) == limits.AUDIT_STEP_RECORDS:
                    self._compare(sink, count, lsns)
                    done = item.lsn - replay.after
                    self._tell("counting", done, replay.until - replay.after)
            if lsns:
                self._compare(sink, count, lsns)
            return count, sink.capabilities.replay
        finally:
            sink.close()

    def _compare(self, sink: object, count: Count, lsns: list[Lsn]) -> None:
        held = held_at(sink, self._shared.log_id, lsns)
        if held is not None:
            there = {lsn for lsn, number in held.items() if number}
            count.held = (count.held or 0) + len(there)
            missing = next((lsn for lsn in lsns if lsn not in there), 0)
            count.missing_lsn = count.missing_lsn or missing
        lsns.clear()

    def _records(self, replay: Replay) -> Iterator[Record | LostRange]:
        shared = self._shared
        share = KeyShare(key=replay.key) if replay.key is not None else None
        for item in open_records(
            shared.fs, shared.data_dir, shared.log_id, shared.clock,
            stream_id=replay.stream_id, after=replay.after, until=replay.until,
            frontier=self._frontier,
        ):  # fmt: skip
            if isinstance(item, LostRange) or share is None or share.has(item.key):
                yield item

    def _refuse_gone(self, replay: Replay, lost: LostRange) -> None:
        """Refuse a range that begins before what is kept; damage inside it is only counted.

        Raises:
            RangeGone: with where it could begin.
        """
        if lost.reason == SEGMENT_GONE and lost.first_lsn == replay.after + 1:
            msg = f"the log does not hold LSN {lost.first_lsn:,} to {lost.last_lsn:,} any more"
            hint = f"begin with --from {lost.last_lsn + 1}; 'archive' of a route keeps its stream"
            raise RangeGone(msg, hint=hint)

    # --- delivering -----------------------------------------------------------------------------

    def deliver(self, replay: Replay) -> dict[str, Any]:
        """Deliver a pinned range from where it stands; its report is written on every way out."""
        birth = replay.birth()
        route, sink = self._targets(self._birth(replay.route), replay.sink)
        share: Share = Share(until=replay.until)
        if replay.key is not None:
            share = KeyShare(until=replay.until, key=replay.key)
        lane = Lane(Route(self._shared, birth, route, sink, share=share))
        lane.flush(replay.until)
        lane.start()
        try:
            self._wait(lane, replay)
        except KeyboardInterrupt:
            pass  # a person has no more patience: the report says how to go on
        finally:
            lane.stop(0.0)
            lane.join(limits.CHILD_STOP_S)
        return self._end(lane, replay)

    def _wait(self, lane: Lane, replay: Replay) -> None:
        clock = self._shared.clock
        before: object = None
        moved_ns = clock.monotonic_ns()
        while not _is_through(lane, replay):
            figures = lane.figures
            now_ns, now = clock.monotonic_ns(), (figures.checkpoint_lsn, figures.delivered)
            if now != before:
                before, moved_ns = now, now_ns
            if now_ns - moved_ns > self._patience_s * _NS:
                return
            done = figures.delivered + figures.dead_letters
            self._tell("delivering", done, max(replay.records, done))
            clock.sleep(_POLL_S)

    def _end(self, lane: Lane, replay: Replay) -> dict[str, Any]:
        held = self._shared.ledger.lane(replay.lane(self._shared.log_id))
        letters = list(self._letters(replay))
        complete = held.manifest is None and held.checkpoint.lsn >= replay.until
        refused = [each for each in letters if each.dead_file]
        said = {
            **_said(replay),
            "complete": complete,
            "through_lsn": held.checkpoint.lsn,
            "delivered": held.checkpoint.delivered,
            "superseded": held.checkpoint.superseded,
            "refused": len(refused),
            "lost": sum(each.records for each in letters if not each.dead_file),
            "last_error": "" if complete else lane.figures.last_error,
            "parked": None if complete else lane.figures.parked,
            "report": self._report(replay, held.checkpoint.lsn, letters, complete=complete),
            "refusals": [_refusal(each) for each in refused[: limits.REPLAY_REFUSALS_SHOWN_MAX]],
        }
        if complete:
            self.replays.forget(replay)  # behind the report, which is durable
        return said

    def _letters(self, replay: Replay) -> Iterator[DeadLetter]:
        after: Lsn = 0
        while page := self._shared.ledger.dead_letters(replay.route_id, after=after):
            yield from page
            after = page[-1].lsn

    def _report(
        self, replay: Replay, through: Lsn, letters: Sequence[DeadLetter], *, complete: bool
    ) -> str:
        shared = self._shared
        directory, name = f"{shared.data_dir}/{REPORTS_DIRECTORY}", f"{replay.name[7:]}.json"
        name = f"replay-{name}"
        said = {
            **_said(replay),
            "complete": complete,
            "through_lsn": through,
            "refused": [_refusal(each) for each in letters if each.dead_file],
            "lost": [_refusal(each) for each in letters if not each.dead_file],
        }
        if shared.fs.stat(directory) is None:
            shared.fs.make_directory(directory)
            shared.fs.sync_directory(shared.data_dir)
        data = json.dumps(said, indent=2, default=str).encode()
        write_whole_file(shared.fs, directory, name, data)
        return f"{directory}/{name}"


def _is_through(lane: Lane, replay: Replay) -> bool:
    figures = lane.figures
    return figures.checkpoint_lsn >= replay.until and not figures.attempts


def _said(replay: Replay) -> dict[str, Any]:
    said = asdict(replay)
    del said["uuid"], said["owner"], said["records"], said["stream_id"]
    return {"replay": replay.uuid.hex(), "counted": replay.records, **said}


def _refusal(letter: DeadLetter) -> dict[str, Any]:
    key = letter.key if not isinstance(letter.key, bytes) else letter.key.decode(errors="replace")
    return {
        "lsn": letter.lsn,
        "through_lsn": letter.through_lsn,
        "key": key,
        "code": letter.code,
        "message": letter.message,
    }
