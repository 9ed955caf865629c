"""The supervisor and its children as real processes."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon, ended, wait_until
from wald.core.frame import crc32c


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


def newer_format(identity: bytes) -> bytes:
    """The file as a later release would write it: bytes 10 and 11 name the oldest reader."""
    packed = identity[:10] + (99).to_bytes(2, "little") + identity[12:-4]
    return packed + crc32c(packed).to_bytes(4, "little")


def is_back(daemon: Daemon, role: str, killed: int) -> bool:
    return daemon.pids().get(role) not in (None, killed)


def is_stale(daemon: Daemon, *, wanted: bool) -> bool:
    answer = daemon.ask(op="status")
    return answer is not None and answer["stale"] is wanted


def serve(*arguments: str, notify: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "wald", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NOTIFY_SOCKET": notify},
    )


CLOSED = 'exec "$0" -m wald "$@" <&- >&- 2>&-'


def test_a_daemon_without_standard_streams_keeps_its_files_from_what_is_printed(
    directory: Path,
) -> None:
    launcher = ("sh", "-c", CLOSED, sys.executable)
    with Daemon(directory, to=f"sqlite:{directory}/x.db", launcher=launcher) as daemon:
        for process in daemon.family:
            for number in (1, 2):
                opened = Path(f"/proc/{process.pid}/fd/{number}").readlink()
                assert opened == Path(os.devnull)
        for arguments in (["status"], ["append", "s"], ["route", "list"]):
            done = subprocess.run(
                [*launcher, *arguments, "--socket", str(daemon.socket)], timeout=60, check=False
            )
            assert done.returncode == 0, arguments


def test_a_killed_child_is_started_again_and_no_record_is_lost(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket), timeout=60.0) as producer:
            for role in ("ingest", "drain", "ingest"):
                producer.append_many("things", [{"n": n} for n in range(10)])
                pid = daemon.pids()[role]
                os.kill(pid, signal.SIGKILL)
                producer.append("things", {"after": role})
                wait_until(partial(is_back, daemon, role, pid), f"{role} is back")
        daemon.command("wait", "--all", "--timeout", "30s")
        answer = daemon.ask(op="status")
        assert answer is not None
        routes = answer["routes"]
        assert isinstance(routes, dict)
        route = routes["things"]
        assert (route["accepted"], route["delivered"], route["pending"]) == (33, 33, 0)


def test_a_system_that_gives_no_process_for_a_while_ends_no_daemon(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        assert daemon.process is not None
        supervisor, drain = psutil.Process(daemon.process.pid), daemon.pids()["drain"]
        bounds = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 1})
            supervisor.rlimit(psutil.RLIMIT_NOFILE, (supervisor.num_fds(), bounds[1]))
            os.kill(drain, signal.SIGKILL)
            said = "drain cannot be started yet: no process for it: Too many open files"
            wait_until(lambda: said in daemon.log.read_text(), "no process is to be had")
            producer.append("things", {"n": 2})
            supervisor.rlimit(psutil.RLIMIT_NOFILE, bounds)
            wait_until(partial(is_back, daemon, "drain", drain), "drain is back")
        daemon.command("wait", "--all", "--timeout", "30s")


def test_who_holds_the_ledger_delays_delivery_and_ends_no_daemon(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db", needs=("ingest",)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 1})
        daemon.command("wait", "--all", "--timeout", "30s")
        daemon.end()
        with (daemon.data_dir / "ledger.lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as an audit without a daemon does, for as long
            daemon.start()
            with wald.connect(str(daemon.socket)) as producer:
                producer.append("things", {"n": 2})
                said = "drain ended: .*another drainer holds it"
                wait_until(lambda: bool(re.search(said, daemon.log.read_text())), "it gave up once")
                producer.append("things", {"n": 3})
        daemon.command("wait", "--all", "--timeout", "30s")


def test_clients_that_connect_while_ingest_is_down_wait_instead_of_failing(
    directory: Path,
) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        os.kill(daemon.pids()["ingest"], signal.SIGKILL)
        with wald.connect(str(daemon.socket), timeout=30.0) as producer:
            assert producer.append("things", {"n": 1}).lsn > 0


def test_the_children_end_with_a_killed_supervisor(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        children = [psutil.Process(daemon.pids()[role]) for role in ("ingest", "drain")]
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: all(ended(child) for child in children), "the children end")
        daemon.start()  # the stale socket is replaced


def test_status_answers_while_both_children_hang(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        children = [psutil.Process(daemon.pids()[role]) for role in ("ingest", "drain")]
        for child in children:
            child.suspend()
        try:
            answer = daemon.ask(op="status")
            assert answer is not None
            assert answer["ok"] is True
        finally:
            for child in children:
                child.resume()


def test_figures_are_stale_while_their_writer_is_down(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        answer = daemon.ask(op="status")
        assert answer is not None
        assert answer["stale"] is False
        os.kill(daemon.pids()["drain"], signal.SIGKILL)

        for wanted in (True, False):  # of the killed process, then of the new one
            wait_until(partial(is_stale, daemon, wanted=wanted), f"stale is {wanted}")


def test_a_second_start_is_told_who_holds_the_directory_and_harms_nothing(
    directory: Path,
) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        held = daemon.pids()["supervisor"]
        target = ["--to", f"sqlite:{directory}/x.db"]
        for code, arguments in (
            ("data.held", ["--data-dir", str(daemon.data_dir), "--socket", f"{directory}/2.sock"]),
            ("socket.held", ["--data-dir", f"{directory}/d2", "--socket", str(daemon.socket)]),
        ):
            second = serve(*target, *arguments)
            _, said = second.communicate(timeout=60)
            assert second.returncode == 69
            assert f"error[{code}]" in said
            assert f"pid {held}" in said
            assert "Traceback" not in said
        with wald.connect(str(daemon.socket)) as producer:
            assert producer.append("things", {"n": 1}).lsn == 1


def test_a_data_directory_that_was_removed_is_an_alarm(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        assert "ALARM" not in call("status", socket=daemon.socket).stderr
        (daemon.data_dir / "identity").rename(directory / "identity")
        assert "ALARM: the data directory" in call("status", socket=daemon.socket).stderr
        assert json.loads(daemon.command("status", "--json"))["data_dir_gone"] is True
        (directory / "identity").rename(daemon.data_dir / "identity")


def test_a_clean_stop_delivers_and_leaves_no_process_and_no_socket(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("things", [{"n": n} for n in range(5)])
        children = [psutil.Process(daemon.pids()[role]) for role in ("ingest", "drain")]
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(60) == 0
        assert all(ended(child) for child in children)
    assert not daemon.socket.exists()
    assert not Path(f"{daemon.socket}.ctl").exists()
    with closing(sqlite3.connect(directory / "x.db")) as database:
        assert database.execute("select count(*) from things").fetchone() == (5,)


def test_the_service_manager_is_told_ready_and_stopping(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(60)
        daemon = serve(
            *("--to", f"sqlite:{directory}/x.db", "--socket", f"{directory}/w.sock"),
            notify=str(directory / "notify"),
        )
        try:
            said = ""
            while "READY=1" not in said:
                said = manager.recv(4_096).decode()
            with wald.connect(f"{directory}/w.sock") as producer:  # ready means ready
                producer.append("things", {"n": 1})
            daemon.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in said:
                said = manager.recv(4_096).decode()
        finally:
            daemon.terminate()
            daemon.communicate(timeout=60)
    assert daemon.returncode == 0


def test_status_has_every_field_that_the_how_to_watches(directory: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "operate.md").read_text()
    shown = re.search(r"^## Watch it\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert shown
    fields = re.findall(r"^\| `\.([^`]+)` \|", shown[1], re.MULTILINE)
    assert len(fields) > 5
    question = re.search(r"jq -e '([^']+)'", shown[1])
    assert question
    config = (
        f"[sinks.db]\ntype = 'sqlite'\npath = '{directory}/x.db'\n[streams.s]\n"
        "quota_records = 9\n[routes.s]\nstream = 's'\nsink = 'db'\n"
    )
    with Daemon(directory, config=config) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("s", {"n": 1})
        wait_until(lambda: "s" in json.loads(daemon.command("status", "--json"))["quotas"], "it")
        said = daemon.command("status", "--json")
    for field in fields:
        found = [json.loads(said)]
        for name in field.split("."):
            key = name.removesuffix("[]")
            found = [each[key] for each in found]
            if name.endswith("[]"):
                found = [value for each in found for value in each.values()]
        assert found, field
        assert not any(found), field
    if shutil.which("jq"):
        done = subprocess.run(["jq", "-e", question[1]], input=said, text=True, check=False)
        assert done.returncode == 0


def test_a_hangup_ends_a_daemon_at_its_terminal_and_is_no_reload_elsewhere(
    directory: Path,
) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "read at a start only" in daemon.log.read_text(), "it is told")
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 1})
    ours, theirs = os.openpty()
    daemon = Daemon(directory, to=f"sqlite:{directory}/x.db", stdin=theirs)
    with daemon:
        os.close(theirs)
        assert daemon.process is not None
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 2})
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.wait(60) == 0
    os.close(ours)
    assert "stopped, 0 pending" in daemon.log.read_text()


def test_a_socket_of_the_service_manager_is_served_and_left(directory: Path) -> None:
    path = str(directory / "w.sock")  # made by the program below
    # what systemd does: the socket as descriptor 3, and the variables with our own pid
    program = (
        "import os, socket, sys;"
        f"s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen();"
        "os.dup2(s.fileno(), 3) if s.fileno() != 3 else None; os.set_inheritable(3, True);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "os.execv(sys.executable, [sys.executable, '-m', 'wald', 'serve', *sys.argv[1:]])"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", program, "--to", f"sqlite:{directory}/x.db", "--socket", path],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((directory / "w.sock").exists, "the socket")
        with wald.connect(path, timeout=30.0) as producer:  # waits in the queue of the socket
            assert producer.append("things", {"n": 1}).lsn == 1
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0
    assert (directory / "w.sock").exists()


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("[sinks.db]\ntype='sqlite'\npath='x.db'\nmoed='document'\n", "config.unknown-key"),
        ("[sinks.db]\ntype='nosuch'\n", "config.wrong-value"),
    ],
)
def test_a_mistake_in_a_sink_ends_the_start_before_anything_is_made(
    directory: Path, config: str, code: str
) -> None:
    text = config + "[routes.things]\nstream='things'\nsink='db'\n"
    (directory / "wald.toml").write_text(text)
    daemon = serve(
        *("--config", f"{directory}/wald.toml", "--data-dir", f"{directory}/data"),
        *("--socket", f"{directory}/w.sock"),
    )
    _, said = daemon.communicate(timeout=60)
    assert daemon.returncode == 78
    assert f"error[{code}]: {directory}/wald.toml:" in said
    assert "Traceback" not in said
    assert not (directory / "data").exists()


def test_an_error_of_a_child_that_no_new_start_mends_ends_the_daemon(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        pass
    identity = daemon.data_dir / "identity"
    identity.write_bytes(newer_format(identity.read_bytes()))
    again = serve(*daemon.arguments)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 78
    assert "error[format.newer]" in said
    assert "hint: run the release that wrote it" in said
    assert "Traceback" not in said


def test_the_memory_of_all_three_processes_is_small(directory: Path) -> None:
    with Daemon(directory, to=f"sqlite:{directory}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append("things", {"n": 1})
        daemon.command("wait", "--all")
        sizes = {role: psutil.Process(pid).memory_info().rss for role, pid in daemon.pids().items()}
    assert sum(sizes.values()) < 160 * 1024 * 1024, sizes
