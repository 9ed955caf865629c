"""Attacks from the machine that wald runs on, and by what passes through it.

Links in the place of its files, data directories that others may write or own, names, keys and
words that would forge a line or steer a terminal, and a secret that is looked for in everything
that comes out. Sockets and locks by themselves: ``unit/test_supervisor_parts.py``.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon
from tests.servers.web_server import WebServer, serving

NOBODY = 65_534
PRECIOUS = "precious\n"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FORGED = "2026-01-01 00:00:00,000 CRITICAL wald: forged"
EVIL = f"x\n{FORGED}\r\x1b[2J\x1b]0;owned\x07\u202edlrow\x9b31m"
CANARY = "canary-7f3e91"
SQLITE = """
[daemon]
data_dir = "{directory}/data"
[sinks.db]
type = "sqlite"
path = "{directory}/events.db"
[routes.db]
stream = "orders"
sink = "db"
batch = {{ max_age = "10ms" }}
"""
WEB = """
[sinks.web]
type = "http"
url = {{ file = "{directory}/url" }}
token = {{ env = "WALD_TEST_CANARY" }}
idempotency = {{ window = "1h" }}
[routes.web]
stream = "orders"
sink = "web"
batch = {{ max_records = 1, max_age = "10ms" }}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wk"))
    yield path
    shutil.rmtree(path)


# --- links and directories ----------------------------------------------------------------------


@pytest.fixture
def stopped(directory: Path) -> Path:
    """A data directory with a record in it that no daemon uses."""
    (directory / "wald.toml").write_text(SQLITE.format(directory=directory))
    with Daemon(directory, config=SQLITE.format(directory=directory)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("orders", {"n": 1}, key="k")
        daemon.command("wait", "--all")
    return directory / "data"


def replay(data: Path) -> tuple[int, str]:
    """Play ingest and drainer in one command, which opens every file of the directory."""
    done = call("replay", "--config", str(data.parent / "wald.toml"))
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *("identity.tmp", "owner.tmp", "ingest.page", "progress", "log.lock", "ledger.lock"),
        *("serve.lock", "identity", "owner", "log/seg-0000000099.wal"),
        *("log/seg-0000000002.wal.tmp", "reports/loss-x.json.tmp"),
    ],
)
def test_a_link_in_the_place_of_a_file_is_never_written_through(stopped: Path, name: str) -> None:
    precious = stopped.parent / "precious"
    precious.write_text(PRECIOUS)
    (stopped / name).unlink(missing_ok=True)
    (stopped / name).symlink_to(precious)
    code, said = replay(stopped)
    assert precious.read_text() == PRECIOUS
    assert "Traceback" not in said
    assert code == 0 or said.startswith("error["), said


def test_a_link_to_the_data_directory_is_refused(stopped: Path) -> None:
    real = stopped.rename(stopped.parent / "real")
    stopped.symlink_to(real)
    code, said = replay(stopped)
    assert (code, "name the real directory, not a link" in said) == (74, True), said


COMMANDS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "replay": lambda data: ("replay", "--config", str(data.parent / "wald.toml")),
    "log salvage": lambda data: ("log", "salvage", str(data), "--do"),
    "dlq list": lambda data: ("dlq", "list", "--data-dir", str(data)),
    "dlq purge": lambda data: (
        *("dlq", "purge", "--route", "db", "--lsn", "1", "--yes"),
        *("--data-dir", str(data)),
    ),
    "batch list": lambda data: ("batch", "list", "--data-dir", str(data)),
    "route pause": lambda data: ("route", "pause", "db", "--data-dir", str(data)),
    "route takeover": lambda data: ("route", "takeover", "db", "--yes", "--data-dir", str(data)),
    "serve": lambda data: (
        *("serve", "--config", str(data.parent / "wald.toml")),
        *("--socket", str(data.parent / "w.sock")),
    ),
}


@pytest.mark.parametrize("whose", ["group", "world", "another user"])
def test_a_directory_that_others_write_or_own_is_refused_by_all_that_would_write(
    stopped: Path, whose: str
) -> None:
    if whose == "another user":
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(stopped, NOBODY, NOBODY)
    else:
        stopped.chmod(0o770 if whose == "group" else 0o707)
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    for name, command in COMMANDS.items():
        done = call(*command(stopped))
        assert done.returncode == 74, f"{name}: {done}"
        assert done.stderr.startswith("error[data.unusable]"), f"{name}: {done}"
        assert "hint: " in done.stderr
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


# --- what comes out -----------------------------------------------------------------------------


def everything_said(daemon: Daemon) -> dict[str, str]:
    """Return what people and programs are shown, by what shows it; the daemon runs."""
    config = str(daemon.directory / "wald.toml")
    data = str(daemon.data_dir)
    asked = (
        *(("status",), ("status", "-v"), ("status", "--json"), ("status", "--lsn", "1")),
        *(("route", "list"), ("route", "list", "--json"), ("batch", "list")),
        *(("batch", "list", "--json"), ("dlq", "list"), ("dlq", "list", "--json")),
        *(("dlq", "show", "1"), ("dlq", "export"), ("audit",), ("audit", "--json")),
        *(("tail", "orders"), ("check", "--config", config)),
        *(("check", "--config", config, "--json"), ("version",)),
        *(("log", "inspect", data), ("log", "verify", data), ("log", "scrub", data)),
        *(("log", "salvage", data),),
    )
    said = {}
    for arguments in asked:
        done = call(*arguments, socket=daemon.socket)
        said[f"wald {' '.join(arguments)}"] = done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    return {**said, "its own log": daemon.log.read_text()}


def of_processes(daemon: Daemon) -> dict[str, str]:
    """Return what anybody on the machine sees of them with ``ps``."""
    daemon.pids()
    return {f"process {each.pid}": " ".join(each.cmdline()) for each in daemon.family}


def test_names_keys_and_words_of_a_target_forge_no_line_and_steer_no_terminal(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(directory / "web") as server:
        refusals(server, EVIL, 3)
        with evil_daemon(directory, server) as daemon:
            with pytest.raises(wald.WaldError) as unnamed:
                wald.connect(str(daemon.socket), name=EVIL)
            monkeypatch.setattr("wald.client.lifetime.check_name", lambda _: None)
            with (
                pytest.raises(wald.WaldError) as named,  # by a client that asks nobody
                wald.connect(str(daemon.socket), name=EVIL) as producer,
            ):
                producer.append("orders", b"x")
            with wald.connect(str(daemon.socket)) as producer:
                for _ in range(3):
                    producer.append("orders", {"text": EVIL}, key=EVIL, headers={"h": EVIL})
                with pytest.raises(wald.WaldError) as refused:
                    producer.append(EVIL, b"x")
            daemon.command("wait", "--all")
            said = everything_said(daemon)
            for error in (refused, unnamed, named):
                said[repr(error)] = str(error.value)
    assert said["wald dlq list"].count("forged") == 3  # it is told, on one line each
    for where, text in said.items():
        assert not STEERING.search(text), f"{where}: {text!r}"
        lines = [line for line in text.splitlines() if line.startswith("2026-01-01")]
        assert not lines, f"{where}: {lines}"


def test_a_secret_is_in_nothing_that_comes_out_and_in_no_file(directory: Path) -> None:
    with serving(directory / "web") as server:
        echo = f"Bearer {CANARY}-token may not use ?key={CANARY}-url"
        refusals(server, echo, 2)
        server.next({"status": 503, "body": json.dumps({"error": echo})})
        server.next({"status": 401, "body": json.dumps({"error": echo})})
        with evil_daemon(directory, server) as daemon:
            with wald.connect(str(daemon.socket)) as producer:
                for number in range(4):
                    producer.append("orders", {"n": number})
            daemon.command("wait", "--all", "--timeout", "60s")
            said = {**everything_said(daemon), **of_processes(daemon)}
            asked = daemon.ask(op="status")
        held = {str(path): path.read_bytes() for path in daemon.data_dir.rglob("*.*")}
        held |= {path.name: path.read_bytes() for path in (daemon.data_dir / "dead").iterdir()}
        delivered = [each["n"] for each in server.values]
    assert delivered == [2, 3]
    said["the control socket"] = json.dumps(asked)
    assert [where for where, text in said.items() if CANARY in text] == []
    assert [where for where, data in held.items() if CANARY.encode() in data] == []
    assert "may not use" in said["wald dlq list"]  # all else of the target's words is told


def test_the_report_of_a_torture_tells_nothing_of_the_environment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", CANARY)
    place = directory / "torture"
    done = call("torture", str(place), "--for", "1s", "--every", "300ms", "--stop-max", "1s")
    assert done.returncode == 0, done.stderr
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {"report.json", "report.svg"} <= {path.name for path in files}
    assert CANARY not in done.stdout + done.stderr
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def refusals(server: WebServer, words: str, count: int) -> None:
    """Let the next requests be refused in these words."""
    for _ in range(count):
        server.next({"status": 400, "body": json.dumps({"message": words})})


def evil_daemon(directory: Path, server: WebServer) -> Daemon:
    """A daemon with secrets of every kind whose target says what it likes."""
    (directory / "url").write_text(f"{server.url}?key={CANARY}-url\n")
    environment = {"WALD_TEST_CANARY": f"{CANARY}-token"}
    os.environ.update(environment)  # 'wald check' asks for it too
    config = WEB.format(directory=directory)
    return Daemon(directory, config=config, environment=environment)
