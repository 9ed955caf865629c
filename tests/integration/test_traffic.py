"""What went to a target, record by request, and what it may have cost."""

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon
from tests.onelane import Bench, values
from wald import config, limits
from wald.config import BatchSettings
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
    assert (
        "10 records a request: 40 records in 4 requests, 40.0 KiB, since the drainer began, at an"
        in shown
    )
    assert "estimated cost of 42" in shown


def test_status_says_what_a_sink_ignored(place: Path) -> None:
    path = place / "x.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE things (a)")
    configuration = f"""
[sinks.db]
type = "sqlite"
path = "{path}"
mode = "columns"
[routes.things]
stream = "things"
sink = "db"
lanes = 2
"""
    with Daemon(place, config=configuration) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            for n in range(6):
                producer.append("things", {"a": n, "b": 1, "c": 2}, key=f"k{n}")
        daemon.command("wait", "--all", "--timeout", "60s")
        route = json.loads(daemon.command("status", "--json"))["routes"]["things"]
        shown = daemon.command("status", "-v")
    assert route["notes"] == {"extra-fields": 12}
    assert "things: noted since the drainer began: extra-fields 12" in shown


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


def test_a_sink_with_ever_new_reasons_fills_no_page(backlog) -> None:
    bench = Bench(backlog, ReplayClass.KEYED)
    for number in range(40):
        bench.target.script.append(Delivered({f"{number} {'x' * 100}": 1}))
        backlog.append(b"v")
    bench.settings["batch"] = BatchSettings(1)
    bench.start()
    bench.through()
    notes = bench.lane.figures.policy["notes"]
    assert len(notes) == limits.NOTES_MAX_COUNT + 1
    assert notes["other"] == 40 - limits.NOTES_MAX_COUNT
    assert max(map(len, notes)) == limits.NOTE_MAX_CHARS


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
