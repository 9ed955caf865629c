"""A stop in order is no crash: the batch that is open is not taken for poison."""

import pytest

from tests.onelane import Bench
from wald.core.delivery import Step
from wald.model import ReplayClass, Systemic, SystemicKind

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


@pytest.mark.parametrize("replay", [ReplayClass.TRANSACTIONAL, ReplayClass.KEYED])
def test_stops_while_a_target_is_down_are_not_counted_as_crashes(backlog, replay):
    backlog.append(*[b"v"] * 5)
    bench = Bench(backlog, replay)
    for life in range(1, 4):
        bench.target.script.append(DOWN)
        bench.run(lambda: bench.step is Step.WAITING)
        assert (bench.held.manifest.attempts, bench.held.manifest.crashes) == (life, 0)
        bench.lane.stop(0.0)
        bench.lane._run()
        bench.start()
    bench.through()
    assert len(bench.target.lsns) == 5
