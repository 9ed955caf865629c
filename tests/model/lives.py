"""Random lives of a log: which step comes next, by the machine's own chance."""

from collections.abc import Callable, Sequence

from tests.model.log_machine import LogMachine

Actions = Sequence[tuple[float, Callable[[LogMachine], None]]]


def run(machine: LogMachine, steps: int, actions: Actions = ()) -> None:
    """Let a machine take so many steps, chosen by its own chance; end with a checked start.

    ``actions`` are what a running log may meet, with their odds; by default everything.
    """
    for _ in range(steps):
        step(machine, actions or EVERYTHING)
    if machine.log is not None:
        machine.fs.heal()
        machine.end()
    machine.start()
    machine.append()
    machine.close()
    machine.start()
    machine.close()


def step(machine: LogMachine, actions: Actions) -> None:
    """Take one step."""
    chance = machine.chance
    if chance.random() < 0.05:
        machine.drop_caches()
    if machine.log is None:
        kind = chance.random()
        if kind < 0.6:
            machine.start()
        elif kind < 0.85:
            machine.start(stop_at=chance.randint(1, 90))
        else:
            machine.start(fail_at=chance.randint(1, 90))
        return
    roll = chance.random()
    for odds, action in actions:
        roll -= odds
        if roll < 0:
            action(machine)
            return


def _fail(machine: LogMachine) -> None:
    kind = machine.chance.choice(("sync", "sync", "pwritev", "rename", "sync_directory", None))
    machine.fail_soon(machine.chance.randint(1, 6), kind, for_ever=machine.chance.random() < 0.2)


def _stop(machine: LogMachine) -> None:
    machine.stop_soon(machine.chance.randint(1, 30))


def _prepare(machine: LogMachine) -> None:
    machine.prepare(machine.chance.randint(1, 4))


def _drain_and_retire(machine: LogMachine) -> None:
    machine.drain(fully=True)
    if machine.log is not None:
        machine.retire()


def _stop_in_preparing(machine: LogMachine) -> None:
    machine.stop_soon(machine.chance.randint(1, 8))
    machine.prepare(3)


EVERYTHING: Actions = (
    (0.38, LogMachine.append),
    (0.08, LogMachine.fill),
    (0.12, _prepare),
    (0.08, LogMachine.drain),
    (0.08, LogMachine.retire),
    (0.07, _fail),
    (0.07, _stop),
    (0.06, LogMachine.end),
    (0.02, LogMachine.close),
    (0.02, LogMachine.resend),
    (0.02, LogMachine.begin_anew),
)

RECYCLING: Actions = (
    (0.45, lambda machine: machine.append(big=True)),
    (0.25, _drain_and_retire),
    (0.15, _stop_in_preparing),
    (0.10, _stop),
    (0.05, LogMachine.end),
)
