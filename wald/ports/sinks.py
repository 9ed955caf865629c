"""The door to a target: what a sink is, and who makes one."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from wald.model import (
    Attempt,
    Capabilities,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    RejectedRecord,
)


class Sink(Protocol):
    """The code that writes to one kind of target; one instance per lane, one thread at a time.

    Methods return values and never raise for what a target does; a raised exception is a bug of
    the sink, counts as ``Unknown``, and the sink is closed and made anew.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the target can express; constant, known without a connection."""
        ...

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Ask the target what it remembers of the lane; connects if need be.

        Returns None where it remembers nothing, an ``Outcome`` (``Systemic``) where it cannot
        be asked.
        """
        ...

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the row and apply the records in one transaction of the target.

        Durable at the target when ``Delivered`` is returned. ``RowMoved`` if the row was not
        (row.batch_no - 1, prev_rev, owner).
        """
        ...

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Try some records of an attempt and roll back, whatever comes of it.

        Returns the records that the target names as refused, an empty sequence if all would be
        taken; ``Rejected`` without records where it refuses but does not say which.
        """
        ...

    def check(self) -> Sequence[Finding]:
        """Verify at the target what can be verified without writing data."""
        ...

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        ...


class SinkFactory(Protocol):
    """Makes the sink of one route; registered under the sink's ``type``."""

    def __call__(self, route: str, stream: str, settings: Mapping[str, object]) -> Sink:
        """Make a sink from the merged tables of sink and route; connects lazily.

        Raises:
            ConfigError: a setting is unknown, missing or wrong.
        """
        ...


class EncodingSink(Sink, Protocol):
    """A sink whose requests are encoded once and kept: ``Capabilities.freezes``."""

    @property
    def encoder(self) -> str:
        """Name and version of the encoding; another version may encode otherwise."""
        ...

    def encode(self, attempt: Attempt) -> bytes:
        """Return the body that ``deliver`` sends as ``Attempt.body``; the same for the same."""
        ...


class AuditableSink(Sink, Protocol):
    """A sink that can tell which records its target has; what it says is compared by audits."""

    def holds(
        self, log_id: bytes, lsns: Sequence[Lsn]
    ) -> Mapping[Lsn, int | None] | Outcome | None:
        """Return which of some records of a log the target has, and how often each.

        A record that is not in it is not there; of one that is None the target cannot tell: it may
        have had it. None instead of all where the target does not keep what names a record; an
        ``Outcome`` (``Systemic``) where it cannot be asked. Records are in order.
        """
        ...


class GrantingSink(Sink, Protocol):
    """A sink whose target has grants: what ``wald check --print-grants`` prints."""

    def grants(self) -> Sequence[str]:
        """Return statements for the owner of the target, as they are run, that give what is needed.

        Known from the settings, without a connection; harmless to repeat.
        """
        ...
