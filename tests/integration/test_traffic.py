"""What went to a target, record by request, and what it may have cost."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon
from tests.onelane import Bench, values
from wald import config
from wald.core.traffic import Traffic, summed
from wald.errors import WrongSetting
from wald.model import (
    Delivered,
    Outcome,
    Partial,
    RejectedRecord,
    ReplayClass,
    Systemic,
    SystemicKind,
)
from wald.testing.recording_sink import RecordingTarget

CONFIGURATION = """
[sinks.nowhere]
type = "null"
cost = { per_request = 0.5, per_kib = 1 }
[routes.things]
stream = "things"
sink = "nowhere"
batch = { max_records = 10, adaptive = false, max_age = "50ms" }
"""


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="wt"))
    yield path
    shutil.rmtree(path)


def test_status_says_records_a_request_and_what_they_cost(place: Path) -> None:
    with Daemon(place, config=CONFIGURATION) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("things", [b"x" * 1024] * 40)
        daemon.command("wait", "--all", "--timeout", "60s")
        traffic = json.loads(daemon.command("status", "--json"))["routes"]["things"]["traffic"]
        shown = daemon.command("status", "-v")
    assert traffic == {
        "requests": 4,
        "records": 40,
        "bytes": 40 * 1024,
        "records_per_request": 10.0,
        "cost": 4 * 0.5 + 40,
    }
    assert "10 records a request: 40 in 4, 40.0 KiB, since the drainer began, at an" in shown
    assert "estimated cost of 42" in shown


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (Delivered(), (1, 5, 25)),
        (Delivered({"requests": 3}), (3, 5, 25)),
        (Partial((RejectedRecord(3, "no", "no"),)), (1, 4, 25)),
        (Systemic(SystemicKind.BUSY, "busy"), (1, 0, 0)),
    ],
)
def test_every_attempt_is_a_request_and_what_took_effect_is_records(
    backlog, outcome: Outcome, counted: tuple[int, int, int]
) -> None:
    bench = Bench(backlog, ReplayClass.KEYED)
    target: RecordingTarget = bench.target
    target.script.append(outcome)
    backlog.append(*values(5))
    bench.start()
    bench.run(lambda: bench.lane.figures.traffic.requests > 0)
    assert bench.lane.figures.traffic == counted
    notes = bench.lane.figures.policy.get("notes", {})
    assert "requests" not in notes


def test_lanes_are_summed_and_without_a_price_there_is_no_cost() -> None:
    total = summed([Traffic(1, 10, 1024), Traffic(2, 5, 1024)])
    assert total == (3, 15, 2048)
    assert total.records_per_request == 5
    assert (total.cost(0.0, 0.0), total.cost(2.0, 0.5)) == (None, 7.0)
    assert Traffic().records_per_request is None
    assert summed([]) == Traffic()


@pytest.mark.parametrize("wrong", ['"1"', "-1", "true", "nan"])
def test_a_price_is_a_number(wrong: str) -> None:
    text = CONFIGURATION.replace("0.5", wrong)
    with pytest.raises(WrongSetting, match="per_request"):
        config.load_text([("wald.toml", text)], config.default_places({}, 0), {})
