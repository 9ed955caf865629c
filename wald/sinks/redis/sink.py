"""Delivery to a stream of Redis or Valkey: entries and progress row move in one script.

See ``wald.sinks.redis.scripts`` for what lies where, and why that is one transaction.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from wald import limits
from wald.errors import ConfigError
from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.redis import scripts
from wald.sinks.redis.auditing import Held
from wald.sinks.redis.calls import ANSWER_TIMEOUT_S, CallFailed
from wald.sinks.redis.checking import check, grants
from wald.sinks.redis.entries import entries_of
from wald.sinks.redis.options import Options, read_options

if TYPE_CHECKING:
    from wald.sinks.redis.link import Link

MAX_RECORDS: Final = 2_000  # a script holds up everybody else at the server: about 20 ms
MAX_BYTES: Final = 8 * limits.MIB
KNOWN: Final = "known-to-target"  # note: records that were in the stream already
_WAIT_LEAST_S: Final = 0.001
_WAIT_MARGIN_S: Final = 1.0  # for the answer to a wait that the server ends itself
_MS_PER_S: Final = 1_000
_OWNED_HINT = "a stream has one owner: say another stream_key"


def make(route: str, stream: str, settings: Mapping[str, object]) -> "RedisSink":
    """Make the sink of a route; connects lazily.

    Raises:
        ConfigError: a setting is unknown, missing or wrong, or there is no driver.
    """
    options = read_options(route, stream, settings)
    if importlib.util.find_spec("redis") is None:
        msg = f"route {route!r}: a redis sink needs the module redis"
        raise ConfigError(msg, hint="pip install 'wald[redis]'")
    return RedisSink(options)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a lane's entries and row lie."""

    stream: str
    beside: str
    field: str


class RedisSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: Link | None = None
        self._held: Held | None = None
        self._no_waitaof_on = -1  # the connection whose server has no WAITAOF to offer

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once for ever: the row moves with the entries."""
        return Capabilities(ReplayClass.TRANSACTIONAL, MAX_RECORDS, MAX_BYTES, awaits_seal=True)

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        if self._made is not None:
            self._made.close()

    def check(self) -> Sequence[Finding]:
        """Look at server and stream without writing."""
        return check(self._options, self._link)

    def grants(self) -> Sequence[str]:
        """Return the command that gives the user what the route needs."""
        return [grants(self._options)]

    @property
    def _link(self) -> "Link":
        if self._made is None:
            from wald.sinks.redis.link import Link  # noqa: PLC0415 - 20 MB, only where it delivers

            self._made = Link(self._options)
        return self._made

    # --- delivering -----------------------------------------------------------------------------

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row, or whose the stream is."""
        place = self._place(key)
        try:
            answer = self._link.call(
                "EVAL", scripts.READ, 2, place.stream, place.beside, place.field
            )
            last, log, route, row, newest = map(_text, answer)
            if log and (log, route) != _owner(key):
                return self._owned(place, log, route)
            if newest not in {scripts.OURS, key.log_id.hex()}:
                return self._foreign(place, last, log)
            return scripts.parse_row(row)
        except CallFailed as failed:
            return _told(failed.outcome)
        except ValueError as error:
            return Systemic(SystemicKind.DAMAGED, f"{self._options.where}: {error}")

    def deliver(self, attempt: Attempt) -> Outcome:
        """Add the entries and move the row in one step of the server, then wait for its disk."""
        now_s = time.monotonic  # noqa: TID251 - the driver's time: a factory gets no clock
        timeout_s = attempt.timeout_s or ANSWER_TIMEOUT_S
        words, refused = entries_of(attempt.key.log_id, attempt.records)
        if refused:
            return Rejected(refused, refused[0].message)
        ends_s = now_s() + timeout_s
        place, header = self._place(attempt.key), self._header(attempt)
        attempt.await_seal()
        try:
            answer = self._link.call(
                "EVAL", scripts.DELIVER, 2, place.stream, place.beside, *header, *words,
                timeout_s=timeout_s,
            )  # fmt: skip # COMMIT POINT: the script has run
            outcome = self._outcome(place, answer)
        except CallFailed as failed:
            return failed.outcome
        except ValueError as error:
            return Systemic(SystemicKind.DAMAGED, f"{self._options.where}: {error}")
        if isinstance(outcome, Delivered):
            return self._wait(ends_s - now_s()) or outcome
        return outcome

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Return what has no form as an entry; the server refuses no record."""
        return entries_of(attempt.key.log_id, records)[1]

    def _place(self, key: LaneKey) -> _Place:
        stream = self._options.stream_key + (f":{key.lane}" if key.lane else "")
        beside = scripts.key_beside(stream)
        assert beside is not None  # the options were read
        return _Place(stream, beside, scripts.row_field(key))

    def _header(self, attempt: Attempt) -> tuple[str, ...]:
        maxlen = self._options.maxlen
        return (
            *_owner(attempt.key),
            scripts.row_field(attempt.key),
            scripts.standing(*attempt.stands_on),
            scripts.row_text(attempt.row),
            "" if maxlen is None else str(maxlen),
        )

    def _outcome(self, place: _Place, answer: Sequence[Any]) -> Outcome:
        """Return what the script's answer means.

        Raises:
            ValueError: it tells of a row that cannot be read.
        """
        verdict, *facts = map(_text, answer)
        if verdict == "done":
            known = int(facts[1])
            return Delivered({KNOWN: known} if known else {})
        if verdict == "moved":
            return RowMoved(scripts.parse_row(facts[0]))
        if verdict == "owned":
            return self._owned(place, *facts)
        assert verdict == "foreign", verdict
        return self._foreign(place, *facts)

    def _owned(self, place: _Place, log: str, route: str) -> Systemic:
        msg = f"target-owned: stream {place.stream!r} is of route {route} of log {log}"
        return Systemic(SystemicKind.OWNED, msg, _OWNED_HINT)

    def _foreign(self, place: _Place, last: str, log: str) -> Systemic:
        msg = (
            f"target-owned: stream {place.stream!r} has entries of others (highest id {last}), and "
            "takes none below them"
        )
        hint = _OWNED_HINT
        if log:  # it is ours, and somebody added to it
            hint += f", or DEL {place.stream} {place.beside}: what the log holds comes again"
        return Systemic(SystemicKind.OWNED, msg, hint)

    def holds(
        self, log_id: bytes, lsns: Sequence[Lsn]
    ) -> Mapping[Lsn, int | None] | Outcome | None:
        """Return which records the streams of the route's lanes have; None: trimmed, or deleted."""
        if self._held is None:
            self._held = Held(self._link, self._options.stream_key)
        try:
            return self._held.count(log_id, lsns)
        except CallFailed as failed:
            return _told(failed.outcome)

    # --- until it lasts -------------------------------------------------------------------------

    def _wait(self, left_s: float) -> Unknown | None:
        """Wait until what was written would survive the server; else say that it may not.

        It took effect: where that is not known to last, the row tells, now and behind a crash.
        """
        try:
            if self._options.wait_aof and self._no_waitaof_on != self._link.generation:
                local, _ = self._ask_to_wait(left_s, "WAITAOF", 1, 0)
                if not local:
                    return Unknown(f"{self._options.where}: not on the server's disk in time")
            if self._options.wait_replicas:
                wanted = self._options.wait_replicas
                reached = self._ask_to_wait(left_s, "WAIT", wanted)
                if reached < wanted:
                    return Unknown(f"{self._options.where}: {reached} of {wanted} replicas in time")
        except CallFailed as failed:
            if isinstance(failed.outcome, Systemic | Unknown):
                return Unknown(failed.outcome.message)
            return Unknown(f"{self._options.where}: nothing known of the server's disk")
        return None

    def _ask_to_wait(self, left_s: float, *command: str | int) -> Any:  # noqa: ANN401
        wait_s = max(left_s, _WAIT_LEAST_S)
        try:
            return self._link.call(
                *command, ceil(wait_s * _MS_PER_S), timeout_s=wait_s + _WAIT_MARGIN_S
            )
        except CallFailed as failed:
            if command[0] != "WAITAOF" or not failed.is_missing:
                raise
            self._no_waitaof_on = self._link.generation
            return 1, 0


def _owner(key: LaneKey) -> tuple[str, str]:
    return key.log_id.hex(), str(key.route_id)


def _told(outcome: Outcome) -> Outcome:
    """Return what a question came to: one that was not answered changed nothing."""
    if isinstance(outcome, Unknown):
        return Systemic(SystemicKind.UNREACHABLE, outcome.message)
    return outcome


def _text(word: object) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
