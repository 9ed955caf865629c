"""One client's connection: frames become runs of the next group, and answers go back.

Everything here runs in the one loop; nothing waits.
"""

from collections.abc import Sequence
from typing import Final

from wald import limits
from wald.core import dedup, sessions
from wald.core.access import Caller
from wald.core.commit import READ_SLACK_BYTES, Contribution, RunBuilder
from wald.core.dedup import Identified
from wald.core.events import (
    APPEND_KIND,
    HEADER_BYTES,
    Append,
    Capability,
    Duplicate,
    DuplicateRecords,
    ErrorFlag,
    Event,
    Failed,
    FrameType,
    FrontierMoved,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
    Pong,
    Received,
    Refusal,
    RefusedRecords,
    Skip,
    Welcome,
)
from wald.core.frame import Section, crc32c
from wald.core.lone import LONE_MAX_BYTES, take_lone
from wald.core.quota import StreamQuota
from wald.core.rules import StreamRules
from wald.core.sessions import Verdict
from wald.core.state import Run, SessionState
from wald.core.wire import Side, next_frame
from wald.errors import (
    Backpressure,
    BadFrame,
    OutcomeUnknown,
    SequenceConflict,
    SequenceGap,
    WaldError,
)
from wald.ingest.channel import Channel, Phase
from wald.ingest.doorway import Doorway
from wald.ingest.house import House
from wald.model import Frontier, StreamId

_OPEN: Final = Phase.OPEN  # a member is looked up slowly
_CLOSING: Final = Phase.CLOSING


class Connection(Channel):
    """One client's connection, in the loop of ingest."""

    def __init__(self, house: "House[Connection]", caller: Caller | None = None) -> None:
        super().__init__(house)
        self.doorway = Doorway(house.rules, caller)
        self._frontier_due = False
        self.armed = False
        self.session = 0
        self._capabilities = 0
        self._kind = APPEND_KIND  # of the last append
        self._received_due = False  # it asked to be answered before the flush
        self._skipped_through = 0
        self._stream: StreamId = 0  # of the last append; known to the log, and allowed
        self._quota: StreamQuota | None = None  # of that stream
        self._rules: StreamRules | None = None  # of that stream
        self._short_stream: StreamId = 0  # the same, if a plain request of it is looked at no more
        self._expected = 1
        self._accepted = 0  # the first sequence since the last commit; 0: none
        self._refusing = False  # NOT_STORED was said: what is in flight behind it is thrown away
        self._run: RunBuilder | None = None
        self._sections: list[Section] = []
        self._refused: list[RefusedRecords] = []
        self._identified: dict[int, Sequence[Identified]] = {}  # by the index of a section

    # --- the transport's calls ------------------------------------------------------------------

    def buffer_updated(self, nbytes: int) -> None:
        """Take what a read brought."""
        house = self._house
        if (
            nbytes <= LONE_MAX_BYTES
            and self._short_stream
            and not self._rest
            and self._large is None
            and self.phase is _OPEN
            and (self._quota is None or not self._quota.guarded)
        ):
            expected = self._expected
            lone = take_lone(house.receive_view, nbytes, self._stream, self.session, expected)
            if lone is not None and house.committer.accept_lone(self, lone):
                self._expected = expected + 1
                self._refusing = False
                self._progress_tick = house.ticks
                if self._quota is not None:
                    self._quota.charge(1, nbytes - HEADER_BYTES)
                return
        self.take_read(nbytes)

    # --- bytes to frames ------------------------------------------------------------------------

    def _process(self, data: bytes) -> int:
        """Take the complete frames; return where the unfinished rest begins."""
        at = self._take_frames(data)
        if self._received_due and self.phase is not _CLOSING:  # else its ACK is on its way
            self._say_received()
        return at

    def _take_frames(self, data: bytes) -> int:
        self._take_back()
        at, end, events = 0, len(data), 0
        while self.phase is not _CLOSING:
            if self._stream:
                at = self._take(data, at)
            if at == end:
                break
            if events == limits.EVENTS_PER_TURN_COUNT:
                self._unread = data[at:]
                self._house.call_soon(self._go_on)
                break
            found = next_frame(data, at, Side.DAEMON)
            if found is None:
                break
            events += 1
            if self._handle(found[0]):
                at = found[1]
        if at:
            self._progress_tick = self._house.ticks
        return at

    def _take(self, data: bytes, at: int) -> int:
        """Let the run take what it can: the hot path."""
        if self._quota is not None and self._quota.guarded:
            return at  # one by one, by ``_next``
        committer = self._house.committer
        if committer.size_bytes + len(data) - at + READ_SLACK_BYTES > limits.GROUP_MAX_BYTES:
            committer.commit()
        run = self._run
        if run is None:
            run = RunBuilder(self._stream, self._expected, self._kind, self._rules)
            self._run = run
            before = 0
        else:
            before = run.size_bytes
        records = 0 if self._quota is None else run.records
        end = run.take(data, at)
        if end != at:
            self._accept(run, before, records)
        elif not before:
            self._run = None  # it took nothing: what a section costs is counted when one begins
        return end

    def _accept(self, run: RunBuilder, before_bytes: int, before_records: int) -> None:
        """Note what a run has taken."""
        if not self._accepted:
            self._accepted = self._expected
        self._expected = run.next_sequence
        self._refusing = False
        if run.kind != APPEND_KIND:
            self._received_due = True
        more_bytes = run.size_bytes - before_bytes
        self._house.committer.accept(self, more_bytes)
        if self._quota is not None:
            self._quota.charge(run.records - before_records, more_bytes)

    def _take_one(self, event: Append, refusal: Refusal | None) -> None:
        """Take the next request by itself, or refuse it as a whole: it uses its sequence."""
        committer = self._house.committer
        need = HEADER_BYTES + len(event.body) + READ_SLACK_BYTES
        if committer.size_bytes + need > limits.GROUP_MAX_BYTES:
            committer.commit()
        run = self._run
        kind = APPEND_KIND | event.flags << 8
        if run is None or run.refused or (run.stream, run.kind) != (event.stream, kind):
            self._seal()
            run = self._run = RunBuilder(event.stream, self._expected, kind, self._rules)
            before = records = 0
        else:
            before, records = run.size_bytes, run.records
        run.take_one(event.body, lag=event.lag, refusal=refusal)
        self._accept(run, before, records)

    def _take_back(self) -> None:
        """Begin a run with the request that was alone since the last commit."""
        lone = self._house.committer.take_back(self)
        if lone is None:
            return
        stream, _, sequence, answered, body = lone
        self._run = run = RunBuilder(stream, sequence, rules=self._rules)
        run.add(body, lag=sequence - answered)
        self._accepted = sequence
        self._house.committer.accept(self, run.size_bytes)

    # --- frames ---------------------------------------------------------------------------------

    def _handle(self, event: Event) -> bool:
        """Act on one frame; False if it is left for the run that was begun with it."""
        match event:
            case Append() if self.phase is _OPEN:
                return self._append(event)
            case Hello() if self.phase is Phase.GREETING:
                self._house.greet(self, event)
            case OpenStream() if self.phase is _OPEN:
                self._house.open_stream(self, event)
            case Skip() if self.phase is _OPEN and self._capabilities & Capability.RECEIVED:
                self._skip(event)
            case Ping() if self.phase in {Phase.OPEN, Phase.SUBSCRIBED}:
                self.send(Pong(event.request, event.body).encode())
            case Goodbye():
                self._house.leave(self)
                self.finish(Goodbye().encode())
            case _:
                msg = f"{type(event).__name__} is not expected now"
                raise BadFrame(msg, reason="frame.unexpected")
        return True

    def _append(self, event: Append) -> bool:
        """Decide on an append that the run did not take."""
        if event.sequence == self._expected:
            return self._next(event)
        if self._refusing and event.sequence > self._expected:
            return True
        self._answer_again(event)
        return True

    def _next(self, event: Append) -> bool:
        """Decide on the next request; False leaves it to the run."""
        if event.stream not in self._house.log.state.streams:
            msg = f"stream {event.stream} was never opened"
            raise BadFrame(msg, reason="frame.stream")
        if event.flags and not self._capabilities & Capability.RECEIVED:
            msg = f"an APPEND with flags {event.flags:#04x}, which HELLO did not ask for"
            raise BadFrame(msg, reason="protocol-mismatch")
        kind = APPEND_KIND | event.flags << 8
        if event.stream != self._stream:
            self._seal()
            self._stream = self._short_stream = 0
            self._quota = self.doorway.quota(event.stream)
            self._rules = self.doorway.rules(event.stream)
        if kind != self._kind:
            self._seal()
            self._kind = kind
        refusal = self.doorway.why_not(event, self._quota)
        if refusal is None:
            self._stream = event.stream
            self._short_stream = event.stream if _is_short(self._rules) else 0
            if self._quota is None or not self._quota.guarded:
                return False
        if refusal is not None and refusal.code == Backpressure.code and not self.doorway.tells:
            pause_s = self._quota.pause_s if self._quota is not None else limits.QUOTA_PAUSE_MAX_S
            error = Backpressure(refusal.message, retry_after_s=pause_s)
            self._house.count_refused(error.code)
            self._refusing = True
            self.send(_failed_for_room(error, FrameType.APPEND, event.sequence).encode())
            return True
        self._take_one(event, refusal)
        return True

    def _answer_again(self, event: Append) -> None:
        house = self._house
        crc = crc32c(event.body)
        decision = self._decide(event, crc)
        if decision.verdict is Verdict.WAIT:
            house.committer.commit()
            if event.sequence >= self._expected:
                return  # the original found no room: NOT_STORED was said of this one too
            decision = self._decide(event, crc)
        if decision.run is not None:
            again = self._told_again(decision.run, event)
            if again is not None:
                self.send(again)
                return
            decision = sessions.Decision(Verdict.UNKNOWN)
        kind = _ERRORS.get(decision.verdict)
        if kind is None:  # the log failed: nobody is answered
            return
        house.count_refused(kind.code)
        message = f"sequence {event.sequence}: {decision.verdict.value}"
        self.fail(Failed(kind.code, message, kind.default_hint), event)

    def _told_again(self, run: Run, event: Append) -> bytes | None:
        """Return the answer to a durable request once more; None if nobody knows it any more."""
        log = self._house.log
        duplicates: tuple[Duplicate, ...] | None = ()
        if dedup.lacks_records(run, event.sequence):
            duplicates = dedup.answer_again(run, event.sequence, event.body, log.ids.table)
        if duplicates is None:
            return None
        told = DuplicateRecords(event.sequence, duplicates).encode() if duplicates else b""
        return told + sessions.repeat_answer(run, event.sequence, log.frontier.lsn)

    def _decide(self, event: Append, crc: int) -> sessions.Decision:
        self._seal()
        state = self._house.log.state.sessions.get(self.session)
        return sessions.decide(
            state,
            self._sections,
            event.stream,
            event.sequence,
            crc,
            skipped_through=self._skipped_through,
        )

    def _say_received(self) -> None:
        """Answer before the flush what asked for it; what of it is refused is said before."""
        self._received_due = False
        self._seal()
        refused, self._refused = self._refused, []
        for each in refused:
            for refusal in each.refusals:
                self._house.count_refused(refusal.code)
            self.send(each.encode())
        self.send(Received(self._expected - 1).encode())

    def _skip(self, event: Skip) -> None:
        """Go on behind what the client has lost."""
        self._house.committer.commit()
        count = event.through - self._expected + 1
        if count > limits.WINDOW_REQUESTS:
            msg = f"a SKIP of {count:,} requests; at most {limits.WINDOW_REQUESTS} are unanswered"
            raise BadFrame(msg, reason="frame.malformed")
        if count > 0:
            self._house.count_refused("skipped", count)
            self._skipped_through = event.through
            self._expected = event.through + 1
            self._refusing = False

    def _is_owed(self) -> bool:
        self._seal()
        return bool(self._sections)

    def _caught_up(self) -> None:
        if self._frontier_due:
            self.notify(self._house.log.frontier)

    # --- the group ------------------------------------------------------------------------------

    def _seal(self) -> None:
        self._take_back()
        run = self._run
        if run is not None and run.next_sequence > run.first_sequence:
            if run.identified:
                self._identified[len(self._sections)] = run.identified
            self._sections.append(run.section(self.session))
            if run.refused:
                self._refused += run.refused
        self._run = None

    def contribution(self) -> "Contribution[Connection]":
        """Hand over what was accepted since the last commit."""
        self._seal()
        mine = Contribution(
            self,
            self._sections,
            self._refused,
            self._accepted,
            self._expected - 1,
            self._identified,
        )
        self._sections = []
        if self._identified:
            self._identified = {}
        if self._refused:
            self._refused = []
        self._accepted = self._turn_bytes = 0
        self.armed = False
        if self._held:
            self._held = False
            self._read_or_not()
        return mine

    def answer(self, frames: bytes) -> None:
        """Send the answer to a contribution; then the end, if the connection is to end."""
        if self._transport is None:
            return
        if self.doorway.throttled:
            frames = self.doorway.throttles() + frames
        self._transport.write(frames)
        if self.phase is _CLOSING:
            self._close()
        elif self._clogged:
            self._bound_answers()

    def refuse_from(self, first_sequence: int, error: Backpressure) -> None:
        """Say that what was accepted is not stored; its sequences are not used."""
        self._expected = first_sequence
        self._refusing = True
        self.answer(_failed_for_room(error, FrameType.APPEND, first_sequence).encode())

    # --- greeting -------------------------------------------------------------------------------

    @property
    def issuing(self) -> bool:
        """Whether the connection waits for its new session to be durable."""
        return self.phase is Phase.ISSUING

    def await_session(self) -> None:
        """The session of this connection's HELLO is in the next group."""
        self.phase = Phase.ISSUING

    def welcome(self, hello: Hello, session: SessionState) -> None:
        """Open the connection for a session."""
        self.session = session.session_id
        self._capabilities = hello.capabilities
        self._expected = session.last_sequence + 1
        self.phase = Phase.OPEN
        self.doorway.welcome(session)
        self.doorway.tells_duplicates = bool(hello.capabilities & Capability.DUPLICATES)
        self.doorway.tells = bool(hello.capabilities & Capability.THROTTLE)
        log_id, last = self._house.log.log_id, session.last_sequence
        epoch = session.epoch if hello.capabilities & Capability.EPOCH else 0
        welcome = Welcome(
            hello.request, self.session, last, log_id, hello.capabilities, epoch=epoch
        )
        self.send(welcome.encode())

    def subscribe(self, hello: Hello) -> None:
        """Make the connection a subscriber of the frontier."""
        assert self._transport is not None
        self.phase = Phase.SUBSCRIBED
        self._transport.set_write_buffer_limits(high=0)
        log = self._house.log
        welcome = Welcome(hello.request, 0, 0, log.log_id, capabilities=hello.capabilities)
        self.send(welcome.encode())
        self.notify(log.frontier)

    def notify(self, frontier: Frontier) -> None:
        """Tell a subscriber where the frontier is; only the newest, if it does not read."""
        self._frontier_due = self._clogged
        if not self._clogged:
            self.send(FrontierMoved(frontier).encode())

    # --- refusing -------------------------------------------------------------------------------

    def fail(self, failed: Failed, event: Append | Hello | OpenStream) -> None:
        """Answer one frame with an error; the connection goes on."""
        if isinstance(event, Append):
            answers, request = FrameType.APPEND, event.sequence
        else:
            answers = FrameType.HELLO if isinstance(event, Hello) else FrameType.OPEN_STREAM
            request = event.request
        self.send(failed._replace(answers=answers, request=request).encode())

    def fail_for_room(self, error: Backpressure, event: Hello | OpenStream) -> None:
        """Answer a HELLO or OPEN_STREAM whose statement found no room; it may be sent again."""
        if self.phase is Phase.ISSUING:
            self.phase = Phase.GREETING
        self.fail(_failed_for_room(error, 0, 0)._replace(flags=0), event)


def _is_short(rules: StreamRules | None) -> bool:
    return rules is None or not rules.checks


_ERRORS: Final[dict[Verdict, type[WaldError]]] = {
    Verdict.CONFLICT: SequenceConflict,
    Verdict.UNKNOWN: OutcomeUnknown,
    Verdict.GAP: SequenceGap,
}


def _failed_for_room(error: Backpressure, answers: int, request: int) -> Failed:
    retry_after_ms = int(error.retry_after_s * 1000)
    flags = ErrorFlag.NOT_STORED
    return Failed(error.code, error.message, error.hint, retry_after_ms, flags, answers, request)
