"""What is asked of dead letters, and the answers: with lanes beside it, or over a ledger alone.

Each request goes over so many letters of one route and says where the next one goes on, so that
no question keeps the drainer from its rounds.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any, Protocol

from wald import limits
from wald.core.dead import MONOTONE_WHY, OVERWRITES_WHY, Selection, why_no_redrive
from wald.core.delivery import TOO_MANY
from wald.drainer.asks import Request, natural, wrong_value
from wald.drainer.lane_figures import LaneFigures
from wald.drainer.purging import purge
from wald.drainer.redriving import load_transform
from wald.errors import InputError, RedriveRefused
from wald.model import DeadLetter, LaneKey, Lsn, RouteBirth, RouteId
from wald.ports import Chance, Clock, Ledger
from wald.storage.deadlog import DeadLog

_NOT_AGAIN_HINTS = {
    MONOTONE_WHY: "export them, and append them to a stream of its own with a route to that sink: "
    "in their own stream every route would get them again",
    OVERWRITES_WHY: "if no newer record of these keys was delivered, say --force",
}


class LaneLike(Protocol):
    """What the desk needs of a lane."""

    def look_again(self) -> None:
        """Say that a command changed what the ledger holds of the lane."""
        ...

    @property
    def figures(self) -> LaneFigures:
        """What it says of itself."""
        ...

    def pardon(self) -> Lsn:
        """Set aside what is refused of the records there are, however many; return the last."""
        ...


class LetterDesk:
    """Answers requests about dead letters; one thread.

    Args:
        ledger: the index.
        dead_log: its companion.
        clock: for the time of a purge.
        chance: for the names of entries.
        births: the routes there are, by name the newest last.
        lanes: those of a route with their keys, to be told; None if nothing delivers here.
    """

    def __init__(
        self,
        ledger: Ledger,
        dead_log: DeadLog,
        clock: Clock,
        chance: Chance,
        births: Callable[[], Sequence[RouteBirth]],
        lanes: Callable[[RouteId], Mapping[LaneKey, LaneLike]] | None = None,
    ) -> None:
        self._ledger = ledger
        self._dead_log = dead_log
        self._clock = clock
        self._chance = chance
        self._births = births
        self._lanes = lanes
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.dlq": self._list,
            "drain.dlq.routes": self._routes,
            "drain.dlq.redrive": self._redrive,
            "drain.dlq.purge": self._purge,
            "drain.dlq.set_aside": self._set_aside,
        }

    def ask(self, op: str, **request: object) -> dict[str, Any]:
        """Answer one request, as ``Control.ask`` does over a socket.

        Raises:
            InputError: it asks for what is not there.
            RedriveRefused: what is asked for cannot be sent again.
        """
        return self.operations[op](request)

    # --- the operations -------------------------------------------------------------------------

    def _list(self, request: Request) -> dict[str, Any]:
        limit = min(natural(request, "limit", 100), limits.DEAD_LETTERS_PER_ANSWER)
        selection = selected(request)
        entries: list[dict[str, Any]] = []
        names = [request["route"]] if request.get("route") is not None else self._names()
        following: Lsn | None = None
        for name in names:
            found, following = self._page(name, selection, request, limit - len(entries))
            entries += [letter_as_json(letter) for letter in found]
        kept = _fitting_a_line(entries)
        if len(kept) < len(entries):
            following = int(kept[-1]["lsn"])
        return {"entries": kept, "next": following}

    def _routes(self, _: Request) -> dict[str, Any]:
        said = {}
        for name in self._names():
            lanes = self._ledger.lanes(self._birth(name).route_id)
            said[name] = {
                "dead_letters": sum(held.checkpoint.dead_letters for held in lanes.values()),
                "purged": sum(held.checkpoint.purged for held in lanes.values()),
                "redrives": sum(self._ledger.count_redrives(key) for key in lanes),
            }
        return {"routes": said}

    def _redrive(self, request: Request) -> dict[str, Any]:
        birth = self._birth(request.get("route"))
        transform = request.get("transform") or ""
        if not isinstance(transform, str):
            msg = "transform"
            raise wrong_value(msg, transform, "a text")
        forced = bool(request.get("force"))
        self._refuse_redrive(birth, forced=forced)
        load_transform(transform)
        found, following = self._chosen(birth, request)
        sendable = [letter.lsn for letter in found if letter.dead_file]
        asked = 0
        if not request.get("dry_run"):
            now_ns = self._clock.wall_ns()
            asked = self._ledger.ask_redrive(
                birth.route_id, sendable, transform, now_ns, forced=forced
            )
            self._tell(birth.route_id)
        return {
            "letters": len(sendable),
            "asked": asked,
            "without_body": len(found) - len(sendable),
            "next": following,
        }

    def _refuse_redrive(self, birth: RouteBirth, *, forced: bool) -> None:
        if self._lanes is None:
            return
        lanes = self._lanes(birth.route_id).values()
        if not lanes:
            msg = f"route {birth.name!r} is not in the configuration: nothing delivers it"
            raise RedriveRefused(msg, hint="name it there again, and start the daemon anew")
        whys = [
            why_no_redrive(each.replay, overwrites=each.overwrites, forced=forced)
            for each in (lane.figures for lane in lanes)
        ]
        why = next(filter(None, whys), "")
        if why:
            msg = f"route {birth.name!r} does not send dead letters again: {why}"
            raise RedriveRefused(msg, hint=_NOT_AGAIN_HINTS[why])

    def _purge(self, request: Request) -> dict[str, Any]:
        birth = self._birth(request.get("route"))
        found, following = self._chosen(birth, request)
        letters, records, spared = len(found), sum(letter.records for letter in found), 0
        if not request.get("dry_run"):
            now_ns = self._clock.wall_ns()
            doors = self._ledger, self._dead_log, self._chance
            letters, records, spared = purge(*doors, birth.route_id, found, now_ns)
            self._tell(birth.route_id)
        return {"letters": letters, "records": records, "spared": spared, "next": following}

    def _set_aside(self, request: Request) -> dict[str, Any]:
        birth = self._birth(request.get("route"))
        lanes = self._lanes(birth.route_id) if self._lanes else {}
        wanted = _lsns(request)
        done: list[Lsn] = []
        through = 0
        for key, lane in lanes.items():
            if not wanted and lane.figures.last_error.startswith(TOO_MANY):
                through = max(through, lane.pardon())
            lsns = [lsn for lsn in lane.figures.halted if not wanted or lsn in wanted]
            if lsns:
                self._ledger.allow_aside(key, lsns, self._clock.wall_ns())
                lane.look_again()
                done += lsns
        if not done and not through:
            at = f" at LSN {', '.join(map(str, sorted(wanted)))}" if wanted else ""
            msg = f"no lane of route {birth.name!r} stops at refused records{at}"
            raise InputError(msg, hint="'wald status' says which lanes are halted, and where")
        return {"lsns": sorted(done), "through_lsn": through or None}

    # --- which are meant ------------------------------------------------------------------------

    def _chosen(self, birth: RouteBirth, request: Request) -> tuple[list[DeadLetter], Lsn | None]:
        return self._page(birth.name, selected(request), request, limits.DEAD_LETTERS_PER_ANSWER)

    def _page(
        self, name: object, selection: Selection, request: Request, limit: int
    ) -> tuple[list[DeadLetter], Lsn | None]:
        """Return what is meant of the next letters, and behind which LSN to go on, if so."""
        route_id = self._birth(name).route_id
        after = natural(request, "after", 0)
        scanned = limits.DEAD_LETTERS_SCANNED_PER_ANSWER
        letters = self._ledger.dead_letters(route_id, after=after, limit=scanned)
        found: list[DeadLetter] = []
        for letter in letters:
            if len(found) >= limit:
                return found, after
            after = letter.lsn
            if selection.has(letter):
                found.append(letter)
        return found, after if len(letters) == scanned else None

    def _names(self) -> list[str]:
        return sorted({birth.name for birth in self._births()})

    def _birth(self, name: object) -> RouteBirth:
        found = [birth for birth in self._births() if birth.name == name]
        if not found:
            msg = "no route is named" if name is None else f"there is no route {str(name)!r}"
            raise InputError(msg, hint=f"routes: {', '.join(self._names()) or 'none yet'}")
        return max(found, key=lambda birth: birth.route_id)

    def _tell(self, route_id: RouteId) -> None:
        for lane in self._lanes(route_id).values() if self._lanes else ():
            lane.look_again()


# --- requests -----------------------------------------------------------------------------------


def selected(request: Request) -> Selection:
    """Return which letters a request means.

    Raises:
        InputError: it says something that it cannot.
    """
    return Selection(
        frozenset(_texts(request, "reasons")),
        _natural_or_none(request, "since_ns"),
        _natural_or_none(request, "until_ns"),
        frozenset(_texts(request, "keys")),
        _lsns(request),
    )


def _lsns(request: Request) -> frozenset[Lsn]:
    return frozenset(natural({"lsn": item}, "lsn", 0) for item in _items(request, "lsns"))


def _texts(request: Request, name: str) -> Iterator[str]:
    for item in _items(request, name):
        if not isinstance(item, str):
            raise wrong_value(name, item, "a text")
        yield item


def _items(request: Request, name: str) -> list[object]:
    items = request.get(name, [])
    if not isinstance(items, list) or len(items) > limits.DEAD_LETTERS_PER_ANSWER:
        raise wrong_value(name, items, f"a list of at most {limits.DEAD_LETTERS_PER_ANSWER}")
    return items


def _natural_or_none(request: Request, name: str) -> int | None:
    return None if request.get(name) is None else natural(request, name, 0)


def letter_as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return a letter as JSON has it; a key of bytes is base64, under a name of its own."""
    said = asdict(letter) | {"rev_id": letter.rev_id.hex()}
    if isinstance(letter.key, bytes):
        said |= {"key": None, "key_base64": b64encode(letter.key).decode("ascii")}
    return said


def _fitting_a_line(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first entries that an answer has room for: at least one; the next ask goes on."""
    sizes = accumulate(len(json.dumps(entry)) + 2 for entry in entries)
    count = sum(size <= limits.CONTROL_LINE_MAX_BYTES // 2 for size in sizes)
    return entries[: max(1, count)]
