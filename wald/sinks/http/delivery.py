"""One lane's delivery: encodes a batch once, sends it as one request, reads what is answered."""

import time
from collections.abc import Sequence

from wald import limits
from wald.model import Attempt, Finding, Outcome, Rejected, TooLarge
from wald.sinks.http import encoding, requests
from wald.sinks.http.answers import Answer, Judge
from wald.sinks.http.checks import Asker
from wald.sinks.http.options import Options
from wald.sinks.http.tokens import Token
from wald.sinks.http.transport import Transport

_UNAUTHORIZED = 401
_HIDDEN = "***"


class Delivery:
    """The connection of one lane, and what goes over it; one thread."""

    def __init__(self, options: Options, token: Token | None) -> None:
        self._options = options
        self._token = token
        # the driver's clocks: a factory gets none
        self._transport = Transport(options, time.monotonic)  # noqa: TID251
        self._judge = Judge(options, self._hide, time.time)  # noqa: TID251

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

    def check(self) -> Sequence[Finding]:
        """Verify what can be without writing: the connection, and what the preset can ask."""
        token = None if self._token is None else self._token.now.text
        asker = Asker(self._options, self._transport, token, self._hide, self._judge.said)
        return asker.check()

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
        began_s = self._transport.now_s()
        worn = None if token is None else token.now
        text = None if worn is None else worn.text
        headers = requests.headers_of(options, attempt, body, text)
        answer = self._transport.send(options.method, url, headers, body, timeout_s)
        refused = isinstance(answer, Answer) and answer.status == _UNAUTHORIZED
        if refused and token is not None and worn is not None and token.renew(worn):
            headers = requests.headers_of(options, attempt, body, token.now.text)
            left_s = timeout_s - (self._transport.now_s() - began_s)
            answer = self._transport.send(options.method, url, headers, body, left_s)
        return answer

    def _hide(self, text: str) -> str:
        """Take secrets out of a text: a server may say again what it was sent."""
        token = [] if self._token is None else [self._token.now.text]
        for secret in (*token, *self._options.secrets):
            if secret:
                text = text.replace(secret, _HIDDEN)
        return text
