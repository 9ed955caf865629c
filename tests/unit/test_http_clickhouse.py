"""What a ClickHouse table remembers, and whether what is stated of it is within that."""

import pytest

from wald.model import Severity
from wald.sinks.http.clickhouse import Remembers, judge, remembers
from wald.sinks.http.options import Idempotency

DEFAULTS = {
    "non_replicated_deduplication_window": "0",
    "replicated_deduplication_window": "10000",
    "replicated_deduplication_window_seconds": "3600",
    "replicated_deduplication_window_seconds_for_async_inserts": "604800",
    "deduplicate_insert": "enable",
}
OWN = "MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100, x = 8192"
SHORT = "ReplicatedMergeTree('/a', 'b') SETTINGS replicated_deduplication_window_seconds = 60"


@pytest.mark.parametrize(
    ("engine", "full", "more", "expected"),
    [
        ("MergeTree", "MergeTree ORDER BY n", {}, Remembers(0, None)),
        ("MergeTree", OWN, {}, Remembers(100, None)),
        ("ReplacingMergeTree", OWN, {}, Remembers(100, None)),
        ("ReplicatedMergeTree", "", {}, Remembers(10_000, 3_600.0)),
        ("ReplicatedMergeTree", SHORT, {}, Remembers(10_000, 60.0)),
        ("SharedMergeTree", "", {}, Remembers(10_000, 3_600.0)),
        ("MergeTree", OWN, {"deduplicate_insert": "disable"}, Remembers(0, None)),
        ("Null", OWN, {}, Remembers(0, None)),
        ("Distributed", "", {}, Remembers(0, None)),
        ("Memory", "", {}, Remembers(0, None)),
        ("ReplicatedMergeTree", "", {"replicated_deduplication_window": "?"}, Remembers(0, 3600.0)),
    ],
)
def test_what_a_table_remembers(engine, full, more, expected):
    assert remembers(engine, full, {**DEFAULTS, **more}) == expected


OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
PLAIN, REPLICATED, NOTHING = Remembers(100, None), Remembers(10_000, 3_600.0), Remembers(0, None)


@pytest.mark.parametrize(
    ("window_s", "batches", "table", "severity"),
    [
        (None, None, NOTHING, OK),
        (None, None, PLAIN, WARNING),
        (None, None, REPLICATED, WARNING),
        (None, 100, NOTHING, ERROR),
        (60.0, None, NOTHING, ERROR),
        (None, 100, PLAIN, OK),
        (60.0, 100, PLAIN, OK),
        (None, 101, PLAIN, ERROR),
        (60.0, None, PLAIN, ERROR),
        (3_600.0, 10_000, REPLICATED, OK),
        (3_601.0, 10_000, REPLICATED, ERROR),
        (3_600.0, 10_001, REPLICATED, ERROR),
        (None, 10_000, REPLICATED, ERROR),
        (3_600.0, None, REPLICATED, ERROR),
    ],
)
def test_what_is_stated_must_be_within_what_the_table_remembers(window_s, batches, table, severity):
    stated = Idempotency("", "token", window_s=window_s, window_batches=batches)
    found = judge(stated, table, "db.t")
    assert found.severity is severity, found
    assert "db.t" in found.message
    assert bool(found.hint) is (severity is not OK)
