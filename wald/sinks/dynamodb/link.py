"""The client of one lane; the only importer of the driver.

Its own retries are off: each call is one request, and every attempt is seen and counted.
"""

import threading
from dataclasses import replace
from math import ceil
from typing import Any, Final

from boto3.session import Session
from botocore import exceptions as driver
from botocore.config import Config

from wald import limits
from wald.model import Outcome, Systemic, SystemicKind, Unknown
from wald.sinks.dynamodb.calls import (
    ANSWER_TIMEOUT_S,
    LOGIN_HINT,
    MISSING,
    CallFailed,
    answered,
)
from wald.sinks.dynamodb.options import Options

CONNECTIONS_MAX: Final = 16
_TIMEOUTS_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # a client has one for its life
_MAKING: Final = threading.Lock()  # sessions share a loader that is not of many threads

_K = SystemicKind
_NEVER_SENT = (
    driver.EndpointConnectionError,
    driver.ConnectTimeoutError,
    driver.SSLError,
    driver.ProxyConnectionError,
)
_NO_LOGIN = (
    driver.NoCredentialsError,
    driver.PartialCredentialsError,
    driver.CredentialRetrievalError,
    driver.ProfileNotFound,
    driver.TokenRetrievalError,
    driver.UnauthorizedSSOTokenError,
    driver.SSOTokenLoadError,
)


class Link:
    """Clients of one service, each with a time-out of its own; made when needed."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._session: Any = None
        self._clients: dict[float, Any] = {}
        self._lock = threading.Lock()
        self._units, self._calls = 0.0, 0

    def call(
        self, operation: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **request: object
    ) -> Any:  # noqa: ANN401 - the service's answer
        """Make one request; thread-safe.

        Raises:
            CallFailed: there is no answer, or it is an error.
        """
        with self._lock:
            self._calls += 1
        try:
            answer = getattr(self._client(timeout_s), operation)(**request)
        except driver.ClientError as error:
            raise self._placed(answered(error.response)) from error
        except (driver.BotoCoreError, OSError, ValueError) as error:
            raise self._placed(CallFailed(_unanswered(error))) from error
        self._count(answer.get("ConsumedCapacity"))
        return answer

    def _placed(self, failed: CallFailed) -> CallFailed:
        """Return a failure that says of which service it is, and which tables may be meant."""
        outcome, options = failed.outcome, self._options
        if isinstance(outcome, Systemic | Unknown):
            message = f"{options.place}: {outcome.message}"[: limits.ERROR_TEXT_MAX_CHARS]
            outcome = failed.outcome = replace(outcome, message=message)
        if isinstance(outcome, Systemic) and failed.code == MISSING:
            hint = f"make {options.tables}, or correct table, region and endpoint_url: wald check"
            failed.outcome = replace(outcome, hint=hint)
        return failed

    def take_counts(self) -> tuple[int, int]:
        """Return requests and consumed write units, rounded up, since the last time."""
        with self._lock:
            calls, self._calls = self._calls, 0
            units, self._units = self._units, 0.0
        return calls, ceil(units)

    def close(self) -> None:
        """Close all connections; harmless to repeat."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _count(self, consumed: object) -> None:
        each = consumed if isinstance(consumed, list) else [consumed]
        units = sum(float(one.get("CapacityUnits", 0.0)) for one in each if isinstance(one, dict))
        with self._lock:
            self._units += units

    def _client(self, timeout_s: float) -> Any:  # noqa: ANN401 - the driver's
        """Return the client whose time-out is the next below, so that an attempt ends in time."""
        bound_s = max((each for each in _TIMEOUTS_S if each <= timeout_s), default=_TIMEOUTS_S[0])
        with self._lock:
            if bound_s not in self._clients:
                self._clients[bound_s] = self._make(bound_s)
            return self._clients[bound_s]

    def _make(self, timeout_s: float) -> Any:  # noqa: ANN401
        options = self._options
        config = Config(
            connect_timeout=min(options.connect_timeout_s, timeout_s),
            read_timeout=timeout_s,
            retries={"total_max_attempts": 1},
            max_pool_connections=CONNECTIONS_MAX,
            parameter_validation=False,  # items are ours: half the time of a call
            user_agent_appid="wald",
        )
        with _MAKING:
            if self._session is None:
                self._session = Session(
                    aws_access_key_id=_plain(options.access_key_id),
                    aws_secret_access_key=_plain(options.secret_access_key),
                    aws_session_token=_plain(options.session_token),
                    region_name=options.region,
                    profile_name=options.profile,
                )
            return self._session.client(
                "dynamodb", endpoint_url=options.endpoint_url, config=config
            )


def _plain(text: str | None) -> str | None:
    return None if text is None else str(text)


def _unanswered(error: Exception) -> Outcome:
    words = str(error)[: limits.ERROR_TEXT_MAX_CHARS]
    if isinstance(error, _NO_LOGIN):
        return Systemic(_K.AUTHENTICATION, words, LOGIN_HINT)
    if isinstance(error, driver.NoRegionError):
        return Systemic(_K.CONFIGURATION, words, 'say region = "eu-central-1"')
    if isinstance(error, _NEVER_SENT):
        return Systemic(_K.UNREACHABLE, words)
    if isinstance(error, driver.ParamValidationError | driver.DataNotFoundError | ValueError):
        return Systemic(_K.CONFIGURATION, words)
    return Unknown(words)
