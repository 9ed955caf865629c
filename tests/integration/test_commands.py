"""The commands against a real daemon: what a script relies on."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.commands import call, run
from tests.daemon import Daemon, wait_until
from wald import errors
from wald.storage import identity
from wald.storage.ledger_rows import pack
from wald.storage.lmdb_store import open_ledger
from wald.system import PosixFileSystem


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One daemon for the commands that leave it as it is."""
    path = Path(tempfile.mkdtemp(prefix="w"))
    with Daemon(path, to=f"sqlite:{path}/x.db") as daemon:
        yield daemon
    shutil.rmtree(path)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as opened:
        return opened.execute(query).fetchall()


def numbers(path: Path, values: Sequence[int]) -> str:
    path.write_text("".join(f'{{"n":{n}}}\n' for n in values))
    return str(path)


# --- append -------------------------------------------------------------------------------------


def test_append_says_what_was_accepted_and_what_refused(shared: Daemon, directory: Path) -> None:
    source = directory / "in.ndjson"
    source.write_text('{"id":"a","n":1}\n{"id":\n{"id":"b","n":2}\n{"n":3}\n')
    arguments = ["append", "orders", str(source), "--format", "ndjson", "--key", "id", "--json"]
    done = run(*arguments, socket=shared.socket)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["records"], said["accepted"]) == (4, 2)
    assert [(one["index"], one["code"]) for one in said["refused"]] == [
        (1, "json.syntax"),
        (3, "record.key"),
    ]
    assert said["last_lsn"] == said["first_lsn"] + 1
    shared.command("wait", "orders", "--timeout", "30s")
    found = rows(shared.directory / "x.db", "select lsn, key, value ->> 'n' from orders")
    assert found == [(said["first_lsn"], "a", 1), (said["last_lsn"], "b", 2)]


@pytest.mark.parametrize(
    ("form", "text", "values"),
    [
        ("ndjson", '{"a": 1}\n[2]\n"x"\n', ['{"a": 1}', "[2]", '"x"']),
        ("csv", "a,b\n1,x\n2,\n", ['{"a":"1","b":"x"}', '{"a":"2","b":""}']),
        ("lines", "one\n\ntwo", [b"one", b"", b"two"]),
    ],
)
def test_append_reads_standard_input_in_every_format(
    shared: Daemon, form: str, text: str, values: list[object]
) -> None:
    done = run("append", f"from-{form}", "--format", form, socket=shared.socket, stdin=text)
    assert done.returncode == 0, done.stderr
    assert f"{len(values)} of {len(values)} records accepted" in done.stderr
    shared.command("wait", "--all", "--timeout", "30s")
    found = rows(shared.directory / "x.db", f'select value from "from-{form}" order by lsn')
    if form == "lines":
        assert [value for (value,) in found] == values
    else:
        assert [json.loads(value) for (value,) in found] == [json.loads(str(v)) for v in values]


def test_append_of_many_requests_keeps_the_order_of_the_file(
    shared: Daemon, directory: Path
) -> None:
    source = numbers(directory / "in.ndjson", range(12_345))
    done = call("append", "many", source, "--json", socket=shared.socket)
    said = json.loads(done.stdout)
    assert (done.returncode, said["accepted"], said["refused"]) == (0, 12_345, [])
    shared.command("wait", "many", "--timeout", "60s")
    found = rows(shared.directory / "x.db", "select value ->> 'n' from many order by lsn")
    assert [n for (n,) in found] == list(range(12_345))


def test_append_to_a_bad_name_or_from_no_file_is_told(shared: Daemon, directory: Path) -> None:
    done = call("append", "../x", "--format", "lines", socket=shared.socket, stdin="x\n")
    assert (done.returncode, "error[unknown-stream]" in done.stderr) == (1, True)
    done = call("append", "x", str(directory / "none.csv"), socket=shared.socket)
    assert (done.returncode, "error[input]" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_client_says_what_is_wrong_in_its_own_words(shared: Daemon) -> None:
    with pytest.raises(errors.InputError, match="a producer's name is printable text"):
        wald.connect(str(shared.socket), name="a\nb")
    with wald.connect(str(shared.socket)) as producer:
        anything: Any = producer
        with pytest.raises(errors.UnknownStream, match="a stream's name is text, not int"):
            anything.append(5, {})
        with pytest.raises(TypeError, match="a sequence of values, not one str"):
            anything.append_many("things", "abc")
        with pytest.raises(errors.RecordRefused, match="an integer beyond 64 bits"):
            producer.append("things", 1 << 70)
        with pytest.raises(errors.RecordRefused, match="a value of type object has no form"):
            producer.append("things", object())


# --- append --once ------------------------------------------------------------------------------


def test_a_rerun_with_once_appends_nothing_twice(shared: Daemon, directory: Path) -> None:
    source = numbers(directory / "in.ndjson", range(1_234))
    arguments = ["append", "reruns", source, "--once", "a", "--json"]
    first = call(*arguments, socket=shared.socket)
    again = call(*arguments, socket=shared.socket)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert json.loads(first.stdout)["accepted"] == json.loads(again.stdout)["accepted"] == 1_234
    assert json.loads(first.stdout)["last_lsn"] == json.loads(again.stdout)["last_lsn"]
    told = call(*arguments[:-1], socket=shared.socket).stderr
    assert told.startswith("1,234 of 1,234 records accepted, 1,000 of them by an earlier run, LSN ")
    shared.command("wait", "reruns", "--timeout", "30s")
    assert rows(shared.directory / "x.db", "select count(*) from reruns") == [(1_234,)]


@pytest.mark.parametrize("changed", [range(700), range(2_000), range(1, 1_235)])
def test_a_rerun_with_another_input_is_refused(
    shared: Daemon, directory: Path, changed: Sequence[int]
) -> None:
    source = directory / "in.ndjson"
    name = f"changed-{len(changed)}-{changed[0]}"
    arguments = ["append", "changes", str(source), "--once", name]
    numbers(source, range(1_234))
    assert call(*arguments, socket=shared.socket).returncode == 0
    numbers(source, changed)
    done = call(*arguments, socket=shared.socket)
    assert done.returncode == 1
    assert "error[sequence-conflict]: the input is not the one" in done.stderr
    assert "hint: use another name" in done.stderr


def accepted(daemon: Daemon, route: str) -> int:
    routes: Any = (daemon.ask(op="status") or {}).get("routes") or {}
    return int(routes.get(route, {}).get("accepted", 0))


def test_an_append_with_once_that_is_killed_goes_on_where_it_ended(
    shared: Daemon, directory: Path
) -> None:
    source = numbers(directory / "in.ndjson", range(60_000))
    arguments = ["append", "imports", source, "--once", "import", "--json"]
    running = subprocess.Popen(
        [sys.executable, "-m", "wald", *arguments],
        env={**os.environ, "WALD_SOCKET": str(shared.socket)},
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: accepted(shared, "imports") > 0, "something is accepted")
    running.kill()
    running.wait()
    done = call(*arguments, socket=shared.socket)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 60_000
    shared.command("wait", "imports", "--timeout", "60s")
    found = rows(shared.directory / "x.db", "select value ->> 'n' from imports order by lsn")
    assert [n for (n,) in found] == list(range(60_000))


def test_an_append_goes_on_through_a_kill_of_ingest(shared: Daemon, directory: Path) -> None:
    source = numbers(directory / "in.ndjson", range(60_000))
    running = subprocess.Popen(
        [sys.executable, "-m", "wald", "append", "through", source, "--json"],
        env={**os.environ, "WALD_SOCKET": str(shared.socket)},
        stdout=subprocess.PIPE,
    )
    os.kill(shared.pids()["ingest"], signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert json.loads(out)["accepted"] == 60_000
    shared.command("wait", "through", "--timeout", "60s")
    query = "select count(*), count(distinct value) from through"
    assert rows(shared.directory / "x.db", query) == [(60_000, 60_000)]


def partly(daemon: Daemon, stream: str, *arguments: str) -> subprocess.Popen[str]:
    """Begin to append from a pipe that does not end, and wait until something is accepted."""
    running = subprocess.Popen(
        [sys.executable, "-m", "wald", "append", stream, "--format", "lines", *arguments],
        env={**os.environ, "WALD_SOCKET": str(daemon.socket)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    running.stdin.write("x\n" * 20_000)
    running.stdin.flush()
    wait_until(lambda: accepted(daemon, stream) >= 19_000, "most is accepted")
    return running


@pytest.mark.parametrize(
    ("number", "arguments", "hint"),
    [
        (signal.SIGINT, (), "a rerun stores them twice; with --once NAME"),
        (signal.SIGTERM, ("--once", "interrupted"), "run the same command again: it goes on"),
    ],
)
def test_an_append_that_is_interrupted_says_what_it_stored(
    shared: Daemon, number: signal.Signals, arguments: tuple[str, ...], hint: str
) -> None:
    stream = number.name.lower()
    running = partly(shared, stream, *arguments)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    told, explained = said.splitlines()
    found = re.fullmatch(r"not all was sent: ([\d,]+) records accepted, LSN (\d+) .. (\d+)", told)
    assert found is not None, told
    count, first, last = (int(number.replace(",", "")) for number in found.groups())
    assert count == last - first + 1  # nobody else appends meanwhile
    wait_until(lambda: accepted(shared, stream) == count, "the figures say the same")
    assert explained.startswith(hint)


def test_an_append_that_fails_midway_says_what_it_stored(directory: Path) -> None:
    daemon = Daemon(directory, to=f"sqlite:{directory}/x.db")
    with daemon:
        both = [
            partly(daemon, stream, "--timeout", "1s", *more)
            for stream, more in (("things", ()), ("data", ("--json",)))
        ]
    heard = []
    for running in both:
        assert running.stdin is not None
        running.stdin.write("y\n" * 2_000)
        heard.append(running.communicate(timeout=60))
        assert running.returncode == 69
    (_, said), (out, _) = heard
    report = json.loads(out)
    assert report["accepted"] >= 19_000
    assert report["last_lsn"] >= report["first_lsn"] + report["accepted"] - 1
    assert report["error"]["code"] in ("unavailable", "outcome-unknown")
    assert "not all was sent: " in said
    assert "accepted, LSN 1 .. " in said
    assert "error[" in said


# --- status and wait ----------------------------------------------------------------------------


def test_status_has_the_shape_that_scripts_rely_on(shared: Daemon) -> None:
    call("append", "shape", "--format", "lines", socket=shared.socket, stdin="x\n")
    shared.command("wait", "shape")
    status = json.loads(shared.command("status", "--json"))
    assert {"log_id", "frontier_lsn", "routes"} <= status.keys()
    assert len(status["log_id"]) == 32
    route = status["routes"]["shape"]
    assert {
        *("stream", "sink", "class", "state", "accepted", "delivered", "pending"),
        *("dead_letters", "oldest_pending_s"),
    } <= route.keys()
    assert (route["stream"], route["class"]) == ("shape", "transactional")
    assert (route["accepted"], route["delivered"], route["pending"]) == (1, 1, 0)
    assert "shape" in shared.command("status")


def test_wait_for_a_route_that_is_not_there_is_told(shared: Daemon) -> None:
    done = call("wait", "nosuch", socket=shared.socket)
    assert (done.returncode, "error[input]: there is no route 'nosuch'" in done.stderr) == (2, True)


def test_wait_gives_up_while_the_target_is_down_and_says_why(directory: Path) -> None:
    (directory / "x.db").mkdir()  # nothing that SQLite could open
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 1})
        done = call("wait", "--all", "--timeout", "500ms", socket=daemon.socket)
        assert done.returncode == 75
        assert "error[timeout]: not drained within 0.5 s: things (1 pending)" in done.stderr
        done = call("wait", "--all", "--timeout", "500ms", "--json", socket=daemon.socket)
        assert done.returncode == 75
        said = json.loads(done.stdout)
        assert (said["error"], said["routes"]["things"]["pending"]) == ("timeout", 1)
        (directory / "x.db").rmdir()
        daemon.command("wait", "--all", "--timeout", "60s")
    assert rows(directory / "x.db", "select count(*) from things") == [(1,)]


def test_an_interrupt_while_modules_are_loaded_is_no_traceback(directory: Path) -> None:
    (directory / "click.py").write_text("raise KeyboardInterrupt\n")  # the first that is loaded
    done = subprocess.run(
        [sys.executable, "-m", "wald", "status"],
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (errors.EXIT_INTERRUPTED, "", "")


def test_wait_goes_on_while_drain_starts_anew(shared: Daemon) -> None:
    os.kill(shared.pids()["drain"], signal.SIGKILL)
    call("append", "restarts", "--format", "lines", socket=shared.socket, stdin="x\n")
    shared.command("wait", "restarts", "--timeout", "30s")
    assert rows(shared.directory / "x.db", "select count(*) from restarts") == [(1,)]


def test_a_command_waits_a_moment_for_drain_to_start(shared: Daemon) -> None:
    call("append", "moments", "--format", "lines", socket=shared.socket, stdin="x\n")
    pid = shared.pids()["drain"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: shared.pids().get("drain") != pid, "its end is seen")
    assert " x\n" in shared.command("tail", "moments")
    wait_until(lambda: "drain" in shared.pids(), "it is back")


def test_a_hung_drain_is_seen_and_no_command_waits_for_it(shared: Daemon) -> None:
    drain = shared.pids()["drain"]
    os.kill(drain, signal.SIGSTOP)
    try:
        call("append", "hung", "--format", "lines", socket=shared.socket, stdin="x\n")
        done = run("wait", "--all", "--timeout", "300ms", socket=shared.socket, timeout=8)
        assert (done.returncode, "error[timeout]" in done.stderr) == (75, True), done.stderr
        status = call("status", socket=shared.socket)
        assert "drain does not answer; its figures are the last it wrote" in status.stderr
        assert json.loads(call("status", "--json", socket=shared.socket).stdout)["stale"]
    finally:
        os.kill(drain, signal.SIGCONT)
    shared.command("wait", "--all", "--timeout", "30s")
    wait_until(lambda: call("status", socket=shared.socket).stderr == "", "it answers again")


def test_a_hung_ingest_is_seen_with_what_to_do_and_status_does_not_wait_for_it(
    shared: Daemon,
) -> None:
    ingest = shared.pids()["ingest"]
    os.kill(ingest, signal.SIGSTOP)
    try:
        wait_until(
            lambda: "ingest does not answer" in run("status", socket=shared.socket).stderr,
            "status says that it hangs",
        )
        status = run("status", socket=shared.socket, timeout=8)
        assert status.returncode == 0
        assert "ingest does not answer; its figures are the last it wrote" in status.stderr
        assert "hint: it runs and stands still" in status.stderr
        said = json.loads(run("status", "--json", socket=shared.socket, timeout=8).stdout)
        assert said["stale"]
        told = {role: process["answers"] for role, process in said["processes"].items()}
        assert told == {"ingest": False, "drain": True}
        assert said["processes"]["ingest"]["hint"]
        assert not said["processes"]["drain"]["hint"]
    finally:
        os.kill(ingest, signal.SIGCONT)
    wait_until(lambda: call("status", socket=shared.socket).stderr == "", "it answers again")


def test_a_hung_daemon_is_said_to_hang(shared: Daemon) -> None:
    supervisor = shared.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        done = run("wait", "--all", "--timeout", "300ms", socket=shared.socket, timeout=8)
        assert done.returncode == 75
        assert "did not answer within 0.3 s" in done.stderr
        done = run("status", socket=shared.socket, timeout=8)
        hangs = "hint: it runs and does not answer" in done.stderr
        assert (done.returncode, hangs) == (69, True)
    finally:
        os.kill(supervisor, signal.SIGCONT)


CONFIG = """
[sinks.db]
type = "sqlite"
path = "{directory}/x.db"
[routes.{name}]
stream = "things"
sink = "db"
"""


def test_wait_does_not_wait_for_an_orphan(directory: Path) -> None:
    (directory / "x.db").mkdir()
    with Daemon(directory, config=CONFIG.format(directory=directory, name="old")) as daemon:
        call("append", "things", "--format", "lines", socket=daemon.socket, stdin="x\n")
    config = CONFIG.format(directory=directory, name="new") + 'start = "now"\n'
    (directory / "wald.toml").write_text(config)
    with daemon:
        done = call("wait", "old", socket=daemon.socket)
    assert done.returncode == 1
    assert "error[undeliverable]: old is an orphan (1 pending)" in done.stderr
    assert "hint: the configuration does not name the route" in done.stderr


def disown(target: Path) -> None:
    """Let another owner have moved the progress row."""
    with closing(sqlite3.connect(target, isolation_level=None)) as database:
        database.execute("UPDATE wald_progress SET owner = zeroblob(8)")


def test_wait_does_not_wait_for_a_parked_route(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        call("append", "things", "--format", "lines", socket=daemon.socket, stdin="x\n")
        daemon.command("wait", "--all", "--timeout", "30s")
        disown(directory / "x.db")
        call("append", "things", "--format", "lines", socket=daemon.socket, stdin="x\n")
        done = call("wait", "--all", socket=daemon.socket)
    assert done.returncode == 1
    assert "error[undeliverable]: things is parked: diverged (1 pending): other-" in done.stderr
    assert "hint: if nobody else writes this route any more: wald route takeover things" in (
        done.stderr
    )


def test_no_dead_letters_is_an_empty_list(shared: Daemon) -> None:
    assert json.loads(shared.command("dlq", "list", "--json")) == {"dead_letters": [], "more": 0}


def test_a_refused_record_is_listed_as_a_dead_letter_with_the_targets_words(
    directory: Path,
) -> None:
    with closing(sqlite3.connect(directory / "x.db")) as database:
        database.execute(
            "create table seats (seat text primary key, price integer check (price > 0))"
        )
        database.commit()
    config = f"""
[sinks.db]
type = "sqlite"
path = "{directory}/x.db"
[routes.seats-db]
stream = "seats"
sink = "db"
mode = "columns"
table = "seats"
"""
    source = directory / "seats.csv"
    with source.open("w", newline="") as out:
        csv.writer(out).writerows([("seat", "price"), ("1A", 5), ("1B", -5), ("1C", 7)])
    with Daemon(directory, config=config) as daemon:
        assert call("append", "seats", str(source), socket=daemon.socket).returncode == 0
        daemon.command("wait", "seats-db", "--timeout", "30s")
        (letter,) = json.loads(daemon.command("dlq", "list", "--json"))["dead_letters"]
        assert "1 " in daemon.command("status")
        assert "seats-db" in daemon.command("dlq", "list", "--route", "seats-db")
        offline = ["dlq", "list", "--data-dir", str(daemon.data_dir), "--json"]
        held = call(*offline)
        assert (held.returncode, "error[data.held]" in held.stderr) == (69, True)
    assert json.loads(run(*offline).stdout) == {"dead_letters": [letter], "more": 0}
    unknown = call(*offline, "--route", "other")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is no route 'other'\nhint: routes: seats-db" in unknown.stderr
    assert letter["route"] == "seats-db"
    assert "CHECK constraint failed" in letter["message"]
    assert rows(directory / "x.db", "select seat from seats order by seat") == [("1A",), ("1C",)]


def test_what_dlq_list_leaves_out_is_said(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 0})
            daemon.command("wait", "--all", "--timeout", "30s")
            with closing(sqlite3.connect(directory / "x.db", isolation_level=None)) as database:
                words = "w" * 200
                database.execute(
                    "create trigger t before insert on things when new.lsn % 2 = 0"
                    f" begin select raise(abort, '{words}'); end"
                )
            producer.append_many("things", [{"n": n} for n in range(200)])
        daemon.command("wait", "--all", "--timeout", "30s")
        few = call("dlq", "list", "--limit", "30", socket=daemon.socket)
        assert len(few.stdout.splitlines()) == 31
        assert all(line.endswith("www...") for line in few.stdout.splitlines()[1:])
        assert few.stderr.startswith("70 more: --limit 100 shows all")
        assert call("dlq", "list", socket=daemon.socket).stderr == ""
        said = json.loads(
            call("dlq", "list", "--json", "--limit", "7", socket=daemon.socket).stdout
        )
        assert (len(said["dead_letters"]), said["more"]) == (7, 93)
    offline = call("dlq", "list", "--data-dir", str(daemon.data_dir), "--limit", "99")
    assert offline.stderr.startswith("1 more")


# --- run, replay, log, demo ---------------------------------------------------------------------


def test_run_gives_a_command_a_daemon_and_prints_the_books(directory: Path) -> None:
    program = (
        "import wald; w = wald.connect();"
        "print(w.append('signups', {'user': 'ann', 'plan': 'pro'}, key='ann').lsn)"
    )
    target = f"sqlite:{directory}/events.db"
    done = run("run", "--to", target, "--", sys.executable, "-c", program)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert done.stderr.endswith(
        f"wald: signups -> {target}: 1 accepted = 1 delivered + 0 pending + 0 dead letters\n"
    )
    assert rows(directory / "events.db", "select lsn, key, value from signups") == [
        (1, "ann", '{"user":"ann","plan":"pro"}')
    ]


def test_run_leaves_with_the_exit_code_of_its_command(directory: Path) -> None:
    done = run("run", "--to", f"sqlite:{directory}/x.db", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7


PRODUCE = "import wald; wald.connect().append('things', {'n': 1})"


def test_run_says_why_nothing_was_delivered_and_where_it_is(directory: Path) -> None:
    target = directory / "x.db"
    target.mkdir()
    arguments = ["run", "--to", f"sqlite:{target}", "--deliver-for", "2500ms"]
    done = run(*arguments, "--", sys.executable, "-c", PRODUCE)
    assert done.returncode == 75
    assert "wald: delivering things (1 pending: " in done.stderr
    assert "not drained within 2.5 s: things (1 pending) (last error: " in done.stderr
    assert "unable to open database file" in done.stderr
    assert f"; kept in {target}.wald" in done.stderr


def test_run_does_not_wait_for_a_parked_route(directory: Path) -> None:
    target = directory / "x.db"
    arguments = ["run", "--to", f"sqlite:{target}", "--", sys.executable, "-c", PRODUCE]
    assert run(*arguments).returncode == 0
    disown(target)
    done = run(*arguments, timeout=40)
    assert done.returncode == 75
    assert "wald: things is parked: diverged (1 pending): other-owner" in done.stderr
    assert "2 accepted = 1 delivered + 1 pending" in done.stderr


def test_run_does_not_wait_for_a_process_that_says_why_it_cannot_start(directory: Path) -> None:
    arguments = ["run", "--to", f"sqlite:{directory}/x.db", "--", "true"]
    assert run(*arguments).returncode == 0
    fs, data_dir = PosixFileSystem(), str(directory / "x.db.wald")
    ledger = open_ledger(fs, data_dir, identity.required(fs, data_dir).log_id)
    ledger.store.write(lambda txn: txn.put("meta", b"format", pack(9)))
    ledger.close()
    done = run(*arguments, timeout=30)
    assert done.returncode == 78
    error, hint = done.stderr.splitlines()
    assert error.startswith("error[format.newer]: the ledger has format 9")
    assert hint.startswith("hint: ")


def test_an_interrupt_while_run_delivers_still_prints_the_books(directory: Path) -> None:
    target = directory / "x.db"
    target.mkdir()
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "wald",
            "run",
            "--to",
            f"sqlite:{target}",
            "--",
            sys.executable,
            "-c",
            PRODUCE,
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    said = running.stderr.readline()
    assert "delivering things" in said
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "1 accepted = 0 delivered + 1 pending" in rest
    assert f"interrupted before everything was delivered; kept in {target}.wald" in rest


def test_replay_delivers_what_a_killed_daemon_left(directory: Path) -> None:
    (directory / "x.db").mkdir()
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("things", [{"n": n} for n in range(100)])
        arguments = ["replay", "--to", f"sqlite:{directory}/x.db", "--json"]
        arguments += ["--data-dir", str(daemon.data_dir)]
        refused = run(*arguments)
        assert (refused.returncode, "error[data.held]" in refused.stderr) == (69, True)
        pids = daemon.pids()
        for role in ("supervisor", "ingest", "drain"):
            os.kill(pids[role], signal.SIGKILL)
        daemon.wait_dead()
    pending = run(*arguments, "--patience", "300ms")
    assert (pending.returncode, json.loads(pending.stdout)["pending"]) == (1, 100)
    (directory / "x.db").rmdir()
    done = run(*arguments)
    said = json.loads(done.stdout)
    assert (done.returncode, said["pending"]) == (0, 0), done.stderr
    assert said["routes"]["things"]["delivered"] == 100
    assert rows(directory / "x.db", "select count(*) from things") == [(100,)]
    assert json.loads(run(*arguments).stdout)["pending"] == 0
    (listed,) = json.loads(
        call("route", "list", "--data-dir", str(daemon.data_dir), "--json").stdout
    )["routes"].values()
    assert (listed["pending"], listed["delivered"]) == (0, 100)


def test_what_commands_tell_people(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("things", [{"n": n} for n in range(3)])
        waited = call("wait", "things", socket=daemon.socket)
        told = r"things drained: (3 records in [\d.]+ m?s|nothing was pending), 0 dead letters"
        assert re.search(told, waited.stderr)  # a slow machine has delivered them before
        waited = call("wait", "things", socket=daemon.socket)
        assert "things drained: nothing was pending, 0 dead letters" in waited.stderr
        assert json.loads(daemon.command("wait", "--all", "--json"))["routes"]["things"]
        head, row = daemon.command("status").splitlines()[:2]
        assert head.split() == [
            *("STREAM", "ROUTE", "CLASS", "STATE", "ACCEPTED", "DELIVERED"),
            *("PENDING", "DEAD", "OLDEST", "RATE", "ETA", "BREAKER"),
        ]
        assert row.split()[:3] == ["things", "things", "transactional"]
        assert "no dead letters" in call("dlq", "list", socket=daemon.socket).stderr
    data_dir = str(daemon.data_dir)
    assert "all whole, through LSN 3" in call("log", "verify", data_dir).stdout
    assert json.loads(call("log", "inspect", data_dir, "--json").stdout)["clean"] is True
    replayed = run("replay", "--to", f"sqlite:{directory}/x.db", "--data-dir", data_dir)
    assert replayed.stdout == (
        f"things -> sqlite:{directory}/x.db: "
        "3 accepted = 3 delivered + 0 pending + 0 dead letters\n"
    )


def damaged(directory: Path) -> tuple[Daemon, int]:
    """Flip a bit of a delivered record in the log of a daemon that was stopped."""
    with (
        Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon,
        wald.connect(str(daemon.socket)) as producer,
    ):
        for n in range(3):
            producer.append("things", {"n": n})
        needle = producer.append("things", {"needle": "x" * 50})
        producer.append("things", {"n": 4})
    return daemon, needle.lsn


def flip(daemon: Daemon) -> None:
    segments = (daemon.data_dir / "log").glob("seg-*.wal")
    segment = next(path for path in segments if b"needle" in path.read_bytes())
    data = bytearray(segment.read_bytes())
    data[data.index(b"needle")] ^= 1
    segment.write_bytes(data)


@pytest.mark.parametrize("command", ["replay", "run"])
def test_what_starts_a_log_by_itself_says_what_is_lost_too(directory: Path, command: str) -> None:
    daemon, lsn = damaged(directory)
    flip(daemon)
    arguments = [command, "--to", f"sqlite:{directory}/x.db", "--data-dir", str(daemon.data_dir)]
    done = run(*arguments, *(["--", "true"] if command == "run" else []))
    assert f"LSN {lsn} .. {lsn} are lost" in done.stderr


def test_damage_is_named_by_verify_and_by_the_start_that_sets_it_aside(directory: Path) -> None:
    daemon, lsn = damaged(directory)
    data_dir = str(daemon.data_dir)
    clean = run("log", "verify", data_dir, "--json")
    assert (clean.returncode, json.loads(clean.stdout)["clean"]) == (0, True)
    assert "things" in call("log", "inspect", data_dir).stdout
    flip(daemon)
    done = run("log", "verify", data_dir, "--json")
    (damage,) = json.loads(done.stdout)["damages"]
    assert done.returncode == 1
    assert (damage["first_lsn"], damage["last_lsn"]) == (lsn, lsn)
    told = call("log", "verify", data_dir)
    assert f"LSN {lsn} .. {lsn} (1 record, stream things)" in told.stdout
    assert "1 of 1 segment damaged. What is not named here is whole" in told.stderr
    assert "hint: the next start sets the damage aside" in told.stderr
    line = f"LSN {lsn} .. {lsn} are lost: seg-0000000001.wal offset"
    with daemon:
        status = call("status", socket=daemon.socket)
        assert f"at the last start: {line}" in status.stderr
        assert f"{daemon.data_dir}/reports" in status.stderr
        logged = [one for one in daemon.log.read_text().splitlines() if line in one]
        assert [one.split()[2] for one in logged] == ["ERROR"]
    told = call("log", "verify", data_dir)
    assert told.returncode == 1
    assert "1 of 2 segments damaged" in told.stderr
    assert "hint: a start has set it aside" in told.stderr
    replayed = run("replay", "--to", f"sqlite:{directory}/x.db", "--data-dir", data_dir)
    assert "lost" not in replayed.stderr
    for segment in (daemon.data_dir / "log").glob("seg-*.wal"):
        segment.unlink()
    told = call("log", "verify", data_dir)
    assert told.stderr.startswith("1 segment missing. What is not named")


def test_the_demo_balances() -> None:
    done = run("demo", "--json", timeout=120)
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said["balanced"] is True
    assert said["target"]["records"] == said["records"] == 28_298
    assert {kill["process"] for kill in said["kills"]} == {"ingest", "supervisor", "drain"}
    assert all(kill["in_flight"] for kill in said["kills"])
