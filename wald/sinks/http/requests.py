"""What a batch's request says of it beside its body: address, id, digest, trace. Pure.

| header | what |
|---|---|
| `Idempotency-Key` | the batch's id as a string of RFC 8941: draft-ietf-httpapi-idempotency-key |
| `Content-Digest` | SHA-256 of the body as it is sent: RFC 9530 |
| `traceparent` | W3C Trace Context: the records' if they share one trace, else of the batch's id |
| `X-Wald-Stream`, `X-Wald-LSN`, `X-Wald-Attempt` | stream, first-last LSN, number of the attempt |

A batch's id is the log's id and the revision's. What is sent under it never changes: a batch that
was split, or of which a part was taken, has another revision, durable before it is sent.
"""

import hashlib
import re
from base64 import b64encode
from importlib.metadata import version
from urllib.parse import urlencode

from wald.model import Attempt, Record
from wald.sinks.http.encoding import content_type
from wald.sinks.http.options import NONE, Options

_TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
_NO_TRACE = "0" * 32
_SPAN_CHARS = 16
_USER_AGENT = f"wald/{version('wald')}"


def batch_id(attempt: Attempt) -> str:
    """Return what names a batch at every target."""
    return f"{attempt.key.log_id.hex()}-{attempt.row.rev_id.hex()}"


def url_of(options: Options, attempt: Attempt) -> str:
    """Return the address, with parameters, of the request that sends a batch."""
    query = dict(options.query)
    if options.idempotency.parameter:
        query[options.idempotency.parameter] = batch_id(attempt)
    if not query:
        return options.url
    return options.url + ("&" if "?" in options.url else "?") + urlencode(query)


def headers_of(
    options: Options, attempt: Attempt, body: bytes, token: str | None
) -> dict[str, str]:
    """Return the headers of the request that sends a batch."""
    records = attempt.records
    found = {
        "User-Agent": _USER_AGENT,
        "Content-Type": content_type(options.shape),
        **options.headers,
        "Content-Digest": f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:",
        "traceparent": trace_parent(attempt),
        "X-Wald-Stream": attempt.stream,
        "X-Wald-LSN": f"{records[0].lsn}-{records[-1].lsn}",
        "X-Wald-Attempt": str(attempt.number),
    }
    if options.shape.compression != NONE:
        found["Content-Encoding"] = options.shape.compression
    if options.idempotency.header:
        name = batch_id(attempt)
        found[options.idempotency.header] = f'"{name}"' if options.idempotency.quoted else name
    return found | authorization(options, token)


def authorization(options: Options, token: str | None) -> dict[str, str]:
    """Return the header that lets a request in."""
    return (
        {} if token is None else {options.token_header: f"{options.token_scheme} {token}".lstrip()}
    )


def trace_parent(attempt: Attempt) -> str:
    """Return the trace context of a request: that of its records if they are all of one trace."""
    shared = {_trace_of(record) for record in attempt.records}
    trace, flags = shared.pop() if len(shared) == 1 else ("", "00")
    seed = attempt.row.rev_id + attempt.number.to_bytes(8, "little")
    span = hashlib.sha256(seed).hexdigest()[:_SPAN_CHARS]
    return f"00-{trace or attempt.row.rev_id.hex()}-{span}-{flags}"


def _trace_of(record: Record) -> tuple[str, str]:
    said = (record.headers or {}).get("traceparent", "")
    text = said.decode("ascii", errors="replace") if isinstance(said, bytes) else said
    found = _TRACE.fullmatch(text)
    return (found[1], found[2]) if found and found[1] != _NO_TRACE else ("", "00")
