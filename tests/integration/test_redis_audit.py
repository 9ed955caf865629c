"""Which records a stream has, by its own words: for audits, and for them alone."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import Daemon
from tests.integration.test_redis_sink import (
    KEY,
    LOG,
    OTHER_LOG,
    PASSWORD,
    attempt,
    records,
    sink_of,
)
from tests.servers.redis import KINDS, RedisServer
from wald.model import Delivered, Secret, Systemic, SystemicKind
from wald.sinks.redis import auditing


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp(request.param), request.param).start()
    yield running
    running.kill()


@pytest.fixture
def empty(server: RedisServer) -> RedisServer:
    server.call("FLUSHALL")
    return server


def held(sink: Any, *lsns: int, log_id: bytes = LOG) -> dict[int, int | None]:
    said = sink.holds(log_id, lsns)
    assert isinstance(said, dict), said
    return said


def test_what_was_delivered_is_there_and_nothing_else(empty):
    with sink_of(empty) as sink:
        assert held(sink, 4, 5) == {4: 0, 5: 0}
        assert sink.deliver(attempt(1, records(5, 3))) == Delivered()
        assert held(sink, 4, 5, 6, 7, 8) == {4: 0, 5: 1, 6: 1, 7: 1, 8: 0}
        assert held(sink, 6) == {6: 1}
        assert held(sink, 5, 6, log_id=OTHER_LOG) == {5: 0, 6: 0}


def test_a_record_that_came_late_is_found_under_its_own_lsn(empty):
    """Redriven ones stand behind all others; one that came twice is counted twice."""
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 2) + records(8, 3))) == Delivered()
        assert held(sink, 5, 6, 7, 8) == {5: 1, 6: 1, 7: 0, 8: 1}
        assert sink.deliver(attempt(2, records(7, 1), hi=10)) == Delivered()
        assert held(sink, 5, 6, 7, 8) == {5: 1, 6: 1, 7: 1, 8: 1}
        assert sink.deliver(attempt(3, records(7, 2), hi=10)) == Delivered()
        assert held(sink, 7, 8, 9) == {7: 2, 8: 2, 9: 1}
    with sink_of(empty) as sink:
        assert held(sink, 8) == {8: 2}
        assert held(sink, 7) == {7: 2}, "asked for what lies before, it begins anew"


def test_all_lanes_are_asked(empty):
    with sink_of(empty) as sink:
        for lane, sent in ((0, records(5, 2)), (3, records(7, 1)), (63, records(9, 1))):
            assert sink.deliver(attempt(1, sent, key=KEY._replace(lane=lane))) == Delivered()
        assert held(sink, 5, 6, 7, 8, 9) == {5: 1, 6: 1, 7: 1, 8: 0, 9: 1}


def test_what_was_trimmed_or_deleted_is_not_called_missing(empty):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 3) + records(9, 4))) == Delivered()
        assert held(sink, 7, 8, 9) == {7: 1, 8: 0, 9: 1}
        empty.call("XTRIM", "events", "MINID", "7-0")
        assert held(sink, 5, 6, 7, 8) == {5: None, 6: None, 7: 1, 8: 0}
        empty.call("XDEL", "events", "10-0")
        assert held(sink, 7, 8, 9, 10, 11) == {7: 1, 8: None, 9: 1, 10: None, 11: 1}
        empty.call("XTRIM", "events", "MAXLEN", 0)
        assert held(sink, 9, 12, 13) == {9: None, 12: None, 13: 0}


def test_a_long_stream_is_read_in_pages(empty, monkeypatch):
    """Bounded by entries and by bytes; what came late is remembered up to a bound."""
    with sink_of(empty) as sink:
        for number, first in enumerate((1, 1_301), 1):
            assert sink.deliver(attempt(number, records(first, 1_300))) == Delivered()
        sent = [*records(2_601, 3), *(each._replace(value=b"x" * 700_000)
                                      for each in records(2_604, 8))]  # fmt: skip
        assert sink.deliver(attempt(3, sent)) == Delivered()
        lsns = range(1, 2_613)
        before = int(empty.call("INFO", "commandstats")["cmdstat_eval"]["calls"])
        assert held(sink, *lsns) == {**dict.fromkeys(lsns, 1), 2_612: 0}
        pages = int(empty.call("INFO", "commandstats")["cmdstat_eval"]["calls"]) - before
        assert 6 <= pages <= 12, "twice: in turn, and what came late"
        late = records(2_612, 3)
        assert sink.deliver(attempt(4, [], hi=2_614)) == Delivered()
        assert sink.deliver(attempt(5, late, hi=2_614)) == Delivered()
        assert held(sink, 2_612, 2_613, 2_615) == {2_612: 1, 2_613: 1, 2_615: 0}
    monkeypatch.setattr(auditing, "LATE_MAX_RECORDS", 2)
    with sink_of(empty) as sink:
        assert held(sink, 2_611, 2_612, 2_615) == {2_611: 1, 2_612: 1, 2_615: None}


def test_a_server_that_cannot_be_asked_is_told(tmp_path):
    server = RedisServer(tmp_path / "away")
    with sink_of(server) as sink:
        said = sink.holds(LOG, [5])  # type: ignore[attr-defined]
    assert isinstance(said, Systemic)
    assert said.kind is SystemicKind.UNREACHABLE


def test_the_grants_suffice(empty):
    settings = {"username": "wald", "password": Secret(PASSWORD)}
    with sink_of(empty, **settings) as sink:
        (statement,) = sink.grants()  # type: ignore[attr-defined]
        empty.call(*(word.strip('"') for word in statement.split(" ")), f">{PASSWORD}")
        try:
            assert sink.deliver(attempt(1, records(5, 1))) == Delivered()
            assert held(sink, 5, 6) == {5: 1, 6: 0}
        finally:
            empty.call("ACL", "DELUSER", "wald")


CONFIG = """
[sinks.queue]
type = "redis"
url = "{url}"
[routes.events]
stream = "events"
sink = "queue"
lanes = 2
batch = {{ max_age = "20ms", max_records = 50 }}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


def test_an_audit_compares_a_stream_record_by_record(place, empty):
    with (
        Daemon(place, config=CONFIG.format(url=empty.url)) as daemon,
        wald.connect(daemon.socket) as producer,
    ):
        producer.append_many("events", list(range(200)), key=str)
        daemon.command("wait", "--all")

        def audit(expect: int = 0) -> dict[str, Any]:
            (found,) = json.loads(daemon.command("audit", "--json", expect=expect))["routes"]
            return {name: found[name] for name in ("compared", "gone", "missing", "doubled")}

        assert audit() == {"compared": 200, "gone": 0, "missing": 0, "doubled": 0}
        client = empty.client()
        entries = client.xrange("events")
        assert 0 < len(entries) < 200, "two lanes"
        empty.call("XTRIM", "events", "MINID", entries[10][0])
        found = audit()
        assert (found["missing"], found["compared"] + found["gone"]) == (0, 200)
        assert found["gone"] == 10
        assert "190 of them compared with the target, 10 were trimmed there, or deleted" in (
            daemon.command("audit")
        )
        client.delete("events")  # somebody puts it back, and leaves one out
        for name, fields in entries[:3] + entries[4:]:
            client.xadd("events", fields, name)
        client.xadd("events", {**entries[5][1], "redrive_of": entries[5][0].partition(b"-")[0]},
                    entries[-1][0].replace(b"-0", b"-7"))  # fmt: skip
        client.close()
        assert audit(expect=1) == {"compared": 200, "gone": 0, "missing": 1, "doubled": 1}
