"""The files sink: published whole and once, whatever fails or dies; names, partitions, formats."""

import csv
import errno
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import msgpack
import pytest
from backports import zstd

from tests.servers.need import need_module
from tests.unit.test_sqlite_sink import KEY, LOG_ID, TIME_NS, A, B, attempt, record
from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.model import (
    Content,
    Delivered,
    Rejected,
    RowMoved,
    Severity,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.files import make, sink
from wald.sinks.files.encoding import Ndjson
from wald.sinks.files.options import read_options
from wald.sinks.files.partitions import escaped, path_of
from wald.sinks.files.place import HIDDEN


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def open_sink(root):
    def opened(stream="events", **settings):
        return make("route", stream, {"path": str(root), **settings})

    return opened


def published(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and HIDDEN not in path.parts)


def lines(root):
    return [json.loads(line) for path in published(root) for line in texts(path)]


def texts(path):
    content = path.read_text()
    assert content.endswith("\n")
    return content.split("\n")[:-1]


def hidden(root):
    return sorted(path.suffix for path in (root / HIDDEN).iterdir())


# --- once ---------------------------------------------------------------------------------------


def test_a_batch_is_one_file_that_says_whose_it_is(root, open_sink):
    sent = attempt(record(7, {"user": "ann"}, key="ann"), record(9, [1, 2]))
    assert open_sink().deliver(sent) == Delivered()
    (path,) = published(root)
    assert path.name == (
        f"events-{LOG_ID[:8].hex()}-{7:020d}-{9:020d}-{sent.row.rev_id.hex()}.ndjson"
    )
    assert lines(root) == [
        {
            "log_id": LOG_ID.hex(),
            "lsn": 7,
            "key": "ann",
            "time": "2025-11-22T10:14:03.120456Z",
            "headers": None,
            "value": {"user": "ann"},
        },
        {
            "log_id": LOG_ID.hex(),
            "lsn": 9,
            "key": None,
            "time": "2025-11-22T10:14:03.120456Z",
            "headers": None,
            "value": [1, 2],
        },
    ]
    assert hidden(root) == [".lock", ".row"]


def test_who_takes_a_file_away_does_not_get_it_again(root, open_sink):
    sent = attempt(record(7, 1))
    assert open_sink().deliver(sent) == Delivered()
    published(root)[0].unlink()
    again = open_sink()
    assert again.read_row(KEY) == sent.row
    assert again.deliver(sent) == RowMoved(sent.row)
    assert published(root) == []
    assert again.deliver(attempt(record(8, 1), number=2, rev_id=B, prev=A)) == Delivered()
    assert [line["lsn"] for line in lines(root)] == [8]


def test_a_backup_of_files_half_published_is_finished_also_where_it_comes_back_under_a_sink(
    root, open_sink, tmp_path, monkeypatch
):
    first, second = attempt(record(7, 1)), attempt(record(8, 1), number=2, rev_id=B, prev=A)
    real = Path.replace

    def dies(self, target):
        if self.suffix == ".tmp":
            raise Killed
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(Killed):
            open_sink().deliver(first)
    shutil.copytree(root, tmp_path / "backup")
    opened = open_sink()
    assert opened.deliver(second) == Delivered()
    for path in [*published(root), *(root / HIDDEN).iterdir()]:
        path.unlink()
    shutil.copytree(tmp_path / "backup", root, dirs_exist_ok=True)
    assert opened.deliver(second) == Delivered()
    assert [line["lsn"] for line in lines(root)] == [7, 8]


OPEN = os.open


class Failing:
    """Every door to the disk; the n-th call fails, or the process dies there, behind it or not."""

    DOORS = ((os, "open"), (os, "write"), (os, "fsync"), (Path, "replace"), (Path, "mkdir"))

    def __init__(self, monkeypatch, at, error, *, behind):
        self.left, self.error, self.behind, self.fired = at, error, behind, False
        for owner, name in self.DOORS:
            monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, real):
        def call(*arguments, **named):
            self.left -= 1
            if self.left == 0 and not self.behind:
                self.fire()
            result = real(*arguments, **named)
            if self.left == 0 and self.behind:
                if real is OPEN:
                    os.close(result)  # nobody will know it
                self.fire()
            return result

        return call

    def fire(self):
        self.fired = True
        raise self.error


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "damaged"), OSError(28, "full")])
@pytest.mark.parametrize("partitions", [[], ["field:user"]])
def test_whatever_call_fails_a_batch_is_published_once(root, open_sink, error, behind, partitions):
    sends = [
        attempt(record(1, {"user": "a"}), record(2, {"user": "b"})),
        attempt(record(3, {"user": "a"}), record(4, {"user": "c"}), number=2, rev_id=B, prev=A),
    ]
    for at in range(1, 200):
        for path in sorted(root.rglob("*"), reverse=True) if root.exists() else []:
            path.rmdir() if path.is_dir() else path.unlink()
        opened, outcomes = open_sink(partitions=partitions), []
        assert opened.deliver(sends[0]) == Delivered()
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, error, behind=behind)
            try:
                outcomes.append(opened.deliver(sends[1]))
            except Killed:
                opened = open_sink(partitions=partitions)  # another process
        row = opened.read_row(KEY)
        if isinstance(row, Systemic):
            row = opened.read_row(KEY)
        if row != sends[1].row:
            assert row == sends[0].row
            assert not any(isinstance(each, Delivered) for each in outcomes)
            assert opened.deliver(sends[1]) == Delivered()
        assert isinstance(opened.deliver(sends[1]), RowMoved)
        assert [line["lsn"] for line in sorted(lines(root), key=lambda line: line["lsn"])] == [
            1,
            2,
            3,
            4,
        ]
        assert hidden(root) == [".lock", ".row"]
        if not failing.fired:
            assert outcomes == [Delivered()]
            return
    pytest.fail("there are more calls than were tried")


def test_an_error_is_unknown_from_the_commit_on_and_systemic_before(root, open_sink, monkeypatch):
    opened = open_sink()
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, 1, OSError(errno.ENOSPC, "no space"), behind=False)
        before = opened.deliver(attempt(record(1, 1)))
    assert isinstance(before, Systemic)
    assert before.kind is SystemicKind.FULL
    opened.read_row(KEY)
    real = Path.replace

    def fail(self, target):
        real(self, target)
        raise OSError(errno.EIO, "damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert isinstance(opened.deliver(attempt(record(1, 1))), Unknown)
    assert opened.read_row(KEY) == attempt(record(1, 1)).row
    assert [line["lsn"] for line in lines(root)] == [1]


def test_lanes_begin_in_a_new_directory_at_the_same_time(root, open_sink):
    keys = [KEY._replace(lane=lane) for lane in range(16)]

    def deliver(key):
        sent = attempt(record(key.lane + 1, {"user": "x"}), key=key)
        return open_sink(partitions=["date", "field:user"]).deliver(sent)

    for turn in range(5):
        shutil.rmtree(root, ignore_errors=True)
        with ThreadPoolExecutor(len(keys)) as pool:
            assert set(map(repr, pool.map(deliver, keys))) == {repr(Delivered())}, turn
        assert sorted(line["lsn"] for line in lines(root)) == list(range(1, 17))


def test_leftovers_of_a_lane_are_removed_and_those_of_others_are_not(root, open_sink):
    opened = open_sink()
    assert opened.deliver(attempt(record(1, 1))) == Delivered()
    (row,) = (root / HIDDEN).glob("*.row")
    ours = root / HIDDEN / f"{row.stem}-{'0' * 32}-0.tmp"
    other = root / HIDDEN / f"{'f' * 32}-1-0-0-{'0' * 32}-0.tmp"
    for path in (ours, other):
        path.write_text("half of a fi")
    open_sink().read_row(KEY)
    assert not ours.exists()
    assert other.exists()


# --- partitions ---------------------------------------------------------------------------------

HOSTILE = [
    ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
    ("..", ".."),
    ("", ""),
    ("a/b\0c\n", "a%2Fb%00c%0A"),
    ("ä", "%C3%A4"),
    ("\ud800", "%3F"),
    (b"\xff\x00", "%FF%00"),
    (None, "__null__"),
    (7, "7"),
    (True, "true"),
    ([1, "/"], "%5B1%2C%22%2F%22%5D"),
    (1.5, "1.5"),
]


@pytest.mark.parametrize(("value", "name"), HOSTILE, ids=repr)
def test_a_hostile_value_stays_in_its_directory(root, open_sink, value, name):
    assert escaped(value) == name
    opened = open_sink(partitions=["field:who"])
    if value == "\ud800":
        return  # has no form in a file either
    assert opened.deliver(attempt(record(1, {"who": value}))) == Delivered()
    (path,) = published(root)
    assert path.parent == root / f"who={name}"


def test_a_long_value_is_cut_and_told_apart_by_its_digest(root, open_sink):
    names = {escaped("ä" * 500), escaped("ä" * 499 + "o")}
    assert len(names) == 2
    assert all(len(name) < 200 for name in names)
    sent = attempt(record(1, {}, key="x" * 1024), record(2, {}, key="x" * 1023))
    assert open_sink(partitions=["key"]).deliver(sent) == Delivered()
    assert len(published(root)) == 2


def test_a_batch_is_divided_by_day_hour_key_and_field_in_order(root, open_sink):
    parts = ["date", "hour", "key", "field:a b"]
    sent = [record(lsn, {"a b": lsn % 2}, key="k") for lsn in range(1, 7)]
    assert open_sink(partitions=parts).deliver(attempt(*sent)) == Delivered()
    found = {
        path.parent.relative_to(root).as_posix(): [json.loads(line)["lsn"] for line in texts(path)]
        for path in published(root)
    }
    assert found == {
        "date=2025-11-22/hour=10/key=k/a%20b=0": [2, 4, 6],
        "date=2025-11-22/hour=10/key=k/a%20b=1": [1, 3, 5],
    }
    assert path_of([])(sent[0]) == ""


def test_days_alone_divide_a_batch_that_goes_over_midnight(root, open_sink):
    midnight_ns = 1_763_856_000_000_000_000
    sent = [record(lsn, {"n": lsn})._replace(time_ns=midnight_ns + lsn - 3) for lsn in range(1, 6)]
    assert open_sink(partitions=["date", "hour"]).deliver(attempt(*sent)) == Delivered()
    found = {str(path.parent.relative_to(root)): len(texts(path)) for path in published(root)}
    assert found == {"date=2025-11-22/hour=23": 2, "date=2025-11-23/hour=00": 3}


def test_a_time_in_a_field_is_a_partition_by_its_text(root, open_sink):
    sent = attempt(record(1, {"at": msgpack.Timestamp(0)}), record(2, [1]))
    assert open_sink(partitions=["field:at"]).deliver(sent) == Delivered()
    names = {path.parent.name for path in published(root)}
    assert names == {"at=1970-01-01T00%3A00%3A00%2B00%3A00", "at=__null__"}


@pytest.mark.parametrize("odd", [{b"\1": 1}, msgpack.Timestamp(1 << 62)], ids=repr)
def test_a_field_that_names_no_directory_costs_its_record(open_sink, odd):
    opened = open_sink(mode="columns", columns={"n": "n"}, partitions=["field:who"])
    sent = attempt(record(1, {"n": 1, "who": 1}), record(2, {"n": 2, "who": odd}))
    told = opened.deliver(sent)
    assert isinstance(told, Rejected)
    assert [each.lsn for each in told.records] == [2]
    assert [each.lsn for each in opened.probe(sent, sent.records)] == [2]


def test_a_disk_that_is_too_slow_for_an_attempt_commits_nothing(root, open_sink):
    opened = open_sink(partitions=["key"])
    sent = attempt(*(record(lsn, {}, key=str(lsn)) for lsn in range(1, 5)))
    told = opened.deliver(replace(sent, timeout_s=0.0))
    assert isinstance(told, Systemic)
    assert told.kind is SystemicKind.BUSY
    assert published(root) == []
    assert hidden(root) == [".lock"]
    assert opened.deliver(sent) == Delivered()


def test_a_batch_of_too_many_partitions_is_too_large(open_sink):
    sent = [record(lsn, {}, key=str(lsn)) for lsn in range(1, 300)]
    assert isinstance(open_sink(partitions=["key"]).deliver(attempt(*sent)), TooLarge)


# --- formats ------------------------------------------------------------------------------------

VALUE = {"i": 7, "f": 1.5, "b": True, "t": 'a "b",\nc', "m": {"x": [1]}, "y": b"\x01", "n": None}
COLUMNS = {name: name for name in VALUE}


def test_values_go_as_they_are_a_line_each(root, open_sink):
    sent = attempt(
        record(1, VALUE),
        record(2, b'{\n "a": 1.50\n}', Content.JSON),
        record(3, b'{ "a": 1.50 }', Content.JSON),
        record(4, b"\x00\xff", Content.BYTES),
    )
    assert open_sink(mode="columns").deliver(sent) == Delivered()
    (path,) = published(root)
    assert path.read_text().splitlines()[1:] == ['{"a":1.5}', '{ "a": 1.50 }', '"AP8="']
    assert lines(root)[0] == {**VALUE, "y": "AQ=="}


ALIKE = [
    VALUE,
    {"d": msgpack.Timestamp(0, 120_456_000), "e": msgpack.ExtType(3, b"1.50"), "f": 1e16},
    {"n": float("nan"), "i": [float("inf"), float("-inf")], "u": (1 << 64) - 1, "ä": "\u2028"},
    {1: "x", None: "z"},
    {True: "y"},
    {1.5: "x"},
    [1, [2, {}]],
    "text",
    None,
]


@pytest.mark.parametrize("value", ALIKE, ids=repr)
def test_a_line_says_the_same_by_the_quick_way_and_by_the_careful_one(value):
    encoder = Ndjson(read_options("r", "events", {"path": "x", "mode": "columns"}))
    records = [record(1, value)]
    quick = encoder.join(encoder.make(LOG_ID, records).parts)
    encoder._quick = False
    careful = encoder.join(encoder.make(LOG_ID, records).parts)
    assert json.loads(quick) == json.loads(careful)
    assert quick.count(b"\n") == careful.count(b"\n") == 1


def test_columns_of_ndjson_follow_the_rules_of_fields(root, open_sink):
    opened = open_sink(mode="columns", columns={"who": "user", "rest": "*"})
    assert opened.deliver(attempt(record(1, {"user": "ann", "x": 1}), record(2, {}))) == Delivered()
    assert lines(root) == [{"who": "ann", "rest": {"x": 1}}, {"who": None, "rest": {}}]


def test_compressed_files_are_frames_of_zstandard(root, open_sink):
    opened = open_sink(mode="columns", compression="zstd")
    assert opened.deliver(attempt(record(1, {"a": 1}))) == Delivered()
    (path,) = published(root)
    assert path.name.endswith(".ndjson.zst")
    assert zstd.decompress(path.read_bytes()) == b'{"a":1}\n'


@pytest.mark.parametrize("mode", ["document", "columns"])
def test_csv_holds_what_was_sent(root, open_sink, mode):
    columns = {"columns": COLUMNS} if mode == "columns" else {}
    opened = open_sink(format="csv", mode=mode, **columns)
    assert opened.deliver(attempt(record(1, VALUE, key=b"\xff"))) == Delivered()
    (path,) = published(root)
    (row,) = csv.DictReader(io.StringIO(path.read_text(), newline=""))
    if mode == "columns":
        assert row == {
            "i": "7",
            "f": "1.5",
            "b": "true",
            "t": 'a "b",\nc',
            "m": '{"x":[1]}',
            "y": "AQ==",
            "n": "",
        }
    else:
        assert (row["lsn"], row["key"]) == ("1", "/w==")
        assert json.loads(row["value"]) == {**VALUE, "y": "AQ=="}


PARQUET = {
    "integer": (7, 7),
    "number": (7, 7.0),
    "boolean": (False, False),
    "timestamp": (msgpack.Timestamp(0), datetime(1970, 1, 1, tzinfo=UTC)),
    "date": ("2026-11-28", date(2026, 11, 28)),
    "bytes": (b"\x01", b"\x01"),
    "text": ({"x": [1]}, '{"x":[1]}'),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_a_column_of_parquet_has_its_type_and_takes_no_other(root, open_sink, kind):
    pq = need_module("pyarrow.parquet", "pip install 'wald[parquet]'")
    value, stored = PARQUET[kind]
    columns = {"mode": "columns", "columns": {"c": "c"}, "types": {"c": kind}}
    opened = open_sink(format="parquet", **columns)
    sent = attempt(record(1, {"c": value}), record(2, {}))
    assert opened.deliver(sent) == Delivered()
    (path,) = published(root)
    assert pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist() == [
        {"c": stored},
        {"c": None},
    ]
    if kind != "text":
        wrong = opened.deliver(attempt(record(3, {"c": [1]}), number=2, rev_id=B, prev=A))
        assert isinstance(wrong, Rejected)
        assert wrong.records[0].code == "record.value"


def test_documents_of_parquet(root, open_sink):
    pq = need_module("pyarrow.parquet", "pip install 'wald[parquet]'")
    assert open_sink(format="parquet").deliver(attempt(record(5, {"a": 1}, key="k"))) == Delivered()
    (path,) = published(root)
    (row,) = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist()
    moment = datetime.fromtimestamp(TIME_NS // 10**9, UTC).replace(microsecond=120456)
    assert row == {
        "log_id": LOG_ID.hex(),
        "lsn": 5,
        "key": "k",
        "time": moment,
        "headers": None,
        "value": '{"a":1}',
    }


# --- settings, check ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, ConfigError),
        ({"path": "x", "formt": "csv"}, UnknownSetting),
        ({"path": "x", "format": "xml"}, WrongSetting),
        ({"path": "x", "compression": "gzip"}, WrongSetting),
        ({"path": "x", "columns": {"a": "a"}}, WrongSetting),
        ({"path": "x", "mode": "columns", "format": "csv"}, WrongSetting),
        ({"path": "x", "mode": "columns", "on_missing_field": "default"}, WrongSetting),
        ({"path": "x", "partitions": ["day"]}, WrongSetting),
        ({"path": "x", "partitions": ["date", "date"]}, WrongSetting),
        ({"path": "x", "partitions": [f"field:{n}" for n in range(9)]}, WrongSetting),
        ({"path": "x", "types": {"a": "integer"}}, WrongSetting),
        (
            {
                "path": "x",
                "format": "parquet",
                "mode": "columns",
                "columns": {"a": "a"},
                "types": {"b": "text"},
            },
            WrongSetting,
        ),
        (
            {
                "path": "x",
                "format": "parquet",
                "mode": "columns",
                "columns": {"a": "a"},
                "types": {"a": "int"},
            },
            WrongSetting,
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_the_route_s_name(settings, error):
    with pytest.raises(error, match="route 'r'"):
        make("r", "events", settings)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"format": "parquet"}, "pip install 'wald[parquet]'"),
        ({"compression": "zstd"}, "pip install 'wald[zstd]'"),
    ],
)
def test_a_module_that_is_absent_is_told_at_the_start(monkeypatch, settings, hint):
    monkeypatch.setattr(sink, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        make("r", "events", {"path": "x", **settings})
    assert caught.value.hint == hint


def test_check_makes_nothing(root, open_sink, monkeypatch):
    def found(opened):
        return [(each.severity, each.code) for each in opened.check()]

    assert found(open_sink()) == [(Severity.OK, "files.found")]
    assert not root.exists()
    assert found(open_sink(path=str(root / "no" / "x"))) == [(Severity.ERROR, "files.unreachable")]
    root.mkdir()
    assert found(open_sink()) == [(Severity.OK, "files.found")]
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert found(open_sink()) == [(Severity.ERROR, "files.authentication")]


def test_a_row_of_a_newer_release_is_not_taken_for_none(root, open_sink):
    opened = open_sink()
    opened.deliver(attempt(record(1, 1)))
    (row,) = (root / HIDDEN).glob("*.row")
    row.write_text(row.read_text().replace('"format": 1', '"format": 2'))
    told = open_sink().read_row(KEY)
    assert isinstance(told, Systemic)
    assert told.kind is SystemicKind.DAMAGED
    assert "format 2" in told.message
