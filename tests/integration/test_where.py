"""Where a record is, asked of a real daemon by command and by producer; who waits is told."""

import json
import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until
from wald.cli.where import lines_of
from wald.client.asking import CONTROL_SUFFIX, Asker
from wald.config.places import CONTROL_SUFFIX as SERVED_SUFFIX
from wald.core.lanes import lane_of

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONFIG = """
[trace]
sample = 1.0
[sinks.a]
type = "sqlite"
path = "{place}/a.db"
busy_timeout = "20ms"
[sinks.b]
type = "sqlite"
path = "{place}/b.db"
{more}
[routes.first]
stream = "events"
sink = "a"
batch = {{ max_age = "20ms" }}
[routes.second]
stream = "events"
sink = "b"
lanes = 3
batch = {{ max_age = "20ms" }}
[routes.other]
stream = "others"
sink = "b"
batch = {{ max_age = "20ms" }}
{routes}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


def daemon_in(place: Path, more: str = "", routes: str = "") -> Daemon:
    return Daemon(place, config=CONFIG.format(place=place, more=more, routes=routes))


def where(daemon: Daemon, lsn: int, expect: int = 0) -> dict[str, Any]:
    return dict(json.loads(daemon.command("status", "--lsn", str(lsn), "--json", expect=expect)))


def refuse_in(place: Path, database: str, table: str = "events") -> None:
    """Let a target refuse records of the key "bad", with words of its own."""
    with closing(sqlite3.connect(place / database)) as opened, opened:
        opened.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, "
            "key, time TEXT NOT NULL, headers TEXT, value, PRIMARY KEY (log_id, lsn))"
        )
        opened.execute(
            f"CREATE TRIGGER no_bad BEFORE INSERT ON {table} WHEN new.key = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'nobody books that'); END"
        )


def test_the_two_sides_agree_where_the_control_socket_is() -> None:
    assert CONTROL_SUFFIX == SERVED_SUFFIX


def test_a_record_is_found_from_append_to_target_and_beyond_the_daemon(place: Path) -> None:
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        receipt = producer.append(
            "events", {"seat": 4}, key="b-77", headers={"traceparent": TRACE}, ack="delivered"
        )
        assert receipt.level == "delivered"
        said = where(daemon, receipt.lsn)
        assert (said["stream"], said["key"], said["trace"]) == ("events", "b-77", TRACE)
        assert {name: route["fate"] for name, route in said["routes"].items()} == {
            "first": "delivered",
            "second": "delivered",
        }
        first = said["routes"]["first"]
        assert (first["batch"], first["attempts"], first["trace"]) == (1, 1, TRACE)
        printed = daemon.command("status", "--lsn", str(receipt.lsn)).splitlines()
        assert printed[0].startswith(f"{receipt.lsn} events key=b-77  durable ")
        assert printed[1].strip().startswith("first   delivered ")
        assert f"in batch 1 ({first['rev_id'][:8]}), attempt 1" in printed[1]
        status = producer.status(receipt.lsn)
        assert status.delivered
        assert (status.stream, status.trace) == ("events", TRACE)
        assert status.routes["first"].batch == 1
        held = daemon.command("status", "--lsn", "1", "--data-dir", str(daemon.data_dir), expect=69)
        assert held == ""
    with closing(sqlite3.connect(place / "a.db")) as target:
        ((headers,),) = target.execute("SELECT headers FROM events").fetchall()
    assert json.loads(headers) == {"traceparent": TRACE}
    alone = daemon.command(
        "status", "--lsn", str(receipt.lsn), "--data-dir", str(daemon.data_dir), "--json"
    )
    assert json.loads(alone)["routes"]["second"]["fate"] == "delivered"


BAD_INPUT = [
    (("--lsn", "0"), 2, "error[usage]"),
    (("--lsn", "x"), 2, "error[usage]"),
    (("--lsn", "99"), 1, "error[record.none]: LSN 99 is not used yet: the highest is 1"),
    (("--data-dir", "x"), 2, "--data-dir goes with --lsn"),
    (("--lsn", "1", "--data-dir", "/nowhere"), 78, "is not a data directory"),
]


def test_bad_input_is_two_lines(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from wald.cli import run_command

    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        producer.append("others", 1)
        for arguments, code, words in BAD_INPUT:
            socket = () if "--data-dir" in arguments else ("--socket", str(daemon.socket))
            assert run_command(["status", *arguments, *socket]) == code, arguments
            assert words in capfd.readouterr().err
        with pytest.raises(wald.NoRecord):
            producer.status(99)
        with pytest.raises(wald.WaldError) as wrong:
            producer.status(-1)
        assert wrong.value.code == "input"
        with pytest.raises(wald.WaldError):
            producer.append("others", 1, ack="never")  # type: ignore[arg-type]


def test_a_lsn_that_the_log_skipped_is_no_record(place: Path) -> None:
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        first = producer.append("others", 1).lsn
        os.kill(daemon.pids()["ingest"], signal.SIGKILL)
        second = producer.append("others", 2).lsn
        assert second > first + 1
        assert "skipped" in str(daemon.ask(op="drain.where", lsn=first + 1))


def test_a_dead_letter_is_told_with_the_words_of_the_target(place: Path) -> None:
    refuse_in(place, "a.db")
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        with pytest.raises(wald.DeliveryRefused) as refused:
            producer.append("events", 1, key="bad", ack="delivered")
        assert "nobody books that" in refused.value.message
        assert refused.value.receipt.level == "durable"
        lsn = refused.value.receipt.lsn
        said = where(daemon, lsn, expect=1)
        assert said["routes"]["first"]["fate"] == "dead-letter"
        assert said["routes"]["first"]["letter"]["message"] == "nobody books that"
        text = "\n".join(lines_of(said))
        assert "dead letter" in text
        assert "nobody books that" in text
        # other streams and other records do not care
        assert producer.append("others", 1, ack="delivered").level == "delivered"
        values = producer.append_many("events", [1, 2, 3], key="good", ack="delivered")
        assert {each.level for each in values.accepted} == {"delivered"}
        with pytest.raises(wald.DeliveryRefused) as caught:
            producer.append_many("events", [1, 2], keys=["good", "bad"], ack="delivered")
        assert caught.value.receipt.lsn == caught.value.results[1].lsn
        assert len(caught.value.results.accepted) == 2
        # mended and sent again
        with closing(sqlite3.connect(place / "a.db")) as target, target:
            target.execute("DROP TRIGGER no_bad")
        daemon.command("dlq", "redrive", "--route", "first", "--wait", "20s")
        again = where(daemon, lsn)
        assert again["routes"]["first"]["fate"] == "redriven"
        assert producer.wait(refused.value.receipt, timeout=10).level == "delivered"


def test_a_sealed_batch_is_told_with_its_attempts_and_last_error(place: Path) -> None:
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        producer.append("events", 0, key="k", ack="delivered")
        with closing(sqlite3.connect(place / "a.db", timeout=20)) as target:
            target.execute("BEGIN IMMEDIATE")
            receipt = producer.append("events", 1, key="k", headers={"traceparent": TRACE})

            def tried() -> bool:
                route = producer.status(receipt.lsn).routes["first"]
                return route.fate == "sealed" and route.attempts >= 2 and "locked" in route.reason

            wait_until(tried, "two attempts were made")
            said = where(daemon, receipt.lsn)
            assert said["routes"]["first"]["trace"] == TRACE
            text = "\n".join(lines_of(said))
            assert "  first   sealed in batch 2 (" in text
            assert "last error: busy: " in text
            assert "database is locked" in text
            target.execute("ROLLBACK")
        assert producer.wait(receipt, timeout=20).level == "delivered"
        assert (
            where(daemon, receipt.lsn)["routes"]["first"]["attempts"] >= 2
        )  # the second may have waited for the lock


def test_a_record_that_a_newer_one_of_its_key_replaced_is_told(place: Path) -> None:
    newest = '[routes.newest]\nstream="states"\nsink="a"\ncoalesce="last"\nbatch={max_age="20ms"}'
    with daemon_in(place, routes=newest) as daemon, wald.connect(daemon.socket) as producer:
        results = producer.append_many("states", [1, 2, 3], keys=["a", "b", "a"], ack="delivered")
        fates = [where(daemon, each.lsn)["routes"]["newest"]["fate"] for each in results.accepted]
        assert fates == ["superseded", "delivered", "delivered"]
        audited = json.loads(daemon.command("audit", "--route", "newest", "--json"))["routes"][0]
        assert (audited["delivered"], audited["superseded"]) == (3, 1)
        assert "coalesce" in audited["cannot_tell"]
    with closing(sqlite3.connect(place / "a.db")) as target:
        assert len(target.execute("SELECT lsn FROM states").fetchall()) == 2


def test_a_purged_letter_is_told(place: Path) -> None:
    refuse_in(place, "a.db")
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        with pytest.raises(wald.DeliveryRefused) as refused:
            producer.append("events", 1, key="bad", ack="delivered")
        daemon.command("dlq", "purge", "--route", "first", "--yes")
        said = where(daemon, refused.value.receipt.lsn, expect=1)
        assert said["routes"]["first"]["fate"] == "purged"


def test_a_target_that_is_down_is_a_timeout_that_says_durable(place: Path) -> None:
    (place / "b.db").mkdir()  # no database can be there
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        with pytest.raises(wald.DeliveryTimeout) as late:
            producer.append("events", 1, key="k", ack="delivered", timeout=1.0)
        assert not isinstance(late.value, wald.DeliveryPending)
        assert "is durable" in late.value.message
        assert late.value.routes["second"]["fate"] in {"durable", "sealed"}
        receipt = late.value.receipt
        assert producer.wait(receipt, "durable") == receipt
        with pytest.raises(wald.DeliveryTimeout):
            producer.wait(receipt, timeout=0)
        said = where(daemon, receipt.lsn)["routes"]["second"]
        assert said["fate"] in {"durable", "sealed"}
        (place / "b.db").rmdir()
        assert producer.wait(receipt, timeout=20).level == "delivered"


def test_a_lane_that_waits_for_a_person_is_told_at_once(place: Path) -> None:
    refuse_in(place, "a.db", "halting")
    halting = '[routes.halts]\nstream="halting"\nsink="a"\non_reject="halt"\nbatch={max_age="20ms"}'
    with daemon_in(place, routes=halting) as daemon, wald.connect(daemon.socket) as producer:
        with pytest.raises(wald.DeliveryPending) as pending:
            producer.append("halting", 1, key="bad", ack="delivered", timeout=20)
        assert "durable, delivery pending" in pending.value.message
        assert "parked as halted" in pending.value.message
        assert isinstance(pending.value, wald.DeliveryTimeout)
        said = where(daemon, pending.value.receipt.lsn)["routes"]["halts"]
        assert (said["fate"], said["blocked"].split(":")[0]) == ("sealed", "parked as halted")


def test_the_lane_of_the_record_decides_and_no_other(place: Path) -> None:
    refuse_in(place, "a.db", "halting")
    halting = (
        '[routes.halts]\nstream="halting"\nsink="a"\non_reject="halt"\nlanes=3\n'
        'batch={max_age="20ms"}'
    )
    stuck = lane_of("bad", 0, 3)
    there, elsewhere = (
        next(key for key in "abcdefgh" if (lane_of(key, 0, 3) == stuck) is same)
        for same in (True, False)
    )
    with daemon_in(place, routes=halting) as daemon, wald.connect(daemon.socket) as producer:
        with pytest.raises(wald.DeliveryPending):
            producer.append("halting", 1, key="bad", ack="delivered")
        good = producer.append("halting", 2, key=elsewhere, ack="delivered")
        with pytest.raises(wald.DeliveryPending):
            producer.append("halting", 3, key=there, ack="delivered")
        said = where(daemon, good.lsn)["routes"]["halts"]
        assert (said["fate"], said["lane"]) == ("delivered", lane_of(elsewhere, 0, 3))
        assert said["blocked"] == ""


def test_a_wait_survives_restarts_of_the_daemon_and_one_connection_is_kept(place: Path) -> None:
    (place / "a.db").mkdir()
    daemon = daemon_in(place)
    with daemon, wald.connect(daemon.socket) as producer:
        receipt = producer.append("events", 1, key="k")
        levels: list[str] = []
        waiting = threading.Thread(
            target=lambda: levels.append(producer.wait(receipt, timeout=60).level)
        )
        waiting.start()
        os.kill(daemon.pids()["drain"], signal.SIGKILL)
        wait_until(daemon._ready, "drain is there again")
        assert daemon.process is not None
        daemon.process.kill()
        daemon.wait_dead()
        (place / "a.db").rmdir()
        daemon.start()
        waiting.join(60)
        assert levels == ["delivered"]
        asker = producer._asker
        assert isinstance(asker, Asker)
        assert asker._socket is not None
        before = asker._socket
        producer.wait(receipt)
        producer.status(receipt.lsn)
        assert asker._socket is before


def test_a_producer_that_is_closed_ends_its_waits_and_a_child_has_its_own_connection(
    place: Path,
) -> None:
    (place / "a.db").mkdir()
    with daemon_in(place) as daemon:
        producer = wald.connect(daemon.socket)
        receipt = producer.append("events", 1, key="k")
        producer.status(receipt.lsn)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - in the child
            try:
                os.write(write, producer.status(receipt.lsn).stream.encode())  # type: ignore[union-attr]
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"events"
        os.close(read)
        os.close(write)
        assert producer.status(receipt.lsn).stream == "events"
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                producer.wait(receipt, timeout=60)
            except wald.WaldError as error:
                ended.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        producer.close()
        waiting.join(60)
        assert [type(each) for each in ended] == [wald.Closed]
