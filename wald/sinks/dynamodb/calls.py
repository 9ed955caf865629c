"""What the service's errors mean, without the driver: that is loaded where it delivers."""

from collections.abc import Mapping
from typing import Any, Final

from wald import limits
from wald.model import Outcome, Systemic, SystemicKind, TooLarge

ANSWER_TIMEOUT_S: Final = 10.0  # of what is not an attempt
_SERVER_ERROR_STATUS: Final = 500
_TOO_LARGE_STATUS: Final = 413
LOGIN_HINT: Final = (
    "look at the credentials of the sink, of the environment, or of the machine's role"
)

MISSING: Final = "ResourceNotFoundException"

_K = SystemicKind
_KINDS: Mapping[str, SystemicKind] = {
    "ProvisionedThroughputExceededException": _K.BUSY,
    "ProvisionedThroughputExceeded": _K.BUSY,
    "ThrottlingException": _K.BUSY,
    "ThrottlingError": _K.BUSY,
    "RequestLimitExceeded": _K.BUSY,
    "TransactionInProgressException": _K.BUSY,
    "TransactionConflict": _K.BUSY,
    "TransactionConflictException": _K.BUSY,
    "ReplicatedWriteConflictException": _K.BUSY,
    "LimitExceededException": _K.BUSY,
    "InternalServerError": _K.UNREACHABLE,
    "InternalFailure": _K.UNREACHABLE,
    "ServiceUnavailable": _K.UNREACHABLE,
    "AccessDeniedException": _K.AUTHENTICATION,
    "AccessDenied": _K.AUTHENTICATION,
    "ExpiredTokenException": _K.AUTHENTICATION,
    "IncompleteSignatureException": _K.AUTHENTICATION,
    "InvalidClientTokenId": _K.AUTHENTICATION,
    "InvalidSignatureException": _K.AUTHENTICATION,
    "MissingAuthenticationTokenException": _K.AUTHENTICATION,
    "UnrecognizedClientException": _K.AUTHENTICATION,
    MISSING: _K.CONFIGURATION,
    "ResourceInUseException": _K.BUSY,
}
REFUSALS: Final = frozenset(
    {"ValidationException", "ValidationError", "ItemCollectionSizeLimitExceededException",
     "ItemCollectionSizeLimitExceeded", "SerializationException"}
)  # fmt: skip
CONDITION_FAILED: Final = frozenset({"ConditionalCheckFailedException", "ConditionalCheckFailed"})
CANCELLED: Final = "TransactionCanceledException"
_JUDGED: Final = REFUSALS | CONDITION_FAILED | {CANCELLED}  # of what was sent, not of the service


class CallFailed(Exception):
    """A request came to something else than an answer.

    Attributes:
        outcome: what is said of it; None where the service judged what was sent.
        code, message: of the service.
        reasons: of a cancelled transaction: one for each of its items.
        item: what a condition met; None if nothing was told.
    """

    def __init__(
        self,
        outcome: Outcome | None,
        code: str = "",
        message: str = "",
        response: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code)
        self.outcome = outcome
        self.code = code
        self.message = message
        self.reasons = tuple((response or {}).get("CancellationReasons", ()))
        self.item: Mapping[str, Any] | None = (response or {}).get("Item")


def answered(response: Mapping[str, Any]) -> CallFailed:
    """Return what an error that the service answered means."""
    said = response.get("Error", {})
    code, text = str(said.get("Code", "")), str(said.get("Message", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    words = f"{code}: {text}"[: limits.ERROR_TEXT_MAX_CHARS]
    outcome: Outcome | None = systemic(code, words)
    if status == _TOO_LARGE_STATUS or "payload size" in text:
        outcome = TooLarge(words)
    elif outcome is None and status >= _SERVER_ERROR_STATUS:
        outcome = Systemic(_K.UNREACHABLE, words)
    elif outcome is None and code not in _JUDGED:
        outcome = Systemic(_K.CONFIGURATION, words)
    return CallFailed(outcome, code, words, response)


def systemic(code: str, words: str) -> Systemic | None:
    """Return the trouble that a code of the service tells of; None if it is none."""
    kind = _KINDS.get(code)
    if kind is None:
        return None
    hint = LOGIN_HINT if kind is _K.AUTHENTICATION else ""
    return Systemic(kind, words, hint)
