"""Who may ask what over the control socket, and what of ``status`` each may see."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from wald.config import Settings
from wald.core.access import Access, Caller, Verb, check_operation
from wald.errors import AccessDenied


class Guard:
    """Refuses what a caller may not ask, and counts it.

    Args:
        access: the rules; None: whoever may open the socket may ask everything.
        who: says who is at the other end of a connection.
        settings: which stream each route takes.

    Attributes:
        refused: how many were refused, by code.
    """

    def __init__(
        self, access: Access | None, who: Callable[[Any], Caller] | None, settings: Settings
    ) -> None:
        self._access = access
        self._who = who
        self._streams = {route.name: route.stream for route in settings.routes.values()}
        self.refused: Counter[str] = Counter()

    def caller(self, connected: object) -> Caller | None:
        """Return who is at the other end; None if nobody asks."""
        if self._access is None or self._who is None:
            return None
        return self._who(connected)

    def check(self, caller: Caller | None, request: Mapping[str, Any]) -> None:
        """Refuse a request that its caller may not make.

        Raises:
            AccessDenied: it may not.
        """
        if self._access is None:
            return
        try:
            nobody = Caller(None, frozenset())
            check_operation(self._access, caller or nobody, request, self._streams)
        except AccessDenied as error:
            self.refused[error.code] += 1
            raise

    def shown(self, caller: Caller | None, status: dict[str, Any]) -> dict[str, Any]:
        """Return of ``status`` what its caller may see: the streams that it may read."""
        access = self._access
        if access is None or caller is None or access.may(caller, Verb.READ):
            return status

        def may(stream: str) -> bool:
            return access.may(caller, Verb.READ, stream)

        routes, streams = status["routes"], status["streams"]
        return {
            **status,
            "routes": {name: one for name, one in routes.items() if may(one["stream"])},
            "streams": {name: one for name, one in streams.items() if may(name)},
            "quotas": {name: one for name, one in status["quotas"].items() if may(name)},
            "dedup": {name: one for name, one in status["dedup"].items() if may(name)},
        }
