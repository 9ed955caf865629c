"""What lets dead letters go: their age, and bodies in the dead log that nothing leads to any more.

A file of the dead log goes when no letter lies in it, no chain of a lane passes through it, and
the log has let go of every position that a row could come back to and still be adopted with it.
So that this comes to pass, what is still dead is now and then written anew, and the chain with it:
the newest entry of a revision is the one that counts, and the one that is written then says all
that is dead by it. Older files are of use only to older rows from then on.

A lane whose chain does not resolve, or whose letters cannot be read, is left as it is and told of.
The files that were there when its entry was found missing stay: with what is missing put back,
they are its chain again. All others go on. Once the letters without a body were purged, the chain
is written anew from what the ledger knows.

A ledger that is lost or older does not know yet which chains there are: nothing is written anew,
and nothing goes, before each lane has asked its target. A route that the settings do not name asks
nobody: it is waited for, too, unless it was dropped or has ended.

The rounds run in a thread of their own, one at a time: they read and write much.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wald import limits
from wald.core import dead
from wald.drainer.purging import purge
from wald.drainer.recalling import final_entry, is_in_line
from wald.drainer.route import Route, Shared
from wald.errors import FormatDamaged, LedgerFailed, WaldError
from wald.model import (
    NO_REVISION,
    REVISION_BYTES,
    DeadLetter,
    LaneKey,
    LaneProgress,
    Lsn,
    Record,
    RevisionId,
    RouteId,
)
from wald.storage.deadlog import Chain, DeadEntry, DeadPlace, Entries, Excluded, Reason
from wald.storage.tail import find_anchor

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_NOTE = "dead_log"
_PAGE = 1_000
_HINT = (
    "put the missing file back into dead/ from a backup, or purge the letters that have no body; "
    "delivery goes on, and nothing else of the dead log waits for it"
)


_HINT_UNASKED = (
    "it waits until the target of each lane has been asked: see what 'wald status' says of them; a "
    "route that the settings do not name is to be named again, or dropped (wald route drop)"
)


class Gap(NamedTuple):
    """A chain that does not resolve: ``missing`` is nowhere.

    ``through_file`` was the newest file when that was found: later ones do not hold it.
    """

    missing: RevisionId
    through_file: int
    route_id: RouteId
    layout: int
    lane: int


class Rewritten(NamedTuple):
    """A rewriting whose older files wait to go: below ``cutoff``, once the log begins behind."""

    cutoff: int
    positions: tuple[tuple[RouteId, Lsn], ...]
    living_bytes: int
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a round works with: what is delivered, and whom to tell of a purge.

    ``unasked`` are the names of routes that are not delivered, and may be again.
    """

    routes: Mapping[RouteId, Route]
    lanes: Collection[LaneKey] = ()
    unasked: Collection[str] = ()
    tell: Callable[[RouteId], None] = lambda _: None


class Undertaker:
    """Buries by age, and keeps the dead log bounded. ``look`` and ``close``: one thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._thread: threading.Thread | None = None
        self._due_ns: int | None = None
        self._stopping = threading.Event()
        self._trouble = ""
        self._logged = ""
        self._found: list[str] = []  # by the round that is under way
        self._waits = False  # that round: until targets have been asked
        self._gaps: tuple[Gap, ...] = ()
        self._looked_for: frozenset[int] = frozenset()  # files whose bodies were not found
        self._steady: dead.Steady | None = None

    def figures(self) -> dict[str, Any]:
        """Return what the newest round could not tend, and what to do; empty if nothing."""
        trouble, hint = self._trouble, _HINT_UNASKED if self._waits else _HINT
        return {"trouble": trouble, "hint": hint} if trouble else {}

    def look(self, grounds: Callable[[], Grounds]) -> None:
        """Begin a round if it is time for one, and none is under way."""
        now_ns = self._shared.clock.monotonic_ns()
        if self._due_ns is None:  # a start has other things to do
            self._due_ns = now_ns + round(limits.DEAD_LOOK_EVERY_S * _NS)
        if now_ns < self._due_ns or (self._thread is not None and self._thread.is_alive()):
            return
        self._due_ns = now_ns + round(limits.DEAD_LOOK_EVERY_S * _NS)
        thread = threading.Thread(
            target=self._round, args=(grounds(),), name="undertaker", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system gives none now
            _log.warning("the dead log cannot be tended yet: %s", error)
        else:
            self._thread = thread

    def close(self) -> None:
        """End a round under way at its next step; what it did stands, and is harmless."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(limits.CHILD_STOP_S)

    def _round(self, grounds: Grounds) -> None:
        try:
            self.bury(grounds)
        except (OSError, WaldError) as error:
            self._found.append(repr(error))
        if self._stopping.is_set():
            return
        self._trouble = "; ".join(self._found)[: limits.ERROR_TEXT_MAX_CHARS]
        if self._trouble and self._trouble != self._logged:
            _log.error("the dead log cannot be tended: %s", self._trouble)
        self._logged = self._trouble

    def bury(self, grounds: Grounds) -> None:
        """Do one round.

        Raises:
            WaldError: ledger or dead log cannot be read or written; the next round goes on.
        """
        self._found, self._waits = [], False
        self._look_at_clock()
        for route in grounds.routes.values():
            self._purge_old(route, grounds)
        self._mend_places()
        waiting = self._rewritten()
        self._gaps = waiting.gaps
        unasked = self._unasked(grounds)
        if not unasked:
            released = not waiting.cutoff or self._release(waiting, grounds)
            if released and self._is_worth_rewriting():
                self._rewrite()
        elif waiting.cutoff or self._is_worth_rewriting():
            self._found.append(
                "the ledger was lost, or is older, and the targets of these routes were not asked "
                f"since: {', '.join(unasked)}"
            )
            self._waits = True
        self._found.extend(
            f"the chain of route {gap.route_id}, lane {gap.lane} does not resolve"
            for gap in self._gaps
        )

    def _unasked(self, grounds: Grounds) -> Sequence[str]:
        """Return the routes of which the ledger, lost or older, may not know every chain."""
        ledger, told = self._shared.ledger, self._shared.told
        if told is None:
            return ()
        routes = [key.route_id for key in grounds.lanes if not is_in_line(ledger, told, key)]
        names = {grounds.routes[route_id].birth.name for route_id in routes}
        return sorted({*names, *grounds.unasked})

    def _is_worth_rewriting(self) -> bool:
        total, living = self._shared.dead_log.size_bytes(), self._rewritten().living_bytes
        return dead.is_worth_rewriting(total, living) or any(map(self._is_mendable, self._gaps))

    # --- by age ---------------------------------------------------------------------------------

    def _look_at_clock(self) -> None:
        clock, before = self._shared.clock, self._steady
        self._steady = dead.steady(before, clock.wall_ns(), clock.boot_ns())
        if before is not None and self._steady.since_ns != before.since_ns:
            _log.warning("the clock jumped: no dead letter is purged by its age for a while")

    def _purge_old(self, route: Route, grounds: Grounds) -> None:
        max_age_s = route.settings.dead_letters.max_age_s
        if max_age_s is None or self._steady is None or not self._steady.has_held(max_age_s):
            return
        ledger, route_id = self._shared.ledger, route.birth.route_id
        now_ns = self._shared.clock.wall_ns()
        selection = dead.Selection(until_ns=now_ns - round(max_age_s * _NS))
        letters = records = after = 0
        while page := ledger.dead_letters(route_id, after=after, limit=_PAGE):
            self._go_on()
            after = page[-1].lsn
            old = [letter for letter in page if selection.has(letter)]
            dead_log, chance = self._shared.dead_log, self._shared.chance
            gone = purge(ledger, dead_log, chance, route_id, old, now_ns, spare_asked=True)
            letters, records = letters + gone.letters, records + gone.records
        if letters:
            grounds.tell(route_id)
            _log.warning(
                "route %s: %d dead letters (%d records) older than %g s were purged",
                *(route.birth.name, letters, records, max_age_s),
            )

    # --- places that lead nowhere ---------------------------------------------------------------

    def _mend_places(self) -> None:
        """Find bodies anew whose file is gone: the ledger is older than the dead log."""
        ledger, dead_log = self._shared.ledger, self._shared.dead_log
        gone = frozenset(ledger.dead_files()) - {0, *dead_log.files()}
        if not gone:
            return
        lost = {
            birth: [
                each.lsn
                for each in self._letters(birth.route_id, lambda letter: letter.dead_file in gone)
            ]
            for birth in ledger.births()
        }
        places: Mapping[Lsn, DeadPlace] = {}
        if not gone <= self._looked_for:  # all entries are read for it
            places = dead_log.find({lsn for lsns in lost.values() for lsn in lsns})
        self._looked_for = gone
        for birth, lsns in lost.items():
            found = {lsn: places[lsn] for lsn in lsns if lsn in places}
            ledger.move_letters(birth.route_id, found, max(gone) + 1)
            if missing := len(lsns) - len(found):
                self._found.append(
                    f"route {birth.name}: the bodies of {missing} dead letters are not in the dead "
                    "log any more"
                )

    def _letters(
        self, route_id: RouteId, is_wanted: Callable[[DeadLetter], bool]
    ) -> Iterator[DeadLetter]:
        after: Lsn = 0
        while page := self._shared.ledger.dead_letters(route_id, after=after, limit=_PAGE):
            yield from filter(is_wanted, page)
            after = page[-1].lsn

    # --- writing anew ---------------------------------------------------------------------------

    def _rewritten(self) -> Rewritten:
        said = self._shared.ledger.note(_NOTE)
        if not isinstance(said, Sequence):
            return Rewritten(0, (), 0)
        cutoff, positions, living_bytes, *rest = said  # a release before knew no gaps
        gaps = tuple(Gap(*row) for row in rest[0]) if rest else ()
        return Rewritten(
            cutoff, tuple((route, lsn) for route, lsn in positions), living_bytes, gaps
        )

    def _lanes(self) -> dict[LaneKey, LaneProgress]:
        ledger = self._shared.ledger
        found: dict[LaneKey, LaneProgress] = {}
        for birth in ledger.births():
            found.update(ledger.lanes(birth.route_id))
        return found

    def _rewrite(self) -> None:
        """Write what is dead by every lane's chain anew, and the chain with it."""
        shared = self._shared
        cutoff = shared.dead_log.roll()
        lanes = self._lanes()  # read behind the roll: no older entry is of a batch beyond them
        known = shared.dead_log.index()
        self._learn_gaps(lanes, known)
        for key, held in lanes.items():
            if held.checkpoint.dead_rev == NO_REVISION:
                continue
            try:
                self._rewrite_lane(key, held, known, cutoff)
            except FormatDamaged as error:  # what it wrote is named by nothing
                self._found.append(f"route {key.route_id}, lane {key.lane}: {error.message}")
        if self._gaps:  # of which some may have ended
            self._learn_gaps(lanes, shared.dead_log.index())
        positions = tuple(
            (key.route_id, max(_reach(held), shared.released(key.route_id)))
            for key, held in lanes.items()
        )
        living = shared.dead_log.size_bytes(since=cutoff)
        shared.ledger.note(_NOTE, [cutoff, positions, living, self._gaps])
        _log.info("the dead log was written anew: %d bytes are of dead letters", living)

    def _rewrite_lane(self, key: LaneKey, held: LaneProgress, known: Entries, cutoff: int) -> None:
        shared, dead_rev = self._shared, held.checkpoint.dead_rev
        chain = shared.dead_log.walk(dead_rev, known) or self._chain_of_ledger(key)
        if chain is None:
            return  # a gap, which is told
        purged = shared.ledger.purged(key)
        living = {lsn: item for lsn, item in chain.letters.items() if lsn not in purged}
        dropped = tuple(sorted(chain.dropped | (chain.letters.keys() - living.keys())))
        places: dict[Lsn, tuple[int, int]] = {}
        previous = NO_REVISION
        parts = self._parts(living)
        part: tuple[Record, ...] | None = next(parts, ())
        while part is not None:
            self._go_on()
            following = next(parts, None)  # the one that counts is the last: then all is there
            rev_id = shared.chance.randbytes(REVISION_BYTES) if following else dead_rev
            reasons = tuple(self._reason(key, living[record.lsn]) for record in part)
            entry = DeadEntry(rev_id, previous, part, (), reasons, () if following else dropped)
            place = shared.dead_log.append(entry)
            places.update((record.lsn, place) for record in part)
            previous, part = rev_id, following
        shared.dead_log.append(final_entry(shared.chance, key, held.checkpoint))
        shared.ledger.move_letters(key.route_id, places, cutoff)

    def _parts(self, living: Mapping[Lsn, Excluded]) -> Iterator[tuple[Record, ...]]:
        """Yield the bodies of letters, so many at a time as one entry holds."""
        by_place: dict[DeadPlace, set[Lsn]] = {}
        for lsn, item in living.items():
            by_place.setdefault(item.place, set()).add(lsn)
        part: list[Record] = []
        size = 0
        for place, wanted in sorted(by_place.items()):
            for record in self._shared.dead_log.read(place).excluded:
                if record.lsn not in wanted:
                    continue
                if part and size + len(record.value) > limits.DEAD_LOG_PART_BYTES:
                    yield tuple(part)
                    part, size = [], 0
                part.append(record)
                size += len(record.value)
        if part:
            yield tuple(part)

    def _reason(self, key: LaneKey, item: Excluded) -> Reason:
        """Return why a record is dead, by the newest words that the ledger has."""
        letter = self._shared.ledger.dead_letter(key.route_id, item.reason.lsn)
        if letter is None:
            return item.reason
        return item.reason._replace(
            code=letter.code, message=letter.message, attempts=letter.attempts
        )

    # --- letting files go -----------------------------------------------------------------------

    def _release(self, waiting: Rewritten, grounds: Grounds) -> bool:
        """Let older files go if nothing can lead to them; False while the log may."""
        if not all(self._is_passed(*position, grounds) for position in waiting.positions):
            return False
        shared = self._shared
        needed = self._needed()
        older = [number for number in shared.dead_log.files() if number < waiting.cutoff]
        gone = [number for number in older if number not in needed]
        shared.dead_log.remove(gone)
        if gone == older:  # what was purged while it was written anew is named in newer files, too
            shared.ledger.forget_purged(waiting.cutoff, shared.dead_log.bodies())
        size = shared.dead_log.size_bytes
        kept_bytes = size() - size(since=waiting.cutoff)  # to write it anew would not free it
        shared.ledger.note(_NOTE, [0, (), waiting.living_bytes + kept_bytes, self._gaps])
        if gone:
            _log.info("%d files of the dead log held nothing that is needed", len(gone))
        return True

    def _is_passed(self, route_id: RouteId, lsn: Lsn, grounds: Grounds) -> bool:
        """Tell whether the log has let go of a position."""
        shared, frontier = self._shared, self._shared.board.current()
        if frontier is None:
            return False
        if lsn == 0:
            return True  # a row that stands there names no chain
        route = grounds.routes.get(route_id)
        if route is not None:
            return route.find_anchor(lsn, frontier) is None
        where = (shared.fs, shared.data_dir, shared.log_id)
        return find_anchor(*where, lsn, frontier) is None

    def _needed(self) -> set[int]:
        """Return the files that letters or chains lead to, or may lead to behind a gap."""
        shared = self._shared
        known = shared.dead_log.index()
        needed = set(shared.ledger.dead_files())
        lanes = self._lanes()
        self._learn_gaps(lanes, known)
        through = max((gap.through_file for gap in self._gaps), default=-1)
        needed.update(number for number in shared.dead_log.files() if number <= through)
        for held in lanes.values():
            steps, _ = shared.dead_log.trace(held.checkpoint.dead_rev, known)
            needed.update(place.file for place in steps)
            if held.manifest is not None:
                open_ones = [known.get(each.rev_id) for each in held.manifest.revisions]
                needed.update(found[0].file for found in open_ones if found is not None)
        return needed

    # --- chains that do not resolve -------------------------------------------------------------

    def _is_mendable(self, gap: Gap) -> bool:
        """Tell whether nothing that is missing is needed any more."""
        key = LaneKey(self._shared.log_id, gap.route_id, gap.layout, gap.lane)
        return self._chain_of_ledger(key) is not None

    def _chain_of_ledger(self, key: LaneKey) -> Chain | None:
        """Return a chain that does not resolve as the ledger knows it, which is in line with it.

        None if a body is missing: then the file may be put back.
        """
        letters = {
            each.lsn: _excluded(each)
            for each in self._letters(
                key.route_id,
                lambda letter: (
                    (letter.layout, letter.lane) == (key.layout, key.lane) and letter.dead_file > 0
                ),
            )
        }
        try:
            there = {record.lsn for part in self._parts(letters) for record in part}
        except (OSError, WaldError):
            return None
        purged = frozenset(self._shared.ledger.purged(key))
        if there != letters.keys():
            return None
        return Chain(letters, purged | letters.keys(), purged)

    def _learn_gaps(self, lanes: Mapping[LaneKey, LaneProgress], known: Entries) -> None:
        """Find which chains do not resolve; files made later hold nothing of what is missing."""
        before = {gap.missing: gap for gap in self._gaps}
        newest = max(self._shared.dead_log.files(), default=0)
        gaps: list[Gap] = []
        for key, held in lanes.items():
            _, missing = self._shared.dead_log.trace(held.checkpoint.dead_rev, known)
            if missing != NO_REVISION:
                through = before[missing].through_file if missing in before else newest
                gaps.append(Gap(missing, through, key.route_id, key.layout, key.lane))
        self._gaps = tuple(gaps)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            msg = "the drainer is stopping"
            raise LedgerFailed(msg)


def _excluded(letter: DeadLetter) -> Excluded:
    """Return a dead letter as the dead log says it."""
    reason = Reason(
        letter.lsn,
        letter.code,
        letter.message,
        letter.batch_no,
        letter.attempts,
        letter.time_ns,
        letter.producer,
        letter.trace,
    )
    place = DeadPlace(letter.dead_file, letter.dead_offset)
    return Excluded(place, letter.rev_id, letter.key, letter.record_time_ns, reason)


def _reach(held: LaneProgress) -> Lsn:
    """Return the furthest position that a row may have by what was excluded so far."""
    revisions = held.manifest.revisions if held.manifest else ()
    return max([held.checkpoint.lsn, *(revision.hi for revision in revisions)])
