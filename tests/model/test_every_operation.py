"""Each operation of a whole life is stopped in, or fails: the first, the second, and so on.

The life is short and always the same: a start, groups, a roll, draining, retiring, a clean stop,
and another start. SQLite's tests do this for each call; so do we.
"""

import pytest

from tests.model.log_machine import LogMachine
from tests.model.promises import Violation
from wald.testing import Names

SEED = 20_261_122
OPERATIONS_MAX = 2_000


def live(machine: LogMachine, *, armed: bool = False) -> None:
    """Live until the end, or until something stopped it."""
    machine.start(armed=armed)
    for act in (
        machine.append,
        lambda: machine.append(big=True),
        lambda: machine.prepare(3),
        machine.fill,
        lambda: machine.drain(fully=True),
        machine.append,
        machine.retire,
        lambda: machine.prepare(3),
        machine.fill,
        machine.close,
        lambda: machine.start(armed=armed),
        machine.append,
    ):
        if machine.log is None and not machine.stopped_cleanly:
            return
        act()


def go_on(machine: LogMachine) -> None:
    """Start again after whatever it was, and live a little."""
    if machine.log is not None:
        machine.fs.heal()
        machine.end()
    machine.start()
    machine.append()
    machine.close()
    machine.start()
    machine.close()
    assert machine.fs.open_files == 0, "a log that is closed leaves files open"


def count_operations() -> int:
    machine = LogMachine(SEED, write_back=0.0)
    live(machine)
    operations = machine.fs.operations
    go_on(machine)
    assert machine.counts["rolls"] > 0
    assert machine.counts["segments retired"] > 0
    assert operations < OPERATIONS_MAX
    return operations


@pytest.mark.parametrize(
    ("cut", "names"),
    [(False, Names.JOURNAL), (True, Names.ANY)],  # ANY leaves all that JOURNAL does, and more
    ids=["killed", "power cut"],
)
def test_a_life_stopped_in_any_operation_goes_on(*, cut: bool, names: Names):
    total = count_operations()
    print(f"{total} operations, seed {SEED}")
    for at in range(1, total + 1):
        machine = LogMachine(SEED, write_back=0.0, names=names)
        machine.cut = cut
        machine.fs.stop(at)
        survives(machine, at)


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_a_life_in_which_any_operation_fails_goes_on(*, for_ever: bool):
    total = count_operations()
    print(f"{total} operations, seed {SEED}")
    for at in range(1, total + 1, 3 if for_ever else 1):
        machine = LogMachine(SEED, write_back=0.0)
        machine.fs.fail(at, for_ever=for_ever)
        survives(machine, at)


@pytest.mark.parametrize("cut", [False, True], ids=["killed", "power cut"])
def test_a_recovery_stopped_in_any_operation_is_done_again(*, cut: bool):
    """Compound faults: the second start meets what a cut first recovery left."""
    at = 0
    while True:
        at += 1
        machine = LogMachine(SEED, write_back=0.0)
        machine.start()
        machine.append()
        machine.append(big=True)
        machine.cut = cut
        machine.fs.stop(1, kind="sync")
        machine.append()
        started = machine.start(stop_at=at)
        if started:
            machine.close()
            break
        survives(machine, at, alive=False)
    print(f"{at} operations, seed {SEED}")
    assert at > 30


def survives(machine: LogMachine, at: int, *, alive: bool = True) -> None:
    try:
        if alive:
            live(machine, armed=True)
        go_on(machine)
    except Violation as violation:
        pytest.fail(f"operation {at}: {violation}\n{machine.story()}")
    except BaseException:
        print(f"operation {at}\n{machine.story()}")
        raise
