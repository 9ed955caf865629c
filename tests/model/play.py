"""Play schedules of the models of delivery for so long, each kind from a seed of chance.

    python -m tests.model.play --minutes 10
    python -m tests.model.play --minutes 10 rivals burying
    python -m tests.model.play --seed 173996337923 --count 1 meanwhile

Each violation is printed with its seed. Exit code 1 if there was one.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from random import SystemRandom
from unittest.mock import patch

from tests.model import heal_world, test_dead_log_model, test_delivery_simulation
from tests.model.delivery_world import Scene, make_scene
from tests.model.heal_parts import HistoryLog
from tests.model.promises import Violation
from wald import limits
from wald.core import dead
from wald.model import ReplayClass
from wald.system import SystemClock

_NS = limits.CLOCK_NS_PER_S
Play = Callable[[int], object]


def plays() -> dict[str, Play]:
    """Return what plays a seed, by the kind of its schedule."""
    log, longer, scene = HistoryLog(), HistoryLog(test_dead_log_model.MORE), make_scene()
    found: dict[str, Play] = {
        "restores": lambda seed: heal_world.run(log, seed),
        "meanwhile": lambda seed: heal_world.run(log, seed, meanwhile=True),
        "rivals": lambda seed: heal_world.run(log, seed, meanwhile=True, rivals=True),
        "burying": lambda seed: _bury(longer, seed, rivals=False),
        "burying-rivals": lambda seed: _bury(longer, seed, rivals=True),
    }
    for replay, on_unknown in test_delivery_simulation.CASES:
        played = partial(_simulate, scene, replay, on_unknown)
        found[f"{replay.value}-{on_unknown}"] = played
    return found


def _simulate(scene: Scene, replay: ReplayClass, on_unknown: str, seed: int) -> None:
    test_delivery_simulation.run(scene, seed, replay, on_unknown)


def _bury(log: HistoryLog, seed: int, *, rivals: bool) -> None:
    with (
        patch.object(dead, "is_worth_rewriting", lambda *_: True),
        patch.object(limits, "DEAD_LOG_PART_BYTES", 1),
    ):
        test_dead_log_model.run(log, seed, rivals=rivals)


def main() -> int:
    """Play, and say how many schedules of each kind held."""
    known = plays()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", choices=[*known, []], help="all by default")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each kind")
    parser.add_argument("--seed", type=int, help="the first one; random by default")
    parser.add_argument("--count", type=int, default=1 << 40, help="of schedules of each kind")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    # a batch in which the drainer died again and again stays in this process
    with patch.object(limits, "GUARDED_AFTER_CRASHES_COUNT", 1 << 30):
        wrong = [_play(known[kind], kind, asked) for kind in asked.kinds or known]
    return int(any(wrong))


def _play(play: Play, kind: str, asked: argparse.Namespace) -> int:
    clock = SystemClock()
    first = SystemRandom().randrange(1 << 40) if asked.seed is None else asked.seed
    end_ns = clock.monotonic_ns() + round(asked.minutes * 60 * _NS)
    wrong, seed = 0, first
    while seed < first + asked.count and clock.monotonic_ns() < end_ns:
        try:
            play(seed)
        except Violation as violation:
            wrong += 1
            sys.stdout.write(f"{kind}, seed {seed}: {violation}\n")
        seed += 1
    held = seed - first - wrong
    sys.stdout.write(f"{kind}: of {seed - first} schedules from seed {first} {held} held\n")
    sys.stdout.flush()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
