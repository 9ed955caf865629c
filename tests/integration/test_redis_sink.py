"""Delivery to real servers of Redis and Valkey: what is particular to a stream."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backlog import eventually
from tests.healing import Site
from tests.servers.redis import KINDS, RedisServer
from wald import limits
from wald.errors import ConfigError
from wald.model import (
    Anchor,
    Attempt,
    Content,
    Delivered,
    Finding,
    LaneKey,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    RowMoved,
    Secret,
    Severity,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import Sink
from wald.sinks.redis import make

LOG, OTHER_LOG = b"L" * 16, b"M" * 16
KEY = LaneKey(LOG, 3, 0, 0)
BESIDE = "{events}:wald"
PASSWORD = "canary-7f3a"


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp(request.param), request.param).start()
    yield running
    running.kill()


@pytest.fixture
def empty(server: RedisServer) -> RedisServer:
    """A server without a key, and with the settings that it began with."""
    server.call("FLUSHALL")
    return server


@contextmanager
def sink_of(server: RedisServer, **settings: Any) -> Iterator[Sink]:
    made = make("route", "events", {"url": server.url, **settings})
    try:
        yield made
    finally:
        made.close()


def records(first: int, count: int, **more: Any) -> list[Record]:
    return [Record(first + n, 1, Content.BYTES, b"%d" % n, **more) for n in range(count)]


def attempt(number: int, sent: list[Record], *, hi: int | None = None, **more: Any) -> Attempt:
    """The batch of a number, on the one before; revision n is n sixteen times."""
    hi = sent[-1].lsn if hi is None else hi
    row = ProgressRow(number, bytes([number]) * 16, hi, Anchor(5, 6), 77, bytes(16))
    given = {"key": KEY, "stream": "events", "prev_rev": bytes([number - 1]) * 16, "row": row}
    return Attempt(**{**given, "records": sent, "timeout_s": 30.0, **more})


def ids(server: RedisServer, stream: str = "events") -> list[str]:
    return [name.decode() for name, _ in server.client().xrange(stream)]


# --- ids ------------------------------------------------------------------------------------------


def test_ids_are_lsns_of_63_bits_compared_as_texts(empty):
    """Lua's numbers would take 2^53 and 2^53 + 1 for one."""
    edges = [9, 10, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 2, 2**63 - 1]
    sent = [records(lsn, 1)[0] for lsn in edges]
    with sink_of(empty) as sink:
        for number, record in enumerate(sent, 1):
            assert sink.deliver(attempt(number, [record])) == Delivered()
        assert ids(empty) == [f"{lsn}-0" for lsn in edges]
        row = sink.read_row(KEY)
        assert isinstance(row, ProgressRow)
        assert row == attempt(7, sent[-1:]).row


def test_a_row_that_was_lost_doubles_nothing_in_the_stream(empty):
    """The hash beside it was thrown away: the lane begins anew, the ids keep what is there."""
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 4))) == Delivered()
        empty.call("DEL", BESIDE)
        assert sink.read_row(KEY) is None
        outcome = sink.deliver(attempt(1, records(5, 6)))
        assert outcome == Delivered({"known-to-target": 4})
        assert ids(empty) == [f"{lsn}-0" for lsn in range(5, 11)]


def test_a_trimmed_stream_takes_nothing_again(empty):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 4))) == Delivered()
        empty.call("XTRIM", "events", "MAXLEN", 0)
        assert sink.deliver(attempt(1, records(5, 4))) == RowMoved(attempt(1, records(5, 4)).row)
        assert sink.deliver(attempt(2, records(9, 1))) == Delivered()
        assert ids(empty) == ["9-0"]


def test_a_redriven_record_stands_behind_all_others_under_its_own_name(empty):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(10, 2))) == Delivered()
        again = attempt(2, records(3, 2), hi=11)
        assert sink.deliver(again) == Delivered()
        assert sink.deliver(again) == RowMoved(again.row)
        assert sink.deliver(attempt(3, records(4, 1), hi=11)) == Delivered()
        assert sink.deliver(attempt(4, records(12, 1))) == Delivered()
    found = empty.client().xrange("events")
    assert [name for name, _ in found] == [b"10-0", b"11-0", b"11-1", b"11-2", b"11-3", b"12-0"]
    assert [entry.get(b"redrive_of") for _, entry in found] == [None, None, b"3", b"4", b"4", None]


@pytest.mark.parametrize("denied", ["hset", "xtrim"])
def test_a_user_who_may_add_and_nothing_else_doubles_no_redriven_record(empty, denied):
    """A script is not taken back where it fails: what may fail is tried before the first entry."""
    with sink_of(empty, maxlen=1_000) as sink:
        assert sink.deliver(attempt(1, records(10, 2))) == Delivered()
        again = attempt(2, records(3, 2), hi=11)
        empty.call("ACL", "SETUSER", "default", f"-{denied}")
        try:
            assert isinstance(sink.deliver(again), Systemic)
            assert isinstance(sink.deliver(again), Systemic)
        finally:
            empty.call("ACL", "SETUSER", "default", f"+{denied}")
        assert sink.deliver(again) == Delivered()
    assert ids(empty) == ["10-0", "11-0", "11-1", "11-2"]


def test_what_a_transform_made_of_one_lsn_or_in_another_order_is_all_there(empty):
    sent = [records(lsn, 1)[0] for lsn in (6, 6, 9, 7, 10)]
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, sent)) == Delivered()
        assert sink.deliver(attempt(2, records(11, 1))) == Delivered()
    found = empty.client().xrange("events")
    assert [name for name, _ in found] == [b"6-0", b"6-1", b"9-0", b"9-1", b"10-0", b"11-0"]
    assert [entry.get(b"lsn") for _, entry in found] == [None, b"6", None, b"7", None, None]


def test_a_batch_without_records_moves_the_row(empty):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, [], hi=8)) == Delivered()
        assert sink.deliver(attempt(2, records(9, 1))) == Delivered()
        assert ids(empty) == ["9-0"]


def test_lanes_have_streams_of_their_own(empty):
    with sink_of(empty, stream_key="{shop}.bookings") as sink:
        for lane in (0, 1, 2):
            given = attempt(1, records(5 + lane, 1), key=KEY._replace(lane=lane))
            assert sink.deliver(given) == Delivered()
    held = sorted(name.decode() for name in empty.call("KEYS", "*"))
    streams = ["{shop}.bookings", "{shop}.bookings:1", "{shop}.bookings:2"]
    assert held == sorted([*streams, *[f"{name}:wald" for name in streams]])


def test_maxlen_trims_what_is_old(empty):
    with sink_of(empty, maxlen=100) as sink:
        for number in range(1, 6):
            assert sink.deliver(attempt(number, records(number * 1_000, 200))) == Delivered()
    assert 100 <= empty.call("XLEN", "events") < 300  # whole nodes of the stream


# --- owners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (KEY._replace(log_id=OTHER_LOG), f"is of route 3 of log {LOG.hex()}"),
        (KEY._replace(route_id=4), f"is of route 3 of log {LOG.hex()}"),
    ],
    ids=["another log", "another route of the same log"],
)
def test_a_stream_has_one_owner(empty, key, words):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 4))) == Delivered()
        for outcome in (sink.read_row(key), sink.deliver(attempt(1, records(50, 1), key=key))):
            assert isinstance(outcome, Systemic)
            assert outcome.kind is SystemicKind.OWNED
            assert words in outcome.message
            assert "stream_key" in outcome.hint
        assert len(ids(empty)) == 4


def test_a_stream_that_others_write_is_not_taken(empty):
    """Their ids are times: above every LSN, so that the server would take nothing of ours."""
    empty.call("XADD", "events", "*", "a", "b")
    with sink_of(empty) as sink:
        for outcome in (sink.read_row(KEY), sink.deliver(attempt(1, records(5, 1)))):
            assert isinstance(outcome, Systemic)
            assert outcome.kind is SystemicKind.OWNED
            assert "has entries of others" in outcome.message
            assert "DEL" not in outcome.hint
    assert empty.call("EXISTS", BESIDE) == 0


def test_an_entry_that_somebody_adds_later_hides_nothing_of_ours(empty):
    """Above its id, a time, the server would take nothing of ours: it would be passed over."""
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 4))) == Delivered()
        stray = empty.call("XADD", "events", "*", "a", "b")
        for outcome in (sink.read_row(KEY), sink.deliver(attempt(2, records(9, 2)))):
            assert isinstance(outcome, Systemic)
            assert outcome.kind is SystemicKind.OWNED
            assert "DEL events {events}:wald" in outcome.hint
        assert [each.code for each in sink.check() if each.severity is Severity.ERROR] == [
            "redis.owned"
        ]
        empty.call("XDEL", "events", stray)
        assert isinstance(sink.read_row(KEY), Systemic), "its id is still the highest"
        empty.call("DEL", "events", BESIDE)
        assert sink.read_row(KEY) is None
        assert sink.deliver(attempt(1, records(5, 6))) == Delivered()
        assert ids(empty) == [f"{lsn}-0" for lsn in range(5, 11)]


def test_another_layout_goes_on_in_a_stream_that_was_read_and_emptied(empty):
    with sink_of(empty) as sink:
        assert sink.deliver(attempt(1, records(5, 4))) == Delivered()
        empty.call("XTRIM", "events", "MAXLEN", 0)
        later = KEY._replace(layout=1)
        assert sink.read_row(later) is None
        assert sink.deliver(attempt(1, records(9, 2), key=later)) == Delivered()
        assert ids(empty) == ["9-0", "10-0"]
        assert sink.read_row(KEY) == attempt(1, records(5, 4)).row


# --- errors ---------------------------------------------------------------------------------------


def refuse_memory(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "maxmemory", 1)


def follow_another(server: RedisServer) -> None:
    server.call("REPLICAOF", "127.0.0.1", 1)


def want_replicas(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "min-replicas-to-write", 2)


def put_another_kind(server: RedisServer) -> None:
    server.call("DEL", "events")
    server.call("SET", "events", "no stream")


def want_a_password(server: RedisServer) -> None:
    client = server.client()
    client.config_set("requirepass", "another")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")  # all others
    client.close()


def forbid_the_stream(server: RedisServer) -> None:
    server.call("ACL", "SETUSER", "default", "resetkeys", "~others")


def mend(server: RedisServer) -> None:
    client = server.client(password="another", username="default")
    for line in (
        "CONFIG SET requirepass ''", "ACL SETUSER default allkeys nopass", "REPLICAOF NO ONE",
        "CONFIG SET maxmemory 0", "CONFIG SET min-replicas-to-write 0",
    ):  # fmt: skip
        client.execute_command(*[word.strip("'") for word in line.split(" ")])
    client.close()


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (refuse_memory, SystemicKind.FULL),
        (follow_another, SystemicKind.UNREACHABLE),
        (want_replicas, SystemicKind.UNREACHABLE),
        (put_another_kind, SystemicKind.CONFIGURATION),
        (want_a_password, SystemicKind.AUTHENTICATION),
        (forbid_the_stream, SystemicKind.AUTHENTICATION),
    ],
)
def test_what_concerns_the_server_is_told_as_such_and_passes(server, trouble, kind):
    server.call("FLUSHALL")
    with sink_of(server) as sink:
        assert sink.deliver(attempt(1, records(5, 2))) == Delivered()
        try:
            trouble(server)
            outcome = sink.deliver(attempt(2, records(7, 2)))
            if isinstance(outcome, Unknown):  # the connection was cut: by the next one it is told
                outcome = sink.deliver(attempt(2, records(7, 2)))
            assert isinstance(outcome, Systemic), outcome
            assert outcome.kind is kind, outcome
        finally:
            mend(server)
        if trouble is put_another_kind:
            return
        assert sink.deliver(attempt(2, records(7, 2))) == Delivered()
        assert ids(server) == ["5-0", "6-0", "7-0", "8-0"]


def test_a_server_that_is_away_is_out_of_reach(place):
    server = RedisServer(place)
    with sink_of(server) as sink:
        for outcome in (sink.read_row(KEY), sink.deliver(attempt(1, records(5, 1)))):
            assert isinstance(outcome, Systemic)
            assert outcome.kind is SystemicKind.UNREACHABLE


def test_a_server_that_hangs_is_given_up_in_time_and_its_late_effect_is_seen(place):
    server = RedisServer(place).start()
    try:
        with sink_of(server) as sink:
            assert sink.read_row(KEY) is None
            server.pause()
            outcome = sink.deliver(replace(attempt(1, records(5, 1)), timeout_s=0.2))
            assert isinstance(outcome, Unknown)
            server.resume()
            eventually(lambda: sink.read_row(KEY) == attempt(1, records(5, 1)).row)
            assert ids(server) == ["5-0"]
    finally:
        server.resume()
        server.kill()


def test_no_message_holds_the_password(place):
    server = RedisServer(place, requirepass="right-one").start()
    settings = {"password": Secret(PASSWORD), "username": "default"}
    try:
        with sink_of(server, **settings) as sink:
            said = [repr(sink.read_row(KEY)), repr(sink.check())]
            assert "authentication" in said[1]
            server.kill()
            said += [repr(sink.read_row(KEY)), repr(sink.deliver(attempt(1, records(5, 1))))]
        assert not [text for text in said if PASSWORD in text]
    finally:
        server.kill()


# --- until it lasts -------------------------------------------------------------------------------


def test_valkey_is_waited_for_until_its_disk_has_it(place):
    server = RedisServer(place, "valkey", appendfsync="everysec").start()
    try:
        with sink_of(server) as sink:
            assert sink.deliver(attempt(1, records(5, 1))) == Delivered()
            assert "cmdstat_waitaof" in server.call("INFO", "commandstats")
            server.call("CONFIG", "SET", "appendfsync", "no")
            late = sink.deliver(replace(attempt(2, records(6, 1)), timeout_s=0.2))
            assert isinstance(late, Unknown), late
            assert "not on the server's disk" in late.message
            assert sink.read_row(KEY) == attempt(2, records(6, 1)).row
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("redis", {"appendonly": "no"}, ["no-aof"]),
        ("valkey", {"appendonly": "no"}, ["no-aof"]),
        ("redis", {"appendfsync": "everysec"}, ["no-waitaof"]),
        ("valkey", {"appendfsync": "everysec"}, ["waits"]),
        ("redis", {}, []),
        ("valkey", {"maxmemory_policy": "allkeys-lru"}, ["evicts"]),
    ],
)
def test_a_server_that_may_forget_is_warned_of(place, kind, settings, expected):
    server = RedisServer(place, kind, **settings).start()
    try:
        with sink_of(server) as sink:
            found = [each.code for each in sink.check()]
            assert found == ["redis.found", *[f"redis.{code}" for code in expected]]
            assert sink.deliver(attempt(1, records(5, 1))) == Delivered()
    finally:
        server.kill()


def test_replicas_that_are_not_there_are_missed(empty):
    with sink_of(empty, wait_replicas=1) as sink:
        outcome = sink.deliver(replace(attempt(1, records(5, 1)), timeout_s=0.1))
        assert isinstance(outcome, Unknown)
        assert "0 of 1 replicas" in outcome.message
        assert sink.read_row(KEY) == attempt(1, records(5, 1)).row


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "value", "held"),
    [
        (Content.BYTES, b"\x00\xff", b"\x00\xff"),
        (Content.BYTES, b"", b""),
        (Content.MSGPACK, b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b'{"a":null}'),
        (Content.MSGPACK, b"\x81\xa1a\xa3x\x00y", b'{"a":"x\\u0000y"}'),
        (Content.MSGPACK, b"\x01", b"1"),
        (Content.MSGPACK, b"\x82\xa1a\x01\xa1a\x02", b'{"a":2}'),
        (Content.JSON, b'{"a": "\\ud800"}', b'{"a": "\\ud800"}'),
        (Content.JSON, b'{"a":NaN}', None),
        (Content.JSON, b"{", None),
        (Content.MSGPACK, b"\x81\xa1", None),
        (Content.MSGPACK, b"\xa1\xff", None),
        (Content.MSGPACK, b"\xd4\x7f\x00", None),
        (Content.MSGPACK, b"\x91" * 1_100 + b"\x01", None),
    ],
    ids=[
        "bytes stay bytes", "nothing", "NaN is null", "NUL in text", "no map",
        "of a key that stands twice the last counts", "half a surrogate pair stays escaped",
        "NaN is not JSON", "not JSON", "cut short", "not UTF-8", "unknown extension",
        "nested too deeply",
    ],
)  # fmt: skip
def test_a_value_is_an_entry_or_refused_with_words_and_its_neighbours_land(
    empty, content, value, held
):
    sent = records(5, 999)
    sent.insert(500, Record(10_000, 1, content, value, key="k", headers={"h": "x"}))
    sent = [record._replace(lsn=5 + n) for n, record in enumerate(sent)]
    with sink_of(empty) as sink:
        outcome = sink.deliver(attempt(1, sent))
        if held is None:
            assert isinstance(outcome, Rejected)
            assert [each.lsn for each in outcome.records] == [505]
            assert outcome.records[0].message
            assert sink.probe(attempt(1, sent), sent) == outcome.records
            sent.pop(500)
            outcome = sink.deliver(attempt(1, sent))
        assert outcome == Delivered()
    found = dict(empty.client().xrange("events"))
    assert len(found) == len(sent)
    if held is not None:
        entry = found[b"505-0"]
        assert entry[b"value"] == held
        assert (entry[b"key"], entry[b"headers"]) == (b"k", b'{"h":"x"}')
        assert entry[b"log_id"] == LOG.hex().encode()


@pytest.mark.parametrize("key", ["a\nb\x00'\"; FLUSHALL", b"\x00\xff", "", "ключ"])
def test_a_hostile_key_is_data(empty, key):
    with sink_of(empty, stream_key="we'ird\n\"key") as sink:
        assert sink.deliver(attempt(1, records(5, 1, key=key))) == Delivered()
    ((_, entry),) = empty.client().xrange("we'ird\n\"key")
    assert entry[b"key"] == (key.encode() if isinstance(key, str) else key)


# --- the whole lane -------------------------------------------------------------------------------


class Stream(Site):
    """A route to one stream, whose server is killed, and put back to a copy of its files."""

    def __init__(self, place: Path, kind: str, **route: Any) -> None:
        super().__init__(place, **route)
        self.server = RedisServer(place / "server", kind, appendfsync="everysec").start()
        self.refused: set[int] = set()

    def sink(self) -> Sink:
        return Refusing(make("events", "events", {"url": self.server.url}), self)

    def held(self) -> list[tuple[int]]:
        """LSNs in the order of the stream; of a redriven record that which it had."""
        client = self.server.client()
        try:
            found = client.xrange("events")
        finally:
            client.close()
        named = [entry.get(b"redrive_of") or name.partition(b"-")[0] for name, entry in found]
        return [(int(lsn),) for lsn in named]

    def copy_target(self, name: str = "backup") -> Path:
        self.server.kill()
        copy = self.place / name
        shutil.copytree(self.server.place, copy, ignore=shutil.ignore_patterns("*.sock"))
        self.server.start()
        return copy

    def restore_target(self, backup: Path) -> None:
        self.server.kill()
        shutil.rmtree(self.server.place)
        shutil.copytree(backup, self.server.place)
        self.server.start()

    def refuse(self, *lsns: int) -> None:
        self.refused = set(lsns)

    def close(self) -> None:
        super().close()
        self.server.kill()


class Refusing:
    """Passes everything on but the records that the site refuses."""

    def __init__(self, inner: Sink, site: Stream) -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def deliver(self, attempt: Attempt) -> Any:
        refused = self.probe(attempt, attempt.records)
        return Rejected(refused, "not here") if refused else self._inner.deliver(attempt)

    def probe(self, _: Attempt, records: Any) -> tuple[RejectedRecord, ...]:
        refused = self._site.refused
        return tuple(
            RejectedRecord(each.lsn, "no", "not here") for each in records if each.lsn in refused
        )


@pytest.fixture
def soon(monkeypatch):
    for name in ("REREAD_S", "PARKED_REREAD_S", "REWIND_PAUSE_S"):
        monkeypatch.setattr(limits, name, 0.02)


@pytest.fixture(params=KINDS)
def stream(place, request, soon) -> Iterator[Stream]:
    made = Stream(place, request.param)
    yield made
    made.close()


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(stream):
    with stream.delivering(), stream.under_load():
        for kill in range(1, 4):
            eventually(lambda: len(stream.held()) > kill * 40)  # noqa: B023 - used in this round
            stream.server.kill()
            stream.server.start()
    with stream.delivering():
        stream.wait_whole()
        assert stream.held() == sorted(stream.held())


def test_a_restored_server_gets_again_what_it_forgot(stream):
    with stream.delivering():
        stream.append(10)
        stream.wait_whole()
        copy = stream.copy_target()
        stream.append(15)
        stream.wait_whole()
        stream.restore_target(copy)
        stream.wait_whole()
        assert stream.held() == sorted(stream.held())


def test_a_server_that_lost_everything_is_filled_again(stream):
    with stream.delivering():
        stream.append(10)
        stream.wait_whole()
        stream.server.call("FLUSHALL")
        stream.wait_whole()


def test_a_dead_letter_is_sent_again_once_behind_the_others_and_across_a_restore(stream):
    with stream.delivering():
        stream.append(6)
        stream.wait_whole()
        bad = stream.backlog.log.frontier.lsn + 2
        stream.refuse(bad)
        stream.append(4)
        stream.wait_whole(bad)
        copy = stream.copy_target()
        stream.refuse()
        stream.redrive(bad)
        stream.wait_whole()
        assert stream.held()[-1] == (bad,)
        stream.append(3)
        stream.wait_whole()
        stream.restore_target(copy)  # the target forgot the redrive: it is a dead letter again
        stream.wait_whole(bad)
        stream.redrive(bad)
        stream.wait_whole()
        assert stream.held()[-1] == (bad,)


def test_a_stream_of_another_log_parks_the_route_until_it_is_free(stream):
    with sink_of(stream.server) as other:
        assert other.deliver(attempt(1, records(5, 1))) == Delivered()
    with stream.delivering():
        stream.append(3)
        stream.wait_parked("diverged")
        assert "is of route 3 of log 4c4c" in stream.figures()["last_error"]
        stream.server.call("DEL", "events", BESIDE)
        stream.wait_whole()
        assert stream.letters() == []


def test_a_clone_is_parked_and_the_original_goes_on(stream):
    with stream.delivering():
        stream.append(5)
        stream.wait_whole()
        clone = stream.copied()
    with clone.delivering():
        clone.append(2)
        clone.wait_parked("diverged")
    with stream.delivering():
        stream.append(2)
        stream.wait_whole()


def test_check_says_what_it_found(empty):
    with sink_of(empty) as sink:
        (found,) = [each for each in sink.check() if each.code == "redis.found"]
        assert found.severity is Severity.OK
        assert "stream 'events' will be made" in found.message
        assert sink.deliver(attempt(1, records(5, 1))) == Delivered()
        (found,) = [each for each in sink.check() if each.code == "redis.found"]
        assert f"of route 3 of log {LOG.hex()}" in found.message
        empty.call("DEL", "events", BESIDE)
        empty.call("SET", "events", "x")
        assert sink.check() == [
            Finding(
                Severity.ERROR,
                "redis.configuration",
                "key 'events' holds a string",
                "say another stream_key",
            )
        ]


def test_a_full_server_is_found_and_told_without_the_script(empty):
    with sink_of(empty) as sink:
        empty.call("CONFIG", "SET", "maxmemory", 1)
        try:
            outcome = sink.deliver(attempt(1, records(5, 1)))
            found = {each.code: each.severity for each in sink.check()}
        finally:
            empty.call("CONFIG", "SET", "maxmemory", 0)
    assert isinstance(outcome, Systemic)
    assert (outcome.kind, "script" in outcome.message) == (SystemicKind.FULL, False)
    assert found["redis.full"] is Severity.ERROR


def test_the_grants_are_enough_and_nothing_more(empty):
    """They are what the server is told; the user can do all that the sink does, and no more."""
    settings = {"username": "wald", "password": Secret(PASSWORD), "maxlen": 1_000}
    with sink_of(empty, **settings) as sink:
        (statement,) = sink.grants()  # type: ignore[attr-defined]
        words = [word.strip('"') for word in statement.split(" ")]
        empty.call(*words, f">{PASSWORD}")
        try:
            assert sink.read_row(KEY) is None
            for lane in (0, 1):
                given = attempt(1, records(5, 4), key=KEY._replace(lane=lane))
                assert sink.deliver(given) == Delivered()
            assert "redis.found" in {each.code for each in sink.check()}
            assert not [each for each in sink.check() if each.severity is Severity.ERROR]
            assert ("cmdstat_waitaof" in empty.call("INFO", "commandstats")) == (
                empty.kind == "valkey"
            )
            user = empty.client(username="wald", password=PASSWORD)
            for command in (("DEL", "events"), ("GET", "other"), ("FLUSHALL",)):
                with pytest.raises(Exception, match="permission"):
                    user.execute_command(*command)
            user.close()
        finally:
            empty.call("ACL", "DELUSER", "wald")


# --- TLS, clusters, settings ----------------------------------------------------------------------

TLS = Path(__file__).parents[1] / "servers" / "tls"


def test_a_server_is_verified_by_its_certificate(place):
    port = free_port()
    server = RedisServer(
        place, "redis", tls_port=port, tls_auth_clients="no", tls_ca_cert_file=TLS / "ca.pem",
        tls_cert_file=TLS / "server.pem", tls_key_file=TLS / "server.pem",
    ).start()  # fmt: skip
    told = []
    try:
        for host, trusted in (("localhost", True), ("localhost", False), ("127.0.0.1", True)):
            ca = {"tls_ca": str(TLS / "ca.pem")} if trusted else {}
            sink = make("route", "events", {"url": f"rediss://{host}:{port}", **ca})
            told.append(sink.read_row(KEY))
            sink.close()
    finally:
        server.kill()
    assert told[0] is None
    for outcome in told[1:]:
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.UNREACHABLE
        assert "certificate" in outcome.message.lower()


def test_the_keys_of_a_stream_are_in_one_slot_of_a_cluster_and_another_node_is_named(place):
    server = RedisServer(place, "valkey", cluster_enabled="yes", port=free_port()).start()
    try:
        server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        eventually(lambda: "cluster_state:ok" in str(server.call("CLUSTER", "INFO")))
        for name in ("events", "a{b}c", "a.b-c"):
            with sink_of(server, stream_key=name) as sink:
                assert sink.read_row(KEY) is None
                assert sink.deliver(attempt(1, records(5, 2))) == Delivered()
                assert len(ids(server, name)) == 2
        slot = server.call("CLUSTER", "KEYSLOT", "events")
        server.call("CLUSTER", "DELSLOTS", slot)
        with sink_of(server) as sink:
            outcome = sink.deliver(attempt(2, records(7, 1)))
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.UNREACHABLE
        assert "CLUSTERDOWN" in outcome.message
    finally:
        server.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs a 'url'"),
        ({"url": "redis://:canary@h"}, "a password does not belong into a URL"),
        ({"url": "http://h"}, "the url is not"),
        ({"url": "redis://"}, "the url is not"),
        ({"url": "redis://h:99999"}, "the url is not"),
        ({"url": "redis://[h"}, "the url is not"),
        ({"url": "redis://h/x"}, "names no database"),
        ({"url": "redis://h/0?x=1"}, "names no database"),
        ({"url": "redis://h", "password": "canary"}, "does not belong into the configuration"),
        ({"url": "redis://h", "stream_key": "a}b"}, "hash tag"),
        ({"url": "redis://h", "stream_key": ""}, "stream_key"),
        ({"url": "redis://h", "maxlen": 0}, "maxlen"),
        ({"url": "redis://h", "wait_replicas": -1}, "wait_replicas"),
        ({"url": "redis://h", "tls_ca": "x"}, "without TLS"),
        ({"url": "rediss://h", "tls_key": "x"}, "tls_key without tls_cert"),
        ({"url": "redis://h", "stream_kye": "x"}, "unknown setting"),
    ],
)
def test_a_wrong_setting_is_said_and_no_secret_is(settings, words):
    with pytest.raises(ConfigError) as refused:
        make("route", "events", settings)
    said = f"{refused.value.message} {refused.value.hint}"
    assert words in said
    assert "canary" not in said


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", SystemicKind.BUSY),
        ("BUSY Redis is busy running a script", SystemicKind.BUSY),
        ("TRYAGAIN Multiple keys request during rehashing of slot", SystemicKind.BUSY),
        ("ERR max number of clients reached", SystemicKind.BUSY),
        ("CLUSTERDOWN Hash slot not served", SystemicKind.UNREACHABLE),
        ("MASTERDOWN Link with MASTER is down", SystemicKind.UNREACHABLE),
        ("NOREPLICAS Not enough good replicas to write.", SystemicKind.UNREACHABLE),
        ("READONLY You can't write against a read only replica.", SystemicKind.UNREACHABLE),
        ("OOM command not allowed when used memory > 'maxmemory'.", SystemicKind.FULL),
        ("MISCONF Errors writing to the AOF file", SystemicKind.FULL),
        ("NOAUTH Authentication required.", SystemicKind.AUTHENTICATION),
        ("NOPERM User x has no permissions", SystemicKind.AUTHENTICATION),
        ("WRONGTYPE Operation against a key", SystemicKind.CONFIGURATION),
        ("MOVED 3999 10.0.0.1:6381", SystemicKind.CONFIGURATION),  # over a Unix socket
        ("ASK 3999 10.0.0.1:6381", SystemicKind.BUSY),
        ("ERR unknown command 'EVAL'", SystemicKind.CONFIGURATION),
        ("SOMETHING new", SystemicKind.CONFIGURATION),
    ],
)
def test_what_an_error_of_the_server_means(place, line, kind):
    """Each by its first word; a server that answers every command so stands in for the others."""
    path = str(place / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def answer() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                with link:
                    while link.recv(1 << 20):
                        link.sendall(f"-{line}\r\n".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        sink = make("route", "events", {"url": f"unix://{path}"})
        for outcome in (sink.read_row(KEY), sink.deliver(attempt(1, records(5, 1)))):
            assert isinstance(outcome, Systemic), outcome
            assert outcome.kind is kind
            assert line.split(" ")[-1] in outcome.message
        sink.close()
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
