"""What ``drain.sock`` is asked, and the answers; each operation is a method of its own."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from wald.drainer import takeover
from wald.drainer.asks import Request, natural
from wald.drainer.audit_desk import AuditDesk
from wald.drainer.batch_desk import BatchDesk
from wald.drainer.faults import asked_fault
from wald.drainer.fleet import Fleet
from wald.drainer.frontier import FrontierBoard
from wald.drainer.letter_desk import LetterDesk
from wald.drainer.route_desk import RouteDesk
from wald.drainer.tail_desk import TailDesk
from wald.drainer.views import views_of_fleet
from wald.drainer.where import Sources, Where
from wald.errors import InputError
from wald.model import Frontier, Lsn, Manifest, StreamId


class Answers:
    """Answers requests; used by the main thread, between its rounds. ``trouble`` is of figures."""

    def __init__(
        self,
        fleet: Fleet,
        board: FrontierBoard,
        streams: Callable[[], Mapping[StreamId, str]] = dict,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._fleet = fleet
        self._streams = streams
        self._catch_up = catch_up
        self._board = board
        self.trouble = ""
        shared, ledger = fleet.shared, fleet.shared.ledger
        self.desk = LetterDesk(
            ledger, shared.dead_log, shared.clock, shared.chance, ledger.births, fleet.lanes_of
        )
        self.followed: Frontier | None = None  # up to it every route that was born is known
        sources = self._sources()
        self._where = Where(sources)
        self.audits = AuditDesk(
            fleet.settings, fleet.shared, lambda: views_of_fleet(fleet), lambda: self.followed
        )
        self._operations: dict[str, Callable[[Request], dict[str, Any]]] = {
            "drain.ping": lambda _: {"trouble": self.trouble},
            "drain.flush": self._flush,
            **self.desk.operations,
            **self._where.operations,
            **TailDesk(sources).operations,
            **self.audits.operations,
            **RouteDesk(fleet).operations,
            **BatchDesk(ledger, ledger.births, fleet.lanes_of).operations,
            "drain.fault": self._fault,
            "drain.takeover": lambda request: takeover.answer(
                request, fleet.shared, lambda route_id: fleet.lanes_of(route_id).values()
            ),
            "drain.batches": lambda request: {"routes": self._batches(request)},
        }

    def answer(self, request: Request) -> dict[str, Any]:
        """Answer one request.

        Raises:
            InputError: it asks for what is not there.
        """
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            msg = f"unknown operation {request.get('op')!r}"
            raise InputError(msg, hint=", ".join(sorted(self._operations)))
        return operation(request)

    def _sources(self) -> Sources:
        fleet, shared = self._fleet, self._fleet.shared
        return Sources(
            shared.fs,
            shared.data_dir,
            shared.log_id,
            shared.clock,
            shared.ledger,
            lambda: views_of_fleet(fleet),
            self._streams,
            self._frontier,
        )

    def _frontier(self, lsn: Lsn) -> Frontier | None:
        """Return up to where the log is followed; what was acknowledged just now is looked for."""
        if self.followed is None or self.followed.lsn < lsn:
            self._catch_up()
        return self.followed

    def _flush(self, request: Request) -> dict[str, Any]:
        frontier = self._board.current()
        lsn = natural(request, "through_lsn", frontier.lsn if frontier else 0)
        self._fleet.flush(lsn)
        return {"through_lsn": lsn}

    def _route_ids(self, request: Request) -> dict[str, int]:
        name = request.get("route")
        if name is None:
            return {name: figures["route_id"] for name, figures in self._fleet.figures().items()}
        route_id = self._fleet.route_id(str(name))
        if route_id is None:
            msg = f"there is no route {str(name)!r}"
            raise InputError(msg, hint=f"routes: {', '.join(sorted(self._fleet.figures()))}")
        return {str(name): route_id}

    def _fault(self, request: Request) -> dict[str, Any]:
        """Begin a fault of a route, or end all of them; says what lasts."""
        (name,) = self._route_ids({"route": request.get("route", "")})
        shared = self._fleet.shared
        now_ns = shared.clock.monotonic_ns()
        if request.get("clear"):
            shared.faults.clear(name)
        else:
            shared.faults.add(name, asked_fault(request, now_ns, shared.chance))
        lasting = shared.faults.of(name, now_ns)
        return {"route": name, "faults": [fault.text(now_ns) for fault in lasting]}

    def _batches(self, request: Request) -> dict[str, Any]:
        """Return the last finished batches of each route, of all its lanes, and those open."""
        ledger, limit = self._fleet.shared.ledger, natural(request, "limit", 20)
        said: dict[str, Any] = {}
        for name, route_id in self._route_ids(request).items():
            finished: list[dict[str, Any]] = []
            opened: list[dict[str, Any]] = []
            for key, held in ledger.lanes(route_id).items():
                place = {"layout": key.layout, "lane": key.lane}
                lines = ledger.history(key)[-limit:] if limit else ()
                finished += [asdict(line) | {"rev_id": line.rev_id.hex()} | place for line in lines]
                if held.manifest is not None:
                    opened.append(_open_batch(held.manifest) | place)
            finished.sort(key=lambda line: int(line["finished_time_ns"]))
            said[name] = {
                "finished": finished[-limit:] if limit else [],
                "open": opened[0] if opened else None,
                "all_open": opened,
            }
        return said


def _open_batch(manifest: Manifest) -> dict[str, Any]:
    return {
        "number": manifest.number,
        "lo": manifest.lo,
        "hi": manifest.current.hi,
        "records": manifest.records,
        "attempts": manifest.attempts,
        "excluded": list(manifest.current.excluded),
        "last_error": manifest.last_error,
    }
