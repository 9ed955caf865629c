"""The whole life on one simulated disk: log, ledger, dead log, frozen batches, packed files.

``LifeMachine`` is the ``LogMachine`` with the real drain process beside it: its main thread's
rounds and its lanes are stepped by hand, over a ledger on a simulated store that has LMDB's
documented crash behaviour. Ingest, drainer, or both may be killed, the power of everything may go
at one instant (in any operation, in an attempt, in a start), disks fail and run full, ledgers are
damaged or older than they were, targets lose answers, commit late and go back, people redrive,
purge and resolve. What was promised holds after each step, and in full once all is calm.

The promises: every record that was acknowledged is in its target once, with its bytes, in the
order of its key, or a dead letter that the target refused, or purged; nothing else is; the counts
of the ledger say the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from tests.model.life_parts import (
    CALM,
    POISON,
    Broken,
    LifeSink,
    Odds,
    OwnFiles,
    Target,
    new_target,
)
from tests.model.life_people import LANES, People, is_of_lane
from tests.model.log_machine import DATA, ROUTE, LogMachine
from tests.model.promises import Attempt, Request, Violation
from wald.config import BatchSettings, RouteSettings, Settings, SinkSettings
from wald.core import body
from wald.core.frame import Section
from wald.core.state import RouteState, route_birth
from wald.drainer.doubt import leave_word
from wald.drainer.lane import Lane
from wald.drainer.layout import RouteLanes
from wald.drainer.opening import Doors
from wald.drainer.process import Drainer
from wald.errors import WaldError
from wald.ingest.figures import Progress
from wald.limits import CLOCK_NS_PER_S
from wald.model import (
    NO_REVISION,
    DeadLetter,
    Decision,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Mark,
    ReplayClass,
    RouteId,
)
from wald.storage import identity
from wald.storage.log import Log
from wald.testing import Names, Stopped
from wald.testing.sim_store import DATA_NAME, open_sim_ledger

UNSURE = frozenset({"diverged", "damaged"})  # what another history may have delivered, or let go
STREAMS_MAX = 5
REST_MAX_S = 60.0
SETTLE_ROUNDS = 1_500
LONG_S = 30 * 86_400.0
LEDGER = f"{DATA}/ledger/{DATA_NAME}"
TARGET_EVENTS = ("late", "late", "dark", "light", "light", "copy", "back", "mend")
CLASSES = (
    ReplayClass.TRANSACTIONAL,
    ReplayClass.TRANSACTIONAL,
    ReplayClass.KEYED,
    ReplayClass.WINDOW,
    ReplayClass.NONE,
)


class LifeMachine(LogMachine):
    """See the module."""

    def __init__(self, seed: int, *, names: Names = Names.JOURNAL) -> None:
        super().__init__(seed, names=names)
        self.keeps = self.chance.random() < 0.4  # the log keeps all: then targets may go back
        self.divides = seed % 2 == 0  # routes have lanes, and other numbers of them now and then
        if self.keeps:
            self.options = replace(
                self.options, retain_after_delivery_s=LONG_S, retain_after_delivery_bytes=1 << 40
            )
        self.targets = {
            f"s{number}": new_target(
                f"s{number}",
                self.chance.choice(CLASSES),
                seed + number,
                lambda: self.clock.boot_ns() / CLOCK_NS_PER_S,
            )
            for number in range(STREAMS_MAX)
        }
        self.drainer: Drainer | None = None
        self.stack = ExitStack()
        self.files = OwnFiles(self.fs)
        self.settings = self._settings()
        self.forgiven: set[Lsn] = set()  # what a person took for delivered, and was not
        self.ledger_copy: bytes | None = None
        self.ledger_was_hurt = False
        self.people = People(self)
        self._drain_chance = Random(seed + 3)

    def _settings(self) -> Settings:
        sinks, routes = {}, {}
        for stream, target in self.targets.items():
            name = _route_name(stream)
            sinks[stream] = SinkSettings(stream, "sim")
            routes[name] = RouteSettings(
                name,
                stream,
                stream,
                batch=BatchSettings(self.chance.randint(1, 8), 1 << 20, 0.2),
                lanes=self.chance.choice(LANES if self.divides else LANES[:1]),
                on_unknown="hold",
                on_reject=self.chance.choice(("dead-letter", "dead-letter", "halt")),
            )
            target.goes_back = self.keeps and target.replay is ReplayClass.TRANSACTIONAL
        keeps_s = self.options.retain_after_delivery_s
        return Settings(
            data_dir=DATA,
            socket="/var/w.sock",
            sinks=sinks,
            routes=routes,
            retain_after_delivery_s=keeps_s,
            retain_after_delivery_bytes=self.options.retain_after_delivery_bytes,
            repack_after_s=0.0,
            repack_after_bytes=0,
        )

    # --- what is appended -----------------------------------------------------------------------

    def _body(self, name: str, records: int, length: int) -> bytes:
        draw = self.chance.random
        values = [
            (POISON if draw() < 0.06 else b"") + f"{name}{index} ".encode().ljust(length, b".")
            for index in range(records)
        ]
        return body.encode(body.Body(0, values, [f"k{self.chance.randint(0, 3)}" for _ in values]))

    def _next_group(self, log: Log, *, big: bool) -> tuple[Attempt, list[Section]]:
        attempt, group = super()._next_group(log, big=big)
        for name, number in attempt.streams.items():
            if number != ROUTE:
                born = log.frontier.lsn
                route = RouteState(number, _route_name(name), number, name, "", born, 0, 0)
                group.append(route_birth(route))
        return attempt, group

    # --- processes ------------------------------------------------------------------------------

    def end(self, *, cut: bool | None = None) -> None:
        """End ingest by force, perhaps the drainer with it, or the machine."""
        power = self.chance.random() < 0.5 if cut is None else cut
        if not power and self.drainer is not None and self.chance.random() < 0.6:
            self._kill_ingest()
            return
        self.drainer = None
        super().end(cut=power)

    def _kill_ingest(self) -> None:
        self._note("kill of ingest")
        self.counts["kills of ingest alone"] += 1
        if self.log is not None:
            self.stale = self.log.frontier
        with self.fs.guard:
            for file in list(self.fs._open):
                if file not in self.files._files:
                    file.close()
        self._clear_stop()
        self.clock.advance(1)
        self.log, self.stopped_cleanly = None, False

    def kill_drainer(self) -> None:
        """End the drainer by force."""
        self._note("kill of the drainer")
        self.counts["kills of the drainer alone"] += 1
        self.files.die()
        self._clear_stop()
        self.drainer = None

    def _clear_stop(self) -> None:
        self.fs.stopped = False
        self.fs.heal()

    def close(self) -> None:
        """Stop both cleanly, as far as faults let them."""
        self.stop_drainer()
        if self.log is not None:
            super().close()

    def start_somehow(self) -> None:
        """Begin ingest, perhaps cut or failed on the way."""
        kind, at = self.chance.random(), self.chance.randint(1, 90)
        if kind < 0.7:
            self.start(armed=self._is_armed)
        elif kind < 0.9:
            self.start(stop_at=at, armed=self._is_armed)
        else:
            self.start(fail_at=at)

    def start_drainer_somehow(self) -> None:
        """Begin the drainer, perhaps cut or failed on the way."""
        with self.fs.undisturbed():
            if self.fs.stat(f"{DATA}/identity") is None:
                return
        kind, at = self.chance.random(), self.chance.randint(1, 90)
        if kind < 0.7:
            self.start_drainer()
        elif kind < 0.9:
            self.start_drainer(stop_at=at)
        else:
            self.start_drainer(fail_at=at)

    @property
    def _is_armed(self) -> bool:
        """Whether a fault may strike."""
        return bool(self.fs._faults) or self.fs.capacity_bytes is not None

    def stop_drainer(self) -> None:
        """Let the drainer end by itself."""
        drainer = self.drainer
        if drainer is None:
            return
        self._note("the drainer stops")

        def work() -> None:
            drainer._leave(0.0)
            self.stack.close()

        if self.in_drainer(work, armed=True):
            self.drainer = None
            self.files.die()

    def start_drainer(self, *, stop_at: int = 0, fail_at: int = 0) -> bool:
        """Begin a drain process, perhaps cut or failed on the way."""
        assert self.drainer is None
        self._note(f"start of the drainer stop_at={stop_at} fail_at={fail_at}")
        if stop_at:
            self.fs.stop(stop_at)
        if fail_at:
            self.fs.fail(fail_at, for_ever=self.chance.random() < 0.3)
        begun: list[Drainer] = []
        is_armed = self._is_armed
        done = self.in_drainer(lambda: begun.append(self._begin_drainer()), armed=is_armed)
        if done and begun:
            self.drainer = begun[0]
            self.counts["starts of the drainer"] += 1
        elif done:
            self.files.die()
        return bool(begun)

    def _begin_drainer(self) -> Drainer:
        self.people.forget_batches()
        self.stack = ExitStack()
        self.files = OwnFiles(self.fs)
        files: Any = self.files
        known = identity.required(files, DATA)
        doors = Doors(
            self.settings,
            self._make_sink,
            files,
            self.clock,
            self._drain_chance,
            open_sim_ledger,
        )
        drainer = Drainer(doors, known.log_id, self.stack)
        drainer._pin_hint()
        drainer._publish()
        return drainer

    def _make_sink(self, route: RouteSettings, _: SinkSettings) -> LifeSink:
        may_send = partial(self.people.may_send, route.name)
        return LifeSink(self.targets[route.stream], self._cut_now, self._held, may_send)

    def _cut_now(self) -> None:
        """The power goes now."""
        self._note("the power goes in an attempt")
        self.counts["power cuts in an attempt"] += 1
        self.fs.stopped = True
        self._must_cut = True
        raise Stopped

    _must_cut = False

    def _held(self, key: LaneKey) -> LaneProgress | None:
        return None if self.drainer is None else self.ledger.lane(key)

    @property
    def ledger(self) -> Any:
        assert self.drainer is not None
        return self.drainer._fleet.shared.ledger

    def in_drainer(self, work: Callable[[], object] = lambda: None, *, armed: bool = False) -> bool:
        """Let the drain process do something; False if that was its end, or of all."""
        try:
            work()
        except Stopped:
            if self._must_cut or self.chance.random() < 0.4:
                self._must_cut = False
                self._all_ends(cut=True)
            elif self.chance.random() < 0.5:
                self._all_ends(cut=False)
            else:
                self.kill_drainer()
            return False
        except Broken as broken:
            self.broken = True
            raise broken.violation from broken
        except (WaldError, OSError) as error:
            self._note(f"  the drainer: {error!r}")
            if not armed:
                msg = f"the drainer fails without a fault: {error!r}"
                raise Violation(msg) from error
            self.kill_drainer()
            return False
        return True

    def _all_ends(self, *, cut: bool) -> None:
        self.drainer = None
        LogMachine.end(self, cut=cut)

    # --- the drainer at work --------------------------------------------------------------------

    def round(self) -> None:
        """The main thread does a round: routes, packing, pages."""
        drainer = self.drainer
        if drainer is None:
            return
        if self.log is not None and self.chance.random() < 0.8:
            drainer._board.pin(self.log.frontier)
        packed = drainer._packing.made
        if self.in_drainer(lambda: drainer._round(0.0), armed=True):
            self.counts["packed files"] += drainer._packing.made - packed
            self.clock.advance(self.chance.choice((0.01, 0.5, 2.0)))

    def work(self, steps: int = 6) -> None:
        """A few lanes do a step each; a rest passes at once."""
        rest_s = REST_MAX_S
        for _ in range(steps):
            if self.drainer is None:
                return
            lanes = self.drainer._fleet.each_lane()
            if not lanes:
                self.round()
                return
            lane = self.chance.choice(lanes)
            rests: list[float] = []
            if not self.in_drainer(lambda: rests.append(lane.step())):  # noqa: B023 - called at once
                return
            rest_s = min([rest_s, *rests])
        if rest_s > 0 and self.chance.random() < 0.5:
            self.clock.advance(rest_s)
        self.look()

    def commit(self) -> None:
        """What the ledger was given to write later becomes durable."""
        if self.drainer is not None:
            self.in_drainer(self.ledger.store.commit_waiting)

    def bury(self) -> None:
        """The undertaker does a round of its own."""
        drainer = self.drainer
        if drainer is not None:
            self.in_drainer(
                lambda: drainer._undertaker._round(drainer._grounds()),
                armed=True,
            )

    def retire(self) -> None:
        """Let segments go that the drainer says nobody needs."""
        log = self._running()
        progress = Progress(self.fs, DATA)
        try:
            floors = progress.floors()
            routes = log.state.routes
            if not routes or not routes.keys() <= floors.keys():
                return
            told = min(floors[route_id] for route_id in routes)
            self.model.drained_lsn = max(self.model.drained_lsn, told)
            self.clock.advance(1)
            gone = log.retire(floors)
            self._note(f"retired {gone} by {floors}")
            self.counts["segments retired"] += gone
        except Stopped:
            self.end()
        except (OSError, WaldError) as error:
            self._note(f"  retire: {error!r}")
            self.end(cut=False)
        finally:
            if not self.fs.stopped:
                progress.close()

    # --- what else happens ----------------------------------------------------------------------

    def target_event(self) -> None:
        """Something happens to a target."""
        opened = max(1, len(self.model.streams))
        target = self.chance.choice(list(self.targets.values())[:opened])
        match self.chance.choice(TARGET_EVENTS):
            case "late" if target.late:
                self._note(target.land())
                self.counts["late attempts"] += 1
            case "dark":
                target.dark = True
            case "light":
                target.dark = False
            case "copy" if target.goes_back:
                target.keep_copy()
            case "back" if target.copies:
                target.put_back()
                self._note(f"{target.name} PUT BACK to {len(target.store.records)}")
                self.counts["targets put back"] += 1
            case "mend" if self.chance.random() < 0.2:
                self._note(f"{target.name} takes everything from now on")
                target.mend()

    def jump(self) -> None:
        """The wall clock is set."""
        jump_s = self.chance.choice((-3600.0, 3600.0, 1.0, -0.5))
        self.clock.set_wall(self.clock.wall_ns() + round(jump_s * CLOCK_NS_PER_S))

    def change_room(self) -> None:
        """The disk is full from now on, nearly full, or not any more."""
        fs = self.fs
        if fs.capacity_bytes is not None:
            fs.capacity_bytes = None
            return
        with fs.undisturbed():
            fs.capacity_bytes = 1 << 40
            used = fs.capacity_bytes - fs.free_bytes("/")
        fs.capacity_bytes = used + self.chance.choice((0, 16 << 10, 256 << 10))
        self._note(f"{fs.capacity_bytes - used} bytes of room are left")
        self.counts["full disks"] += 1

    def hurt_ledger(self) -> None:
        """While no drainer runs: it is damaged, or what it was once."""
        with self.fs.undisturbed():
            if self.drainer is not None or self.fs.stat(LEDGER) is None:
                return
            if self.ledger_copy is None or self.chance.random() < 0.3:
                file = self.fs.open(LEDGER)
                self.ledger_copy = file.pread(file.size(), 0)
                file.close()
                return
            self.ledger_was_hurt = True
            self.people.forget_pauses()
            if self.chance.random() < 0.5:
                self._note("LEDGER DAMAGED")
                self.counts["ledgers damaged"] += 1
                for page in (0, 4096):
                    self.fs.damage(LEDGER, page, b"\0" * 8)
                return
            room, self.fs.capacity_bytes = self.fs.capacity_bytes, None
            self._note("LEDGER PUT BACK")
            self.counts["ledgers put back"] += 1
            file = self.fs.open(LEDGER, write=True)
            file.truncate(0)
            file.pwritev([self.ledger_copy], 0)
            file.sync()
            file.close()
            self.fs.capacity_bytes = room

    # --- people ---------------------------------------------------------------------------------

    def resolve(self) -> None:
        """A person looks into the target for each batch that is held as uncertain."""
        drainer = self.drainer
        assert drainer is not None
        for lane in drainer._fleet.each_lane():
            manifest = self.ledger.lane(lane.route.key).manifest
            if manifest is not None and manifest.held and not manifest.decision:
                self._resolve(lane, manifest)

    def _resolve(self, lane: Lane, manifest: Manifest) -> None:
        target, current = self.targets[lane.route.birth.stream], manifest.current
        there, lsns = set(target.store.lsns), {*current.redriven}
        if not manifest.is_redrive:
            lsns = {
                lsn
                for lsn, (key, _) in self.expected(target.name).items()
                if manifest.lo <= lsn <= current.hi and is_of_lane(lane, key, lsn)
            } - {*current.excluded}
        took = bool(lsns & there)
        took = took or any(each.rev_id in target.took for each in manifest.revisions)
        decision = Decision.DELIVERED if took else Decision.NOT_DELIVERED
        if took and not manifest.is_redrive:
            self.forgiven |= lsns - there
        elif not took and self.chance.random() < 0.2:
            decision = Decision.DEAD_LETTER
            self.people.set_aside |= lsns
        self._note(f"resolved {manifest.lo} to {current.hi} as {decision.value}: {manifest.held}")
        self.counts["resolved by a person"] += 1
        self.ledger.mark(lane.route.key, current.rev_id, Mark(decision=decision))
        lane.look_again()

    # --- the promises ---------------------------------------------------------------------------

    def expected(self, stream: str) -> dict[Lsn, tuple[str, bytes]]:
        """Return key and value of what was acknowledged, by LSN."""
        return {
            lsn: row
            for request in self.model.all_requests()
            if request.stream == stream
            for lsn, row in _rows(request)
        }

    def look(self) -> None:
        """Check what holds at any time."""
        for target in self.targets.values():
            lsns = target.store.lsns
            self._expect(len(set(lsns)) == len(lsns), f"TWICE at {target.name}: {sorted(lsns)}")

    def settle(self) -> None:
        """Calm everything and let all be delivered; then every promise must hold in full."""
        self._note("all is calm")
        self._calm_down()
        log, drainer = self._running(), self.drainer
        assert drainer is not None
        calm = 0
        for _ in range(SETTLE_ROUNDS):
            drainer._board.pin(log.frontier)
            self.in_drainer(lambda: drainer._round(0.0))
            rests = [REST_MAX_S]
            for lane in drainer._fleet.each_lane():
                self.in_drainer(lambda: rests.append(lane.step()))  # noqa: B023 - called at once
            self.resolve()
            self.people.tend()
            self.people.let_all_go_on()
            self.clock.advance(min(rests))
            calm = calm + 1 if self._is_through(log) else 0
            if calm > 3:
                break
        self._expect(calm > 3, f"does not come to rest: {self._lanes()}")
        self.look()
        self._check_all(drainer)
        for target in self.targets.values():
            target.odds = Odds()

    def _calm_down(self) -> None:
        self.fs.heal()
        self.fs.capacity_bytes = None
        for target in self.targets.values():
            target.odds, target.dark = CALM, False
            while target.late:
                self._note(target.land())
        if self.log is None:
            self.start()
        if self.drainer is not None and not self.ledger.store.is_usable:
            self.kill_drainer()
        if self.drainer is None:
            self.start_drainer()

    def _lanes(self) -> list[Any]:
        assert self.drainer is not None
        return [lane.figures for lane in self.drainer._fleet.each_lane()]

    def _is_through(self, log: Log) -> bool:
        assert self.drainer is not None
        fleet = self.drainer._fleet
        if fleet.routes.keys() != log.state.routes.keys():
            return False
        return all(
            self._is_idle_too_long(lane)
            or self._waits_for_one_that_is(route)
            or (
                lane.figures.state in {"idle", "checking"}
                and lane.figures.through_lsn >= log.frontier.lsn
                and self.ledger.lane(lane.route.key).manifest is None
                and not self.ledger.count_redrives(lane.route.key)
                and self._has_noticed(lane)
            )
            for route in fleet.routes.values()
            for lane in route.lanes
        )

    def _has_noticed(self, lane: Lane) -> bool:
        """Tell whether an idle lane has looked at its row since its target was put back."""
        target = self.targets[lane.route.birth.stream]
        if not target.copies or target.replay is not ReplayClass.TRANSACTIONAL:
            return True
        row, at = target.store.rows.get(lane.route.key), self.ledger.lane(lane.route.key).checkpoint
        held = (0, NO_REVISION) if row is None else (row.batch_no, row.rev_id)
        return held == (at.batch_no, at.rev_id)

    def _is_idle_too_long(self, lane: Lane) -> bool:
        """Tell whether a lane may wait for a person: the ledger was lost, and the log has let go of
        the block that its row names, since it had no records for long, or holds it in packed files
        of another stream alone. Nothing tells whether the target went back then.
        """
        if lane.figures.parked != "target-behind" or not self.ledger_was_hurt:
            return False
        target = self.targets[lane.route.birth.stream]
        row = target.store.rows.get(lane.route.key)
        return not self.keeps or (row is not None and row.hi_lsn not in self.expected(target.name))

    def _waits_for_one_that_is(self, route: RouteLanes) -> bool:
        return route.layout.is_changing and any(map(self._is_idle_too_long, route.each()))

    def _check_all(self, drainer: Drainer) -> None:
        self.counts["settled"] += 1
        for route_id, route in drainer._fleet.routes.items():
            target = self.targets[route.template.birth.stream]
            if any(map(self._is_idle_too_long, route.each())):
                self.counts["routes that wait for a person"] += 1
                continue
            self._check_route(route_id, target)

    def _check_route(self, route_id: RouteId, target: Target) -> None:
        expected, where = self.expected(target.name), f"{target.name} ({target.replay.value})"
        there = {record.lsn: record for record in target.store.records}
        letters = {each.lsn: each for each in self.ledger.dead_letters(route_id, limit=100_000)}
        for lsn, letter in letters.items():
            self._check_letter(target, letter, expected.get(lsn, ("", b""))[1])
        for lsn, record in there.items():
            self._expect(lsn in expected, f"INVENTED: {where} {lsn}")
            self._expect(record.value == expected[lsn][1], f"WRONG BYTES: {where} {lsn}")
        both = {} if self._forgot_who_it_is else letters.keys() & there.keys()
        self._expect(not both, f"BOTH at the target and dead: {where} {both}")
        known = there.keys() | letters.keys() | self.people.perhaps_purged | self.forgiven
        lost = expected.keys() - known
        self._expect(not lost, f"LOST: {where} {sorted(lost)}")
        if not target.copies:  # else what was purged may be pending again
            back = letters.keys() & self.people.purged
            self._expect(not back, f"BACK, and it was purged: {where} {sorted(back)}")
        if target.replay is ReplayClass.TRANSACTIONAL:
            self._check_order(target, expected)
        held = self.ledger.lanes(route_id).values()
        counts = [
            sum(getattr(each.checkpoint, name) for each in held)
            for name in ("delivered", "dead_letters", "purged")
        ]
        purged = len(expected) - len(there) - len(letters)
        truth = [len(there), len(letters), purged]
        if self.forgiven & expected.keys():
            counts, truth = [sum(counts)], [sum(truth)]
        if self.ledger_was_hurt and len(held) > 1:  # what the log let go of counts for no lane
            truth[0] = min(counts[0], truth[0])
        balanced = counts == truth or self._forgot_who_it_is
        self._expect(balanced, f"BOOKS: {where} {counts}, not {truth}")
        self.counts["records checked"] += len(expected)
        self.counts["dead letters checked"] += len(letters)

    @property
    def _forgot_who_it_is(self) -> bool:
        """Whether the directory knows neither its owner nor whose rows it had moved."""
        return self.people.owner_was_lost and self.ledger_was_hurt

    def _check_letter(self, target: Target, letter: DeadLetter, value: bytes) -> None:
        """A dead letter was refused, and where a lane halts a person allowed it."""
        people, where = self.people, f"{target.name} ({target.replay.value}) {letter}"
        if letter.lsn in people.set_aside:
            return
        if letter.code in UNSURE and self._forgot_who_it_is:
            return
        self._expect(value.startswith(POISON), f"set aside without a fault of its own: {where}")
        if self.settings.routes[_route_name(target.name)].on_reject == "halt":
            self._expect(letter.lsn in people.allowed, f"nobody allowed it: {where}")

    def _check_order(self, target: Target, expected: dict[Lsn, tuple[str, bytes]]) -> None:
        latest: dict[str, Lsn] = {}
        for lsn in target.store.lsns:
            key, value = expected[lsn]
            if value.startswith(POISON):
                continue  # a dead letter that was sent again comes late
            before = latest.get(key, 0)
            self._expect(lsn > before, f"ORDER of {key} at {target.name}: {before}, then {lsn}")
            latest[key] = lsn


def _route_name(stream: str) -> str:
    return "r" if stream == "s0" else f"r-{stream}"


def _rows(request: Request) -> Iterator[tuple[Lsn, tuple[str, bytes]]]:
    said = body.decode(request.body)
    for lsn, key, value in zip(
        range(request.lsn, request.lsn + request.records),
        said.keys or (),
        said.values,
        strict=True,
    ):
        yield lsn, (str(key), value)


class NoAsks:
    """Nobody asks the drainer by its socket."""

    def __init__(self, *_: object) -> None:
        """See ``wald.drainer.asks.Asks``."""

    def poll(self, _: float) -> None:
        """Nothing came."""

    def close(self) -> None:
        """There is nothing to let go."""


def start_no_thread(_: Lane) -> None:
    """Begin a lane that the machine steps."""


def join_no_thread(lane: Lane, _: float) -> bool:
    """Let a lane that the machine steps leave as its thread would, behind its last step."""
    lane._steps.settle_seal()
    leave_word(lane.route, lane._steps.memory)
    lane._steps.let_go()
    return True
