"""The real ``Log`` on the simulated file system, beside a model that is a list of requests.

``LogMachine`` has one method for each thing that can happen to a log; Hypothesis calls them in
``test_log_model``, a seeded ``random.Random`` in ``lives``. After each start everything that was
promised is checked; what does not hold raises ``Violation``.

The promises: what is recovered is a prefix of what was sent that holds every acknowledged request,
whole groups only; no LSN is used for two requests; a request has one LSN for ever; duplicates are
told exactly; what a failed start leaves can be started again; no loss is reported, as no damage is
done here.
"""

from collections import Counter
from itertools import chain
from random import Random

from tests.model.log_reader import (
    FoundLog,
    FoundRequest,
    Misread,
    block_offsets,
    read_leniently,
    read_log,
    requests_of,
)
from tests.model.promises import Attempt, Model, Request, Violation
from wald.core import frame, sessions
from wald.core.events import ACK_LAYOUT, HEADER_BYTES
from wald.core.frame import RequestEntry, Section, SectionKind
from wald.core.sessions import Verdict
from wald.core.state import (
    RouteState,
    route_birth,
    session_ended,
    session_issued,
    stream_opened,
)
from wald.errors import DiskFull, WaldError
from wald.limits import PAGE_SLOT_BYTES, SNAPSHOT_EVERY_SECTIONS, WINDOW_REQUESTS
from wald.model import Frontier, LostRange, Lsn
from wald.storage.inspect import inspect_log
from wald.storage.log import Log, LogOptions
from wald.storage.progress import TwoSlotPage
from wald.storage.tail import TailReader
from wald.testing import ManualClock, Names, SimFileSystem, Stopped

DATA = "/var/wald"
SEGMENT_BYTES = 128 * 1024
ROUTE = 1
BIG_BODY_MAX_BYTES = 800_000  # nine to a group
BIG_GROUPS_MAX = 16  # fill a segment


class LogMachine:
    """See the module. ``chance`` decides what the disk does and every detail of a step."""

    def __init__(
        self,
        seed: int,
        *,
        names: Names = Names.JOURNAL,
        write_back: float = 0.05,
        capacity_bytes: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.chance = Random(seed)
        self.fs = SimFileSystem(
            Random(seed + 1),
            directories=["/var", DATA],
            write_back=write_back,
            names=names,
            capacity_bytes=capacity_bytes,
        )
        self.options = LogOptions(
            segment_bytes=segment_bytes,
            retain_after_delivery_s=0.0,
            retain_after_delivery_bytes=0,
            pool_max_segments=2,
            snapshot_every_sections=4 if seed % 2 else SNAPSHOT_EVERY_SECTIONS,
        )
        self.clock = ManualClock()
        self.big_body_bytes = min(segment_bytes // 7, BIG_BODY_MAX_BYTES)
        self.model = Model()
        self.attempt: Attempt | None = None
        self.log: Log | None = None
        self.next_lsn: Lsn = 0  # of the last start
        self.history: list[str] = []
        self.counts: Counter[str] = Counter()
        self.broken = False
        self.stopped_cleanly = False
        self.stale: Frontier | None = None  # what a drainer still holds when ingest begins anew
        self.cut: bool | None = None  # whether what ends is the machine too; None: by chance
        self._log_chance = Random(seed + 2)

    # --- what can happen ------------------------------------------------------------------------

    def start(self, *, stop_at: int = 0, fail_at: int = 0, armed: bool = False) -> bool:
        """Open the log, perhaps cut or failed on the way; check everything if it opens.

        With ``armed`` a fault is to come already, and stays for what follows.
        """
        assert self.log is None
        self._note(f"start stop_at={stop_at} fail_at={fail_at}")
        if stop_at:
            self.fs.stop(stop_at)
        if fail_at:
            self.fs.fail(fail_at, for_ever=self.chance.random() < 0.3)
        try:
            log = Log.open(self.fs, DATA, self.clock, self._log_chance, self.options)
        except Stopped:
            self._note("  stopped in recovery")
            self.end()
            return False
        except (WaldError, OSError) as error:
            self._note(f"  failed in recovery: {error!r}")
            if not fail_at and not armed:
                msg = f"a start without a fault fails: {error!r}"
                raise Violation(msg) from error
            self.end(cut=False)
            return False
        if not armed:
            self.fs.heal()
        self.log = log
        self._check_start(log)
        return True

    def append(self, *, big: bool = False) -> None:
        """Append a group, perhaps of several sessions, with statements in it."""
        log = self._running()
        attempt, group = self._next_group(log, big=big)
        if group:
            self._append(log, attempt, group)

    def fill(self) -> None:
        """Append until the log has rolled."""
        segment = self._running().frontier.segment
        for _ in range(BIG_GROUPS_MAX):
            if self.log is None or self.log.frontier.segment != segment:
                return
            self.append(big=True)

    def resend(self) -> None:
        """Ask for requests a second time: each is told exactly."""
        self._check_duplicates(self._running())

    def prepare(self, steps: int) -> None:
        """Let the preallocator work."""
        log = self._running()
        self._note(f"prepare {steps}")
        try:
            for _ in range(steps):
                if not log.preallocator.step():
                    break
        except Stopped:
            self.end()

    def drain(self, *, fully: bool = False) -> None:
        """Read up to the frontier as the drainer does, and say so in the progress page."""
        log = self._running()
        self._check_drainer(log, self._read(log), [log.frontier])
        if fully or self.chance.random() < 0.5:
            self.model.drained_lsn = log.frontier.lsn
        self._note(f"drained {self.model.drained_lsn}")
        path = f"{DATA}/progress"
        page: TwoSlotPage | None = None
        try:
            page = TwoSlotPage.open(self.fs, path, slot_bytes=16 * PAGE_SLOT_BYTES, write=True)
            page.write({"routes": {str(ROUTE): self.model.drained_lsn}}, sync=True)
        except Stopped:
            self.end()
        except OSError as error:
            self._note(f"  progress: {error!r}")
        finally:
            if page is not None:
                page.close()

    def retire(self) -> None:
        """Let segments go that are drained."""
        log = self._running()
        if not self.model.route:
            return
        self.clock.advance(1)
        try:
            gone = log.retire({ROUTE: self.model.drained_lsn})
            self._note(f"retired {gone}")
            self.counts["segments retired"] += gone
        except Stopped:
            self.end()
        except (OSError, WaldError) as error:
            self._note(f"  retire: {error!r}")
            self.end(cut=False)

    def fail_soon(self, at: int, kind: str | None = None, *, for_ever: bool = False) -> None:
        """Let an operation to come fail."""
        self._note(f"fail {at} {kind} for_ever={for_ever}")
        self.fs.fail(at, kind=kind, for_ever=for_ever)

    def stop_soon(self, at: int) -> None:
        """Let the machine stop within an operation to come."""
        self._note(f"stop {at}")
        self.fs.stop(at)

    def damage_and_start(self) -> None:
        """Overwrite the magic of a block that is proven durable: what it takes is reported.

        The hint is stale, as after a power cut. A machine that was damaged ends here.
        """
        if self.log is not None:
            self.fs.heal()
            self.end(cut=False)
        if not self.start():
            return
        for _ in range(3):
            self.append()
        log = self._running()
        frontier = log.frontier
        self.end(cut=False)
        self.fs.settle()
        path = f"{DATA}/log/seg-{frontier.segment:010d}.wal"
        offsets = block_offsets(self.fs, path, frontier.end_bytes)
        offset = self.chance.choice(offsets[:-1])
        self._note(f"damage at {offset} of segment {frontier.segment}")
        self.fs.damage(path, offset, b"\0\0\0\0")
        self.fs.unlink(f"{DATA}/ingest.page")
        self.fs.settle()
        log = Log.open(self.fs, DATA, self.clock, self._log_chance, self.options)
        kept = {
            (each.session, each.sequence) for each in read_leniently(self.fs, DATA, log.frontier)
        }
        for request in self.model.all_requests():
            if (request.session, request.sequence) in kept or not request.records:
                continue
            told = request.lsn <= self.model.drained_lsn or any(
                lost.first_lsn <= request.lsn <= lost.last_lsn for lost in log.recovery.losses
            )
            self._expect(told, f"{request.session}:{request.sequence} is gone silently")
        log.close()

    def drop_caches(self) -> None:
        """Let the kernel forget clean pages: what a failed sync left unwritten is seen no more."""
        self._note("caches dropped")
        self.fs.drop_caches()

    def close(self) -> None:
        """Stop cleanly, as far as faults let it."""
        log = self._running()
        self._note("close")
        try:
            log.close()
        except Stopped:
            self.end()
            return
        except (OSError, WaldError) as error:
            self._note(f"  close: {error!r}")
        open_files = self.fs.open_files
        self.end(cut=False)
        self.stopped_cleanly = True
        self._expect(open_files == 0, f"a closed log leaves {open_files} files open")

    def begin_anew(self) -> None:
        """Stop cleanly, perhaps move the directory to another machine, and start again."""
        self.close()
        if self.log is None and self.chance.random() < 0.5:
            self.fs.machine = f"machine-{self.chance.getrandbits(32)}"
            self._note(f"moved to {self.fs.machine}")
        if self.stopped_cleanly:
            self.start()

    def end(self, *, cut: bool | None = None) -> None:
        """End the process by force; with ``cut`` the machine too (None: as ``self.cut`` says)."""
        cut = self.cut if cut is None else cut
        if self.chance.random() < 0.5 if cut is None else cut:
            self._note("power cut")
            self.fs.crash()
            self.clock.reboot()
            self.stale = None
            self.counts["power cuts"] += 1
        else:
            self._note("kill")
            self.fs.kill()
            self.counts["kills"] += 1
            if self.log is not None:
                self.stale = self.log.frontier
        self.clock.advance(1)
        self.log = None
        self.stopped_cleanly = False

    # --- appending ------------------------------------------------------------------------------

    def _running(self) -> Log:
        assert self.log is not None
        return self.log

    def _next_group(self, log: Log, *, big: bool) -> tuple[Attempt, list[Section]]:
        attempt = Attempt()
        group: list[Section] = []
        chance, model = self.chance, self.model
        if len(model.requests) == len(model.ended) or chance.random() < 0.1:
            session = chance.getrandbits(63)
            attempt.sessions[session] = chance.choice(("", f"name-{session}"))
            group.append(session_issued(session, attempt.sessions[session]))
        if not model.streams or (chance.random() < 0.1 and len(model.streams) < 5):
            name = f"s{len(model.streams)}"
            attempt.streams[name] = log.state.next_stream_id
            group.append(stream_opened(attempt.streams[name], name))
            if not model.route:
                attempt.route = True
                group.append(
                    route_birth(RouteState(ROUTE, "r", attempt.streams[name], "k", "", 0, 0, 0))
                )
        streams = {**model.streams, **attempt.streams}
        senders = [each for each in model.requests if each not in model.ended]
        if len(senders) > 1 and chance.random() < 0.1:
            attempt.ended.add(senders.pop(chance.randrange(len(senders))))
            group += map(session_ended, attempt.ended)
        senders += attempt.sessions
        for session in chance.sample(senders, min(len(senders), chance.randint(1, 3))):
            name = chance.choice(sorted(streams))
            group.append(self._run_of(session, name, streams[name], attempt, big=big))
        return attempt, group

    def _run_of(
        self, session: int, name: str, stream: int, attempt: Attempt, *, big: bool
    ) -> Section:
        first = len(self.model.requests.get(session, ())) + 1
        entries: list[RequestEntry] = []
        bodies: list[bytes] = []
        for sequence in range(first, first + self.chance.randint(1, 3)):
            records = self.chance.choice((0, 1, 1, 2, 5))
            length = self.big_body_bytes if big else self.chance.choice((20, 300, 5000))
            body = self._body(f"{session}:{sequence}:", records, length)
            entries.append(RequestEntry(records, records, len(body), frame.crc32c(body)))
            bodies.append(body)
            attempt.requests.append(Request(session, sequence, name, body, records))
        answered = self.chance.choice((0, max(0, first - 1), max(0, first - 20)))
        return Section(
            SectionKind.APPEND,
            1,
            stream,
            session,
            first,
            answered,
            sum(entry.stored for entry in entries),
            b"".join(frame._REQUEST.pack(*entry) for entry in entries),
            (),
            b"".join(bodies),
        )

    def _body(self, name: str, records: int, length: int) -> bytes:
        del records
        return name.encode().ljust(length, b".")

    def _append(self, log: Log, attempt: Attempt, group: list[Section]) -> None:
        before = log.frontier
        self._note(f"append {[(r.session % 1000, r.sequence) for r in attempt.requests]}")
        self.attempt = attempt
        try:
            receipt = log.append_group(group)
        except Stopped:
            self.end()
            return
        except DiskFull:
            self.counts["refused for want of room"] += 1
            self.attempt = None  # nothing of it may ever be seen
            self._expect(log.frontier == before, "a refused group moved the frontier")
            return
        except (OSError, WaldError) as error:
            self._note(f"  append: {error!r}")
            self.counts["failed logs"] += 1
            self.end()
            return
        self.counts["groups"] += 1
        self.counts["rolls"] += log.frontier.segment != before.segment
        self._expect(receipt.first_lsn > self.model.highest_lsn, "an LSN below one given before")
        self._expect(receipt.frontier == log.frontier, "the receipt is not the frontier's")
        self._give_lsns(attempt, receipt.first_lsn)
        self._accept(attempt, group)
        records = sum(request.records for request in attempt.requests)
        if records:
            last = receipt.first_lsn + records - 1
            self._expect(log.frontier.lsn == last, "the frontier is not the group's last LSN")

    def _give_lsns(self, attempt: Attempt, first_lsn: Lsn) -> None:
        lsn = first_lsn
        for request in attempt.requests:
            request.lsn = lsn
            lsn += request.records

    def _accept(self, attempt: Attempt, group: list[Section] | None = None) -> None:
        """Take a group for durable, and never forget it again."""
        model = self.model
        for session in attempt.sessions:
            model.requests[session] = []
        model.ended |= attempt.ended
        model.streams.update(attempt.streams)
        model.route |= attempt.route
        for request in attempt.requests:
            request.durable = True
            model.requests[request.session].append(request)
            for lsn in range(request.lsn, request.lsn + request.records):
                owner = model.owner.setdefault(lsn, (request.session, request.sequence))
                self._expect(
                    owner == (request.session, request.sequence), f"LSN {lsn} has two owners"
                )
                model.highest_lsn = max(model.highest_lsn, lsn)
        for section in group or ():
            if section.kind is SectionKind.APPEND:
                before = model.answered[section.session]
                model.answered[section.session] = max(before, section.answered_through)
        self.attempt = None

    # --- checking -------------------------------------------------------------------------------

    def _check_start(self, log: Log) -> None:
        self.counts["starts"] += 1
        self._expect(not log.recovery.losses, f"a loss without damage: {log.recovery}")
        found = self._read(log)
        self._settle_attempt(log, found)
        if self.stale is not None:
            self._check_drainer(log, found, [self.stale, log.frontier])
        self._check_drainer(log, found, [log.frontier])
        self._check_inspection()
        model = self.model
        there = {(each.session, each.sequence): each for each in found.requests}
        self._expect(len(there) == len(found.requests), "a request stands in the log twice")
        self._expect(
            found.before_lsn <= model.drained_lsn,
            f"LSNs up to {found.before_lsn} are gone, drained is {model.drained_lsn}",
        )
        for request in model.all_requests():
            each = there.pop((request.session, request.sequence), None)
            if each is None:
                # (a request without records has no LSN of its own to be looked up by)
                gone = request.records == 0 or request.lsn <= found.before_lsn
                self._expect(gone, f"lost: {request.session}:{request.sequence} LSN {request.lsn}")
                continue
            if request.records:
                self._expect(
                    each.first_lsn == request.lsn, f"LSN {request.lsn} moved to {each.first_lsn}"
                )
            self._expect(each.body == request.body, f"LSN {request.lsn} has another body")
        self._expect(not there, f"never sent, or refused, or lost before: {list(there)[:3]}")
        self._expect(log.frontier.lsn >= model.highest_lsn, "the frontier is below an acked LSN")
        self._expect(log.next_lsn > model.highest_lsn, "the next LSN was used before")
        self._expect(log.next_lsn >= self.next_lsn, f"LSNs go back from {self.next_lsn}")
        self.next_lsn = log.next_lsn
        self._check_state(log)
        self._check_duplicates(log)

    def _read(self, log: Log) -> FoundLog:
        try:
            with self.fs.undisturbed():
                return read_log(self.fs, DATA, log.frontier)
        except (Misread, WaldError) as error:
            msg = f"below the frontier {log.frontier}: {error}"
            raise Violation(msg) from error

    def _check_drainer(self, log: Log, found: FoundLog, frontiers: list[Frontier]) -> None:
        """Read behind the checkpoint as the drainer does, by one frontier after the other: all of
        it, and no loss. The first may be one of before a restart that it has not heard of.
        """
        after = self.model.drained_lsn
        read: list[FoundRequest] = []
        with self.fs.undisturbed():
            reader = TailReader(self.fs, DATA, log.log_id, after=after)
            for item in chain.from_iterable(map(reader.read, frontiers)):
                if isinstance(item, LostRange):
                    msg = f"the drainer, by {frontiers}, loses {item}"
                    raise Violation(msg)
                for first_lsn, section in item.sections:
                    if section.kind is SectionKind.APPEND:
                        read += requests_of(section, first_lsn)
            reader.close()
        # a block that holds the checkpoint, or has no records, may be read once more
        wanted = [each for each in found.requests if each.records and each.first_lsn > after]
        got = [each for each in read if each.records and each.first_lsn > after]
        self._expect(got == wanted, f"the drainer reads {len(got)} requests, not {len(wanted)}")

    def _check_inspection(self) -> None:
        """``wald log verify`` finds nothing lost where no damage was done.

        It may name a header that a power cut in a roll has turned to garbage: it is unreadable,
        and holds nothing.
        """
        with self.fs.undisturbed():
            report = inspect_log(self.fs, DATA)
        damages = [each for each in report.damages if each.records or "header" not in each.reason]
        self._expect(not damages, f"damage where none was done: {damages}")

    def _settle_attempt(self, log: Log, found: FoundLog) -> None:
        """Decide whether the group that was on its way is there: as a whole or not at all."""
        attempt = self.attempt
        if attempt is None:
            return
        self.attempt = None
        keys = {(each.session, each.sequence): each for each in found.requests}
        there = [keys.get((request.session, request.sequence)) for request in attempt.requests]
        known = [session in log.state.sessions for session in attempt.sessions]
        known += [name in log.state.streams_by_name for name in attempt.streams]
        known += [session not in log.state.sessions for session in attempt.ended]
        known += [each is not None for each in there]
        self._expect(len(set(known)) <= 1, "half a group was recovered")
        if not any(known):
            self.counts["unacknowledged, gone"] += 1
            return
        self.counts["unacknowledged, kept"] += 1
        for request, each in zip(attempt.requests, there, strict=True):
            assert each is not None
            request.lsn = each.first_lsn
            answered = self.model.answered[request.session]
            self.model.answered[request.session] = max(answered, each.answered_through)
        self._accept(attempt)

    def _check_state(self, log: Log) -> None:
        model, state = self.model, log.state
        sessions_left = set(model.requests) - model.ended
        self._expect(set(state.sessions) == sessions_left, "the sessions are not the issued")
        names = {name: stream.stream_id for name, stream in state.streams_by_name.items()}
        self._expect(names == model.streams, f"streams {names}, not {model.streams}")
        self._expect((ROUTE in state.routes) == model.route, "the route is not what was born")
        counts: Counter[str] = Counter()
        for request in model.all_requests():
            counts[request.stream] += request.records
        for name, stream in state.streams_by_name.items():
            self._expect(
                stream.records == counts[name],
                f"{name} counts {stream.records} records, not {counts[name]}",
            )

    def _check_duplicates(self, log: Log) -> None:
        """Ask for every request once more, and for the next: each is told exactly."""
        for session, requests in self.model.requests.items():
            state = log.state.sessions.get(session)
            if session in self.model.ended:
                gone = sessions.decide(state, (), 1, len(requests), 0)
                self._expect(gone.verdict is Verdict.UNKNOWN, f"an ended one: {gone.verdict}")
                continue
            horizon = max(self.model.answered[session], len(requests) - WINDOW_REQUESTS)
            for request in requests:
                if request.sequence <= horizon:
                    continue
                crc = frame.crc32c(request.body)
                stream = log.state.streams_by_name[request.stream].stream_id
                decision = sessions.decide(state, (), stream, request.sequence, crc)
                self._expect(
                    decision.verdict is Verdict.REPEAT and decision.run is not None,
                    f"{session}:{request.sequence} is durable, a resend is {decision.verdict}",
                )
                assert decision.run is not None
                answer = sessions.repeat_answer(decision.run, request.sequence, log.frontier.lsn)
                told = ACK_LAYOUT.unpack_from(answer, HEADER_BYTES)[1]
                self._expect(
                    told == request.lsn or not request.records,
                    f"{session}:{request.sequence} has LSN {request.lsn}, told is {told}",
                )
                for differs in ((stream, crc ^ 1), (stream + 1, crc)):
                    other = sessions.decide(state, (), differs[0], request.sequence, differs[1])
                    self._expect(other.verdict is Verdict.CONFLICT, f"another: {other.verdict}")
            new = sessions.decide(state, (), 1, len(requests) + 1, 0)
            self._expect(new.verdict is Verdict.APPEND, f"the next request is {new.verdict}")
            gap = sessions.decide(state, (), 1, len(requests) + 2, 0)
            self._expect(gap.verdict is Verdict.GAP, f"the request after it is {gap.verdict}")

    def _expect(self, holds: bool, message: str) -> None:  # noqa: FBT001 - as assert
        if not holds:
            self.broken = True
            raise Violation(message)

    def _note(self, what: str) -> None:
        self.history.append(f"[{self.fs.operations}] {what}")

    def story(self) -> str:
        """Return what happened, for a failure's message."""
        return "\n".join(self.history[-40:])
