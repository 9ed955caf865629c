"""What people do in a life, by the drainer's own desks: hold routes back, divide them anew, take
them over, let refused records be set aside.

What they were answered is remembered, for it is promised: a route that is held back sends nothing,
a lane that halts sets nothing aside that nobody allowed, nothing is doubled by a takeover.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wald.core.delivery import Step
from wald.drainer.lane import Lane
from wald.errors import WaldError
from wald.limits import CLOCK_NS_PER_S
from wald.model import Attempt, LaneKey, Lsn

if TYPE_CHECKING:
    from tests.model.life_machine import LifeMachine

ALL = "*"
LANES = (1, 1, 2, 3)
PATIENCE_NS = 20 * CLOCK_NS_PER_S
UNDER_WAY = frozenset({Step.SENDING, Step.SEARCHING, Step.SETTLING})


@dataclass(slots=True)
class People:
    """What people know of a life.

    Attributes:
        machine: the life.
        held_back: routes that are surely held back, by name, ``ALL`` for all of them; with the
            batches that were on their way then.
        told: those of them that are told beside the ledger.
        allowed: what they allowed to be set aside where a lane halts.
        set_aside: what they set aside themselves, of batches that were held as uncertain.
        owner_was_lost: whether the data directory forgot who it is.
        patient_until_ns: when who took a route over looks whether that did anything.
        purged: what surely was, and is told beside the ledger.
        perhaps_purged: what they wanted to be.
    """

    machine: "LifeMachine"
    held_back: dict[str, set[tuple[LaneKey, int]]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    allowed: set[Lsn] = field(default_factory=set)
    set_aside: set[Lsn] = field(default_factory=set)
    owner_was_lost: bool = False
    patient_until_ns: dict[str, int] = field(default_factory=dict)
    purged: set[Lsn] = field(default_factory=set)
    perhaps_purged: set[Lsn] = field(default_factory=set)

    def ask(self, op: str, **request: object) -> Mapping[str, Any] | None:
        """Ask the drainer; None if it was no answer, or no good one."""
        drainer = self.machine.drainer
        said: list[Mapping[str, Any]] = []

        def work() -> None:
            assert drainer is not None
            with contextlib.suppress(WaldError):  # the command is told, and the person tries again
                said.append(drainer._answers.answer({"op": op, **request}))

        if drainer is not None and self.machine.in_drainer(work, armed=True) and said:
            return said[0]
        return None

    # --- held back ------------------------------------------------------------------------------

    def hold_back(self) -> None:
        """Hold a route back, or all."""
        machine = self.machine
        name = machine.chance.choice([ALL, *machine.settings.routes])
        if self.ask("drain.pause", **_whom(name)) is None:
            return
        machine._note(f"{name} is held back")
        machine.counts["pauses"] += 1
        assert machine.drainer is not None
        lanes = machine.drainer._fleet.each_lane()
        self.held_back[name] = {_open_batch(lane) for lane in lanes if lane._step in UNDER_WAY}
        is_told = machine.drainer._fleet.paused == machine.drainer._progress.stands.paused
        self.told = {*self.held_back} if is_told else self.told - {name}

    def let_go_on(self) -> None:
        """Let go on what was held back."""
        for name in sorted(self.held_back):
            del self.held_back[name]  # also where no answer comes
            self.machine._note(f"{name} may go on")
            self.ask("drain.resume", **_whom(name))

    def let_all_go_on(self) -> None:
        """Hold nothing back any more, whoever did so."""
        self.held_back.clear()
        drainer = self.machine.drainer
        if drainer is not None and drainer._fleet.paused:
            for name in (ALL, *self.machine.settings.routes):
                self.ask("drain.resume", **_whom(name))

    def may_send(self, route: str, attempt: Attempt) -> bool:
        """Tell whether nobody held a route back before a batch was on its way."""
        batch = attempt.key, attempt.row.batch_no
        held = [self.held_back[name] for name in (ALL, route) if name in self.held_back]
        return all(batch in under_way for under_way in held)

    def forget_batches(self) -> None:
        """A drainer begins: nothing is on its way."""
        for under_way in self.held_back.values():
            under_way.clear()

    def forget_pauses(self) -> None:
        """The ledger is lost or older: what was not told beside it is forgotten with it."""
        self.held_back = {
            name: batches for name, batches in self.held_back.items() if name in self.told
        }

    # --- other lanes, another owner -------------------------------------------------------------

    def divide_anew(self) -> None:
        """While no drainer runs: routes get another number of lanes in the settings."""
        machine = self.machine
        if machine.drainer is not None or not machine.divides:
            return
        routes = dict(machine.settings.routes)
        name = machine.chance.choice(sorted(routes))
        routes[name] = replace(routes[name], lanes=machine.chance.choice(LANES))
        machine._note(f"{name} has {routes[name].lanes} lanes from now on")
        machine.counts["changes of lanes"] += 1
        machine.settings = replace(machine.settings, routes=routes)

    def lose_owner(self) -> None:
        """While no drainer runs: the file that says who the directory is, is damaged."""
        machine = self.machine
        with machine.fs.undisturbed():
            path = f"{machine.settings.data_dir}/owner"
            if machine.drainer is not None or machine.fs.stat(path) is None:
                return
            machine._note("OWNER DAMAGED")
            machine.counts["owners lost"] += 1
            machine.fs.damage(path, 0, b"\0" * 4)
            self.owner_was_lost = True

    def take_over(self) -> None:
        """A person says that this directory goes on, wherever a lane asks for it."""
        machine = self.machine
        if machine.drainer is None:
            return
        parked = {
            lane.route.birth.name
            for lane in machine.drainer._fleet.each_lane()
            if lane.figures.parked == "diverged"
        }
        now_ns = machine.clock.monotonic_ns()
        for name in sorted(parked):
            if now_ns < self.patient_until_ns.get(name, 0):
                continue
            self.patient_until_ns[name] = now_ns + PATIENCE_NS
            if self.ask("drain.takeover", route=name) is not None:
                machine._note(f"{name} is taken over")
                machine.counts["takeovers"] += 1

    # --- refused records ------------------------------------------------------------------------

    def allow(self) -> None:
        """Let be set aside whatever lanes halt at."""
        machine = self.machine
        if machine.drainer is None:
            return
        for lane in machine.drainer._fleet.each_lane():
            halted = lane.figures.halted
            if not halted:
                continue
            machine.counts["halts"] += len({*halted} - self.allowed)
            self.allowed |= {*halted}  # also where no answer comes
            machine._note(f"{lane.name} may set aside {halted}")
            self.ask("drain.dlq.set_aside", route=lane.route.birth.name, lsns=list(halted))

    def treat_letters(self) -> None:
        """Send dead letters again, or forget some."""
        machine = self.machine
        drainer = machine.drainer
        if drainer is None:
            return
        for route in list(drainer._fleet.routes.values()):
            name = route.template.birth.name
            said = self.ask("drain.dlq", route=name) or {"entries": ()}
            lsns = [each["lsn"] for each in said["entries"]]
            if lsns and machine.chance.random() < 0.3:
                self._purge(name, lsns[:2])
            elif lsns:
                machine._note(f"redrive of {lsns}")
                machine.counts["redrives"] += 1
                self.ask("drain.dlq.redrive", route=name, lsns=lsns)

    def _purge(self, route: str, lsns: Sequence[Lsn]) -> None:
        machine = self.machine
        machine._note(f"purge of {lsns}")
        machine.counts["purges"] += 1
        self.perhaps_purged |= {*lsns}  # also where no answer comes
        sure = not machine._is_armed  # else it may not be told beside the ledger
        said = self.ask("drain.dlq.purge", route=route, lsns=lsns)
        if sure and said is not None and said["letters"] == len(lsns):
            self.purged |= {*lsns}

    def tend(self) -> None:
        """Do what lanes wait for a person for."""
        self.take_over()
        self.allow()


def _open_batch(lane: Lane) -> tuple[LaneKey, int]:
    return lane.route.key, lane._steps.memory.manifest.number


def _whom(name: str) -> dict[str, object]:
    return {"all": True} if name == ALL else {"route": name}


def is_of_lane(lane: Lane, key: str, lsn: Lsn) -> bool:
    """Tell whether a record is a lane's."""
    return bool(lane.route.share.picks(lsn, 1, [key]))
