"""The log: groups in, durable blocks out. Opened by one process, used by one thread of it.

``append_group`` is the commit point of every record: when it returns, the group is durable and
applied to the state. After a failed write or sync the file is never synced again: the same group
goes to a fresh segment, or the process ends and nobody is answered.
"""

import errno
import posixpath
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from wald import limits
from wald.core import frame, retention
from wald.core.frame import BlockFlag, BlockKind, Section, SectionKind, SegmentHeader, SegmentKind
from wald.core.ids import NewIds
from wald.core.lone import NO_LONE, LoneSections
from wald.core.recovery import Predecessor
from wald.core.retention import FinishedSegment, RetentionPolicy
from wald.core.state import LogState
from wald.errors import DiskFull, LogFailed, WaldError
from wald.model import Frontier, Lsn, RouteId
from wald.ports import Chance, Clock, File, FileSystem
from wald.storage import directory, fresh, recover
from wald.storage import segment as segments
from wald.storage.prepare import Preallocator, quietly
from wald.storage.progress import TwoSlotPage
from wald.storage.segment import Draft, SegmentWriter
from wald.storage.start import LogOptions, RecoveryReport, Started, start

__all__ = ["GroupReceipt", "Log", "LogOptions", "RecoveryReport"]

_DEFAULTS = LogOptions()


class GroupReceipt(NamedTuple):
    """What an append of a group came to.

    Attributes:
        first_lsn: of its first stored record; the others follow in order of sections.
        frontier: the end of what is durable now: the group is.
        commit_time_ns: the wall clock in its block.
    """

    first_lsn: Lsn
    frontier: Frontier
    commit_time_ns: int


class Log:
    """The write-ahead log of a data directory.

    Attributes:
        log_id: 16 random bytes made with the directory.
        state: streams, routes and sessions after the last durable group.
        frontier: the end of what is durable.
        next_lsn: the LSN of the next record.
        recovery: what the start found and did.
        ids: the dedup ids that are remembered.
        preallocator: prepares the next segment; ``step`` may be called from one other thread.
        write_failures: how many writes or flushes failed since ``open``, each with a fresh segment
            behind it; what the last one was stands in ``last_write_failure``.
    """

    def __init__(self, started: Started, lock: File, options: LogOptions) -> None:
        self.log_id = started.place.log_id
        self.state: LogState = started.state
        self.frontier: Frontier = started.frontier
        self.next_lsn: Lsn = started.next_lsn
        self.recovery: RecoveryReport = started.report
        self.preallocator: Preallocator = started.preallocator
        self.ids = started.ids
        self._place = started.place
        self._writer = started.writer
        self._finished = started.finished
        self._keep_all = started.keep_all
        self._lock = lock
        self._policy = RetentionPolicy(
            options.retain_after_delivery_s, options.retain_after_delivery_bytes
        )
        self._snapshot_every = options.snapshot_every_sections
        self._snapshot_bytes = 0  # of the last one
        self._snapshot_end = started.writer.end_bytes
        self._sections = 0  # since the last one
        self._failed = False
        self._closed = False
        self._page: TwoSlotPage | None = None
        self.write_failures = 0
        self.last_write_failure = ""
        self._write_hint()

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        data_dir: str,
        clock: Clock,
        chance: Chance,
        options: LogOptions = _DEFAULTS,
    ) -> "Log":
        """Take ``log.lock``, recover, and go on in a fresh segment.

        Raises:
            DataDirectoryHeld: another process writes this log.
            DataDirectoryForeign: the directory holds files of another log, or no log's.
            DataDirectoryUnusable: it cannot be read or written, or is not safe.
            StartFailed: the system refused something; the same may go well later.
            FormatNewer: a newer release wrote it.
            FormatDamaged: nothing says any more whose log it is.
            DiskFull: there is no room even for a small segment.
        """
        data_dir = posixpath.normpath(data_dir)
        lock: File | None = None
        try:
            directory.make_and_check(fs, data_dir)
            directory.refuse_foreign(fs, data_dir)
            lock = directory.take_lock(fs, clock, data_dir)
            directory.make_rooms(fs, data_dir)
            return cls(start(fs, clock, chance, data_dir, options), lock, options)
        except OSError as error:
            if lock is not None:
                lock.close()
            raise directory.unusable(data_dir, error) from error
        except WaldError:
            if lock is not None:
                lock.close()
            raise

    def append_group(
        self,
        sections: Sequence[Section],
        lone: LoneSections = NO_LONE,
        ids: Sequence[NewIds] = (),
    ) -> GroupReceipt:
        """Make a group durable and apply it to ``state``.

        Args:
            sections: what it begins with.
            lone: what stands behind them. At least one of all, together at most
                ``limits.GROUP_MAX_BYTES``.
            ids: the dedup ids of its records, of streams that compare them.

        Raises:
            DiskFull: there is no room for it; nothing has changed.
            LogFailed: the disk failed, and so did a fresh segment. The group may or may not be
                stored; the process must end without an answer.
        """
        self._check_usable()
        draft = self._draft(sections, lone)
        try:
            if self._snapshot_is_due():
                self._write_snapshot(draft)
            if self._writer.has_room(len(draft.payload)):
                self._write(draft)
            else:
                self._roll(draft)
        except OSError as error:
            self._take_fresh_path(draft, error)
        # durable from here on
        lsn = draft.first_lsn
        for section in sections:
            self.state.apply(section, lsn, draft.time_ns)
            lsn += section.records
        self.state.apply_lone(lone, lsn, draft.time_ns)
        if ids:
            self.ids.add(ids, draft.time_ns)
        self.next_lsn = lsn + len(lone)
        self._sections += draft.sections
        self._publish()
        return GroupReceipt(draft.first_lsn, self.frontier, draft.time_ns)

    def retire(self, through: Mapping[RouteId, Lsn], *, at_least: int = 0) -> int:
        """Take segments that nobody needs out of the log, oldest first.

        None after a start that could not learn which routes there are.

        Args:
            through: up to where each route is finished; one that is not named needs everything
                since its birth.
            at_least: so many go before their time, if nobody needs them: for want of room.

        Returns:
            How many went.
        """
        self._check_usable()
        if self._keep_all:
            return 0
        now_s = self._place.clock.monotonic_ns() / limits.CLOCK_NS_PER_S
        floor = retention.floor_lsn(self.state.routes.values(), through)
        self._finished = [
            item._replace(drained_s=now_s)
            if item.drained_s is None and retention.is_drained(item, floor)
            else item
            for item in self._finished
        ]
        # the frontier lies in the writer's segment, whose header and name are durable: it is not
        # among the finished ones
        gone = retention.retirable(self._finished, floor, now_s, self._policy, at_least=at_least)
        for count, number in enumerate(gone):
            if not quietly(partial(self._retire, number)):
                return count  # none goes before an older one: it is tried again
            del self._finished[0]
        return len(gone)

    def is_low(self) -> bool:
        """Tell whether less than the reserve is free on the disk."""
        try:
            return self._place.room_bytes() < 0
        except OSError:
            return False

    def release_one(self) -> None:
        """Give a pooled file back to the file system, if there is one."""
        quietly(self.preallocator.release_one)

    def close(self) -> None:
        """Write the idle-close block, which makes the next start a clean one; then let go."""
        if self._closed:
            return
        self._closed = True
        if not self._failed:
            quietly(self._write_idle_close)
        self.preallocator.close()
        self.ids.close()
        self._writer.close()
        if self._page is not None:
            self._page.close()
        self._lock.close()

    # --- writing --------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._closed or self._failed:
            msg = "the log is closed" if self._closed else "the log has failed before"
            raise LogFailed(msg)

    def _draft(self, sections: Sequence[Section], lone: LoneSections) -> Draft:
        count = len(sections) + len(lone)
        assert count, "a group without sections"
        payload = frame.join_sections(sections, lone.parts())
        assert len(payload) <= limits.GROUP_MAX_BYTES, "a group above its bound"
        controls = sum(section.kind is not SectionKind.APPEND for section in sections)
        only_control = controls == count
        return Draft(
            BlockKind.CONTROL if only_control else BlockKind.RECORDS,
            payload,
            count,
            self._place.clock.wall_ns(),
            self.next_lsn,
            sum(section.records for section in sections) + len(lone),
            BlockFlag.HAS_CONTROL if controls and not only_control else 0,
        )

    def _write(self, draft: Draft) -> None:
        """Write a block behind the others and make it durable.

        Raises:
            OSError: as the system does; nothing more may be written here.
        """
        self._writer.stage(draft)
        self._flush()

    def _flush(self) -> None:
        writer, preallocator = self._writer, self.preallocator
        if preallocator.tail_failed:
            raise OSError(errno.EIO, "zeroing the segment ahead failed")
        preallocator.give_way(writer)
        writer.flush()

    def _snapshot_is_due(self) -> bool:
        """Tell whether a start would have too much to apply one by one."""
        written = self._writer.end_bytes - self._snapshot_end
        many = self._sections >= self._snapshot_every or written >= limits.SNAPSHOT_EVERY_BYTES
        return many and written >= limits.SNAPSHOT_SHARE * self._snapshot_bytes

    def _write_snapshot(self, draft: Draft) -> None:
        """Write the state once more, in a flush of its own: a group in doubt stays the last block.

        Raises:
            OSError: as the system does; nothing more may be written here.
        """
        try:
            self.ids.persist()
        except DiskFull:
            return  # the snapshot would stand for them; nothing rests on it
        parts = list(self.state.snapshot())
        length = sum(map(frame.section_bytes, parts))
        blocks = 2 + length // limits.SNAPSHOT_BLOCK_MAX_BYTES * 2
        if self._writer.has_room(length + len(draft.payload) + blocks * self._place.alignment):
            self._writer.stage_snapshot(parts, draft.time_ns)
            self._flush()
        self._snapshot_bytes = length
        self._snapshot_end = self._writer.end_bytes
        self._sections = 0

    def _roll(self, draft: Draft) -> None:
        """Seal this segment, then begin the next with header, snapshot and group in one write.

        Raises:
            DiskFull: before the first byte.
            OSError: as the system does; the fresh path follows.
        """
        place, old = self._place, self._writer
        number = old.number + 1
        end_bytes = old.end_bytes + place.alignment  # a seal is a block without payload
        new = SegmentWriter(
            SegmentHeader(
                SegmentKind.ROLL,
                old.header.alignment,
                place.log_id,
                number,
                place.salt(),
                self.next_lsn,
                old.number,
                end_bytes,
                self.frontier.lsn,
                draft.time_ns,
            )
        )
        self.ids.persist()
        new.stage_snapshot(self.state.snapshot(), draft.time_ns)
        new.stage(draft)
        prepared = self.preallocator.take(number, new.need_bytes)
        # its name is durable: only now may the seal name it
        self._write(Draft(BlockKind.SEAL, b"", 0, draft.time_ns, next_segment=number))
        assert old.end_bytes == end_bytes
        new.attach(prepared.file, prepared.capacity_bytes)
        new.flush()
        self.preallocator.used()
        self._go_on_in(new)

    def _take_fresh_path(self, draft: Draft, error: OSError) -> None:
        """Write the group in doubt to a fresh segment, with the same LSNs.

        Raises:
            LogFailed: that failed too.
        """
        old = self._writer
        try:
            given_up = self.preallocator.give_up()
            # above the segment that was prepared or on its way, whatever became of it
            header = fresh.fresh_header(
                self._place,
                old.number + 2,
                Predecessor(old.number, old.end_bytes, self.frontier.lsn),
                draft.first_lsn,
            )
            self.ids.persist()
            new = fresh.make_fresh(
                self._place,
                header,
                self.state.snapshot(),
                draft,
                self.preallocator.release_one,
            )
        except (OSError, WaldError) as second:
            self._failed = True
            msg = f"writing the log failed ({error.strerror}), and a fresh segment too ({second})"
            raise LogFailed(msg, path=self._place.log_dir) from second
        if given_up is not None:
            # the roll may have written to it, and its sync may have failed: not to be used again
            quietly(partial(self.preallocator.retire, given_up, keep=False))
        self.write_failures += 1
        failed, follows = segments.segment_name(old.number), segments.segment_name(new.number)
        self.last_write_failure = f"{failed}: {error.strerror}; the log goes on in {follows}"
        self._go_on_in(new)
        quietly(partial(self.preallocator.zero_tail, new))
        fresh.cut_tail(self._place, old.number, old.end_bytes)

    def _go_on_in(self, new: SegmentWriter) -> None:
        old = self._writer
        self.preallocator.leave_tail()
        old.close()
        self._finished.append(
            FinishedSegment(
                old.number, old.header.pred_last_lsn, self.frontier.lsn, old.capacity_bytes
            )
        )
        self._writer = new
        self._snapshot_end = new.end_bytes
        self._sections = 0
        self.preallocator.want(new.number + 1)

    def _write_idle_close(self) -> None:
        # it may take the room that is kept for a seal: after it nothing is written here
        self._write(Draft(BlockKind.IDLE_CLOSE, b"", 0, self._place.clock.wall_ns()))
        self._publish()

    def _retire(self, number: int) -> None:
        place = self._place
        name = segments.segment_name(number)
        kept = f"{place.data_dir}/{segments.QUARANTINE_DIRECTORY}/{name}"
        self.preallocator.retire(number, keep=place.fs.stat(kept) is None)

    # --- publishing -----------------------------------------------------------------------------

    def _publish(self) -> None:
        writer = self._writer
        self.frontier = Frontier(writer.number, writer.end_bytes, writer.last_lsn)
        self._write_hint()

    def _open_page(self) -> None:
        path = f"{self._place.data_dir}/{recover.INGEST_PAGE}"

        def open_page() -> None:
            self._page = TwoSlotPage.open(
                self._place.fs, path, slot_bytes=limits.PAGE_SLOT_BYTES, write=True
            )

        quietly(open_page)

    def _write_hint(self) -> None:
        """Say where the log ends: exact after a crash of the process, stale after a power cut.

        It is only ever compared upwards, so that one which could not be written harms nobody.
        """
        if self._page is None:
            self._open_page()  # what failed once may go well again
        page = self._page
        if page is None:
            return
        segment, end_bytes, lsn = self.frontier
        hint: dict[str, object] = {"segment": segment, "end": end_bytes, "lsn": lsn}
        try:
            page.write(hint, sync=False)
        except OSError:
            page.close()
            self._page = None
