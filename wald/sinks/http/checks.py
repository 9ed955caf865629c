"""What ``wald check`` verifies at a server, without writing anything."""

from collections.abc import Callable, Sequence

from wald.model import Finding, Severity, Systemic
from wald.sinks.http.answers import Answer
from wald.sinks.http.options import Options
from wald.sinks.http.transport import Transport

_CHECK_TIMEOUT_S = 10.0
_LOCAL = ("http://127.", "http://localhost", "http://[::1]")


def check(
    options: Options, transport: Transport, token: str | None, hide: Callable[[str], str]
) -> Sequence[Finding]:
    """Return what was found: whether the server answers, and what of its settings matters."""
    found = [*_about_token(options, token)]
    return [*found, *_reaches(options, transport, token, hide)]


def _reaches(
    options: Options, transport: Transport, token: str | None, hide: Callable[[str], str]
) -> list[Finding]:
    headers = authorization(options, token)
    answer = transport.send("OPTIONS", options.url, headers, b"", _CHECK_TIMEOUT_S)
    if isinstance(answer, Answer):
        message = f"{options.shown_url} answers; nothing was written, so that no more is known"
        return [Finding(Severity.OK, "http.answers", hide(message))]
    hint = answer.hint if isinstance(answer, Systemic) else ""
    return [Finding(Severity.ERROR, "http.unreachable", hide(answer.message), hint)]


def authorization(options: Options, token: str | None) -> dict[str, str]:
    """Return the headers that let a request in."""
    found = dict(options.headers)
    if token is not None:
        found[options.token_header] = f"{options.token_scheme} {token}".lstrip()
    return found


def _about_token(options: Options, token: str | None) -> list[Finding]:
    if token is None or not options.url.startswith("http:"):
        return []
    if options.url.startswith(_LOCAL):
        return []
    message = f"the token goes to {options.shown_url} unencrypted"
    return [Finding(Severity.WARNING, "http.plain-token", message, "use https")]
