"""What a connection may bring in: the rights of its caller, the quotas of its streams.

A request that is refused here is refused as a whole: it is stored without records and uses its
sequence, so that the requests of other streams behind it go on. What is in flight behind a
refusal for want of room, to the same stream, is refused too: the order of a stream stays the one
in which its producer sends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wald import limits
from wald.core.access import Access, Caller, Verb, denied
from wald.core.events import WHOLE_REQUEST, Append, Refusal, Throttle
from wald.core.ids import IdTable
from wald.core.quota import StreamQuota
from wald.core.rules import StreamRules
from wald.core.state import LogState, SessionState
from wald.errors import AccessDenied, Backpressure
from wald.ingest.quotas import Quotas
from wald.model import StreamId


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all connections; None: no rights are asked, no quotas kept.

    ``streams``: what streams ask of their records, by name; ``ids``: those that are compared.
    """

    state: LogState
    access: Access | None = None
    quotas: Quotas | None = None
    streams: Mapping[str, StreamRules] = field(default_factory=dict)
    ids: IdTable = field(default_factory=lambda: IdTable({}))


class Doorway:
    """Judges the requests of one connection.

    Args:
        rules: for all connections.
        caller: who connected; None if nobody asks.
    """

    def __init__(self, rules: Rules, caller: Caller | None) -> None:
        self._rules = rules
        self._caller = caller
        self._allowed: dict[StreamId, bool] = {}
        self._refused: dict[StreamId, int] = {}  # the last sequence refused for want of room
        self.throttled: set[StreamId] = set()
        self.tells = False  # whether the client wants to hear of quotas
        self.tells_duplicates = False  # whether it understands what it is told of them

    # --- rights ---------------------------------------------------------------------------------

    def check(self, verb: Verb, stream: str = "") -> None:
        """Refuse what the caller may not do.

        Raises:
            AccessDenied: it may not.
        """
        access = self._rules.access
        if access is None:
            return
        caller = self._caller or Caller(None, frozenset())
        if not (access.may(caller, verb, stream) if stream else access.may_somewhere(caller, verb)):
            raise denied(caller, verb, stream)

    def own_name(self, name: str) -> str:
        """Return what a producer's name is in the log: users do not take each other's sessions."""
        access, caller = self._rules.access, self._caller
        if not name or access is None or (caller is not None and access.is_trusted(caller)):
            return name
        return f"{name}@{'?' if caller is None else caller.uid}"

    def may_resume(self, session: SessionState) -> bool:
        """Whether a session that has a name is the caller's own."""
        name = session.name
        return self.own_name(name) == name or self.own_name(name.rpartition("@")[0]) == name

    def _may_append(self, stream: StreamId) -> bool:
        allowed = self._allowed.get(stream)
        if allowed is None:
            try:
                self.check(Verb.APPEND, self._rules.state.streams[stream].name)
                allowed = True
            except AccessDenied:
                allowed = False
            self._allowed[stream] = allowed
        return allowed

    # --- records --------------------------------------------------------------------------------

    def rules(self, stream: StreamId) -> StreamRules | None:
        """Return what a stream that was opened asks of its records; None if nothing."""
        if not self._rules.streams:
            return None
        name = self._rules.state.streams[stream].name
        rules = self._rules.streams.get(name)
        if rules is not None and rules.compares_ids:
            self._rules.ids.of(stream, name)
            rules = replace(rules, tells_duplicates=self.tells_duplicates)
        return rules

    # --- quotas ---------------------------------------------------------------------------------

    def welcome(self, session: SessionState) -> None:
        """Remember what of the session was refused and its client may not have heard of yet."""
        for run in session.runs:
            for refused in run.refusals:
                if refused.record == WHOLE_REQUEST and refused.code == Backpressure.code:
                    self._refused[run.stream_id] = run.first_sequence + refused.request

    def quota(self, stream: StreamId) -> StreamQuota | None:
        """Return the quota of a stream that was opened; None if it has none."""
        quotas = self._rules.quotas
        return None if quotas is None else quotas.of(stream)

    def why_not(self, event: Append, quota: StreamQuota | None) -> Refusal | None:
        """Return why the next request is refused as a whole; None: it is taken."""
        if not self._may_append(event.stream):
            name = self._rules.state.streams[event.stream].name
            message = denied(self._caller or Caller(None, frozenset()), Verb.APPEND, name).message
            return Refusal(WHOLE_REQUEST, AccessDenied.code, message)
        if quota is None:
            return None
        refused = self._refused.get(event.stream) if self.tells else None
        in_flight = refused is not None and answered_through(event) < refused
        if self._rules.quotas is not None:
            self._rules.quotas.look()
        if quota.pause_s:
            self.throttled.add(event.stream)
        if not in_flight and not quota.is_full:
            self._refused.pop(event.stream, None)
            quota.throttled += quota.pause_s > 0
            return None
        self._refused[event.stream] = event.sequence
        quota.refused += 1
        said = f"the quota is used: {quota.says()} are pending at the route {quota.pending.route!r}"
        if in_flight:
            said = f"sent behind a request that was refused: {said}"
        return Refusal(WHOLE_REQUEST, Backpressure.code, said)

    def throttles(self) -> bytes:
        """Return the frames to send before the next answer: which streams want a pause."""
        streams, self.throttled = self.throttled, set()
        if not self.tells:
            return b""
        frames = []
        for stream in streams:
            quota = self.quota(stream)
            if quota is not None and quota.pause_s:
                pause_ms = max(1, round(quota.pause_s * 1000))
                used = min(round(quota.used * 1000), _USED_MAX)
                frames.append(Throttle(stream, pause_ms, used).encode())
        return b"".join(frames)


def answered_through(event: Append) -> int:
    """Return up to where the client had every answer when it sent a request."""
    return event.sequence - min(max(event.lag, 1), limits.WINDOW_REQUESTS, event.sequence)


_USED_MAX = (1 << 32) - 1
