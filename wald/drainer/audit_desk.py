"""``drain.audit``: one audit at a time, in a thread of its own, asked again until it is done."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wald.config import Settings
from wald.drainer.asks import Request
from wald.drainer.auditing import Audit
from wald.drainer.route import Shared
from wald.drainer.views import RouteView
from wald.errors import InputError
from wald.model import Frontier


class AuditDesk:
    """Begins audits and says how far they are; one thread.

    Args:
        settings: for the targets.
        shared: ledger, log and doors.
        views: the routes at the moment.
        frontier: up to where the log is followed.
    """

    def __init__(
        self,
        settings: Settings,
        shared: Shared,
        views: Callable[[], Sequence[RouteView]],
        frontier: Callable[[], Frontier | None],
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._views = views
        self._frontier = frontier
        self._audit: Audit | None = None
        self._number = 0
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.audit": self._answer
        }

    def _answer(self, request: Request) -> dict[str, Any]:
        """Begin an audit, or with its number say how far it is; what was found, at the end.

        Raises:
            InputError: there is no such route or audit, or another one is running.
            WaldError: what ended it.
        """
        number = request.get("number")
        if number is None:
            self._begin(request.get("route"))
        audit = self._audit
        if audit is None or number not in {None, self._number}:
            msg = f"there is no audit {number!r}"
            raise InputError(msg, hint="the drain process began anew: ask for another")
        said: dict[str, Any] = {
            "number": self._number,
            "finished": audit.finished.is_set(),
            "done": audit.done,
            "total": audit.total,
        }
        if audit.finished.is_set():
            if audit.error is not None:
                raise audit.error
            said["routes"] = [each.as_json() for each in audit.results]
        return said

    def _begin(self, name: object) -> None:
        if self._audit is not None and not self._audit.finished.is_set():
            msg = "an audit is running"
            raise InputError(msg, hint="wait until it is done, and ask again")
        views = [view for view in self._views() if name in {None, view.birth.name}]
        frontier = self._frontier()
        if name is not None and not views:
            known = ", ".join(sorted(view.birth.name for view in self._views()))
            msg = f"there is no route {str(name)!r}"
            raise InputError(msg, hint=f"routes: {known or 'none yet'}")
        audit = Audit(self._settings, self._shared, views, frontier or Frontier(0, 0, 0))
        threading.Thread(target=audit.run, name="audit", daemon=True).start()
        self._number += 1
        self._audit = audit  # one that could not begin stands in no other's way

    def close(self) -> None:
        """Let an audit end soon, and wait for that a moment: it reads the ledger."""
        if self._audit is not None:
            self._audit.stop.set()
            self._audit.finished.wait(5.0)
