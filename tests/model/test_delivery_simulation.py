"""Thousands of schedules of one lane, a target and a process that dies; and bugs planted in it.

    WALD_MODEL_SEED=N     one seed again, with what led to its end
    WALD_MODEL_PROFILE=long    as many as an hour's patience allows

A schedule is a seed: it decides what the target does, what is shown, put back or killed when, and
at which call of a port the process ends.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.model import delivery_world
from tests.model.delivery_world import Killed, Scene, World, make_scene
from tests.model.planting import Patch, plant
from tests.model.promises import Violation
from wald import limits
from wald.core.delivery import Event
from wald.drainer import checking, doubt, recalling, sending, steps
from wald.drainer.lane import Lane
from wald.drainer.route import LaneMemory
from wald.drainer.sinks import TendedSink
from wald.model import Attempt, Outcome, ReplayClass

LONG = os.environ.get("WALD_MODEL_PROFILE") == "long"
SEED = os.environ.get("WALD_MODEL_SEED")
RUNS = 40_000 if LONG else 400
STEPS = 60
TRIES_MAX = 2_000
TRANSACTIONAL, NONE = ReplayClass.TRANSACTIONAL, ReplayClass.NONE
CASES = [
    (TRANSACTIONAL, "resend"),
    (ReplayClass.KEYED, "resend"),
    (ReplayClass.WINDOW, "resend"),
    (NONE, "resend"),
    (NONE, "hold"),
]
FOUND = (
    # killed before it knew where it was: a loss that was known counted as another one, with what
    # had come since as unsure
    (ReplayClass.WINDOW, "resend", 552_784_571_740),
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(
    scene: Scene, seed: int, replay: ReplayClass, on_unknown: str, late: float | None = None
) -> World:
    world = World(scene, seed, replay, on_unknown=on_unknown)
    if late is not None:
        world.odds.late = late
    for _ in range(STEPS):
        world.step()
    world.settle()
    return world


@pytest.mark.parametrize(("replay", "on_unknown"), CASES)
def test_no_schedule_breaks_a_promise(
    scene: Scene, replay: ReplayClass, on_unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [int(SEED)] if SEED else range(RUNS)
    seen = [0, 0, 0, 0]
    for seed in seeds:
        try:
            world = run(scene, seed, replay, on_unknown)
        except Violation as violation:
            pytest.fail(f"WALD_MODEL_SEED={seed} {replay.value} {on_unknown}: {violation}")
        seen[0] += world.unknowns
        seen[1] += world.restores
        seen[2] += bool(world.dead)
        seen[3] += world.losses
        if SEED:
            print("\n".join(world.trail))
    with capsys.disabled():
        print(
            f"\n{replay.value}/{on_unknown}: seeds 0 to {RUNS - 1}, {seen[0]} attempts without an "
            f"answer, {seen[1]} restores, {seen[3]} ledgers lost or older, "
            f"{seen[2]} schedules with dead letters",
            flush=True,
        )
    assert SEED or (seen[0] > RUNS // 4 and seen[2] > RUNS // 10)


def test_schedules_that_once_found_something_hold(scene: Scene) -> None:
    for replay, on_unknown, seed in FOUND:
        run(scene, seed, replay, on_unknown)


@dataclass(frozen=True)
class Bug:
    """A bug: what is changed, at which target it shows, and what the violation says."""

    name: str
    patches: tuple[Patch, ...]
    says: str
    replay: ReplayClass = TRANSACTIONAL
    on_unknown: str = "resend"
    late: float | None = None  # how likely it is that an attempt takes effect late


BUGS = (
    Bug(
        "checkpoint before the commit",
        (
            Patch(
                steps.Steps,
                "_send",
                [
                    (
                        "event = send(self.route, memory)\n",
                        (
                            "attempt = _attempt(self.route, memory)\n"
                            "    sink = memory.sink\n"
                            "    self._finish(took_effect)\n"
                            "    self.gate.rest()\n"
                            "    memory.note(sink.deliver(attempt))\n"
                            "    return Event.DELIVERED\n"
                        ),
                    )
                ],
            ),
        ),
        "an attempt without its durable manifest",
    ),
    Bug(
        "no answer is taken for success",
        (
            Patch(
                sending,
                "send",
                [("return verdict.event", "return _lucky(verdict.event)")],
                also=[steps],
            ),
        ),
        "lost",
        ReplayClass.KEYED,  # with a row the next attempt finds it out, and the row is believed
    ),
    Bug(
        "resend of an unknown to a target that may double",
        (Patch(doubt, "why_not", [("if not row.send:", "if False:")]),),
        "twice at the target",
        NONE,
        "hold",
    ),
    Bug(
        "an outage in mid-search is taken for a refusal",
        (
            Patch(
                TendedSink,
                "probe",
                [
                    (
                        "return named or self._watched(lambda: self.inner.probe(attempt, records))",
                        (
                            "found = self._watched(lambda: self.inner.probe(attempt, records))\n"
                            "    down = isinstance(found, Systemic)\n"
                            "    return Rejected((), 'down') if down else found"
                        ),
                    )
                ],
            ),
        ),
        "set aside without a fault of theirs",
    ),
    Bug(
        "a batch of which nothing is left is closed without a commit on the row",
        (
            Patch(
                sending,
                "foregone",
                [
                    (
                        "to_send(memory) or memory.replay is ReplayClass.TRANSACTIONAL:",
                        "to_send(memory):",
                    )
                ],
                also=[steps],
            ),
        ),
        "",
    ),
    Bug(
        "exclusions of the wrong revision",
        (
            Patch(
                sending,
                "_close",
                [
                    (
                        "next(item for item in manifest.revisions if item.rev_id == took_effect)",
                        "manifest.current",
                    )
                ],
            ),
        ),
        "",
        late=0.3,
    ),
    Bug(
        "the next batch is sent, unsealed, to a target that does not wait for that",
        (
            Patch(
                sending,
                "_runs_ahead",
                [("memory.sink.capabilities.awaits_seal and memory", "memory")],
            ),
        ),
        "an attempt without its durable manifest",
    ),
    Bug(
        "a lane that runs ahead goes on with what the ledger could not take",
        (Patch(LaneMemory, "settle_seal", [("self.held = sealing.before", "pass")]),),
        "shown, and not durable in the ledger",
    ),
    Bug(
        "a lane that runs ahead shows what is not durable",
        (
            Patch(
                Lane, "_publish", [("once=memory.sealing and memory.sealing.underway", "once=None")]
            ),
        ),
        "shown, and not durable in the ledger",
    ),
    Bug(
        "a lost ledger is not noticed",
        (Patch(recalling, "recall", [("if told is None", "if True")], also=[checking]),),
        "sent again, and it was known to be done",
        ReplayClass.KEYED,
    ),
    Bug(
        "what nobody knows of a lost ledger is sent again",
        (Patch(recalling, "why_unsure", [("hi > memory", "True or memory")], also=[sending]),),
        "twice at the target",
        NONE,
        "hold",
    ),
    Bug(
        "a batch is sealed beyond what was told",
        (Patch(recalling, "reserve", [("if telling", "if False and telling")], also=[steps]),),
        "twice at the target",
        ReplayClass.WINDOW,
    ),
    Bug(
        "the revision that took effect is not named before the ledger has it",
        (Patch(recalling, "name_final", [("if after.dead_rev", "if 0 > 1")], also=[sending]),),
        "",
        ReplayClass.KEYED,
    ),
    Bug(
        "a lane counts as brought up to date before it is",
        (
            Patch(
                recalling,
                "recall",
                [("route_id, until))", "route_id, until), 1)")],
                also=[checking],
            ),
        ),
        "",
        ReplayClass.KEYED,
    ),
    Bug(
        "a new life is told before the ledger keeps what was told",
        (
            Patch(
                recalling,
                "begin_life",
                [
                    (
                        "    went_back = (",
                        "    page.begin_life(page.life + 1, {})\n    went_back = (",
                    ),
                    ("page.life > known\n", "page.life > known + 1\n"),
                ],
                also=[delivery_world],
            ),
        ),
        "",
        NONE,
        "hold",
    ),
)


def _lucky(event: Event) -> Event:
    return Event.DELIVERED if event is Event.UNKNOWN else event


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_planted_bug_is_found_and_without_it_the_same_seed_holds(
    scene: Scene, bug: Bug, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "_attempt", sending._attempt, raising=False)
    monkeypatch.setattr(sending, "_lucky", _lucky, raising=False)
    with monkeypatch.context() as planted:
        for patch in bug.patches:
            plant(planted, patch)
        seed, found = first_violation(scene, bug)
    assert bug.says in found
    run(scene, seed, bug.replay, bug.on_unknown, bug.late)
    with capsys.disabled():
        print(f"\n{bug.name}: found in schedule {seed + 1}: {found.splitlines()[0]}", flush=True)


def first_violation(scene: Scene, bug: Bug) -> tuple[int, str]:
    for seed in range(TRIES_MAX):
        try:
            run(scene, seed, bug.replay, bug.on_unknown, bug.late)
        except Violation as violation:
            return seed, str(violation)
    pytest.fail(f"not found in {TRIES_MAX} schedules: {bug.name}")


# --- a record that kills who sends it ------------------------------------------------------------


class Deadly(World):
    """The process dies whenever a record is about to be sent, before the seal is waited for."""

    victim = 0
    deaths = 0

    def attempt(self, attempt: Attempt) -> Outcome:
        if self.victim in [record.lsn for record in attempt.records]:
            self.deaths += 1
            what = "a record"
            raise Killed(what)
        return super().attempt(attempt)


def crashes_counted(scene: Scene, seed: int, most_deaths: int) -> int:
    """Let it die again and again; returns how often the ledger says that it did."""
    world = Deadly(scene, seed)
    world.awaits_seal = True
    world.odds = delivery_world.Odds.calm()
    world.victim = scene.lsns[-3][0]
    while world.visible + 1 < len(scene.frontiers):
        world.show_more()
    for _ in range(5_000):
        world.work()
        manifest = world.ledger.lane(world.route.key).manifest
        if manifest is not None and manifest.crashes >= limits.GUARDED_AFTER_CRASHES_COUNT:
            return manifest.crashes
        if world.deaths >= most_deaths:
            return 0
    raise AssertionError(world.trail)


@pytest.mark.parametrize("seed", range(20))
def test_a_record_that_kills_who_sends_it_is_counted_also_where_the_seal_was_on_its_way(
    scene: Scene, seed: int
) -> None:
    assert crashes_counted(scene, seed, most_deaths=limits.GUARDED_AFTER_CRASHES_COUNT + 3)


def test_it_would_not_be_if_a_lane_ran_ahead_behind_a_start(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = ("memory.verdict_of == manifest.number", "True")
    plant(monkeypatch, Patch(sending, "_runs_ahead", [change]))
    assert not all(crashes_counted(scene, seed, most_deaths=40) for seed in range(20))
