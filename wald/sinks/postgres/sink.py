"""The PostgreSQL sink of a lane: its driver is loaded where it is used, not to read settings."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from wald import limits
from wald.errors import ConfigError
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
    ReplayClass,
)
from wald.sinks.postgres.options import Options, read_options

if TYPE_CHECKING:
    from wald.sinks.postgres.delivery import Delivery


def make(route: str, stream: str, settings: Mapping[str, object]) -> "PostgresSink":
    """Make the sink of a route; connects lazily.

    Raises:
        ConfigError: a setting is unknown, missing or wrong, or there is no driver.
    """
    options = read_options(route, stream, settings)
    if importlib.util.find_spec("psycopg") is None:
        msg = f"route {route!r}: a postgres sink needs psycopg"
        raise ConfigError(msg, hint="pip install 'wald[postgres]'")
    return PostgresSink(options)


class PostgresSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: Delivery | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once for ever: the row moves with the data."""
        return Capabilities(ReplayClass.TRANSACTIONAL, 100_000, 256 * limits.MIB, awaits_seal=True)

    @property
    def _delivery(self) -> "Delivery":
        if self._made is None:
            module = importlib.import_module("wald.sinks.postgres.delivery")
            self._made = cast("Delivery", module.Delivery(self._options))
        return self._made

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row; connects if need be."""
        return self._delivery.read_row(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the row and copy the records in one transaction."""
        return self._delivery.deliver(attempt)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Copy records and roll back; one pass names every one that an error names."""
        return self._delivery.probe(attempt, records)

    def holds(self, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int] | Outcome | None:
        """Return which records the table has, where each row keeps log id and LSN."""
        return self._delivery.holds(log_id, lsns)

    def check(self) -> Sequence[Finding]:
        """Look at server, progress table and table, without writing."""
        return self._delivery.check()

    def grants(self) -> Sequence[str]:
        """Return what the owner of the database runs, so that the role may do what it must."""
        return self._delivery.grants()

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        if self._made is not None:
            self._made.close()
