"""Requests of a file, several under way at once; with a name, a rerun goes on where one ended.

Request i of an input holds its entries 500 i to 500 i + 499 (fewer where they are large): the same
input makes the same requests. So a rerun under the same session name skips those that an earlier
run was acknowledged for, sends the last one again under its old sequence, which stores nothing
twice, and goes on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wald import limits
from wald.cli.records import Entry, Parsed, Unparsed
from wald.client.link import Deadline
from wald.client.requests import Outgoing
from wald.client.session import Session
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import WHOLE_REQUEST
from wald.core.outbox import Request
from wald.errors import Backpressure, InputError, OutcomeUnknown, SequenceConflict, WaldError
from wald.ports import Clock

ENTRIES_PER_REQUEST = 500
REQUEST_BYTES = limits.MIB
REFUSED_LISTED_MAX = 10_000
_UNDER_WAY = 16
_LAST_ANSWERS_S = 1.0
_CHANGED = "the input is not the one that this name was used with before"
_CHANGED_HINT = "use another name for another input: --once NAME"


class Chunk(NamedTuple):
    """Some entries of the input: the packed records, and their indexes in the input."""

    body: bytes
    indexes: list[int]
    refused: list[tuple[int, Unparsed]]


@dataclass(slots=True)
class Report:
    """What became of an input.

    Attributes:
        records: how many were read.
        accepted: on stable storage, those of an earlier run included.
        earlier: of these, acknowledged to an earlier run of the same name.
        duplicates: stored before, by their dedup ids; not among the accepted.
        unknown: sent and not answered when the sending ended early.
        refused_count: refused for good.
        refused: the first of them.
        first_lsn: of what this run was acknowledged.
        last_lsn: of what this run was acknowledged.
    """

    records: int = 0
    accepted: int = 0
    earlier: int = 0
    duplicates: int = 0
    unknown: int = 0
    refused_count: int = 0
    refused: list[dict[str, object]] = field(default_factory=list)
    first_lsn: int | None = None
    last_lsn: int | None = None

    def refuse(self, index: int, code: str, message: str) -> None:
        """Note that the record at an index is not stored."""
        self.refused_count += 1
        if len(self.refused) < REFUSED_LISTED_MAX:
            self.refused.append({"index": index, "code": code, "message": message})

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "records": self.records,
            "accepted": self.accepted,
            "earlier": self.earlier,
            "duplicates": self.duplicates,
            "unknown": self.unknown,
            "refused": sorted(self.refused, key=lambda one: int(str(one["index"]))),
            "refused_count": self.refused_count,
            "first_lsn": self.first_lsn,
            "last_lsn": self.last_lsn,
        }


def chunks(entries: Iterable[Entry]) -> Iterator[Chunk]:
    """Cut entries into requests; where the cuts are depends on the input alone."""
    records: list[Parsed] = []
    indexes: list[int] = []
    refused: list[tuple[int, Unparsed]] = []
    size = 0
    for index, entry in enumerate(entries):
        more = len(entry.value) if isinstance(entry, Parsed) else 0
        if len(indexes) + len(refused) == ENTRIES_PER_REQUEST or (
            indexes and size + more > REQUEST_BYTES
        ):
            yield Chunk(_packed(records), indexes, refused)
            records, indexes, refused, size = [], [], [], 0
        if isinstance(entry, Parsed):
            records.append(entry)
            indexes.append(index)
            size += more
        else:
            refused.append((index, entry))
    if indexes or refused:
        yield Chunk(_packed(records), indexes, refused)


def _packed(records: list[Parsed]) -> bytes:
    if not records:
        return b""
    keys = [record.key for record in records]
    ids = [record.dedup_id for record in records]
    return bodies.encode(
        Body(
            int(records[0].content),
            [record.value for record in records],
            list(keys) if any(key is not None for key in keys) else None,
            None,
            list(ids) if any(each is not None for each in ids) else None,
        )
    )


class Sender:
    """Sends the chunks of an input over one session and gathers the answers.

    Args:
        session: with a name for ``--once``.
        stream: where the records go.
        clock: real time.
        timeout_s: how long one request may wait for its answer.
        progress: told the number of entries dealt with.
    """

    def __init__(
        self,
        session: Session,
        stream: str,
        clock: Clock,
        timeout_s: float,
        progress: Callable[[int], None],
    ) -> None:
        self.report = Report()
        self._session = session
        self._stream = stream
        self._clock = clock
        self._timeout_s = timeout_s
        self._progress = progress
        self._under_way: deque[tuple[Request, Chunk]] = deque()
        self._leaving: Chunk | None = None  # a part of it may be out

    def send_all(self, entries: Iterable[Entry]) -> Report:
        """Send everything; all of it is answered when this returns.

        Raises:
            SequenceConflict: a run before sent another input under the same name.
            WaldError: the daemon could not take or answer a request in time.
        """
        self._session.connect(self._deadline())
        last = self._session.outbox.last_sequence
        number = 0
        for chunk in chunks(entries):
            self.report.records += len(chunk.indexes) + len(chunk.refused)
            for index, why in chunk.refused:
                self.report.refuse(index, why.code, why.message)
            if not chunk.indexes:
                continue
            number += 1
            if number < last:
                self.report.accepted += len(chunk.indexes)  # acknowledged to an earlier run
                self.report.earlier += len(chunk.indexes)
                continue
            self._send(chunk, number if number == last else None)
        if number < last:
            raise SequenceConflict(_CHANGED, hint=_CHANGED_HINT)
        while self._under_way:
            self._settle_oldest()
        return self.report

    def _send(self, chunk: Chunk, sequence: int | None) -> None:
        if len(self._under_way) >= _UNDER_WAY:
            self._settle_oldest()
        while not self._put(chunk, self._deadline(), sequence):
            self._settle_oldest()
        if sequence is not None:
            self._settle_oldest()  # before anything new: it may show that the input changed

    def _put(self, chunk: Chunk, deadline: Deadline, sequence: int | None = None) -> bool:
        """Send a chunk behind those under way; False if one of them has failed meanwhile."""
        behind = self._under_way[-1][0] if self._under_way else None
        outgoing = Outgoing(chunk.body, chunk.indexes)
        self._leaving = chunk
        try:
            request = self._session.send(
                self._stream, outgoing, deadline, sequence=sequence, behind=behind
            )
        except WaldError:
            self._leaving = None
            if behind is None or behind.error is None:
                raise
            return False
        self._under_way.append((request, chunk))
        self._leaving = None
        return True

    def stop(self) -> Report:
        """End early, and return what is known: what was accepted, and what was not answered."""
        requests = [request for request, _ in self._under_way if request.error is None]
        with suppress(WaldError):
            self._session.finish(requests, Deadline(self._clock, _LAST_ANSWERS_S))
        for request, chunk in self._under_way:
            if request.done and request.error is None:
                self._note(request, chunk)
            elif not request.done or isinstance(request.error, OutcomeUnknown):
                self.report.unknown += len(chunk.indexes)
        if self._leaving is not None:
            self.report.unknown += len(self._leaving.indexes)
        self._under_way.clear()
        return self.report

    def _settle_oldest(self) -> None:
        request, chunk = self._under_way[0]
        deadline = self._deadline()
        self._session.finish([request], deadline)
        while isinstance(request.error, Backpressure):
            self._send_again(request.error, deadline)
            request, chunk = self._under_way[0]
            self._session.finish([request], deadline)
        if isinstance(request.error, SequenceConflict):
            raise SequenceConflict(_CHANGED, hint=_CHANGED_HINT)
        if request.error is not None:
            raise request.error
        self._under_way.popleft()
        self._note(request, chunk)

    def _send_again(self, error: Backpressure, deadline: Deadline) -> None:
        """Nothing under way was stored: after the time that the daemon asks for, send it again."""
        if deadline.left_s() <= error.retry_after_s:
            raise error
        self._clock.sleep(error.retry_after_s)
        again = list(self._under_way)
        self._under_way.clear()
        for position, (_, chunk) in enumerate(again):
            if not self._put(chunk, deadline):
                self._under_way.extend(again[position:])  # failed too: their turn comes again
                return

    def _note(self, request: Request, chunk: Chunk) -> None:
        report = self.report
        for refusal in request.refusals:
            at = (
                chunk.indexes
                if refusal.record == WHOLE_REQUEST
                else [chunk.indexes[refusal.record]]
            )
            for index in at:
                report.refuse(index, refusal.code, refusal.message)
        stored = request.stored
        report.duplicates += len(request.duplicates)
        report.accepted += stored
        if stored:
            report.first_lsn = report.first_lsn or request.first_lsn
            report.last_lsn = request.first_lsn + stored - 1
        self._progress(report.accepted + report.duplicates + report.refused_count)

    def _deadline(self) -> Deadline:
        return Deadline(self._clock, self._timeout_s)


def session_name(once: str | None) -> str:
    """Return the name of the session of ``--once``; empty for none.

    Raises:
        InputError: not a name.
    """
    if once is None:
        return ""
    name = f"{limits.ONCE_PREFIX_NAME}{once}"
    if not once or not once.isprintable() or len(name.encode()) > limits.PRODUCER_NAME_MAX_BYTES:
        msg = "--once takes printable text of 1 to 123 bytes"
        raise InputError(msg)
    return name


def as_rerun_hint(error: WaldError, once: str | None) -> WaldError:
    """Return the error with what to do about an input that is sent in part."""
    unanswered = isinstance(error, OutcomeUnknown) and error.hint == error.default_hint
    if once is not None and (error.retryable or unanswered):
        error.hint = "run the same command again: it goes on, and stores nothing twice"
    return error
