"""The HTTP sink of a lane: its driver is loaded where it is used, not to read settings."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from wald.errors import ConfigError
from wald.model import (
    Attempt,
    Capabilities,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    RejectedRecord,
)
from wald.sinks.http.options import Options
from wald.sinks.http.presets import grants
from wald.sinks.http.settings import read_options
from wald.sinks.http.tokens import Token, Tokens

if TYPE_CHECKING:
    from wald.sinks.http.delivery import Delivery

_DRIVERS = ("msgspec", "urllib3")


class Factory:
    """Makes the sinks of lanes; those that were given the same token share it."""

    def __init__(self) -> None:
        self._tokens = Tokens()

    def __call__(self, route: str, stream: str, settings: Mapping[str, object]) -> "HttpSink":
        """Make the sink of a route; connects lazily.

        Raises:
            ConfigError: a setting is unknown, missing or wrong, or there is no driver.
        """
        options = read_options(route, stream, settings)
        for name in _DRIVERS:
            if importlib.util.find_spec(name) is None:
                msg = f"route {route!r}: an http sink needs {name}"
                raise ConfigError(msg, hint="pip install 'wald[http]'")
        token = self._tokens.of(options.token) if options.token is not None else None
        return HttpSink(options, token)


make = Factory()


class HttpSink:
    """See ``wald.ports.EncodingSink``; one thread."""

    encoder = "http-json/1"

    def __init__(self, options: Options, token: Token | None) -> None:
        self._options = options
        self.token = token
        self._made: Delivery | None = None

    @property
    def capabilities(self) -> Capabilities:
        """The class is what the settings state of the server."""
        options = self._options
        return Capabilities(
            options.replay,
            1 if options.shape.format == "object" else options.records_per_request,
            options.bytes_per_request,
            options.idempotency.window_s,
            options.idempotency.window_batches,
            freezes=options.idempotency.is_sent,
            max_requests_per_s=options.requests_per_s,
            max_records_per_s=options.records_per_s,
        )

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return None: a server behind HTTP keeps no progress row."""
        del key
        return None

    def encode(self, attempt: Attempt) -> bytes:
        """Return what is kept of a batch that is sent under an id."""
        return self._delivery.encode(attempt)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Send the batch as one request."""
        return self._delivery.deliver(attempt)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Return nothing: what is sent cannot be rolled back, so that nothing is ever probed."""
        del attempt, records
        return ()

    def check(self) -> Sequence[Finding]:
        """Verify what can be without writing: the connection, and what the preset can ask."""
        return self._delivery.check()

    def grants(self) -> Sequence[str]:
        """Return what lets a user ``wald`` write, where the preset knows."""
        return grants(self._options.known, self._options.places)

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        if self._made is not None:
            self._made.close()

    @property
    def _delivery(self) -> "Delivery":
        if self._made is None:
            module = importlib.import_module("wald.sinks.http.delivery")
            self._made = cast("Delivery", module.Delivery(self._options, self.token))
        return self._made
