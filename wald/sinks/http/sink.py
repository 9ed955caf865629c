"""The sink of one lane: encodes a batch once, sends it as one request, reads what is answered."""

import time
from collections.abc import Mapping, Sequence

from wald import limits
from wald.model import (
    Attempt,
    Capabilities,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    TooLarge,
)
from wald.sinks.http import encoding, requests
from wald.sinks.http.answers import Answer, Judge
from wald.sinks.http.checks import Asker
from wald.sinks.http.options import Options, read_options
from wald.sinks.http.presets import grants
from wald.sinks.http.tokens import Token, Tokens
from wald.sinks.http.transport import Transport

_UNAUTHORIZED = 401
_HIDDEN = "***"


class Factory:
    """Makes the sinks of lanes; those to one server share what it lets in."""

    def __init__(self) -> None:
        self._tokens = Tokens()

    def __call__(self, route: str, stream: str, settings: Mapping[str, object]) -> "HttpSink":
        """Make the sink of a route; connects lazily.

        Raises:
            ConfigError: a setting is unknown, missing or wrong.
        """
        options = read_options(route, stream, settings)
        token = self._tokens.of(options.token) if options.token is not None else None
        return HttpSink(options, token)


make = Factory()


class HttpSink:
    """See ``wald.ports.EncodingSink``; one thread."""

    encoder = encoding.ENCODER

    def __init__(self, options: Options, token: Token | None) -> None:
        self._options = options
        self._token = token
        # the driver's clocks: a factory gets none
        self._transport = Transport(options, time.monotonic)  # noqa: TID251
        self._judge = Judge(options, self._hide, time.time)  # noqa: TID251

    @property
    def capabilities(self) -> Capabilities:
        """The class is what the settings state of the server."""
        options = self._options
        return Capabilities(
            options.replay,
            options.records_per_request,
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
        return encoding.pack(self._encoded(attempt))

    def deliver(self, attempt: Attempt) -> Outcome:
        """Send the batch as one request."""
        kept = attempt.body
        encoded = self._encoded(attempt) if kept is None else encoding.unpack(kept)
        if encoded.refused:
            return Rejected(encoded.refused, encoded.refused[0].message)
        size, most = len(encoded.body), self._options.bytes_per_request
        if size > most:
            return TooLarge(f"a body of {size:,} bytes; bytes_per_request is {most:,}")
        answer = self._send(attempt, encoded.body)
        if not isinstance(answer, Answer):
            return answer
        return self._judge.outcome(answer, attempt.key.log_id, attempt.records)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Return nothing: what is sent cannot be rolled back, so that nothing is ever probed."""
        del attempt, records
        return ()

    def check(self) -> Sequence[Finding]:
        """Verify what can be without writing: the connection, and what the preset can ask."""
        token = None if self._token is None else self._token.now.text
        asker = Asker(self._options, self._transport, token, self._hide, self._judge.said)
        return asker.check()

    def grants(self) -> Sequence[str]:
        """Return what lets a user ``wald`` write, where the preset knows."""
        return grants(self._options.known, self._options.places)

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        self._transport.close()

    def _encoded(self, attempt: Attempt) -> encoding.Encoded:
        return encoding.encode(self._options.shape, attempt.key.log_id, attempt.records)

    def _send(self, attempt: Attempt, body: bytes) -> "Answer | Outcome":
        """Send; once more if the server refused a token of which there is a newer one."""
        options, token = self._options, self._token
        url = requests.url_of(options, attempt)
        timeout_s = attempt.timeout_s or limits.ATTEMPT_TIMEOUT_S
        worn = None if token is None else token.now
        text = None if worn is None else worn.text
        headers = requests.headers_of(options, attempt, body, text)
        answer = self._transport.send(options.method, url, headers, body, timeout_s)
        refused = isinstance(answer, Answer) and answer.status == _UNAUTHORIZED
        if refused and token is not None and worn is not None and token.renew(worn):
            headers = requests.headers_of(options, attempt, body, token.now.text)
            answer = self._transport.send(options.method, url, headers, body, timeout_s)
        return answer

    def _hide(self, text: str) -> str:
        """Take secrets out of a text: a server may say again what it was sent."""
        token = [] if self._token is None else [self._token.now.text]
        for secret in (*token, *self._options.secrets):
            if secret:
                text = text.replace(secret, _HIDDEN)
        return text
