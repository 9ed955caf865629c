"""What the log says beside its records: streams, routes, and the sessions with their windows.

The same ``apply`` runs when a group became durable and when a log is read at a start, so that a
restarted ingest knows exactly what the one before it knew. ``snapshot`` is what stands at the head
of a segment: the state before its first group.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

from wald import limits
from wald.core import frame
from wald.core.frame import RefusedRecord, Section, SectionKind
from wald.core.lone import LoneSections
from wald.errors import FormatDamaged
from wald.model import Lsn, RouteId, StreamId

_T = TypeVar("_T")
_new_tuple = tuple.__new__  # a named tuple without its keyword arguments: half the time
_CATALOGUE_PER_PART = 512
_SESSIONS_PART_BYTES = 256 * limits.KIB


@dataclass(slots=True)
class StreamState:
    """A stream's durable id, name, and what it holds since its first record."""

    stream_id: StreamId
    name: str
    records: int = 0
    bytes: int = 0
    last_lsn: Lsn = 0


@dataclass(slots=True, frozen=True)
class RouteState:
    """A route that was born and has not died.

    ``birth_lsn`` is the LSN before the first record that is its; ``birth_records`` and
    ``birth_bytes`` what its stream held then, so that accepted = stream's count - that.
    ``sink`` is the name of its sink, ``digest`` tells one target from another under one name.
    """

    route_id: RouteId
    name: str
    stream_id: StreamId
    sink: str
    digest: str
    birth_lsn: Lsn
    birth_records: int
    birth_bytes: int


class Run(NamedTuple):  # made for every run of every group: a frozen dataclass takes thrice as long
    """Consecutive requests of one session that became durable together.

    ``requests`` is the packed table of the section; LSNs count stored records from ``first_lsn``.
    """

    first_sequence: int
    stream_id: StreamId
    first_lsn: Lsn
    requests: bytes
    refusals: tuple[RefusedRecord, ...]

    @property
    def last_sequence(self) -> int:
        """The sequence of the run's last request."""
        return self.first_sequence + len(self.requests) // frame.REQUEST_BYTES - 1


@dataclass(slots=True)
class SessionState:
    """A producer's session: what was stored for it last, and what a resend may still ask for.

    ``refusals`` counts those in ``runs``. ``takeovers``: how often a client came by its name.
    """

    session_id: int
    name: str
    last_sequence: int = 0
    answered_through: int = 0
    active_ns: int = 0  # wall clock of the last group that held something of it
    runs: deque[Run] = field(default_factory=deque)
    refusals: int = 0
    takeovers: int = 0

    @property
    def epoch(self) -> int:
        """What a client is told, and says when it comes back; 0 would be "not said"."""
        return self.takeovers + 1

    def forget_answered(self) -> None:
        """Drop the runs that no resend may ask for: answered, or beyond the window."""
        horizon = self.last_sequence - limits.WINDOW_REQUESTS
        horizon = max(horizon, self.answered_through)
        runs = self.runs
        # a run that begins beyond it cannot end before it: nothing more is computed of it
        while runs and runs[0][0] <= horizon and runs[0].last_sequence <= horizon:
            self.refusals -= len(runs.popleft().refusals)

    def forget_refusals(self, kept_max: int) -> None:
        """Drop the oldest runs with refusals, until no more are kept than that.

        A resend of them is answered as one of a request that left the window.
        """
        for run in [run for run in self.runs if run.refusals]:
            if self.refusals <= kept_max:
                return
            self.refusals -= len(run.refusals)
            self.runs.remove(run)


class LogState:
    """The state at a point of the log. Owned by the log; changed by ``apply`` alone.

    ``lost_files`` are numbers of segments older than the snapshot that a start found gone and told
    of: it is not told again, nor are the sessions forgotten again. ``lost_names`` are those of
    ``append --once`` that a loss forgot, and when their sessions were active last: such a name
    must not begin anew.
    """

    def __init__(self) -> None:
        self.streams: dict[StreamId, StreamState] = {}
        self.streams_by_name: dict[str, StreamState] = {}
        self.routes: dict[RouteId, RouteState] = {}
        self.sessions: dict[int, SessionState] = {}
        self.sessions_by_name: dict[str, SessionState] = {}
        self.next_stream_id: StreamId = 1
        self.next_route_id: RouteId = 1
        self.lost_files: set[int] = set()
        self.lost_names: dict[str, int] = {}

    def apply(self, section: Section, first_lsn: Lsn, time_ns: int) -> None:
        """Take in one section of a durable block.

        Args:
            section: the section.
            first_lsn: the LSN of its first stored record.
            time_ns: the commit time of its block.

        Raises:
            FormatDamaged: a statement lacks a field or has one of a wrong type.
        """
        if section.kind is SectionKind.APPEND:
            self._apply_append(section, first_lsn, time_ns)
            return
        try:
            self._apply_statement(section, time_ns)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"a {section.kind.name} statement is incomplete"
            raise FormatDamaged(msg) from error

    def _apply_append(self, section: Section, first_lsn: Lsn, time_ns: int) -> None:
        _, _, stream_id, session_id, first, answered, records, requests, refusals, bodies = section
        stream = self.streams.get(stream_id)
        if stream is None:
            msg = f"records of stream {stream_id}, which was never opened"
            raise FormatDamaged(msg)
        stream.records += records
        stream.bytes += len(bodies)
        if records:
            stream.last_lsn = first_lsn + records - 1
        session = self.sessions.get(session_id)
        if session is None:
            return  # evicted since: its resends are answered OutcomeUnknown
        run = (first, stream_id, first_lsn, requests, refusals)
        session.runs.append(_new_tuple(Run, run))
        session.last_sequence = first + len(requests) // frame.REQUEST_BYTES - 1
        session.answered_through = max(session.answered_through, answered)
        session.active_ns = time_ns
        session.forget_answered()
        if refusals:
            self._bound_refusals(session, len(refusals))

    def apply_lone(self, lone: LoneSections, first_lsn: Lsn, time_ns: int) -> None:
        """Take in lone requests of a durable block; the same as ``apply`` of each section.

        Args:
            lone: the sections, of streams that were opened; each has one record.
            first_lsn: the LSN of the first.
            time_ns: the commit time of their block.
        """
        streams, sessions, lsn = self.streams, self.sessions, first_lsn
        for request, table in zip(lone.requests, lone.tables(), strict=True):
            stream_id, session_id, sequence, answered, body = request
            stream = streams[stream_id]
            stream.records += 1
            stream.bytes += len(body)
            stream.last_lsn = lsn
            session = sessions.get(session_id)
            if session is not None:
                run = _new_tuple(Run, (sequence, stream_id, lsn, table, ()))
                session.last_sequence = sequence
                session.active_ns = time_ns
                if answered == sequence - 1:  # of what was before it nothing may be asked for
                    session.answered_through = answered
                    session.refusals = 0
                    session.runs.clear()
                    session.runs.append(run)
                else:
                    session.answered_through = max(session.answered_through, answered)
                    session.runs.append(run)
                    session.forget_answered()
            lsn += 1

    def _bound_refusals(self, session: SessionState, added: int) -> None:
        """Keep a snapshot small, whatever is refused: one record costs a producer three bytes."""
        session.refusals += added
        others = sum(each.refusals for each in self.sessions.values()) - session.refusals
        session.forget_refusals(
            min(limits.REFUSALS_PER_SESSION_MAX, max(0, limits.REFUSALS_MAX - others))
        )

    def _apply_statement(self, section: Section, time_ns: int) -> None:
        said = section.statement()
        match section.kind:
            case SectionKind.SESSION:
                self._put_session(
                    SessionState(_int(said["session"]), _str(said["name"]), active_ns=time_ns)
                )
            case SectionKind.STREAM:
                self._put_stream(StreamState(_int(said["stream"]), _str(said["name"])))
            case SectionKind.ROUTE_BIRTH:
                self._put_route(_route(said))
            case SectionKind.ROUTE_DEATH:
                self.routes.pop(_int(said["route"]), None)
            case SectionKind.SESSION_END:
                self.forget_session(_int(said["session"]))
            case SectionKind.SESSION_TAKEN:
                taken = self.sessions.get(_int(said["session"]))
                if taken is not None:
                    taken.takeovers = max(taken.takeovers, _int(said["takeovers"]))
            case _:  # SNAPSHOT: an APPEND does not come here
                self._apply_snapshot_part(said)

    def _put_stream(self, stream: StreamState) -> None:
        self.streams[stream.stream_id] = stream
        self.streams_by_name[stream.name] = stream
        self.next_stream_id = max(self.next_stream_id, stream.stream_id + 1)

    def _put_route(self, route: RouteState) -> None:
        self.routes[route.route_id] = route
        self.next_route_id = max(self.next_route_id, route.route_id + 1)

    def _put_session(self, session: SessionState) -> None:
        self.sessions[session.session_id] = session
        if session.name:
            self.lost_names.pop(session.name, None)
            before = self.sessions_by_name.get(session.name)
            if before is not None and before.session_id != session.session_id:
                self.sessions.pop(before.session_id, None)  # a name has one session: fenced
            self.sessions_by_name[session.name] = session

    def forget_session(self, session_id: int) -> None:
        """Drop a session; a request of it is answered ``OutcomeUnknown`` from now on.

        What is not said in the log (``session_ended``) a start does not know.
        """
        session = self.sessions.pop(session_id, None)
        if session is not None and self.sessions_by_name.get(session.name) is session:
            del self.sessions_by_name[session.name]

    def forget_all_sessions(self) -> None:
        """After a loss no duplicate can be told from a lost record: know none of them."""
        names = self.lost_names | {
            each.name: each.active_ns
            for each in self.sessions.values()
            if each.name.startswith(limits.ONCE_PREFIX_NAME)
        }
        newest = sorted(names, key=lambda name: names[name])[-limits.SESSIONS_MAX :]
        self.lost_names = {name: names[name] for name in newest}
        self.sessions.clear()
        self.sessions_by_name.clear()

    # --- snapshots ------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[Section]:
        """Yield the state as sections that ``apply`` takes back, in parts of bounded size."""
        yield frame.control_section(
            SectionKind.SNAPSHOT,
            {"next_stream": self.next_stream_id, "next_route": self.next_route_id},
        )
        if self.lost_files:
            lost: dict[str, object] = {"lost_files": sorted(self.lost_files)}
            yield frame.control_section(SectionKind.SNAPSHOT, lost)
        for streams in _parts(list(self.streams.values()), _CATALOGUE_PER_PART):
            rows = [[s.stream_id, s.name, s.records, s.bytes, s.last_lsn] for s in streams]
            yield frame.control_section(SectionKind.SNAPSHOT, {"streams": rows})
        for routes in _parts(list(self.routes.values()), _CATALOGUE_PER_PART):
            route_rows = [_statement_of_route(route) for route in routes]
            yield frame.control_section(SectionKind.SNAPSHOT, {"routes": route_rows})
        for sessions in _session_parts(self.sessions.values()):
            session_rows = [_row_of_session(session) for session in sessions]
            yield frame.control_section(SectionKind.SNAPSHOT, {"sessions": session_rows})
        for names in _parts(list(self.lost_names.items()), _CATALOGUE_PER_PART):
            name_rows = [list(each) for each in names]
            yield frame.control_section(SectionKind.SNAPSHOT, {"lost_names": name_rows})

    def _apply_snapshot_part(self, said: dict[str, object]) -> None:
        self.next_stream_id = max(self.next_stream_id, _int(said.get("next_stream", 1)))
        self.next_route_id = max(self.next_route_id, _int(said.get("next_route", 1)))
        self.lost_files |= set(map(_int, cast("list[object]", said.get("lost_files", []))))
        for row in cast("list[list[object]]", said.get("streams", [])):
            stream_id, name, records, size, last_lsn = row
            self._put_stream(
                StreamState(_int(stream_id), _str(name), _int(records), _int(size), _int(last_lsn))
            )
        for route in cast("list[dict[str, object]]", said.get("routes", [])):
            self._put_route(_route(route))
        for row in cast("list[list[object]]", said.get("sessions", [])):
            self._put_session(_session_of_row(row))
        for name, active_ns in cast("list[list[object]]", said.get("lost_names", [])):
            self.lost_names[_str(name)] = _int(active_ns)


def route_birth(route: RouteState) -> Section:
    """Return the control section that says a route was born."""
    return frame.control_section(SectionKind.ROUTE_BIRTH, _statement_of_route(route))


def route_death(route_id: RouteId) -> Section:
    """Return the control section that says a route is gone for good."""
    return frame.control_section(SectionKind.ROUTE_DEATH, {"route": route_id})


def stream_opened(stream_id: StreamId, name: str) -> Section:
    """Return the control section that gives a stream its durable id."""
    return frame.control_section(SectionKind.STREAM, {"stream": stream_id, "name": name})


def session_issued(session_id: int, name: str) -> Section:
    """Return the control section that makes a session durable; ``name`` may be empty."""
    return frame.control_section(SectionKind.SESSION, {"session": session_id, "name": name})


def session_taken(session: SessionState) -> Section:
    """Return the control section that says a client came by the session's name once more."""
    said: dict[str, object] = {"session": session.session_id, "takeovers": session.takeovers + 1}
    return frame.control_section(SectionKind.SESSION_TAKEN, said)


def session_ended(session_id: int) -> Section:
    """Return the control section that forgets a session: its producer left, or it was evicted.

    What was accepted of it stands in the same group or before; where the statement stands before
    the requests, they are stored, and no resend of them is answered.
    """
    return frame.control_section(SectionKind.SESSION_END, {"session": session_id})


def _parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _session_parts(sessions: Iterable[SessionState]) -> Iterator[Sequence[SessionState]]:
    """Split by what the rows will take: a window may be empty or hold hundreds of requests."""
    part: list[SessionState] = []
    size = 0
    for session in sessions:
        length = 64 + len(session.name) + sum(map(_run_bytes, session.runs))
        if part and size + length > _SESSIONS_PART_BYTES:
            yield part
            part, size = [], 0
        part.append(session)
        size += length
    if part:
        yield part


def _run_bytes(run: Run) -> int:
    return 32 + len(run.requests) + frame.REFUSAL_BYTES * len(run.refusals)


def _int(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _str(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _statement_of_route(route: RouteState) -> dict[str, object]:
    return {
        "route": route.route_id,
        "name": route.name,
        "stream": route.stream_id,
        "sink": route.sink,
        "digest": route.digest,
        "birth_lsn": route.birth_lsn,
        "birth_records": route.birth_records,
        "birth_bytes": route.birth_bytes,
    }


def _route(said: dict[str, object]) -> RouteState:
    return RouteState(
        _int(said["route"]),
        _str(said["name"]),
        _int(said["stream"]),
        _str(said["sink"]),
        _str(said["digest"]),
        _int(said["birth_lsn"]),
        _int(said["birth_records"]),
        _int(said["birth_bytes"]),
    )


def _row_of_session(session: SessionState) -> list[object]:
    runs = [
        [
            run.first_sequence,
            run.stream_id,
            run.first_lsn,
            run.requests,
            [[item.request, item.record, item.code] for item in run.refusals],
        ]
        for run in session.runs
    ]
    row: list[object] = [
        session.session_id,
        session.name,
        session.last_sequence,
        session.answered_through,
        session.active_ns,
        runs,
    ]
    return [*row, session.takeovers] if session.takeovers else row


def _session_of_row(row: list[object]) -> SessionState:
    session_id, name, last, answered, active, runs, *taken = row
    session = SessionState(_int(session_id), _str(name), _int(last), _int(answered), _int(active))
    session.takeovers = _int(taken[0]) if taken else 0
    for first, stream_id, first_lsn, requests, refusals in cast("list[list[object]]", runs):
        session.runs.append(
            Run(
                _int(first),
                _int(stream_id),
                _int(first_lsn),
                cast("bytes", requests),
                tuple(
                    RefusedRecord(_int(request), _int(record), _str(code))
                    for request, record, code in cast("list[list[object]]", refusals)
                ),
            )
        )
        session.refusals += len(session.runs[-1].refusals)
    return session
