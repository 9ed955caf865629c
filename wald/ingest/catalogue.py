"""Which streams and routes exist: births and deaths that the settings ask for, as control sections.

A stream exists through a route that takes it. A route's birth stands in the log before the first
record that is its, so that the drainer starts exactly there. Pure: state and settings in, sections
out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.config import RouteSettings, Settings
from wald.config.targets import automatic_digest, target_digest
from wald.core.frame import Section
from wald.core.state import (
    LogState,
    RouteState,
    StreamState,
    route_birth,
    route_death,
    stream_opened,
)
from wald.errors import ConfigError, UnknownStream
from wald.model import Lsn, RouteId, StreamId


class Held(NamedTuple):
    """What of a stream lies before a point of the log."""

    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Oldest:
    """The oldest point of the log that is retained: the LSN before it, what streams held there."""

    lsn: Lsn
    streams: Mapping[StreamId, Held]


def plan_start(
    state: LogState,
    settings: Settings,
    lsn: Lsn,
    oldest: Oldest,
    pending: Mapping[RouteId, int],
) -> list[Section]:
    """Return the statements that make the log agree with the configured routes.

    A route of a changed target or stream dies and is born anew. One that the settings no longer
    name stays as it is. With ``--to`` every stream that has no route gets one.

    Args:
        state: what the log says now.
        settings: what is configured.
        lsn: the LSN of the frontier.
        oldest: the oldest retained point.
        pending: how many records of each route are not delivered.

    Raises:
        ConfigError: a new route of a stream in use does not say where to start, or records of a
            changed one would never be delivered.
    """
    plan = _Plan(state, lsn, oldest, pending)
    for route in settings.routes.values():
        sink = settings.sinks[route.sink]
        plan.ensure(route, target_digest(sink, route))
    if settings.auto_sink is not None:
        sink = settings.sinks[settings.auto_sink]
        taken = {route.stream for route in settings.routes.values()}
        for name in state.streams_by_name:
            if name not in taken:
                automatic = RouteSettings(name, name, sink.name, start="oldest")
                plan.ensure(automatic, automatic_digest(sink))
    return plan.sections


def deaths(state: LogState, dropped: Iterable[RouteId]) -> list[Section]:
    """Return the statements that end those of some routes that live."""
    return [route_death(route_id) for route_id in dropped if route_id in state.routes]


def plan_stream(state: LogState, settings: Settings, name: str, lsn: Lsn) -> list[Section]:
    """Return the statements that open a stream; empty if it is open.

    Raises:
        UnknownStream: the name is not allowed, no route takes it, or there are too many.
    """
    if limits.STREAM_NAME.fullmatch(name) is None:
        msg = f"{name!r} is not a stream's name"
        raise UnknownStream(msg)
    configured = any(route.stream == name for route in settings.routes.values())
    if not configured and settings.auto_sink is None:
        msg = f"no route takes the stream {name!r}"
        raise UnknownStream(msg, hint="add a route for it to the configuration")
    if name in state.streams_by_name:
        return []
    if max(len(state.streams) + 1, len(state.routes) + 1) > limits.STREAMS_MAX:
        msg = f"there are {len(state.streams):,} streams already"
        raise UnknownStream(msg, hint=f"at most {limits.STREAMS_MAX:,} streams and routes")
    assert settings.auto_sink is not None  # configured routes were born at the start
    sink = settings.sinks[settings.auto_sink]
    plan = _Plan(state, lsn, Oldest(lsn, {}), {})
    plan.ensure(RouteSettings(name, name, sink.name), automatic_digest(sink))
    return plan.sections


class _Plan:
    """Collects statements, with the ids that they will have."""

    def __init__(
        self, state: LogState, lsn: Lsn, oldest: Oldest, pending: Mapping[RouteId, int]
    ) -> None:
        self.sections: list[Section] = []
        self._state = state
        self._lsn = lsn
        self._oldest = oldest
        self._pending = pending
        self._routes = {route.name: route for route in state.routes.values()}
        self._opened: dict[str, StreamState] = {}
        self._next_stream = state.next_stream_id
        self._next_route = state.next_route_id

    def ensure(self, route: RouteSettings, digest: str) -> None:
        stream = self._stream(route.stream)
        before = self._routes.get(route.name)
        if before is not None:
            if before.digest == digest and before.stream_id == stream.stream_id:
                return
            self._check_abandoned(route, before, stream)
            self.sections.append(route_death(before.route_id))
        lsn, held = self._start(route, stream)
        born = RouteState(
            self._next_route,
            route.name,
            stream.stream_id,
            route.sink,
            digest,
            lsn,
            held.records,
            held.bytes,
        )
        self._next_route += 1
        self.sections.append(route_birth(born))

    def _check_abandoned(
        self, route: RouteSettings, before: RouteState, stream: StreamState
    ) -> None:
        """Refuse a change after which records that were accepted are never delivered."""
        pending = self._pending.get(before.route_id, 0)
        same_stream = before.stream_id == stream.stream_id
        if pending <= route.abandon or (route.start == "oldest" and same_stream):
            return
        msg = (
            f"the target or stream of the route {route.name!r} has changed, and up to {pending:,} "
            f"records are not delivered to the one before; they never would be"
        )
        oldest = 'say start = "oldest": the new target gets them; or ' if same_stream else ""
        hint = (
            f'change it back until "wald wait" says that all is delivered; or {oldest}'
            f"give them up: abandon = {pending} in [routes.{route.name}]"
        )
        raise ConfigError(msg, hint=hint, pending=pending)

    def _stream(self, name: str) -> StreamState:
        known = self._state.streams_by_name.get(name) or self._opened.get(name)
        if known is not None:
            return known
        stream = StreamState(self._next_stream, name)
        self._next_stream += 1
        self._opened[name] = stream
        self.sections.append(stream_opened(stream.stream_id, name))
        return stream

    def _start(self, route: RouteSettings, stream: StreamState) -> tuple[Lsn, Held]:
        if route.start == "oldest":
            return self._oldest.lsn, self._oldest.streams.get(stream.stream_id, Held(0, 0))
        if route.start is None and stream.records:
            msg = (
                f"the route {route.name!r} is new, and its stream {stream.name!r} already has "
                f"{stream.records:,} records"
            )
            raise ConfigError(
                msg, hint=f'say start = "oldest" or start = "now" in [routes.{route.name}]'
            )
        return self._lsn, Held(stream.records, stream.bytes)
