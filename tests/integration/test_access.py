"""Who may do what, at real daemons: users by SO_PEERCRED, user namespaces, modes of sockets."""

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until
from wald.errors import WaldError

ANN, BOB, EVE, WEB = 61_001, 61_002, 61_003, 62_001  # ids that nobody has
CONFIG = """
[daemon]
socket_mode = "{mode}"
[access]
append = ["@{web}"]
operate = ["{bob}"]
[access.streams.orders]
append = ["{ann}"]
read = ["{ann}"]
[sinks.db]
type = "sqlite"
path = "{place}/x.db"
[routes.orders-db]
stream = "orders"
sink = "db"
[routes.signups-db]
stream = "signups"
sink = "db"
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A short directory that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="w"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def config(place: Path, mode: str = "0666") -> str:
    return CONFIG.format(place=place, mode=mode, ann=ANN, bob=BOB, web=WEB)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with open_directory() as place, Daemon(place, config=config(place)) as running:
        yield running


def as_user(uid: int, action: Callable[[], Any], *groups: int) -> Any:
    """Do something as another user, in a process of its own; return what JSON can say of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said: object = "nothing"
        try:
            os.close(reading)
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said = action()
        except WaldError as error:
            said = error.code if error.hint else "no hint"
        except BaseException as error:  # noqa: BLE001 - told to the test
            said = repr(error)
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def append(daemon: Daemon, stream: str) -> Callable[[], str]:
    def action() -> str:
        with wald.connect(str(daemon.socket), timeout=20) as producer:
            producer.append(stream, b"v")
        return "stored"

    return action


APPENDS = {
    "who is listed for the stream": (ANN, (), "orders", "stored"),
    "and for no other": (ANN, (), "signups", "access-denied"),
    "a group that is listed everywhere": (EVE, (WEB,), "signups", "stored"),
    "but where the stream has its own list": (EVE, (WEB,), "orders", "access-denied"),
    "who may operate may not append": (BOB, (), "signups", "access-denied"),
    "nobody of them": (EVE, (), "signups", "access-denied"),
    "the daemon's own user": (0, (), "orders", "stored"),
}


@needs_root
@pytest.mark.parametrize("row", APPENDS)
def test_who_may_append(daemon: Daemon, row: str) -> None:
    uid, groups, stream, expected = APPENDS[row]
    with wald.connect(str(daemon.socket)) as neighbour:
        assert as_user(uid, append(daemon, stream), *groups) == expected
        neighbour.append("signups", b"neighbour")


@needs_root
def test_a_denied_stream_is_not_in_the_way_of_another_on_the_same_connection(
    daemon: Daemon,
) -> None:
    def action() -> list[str]:
        with wald.connect(str(daemon.socket), timeout=20) as producer:
            producer.append("orders", b"v")
            # an id from elsewhere: opening the stream is refused, appending to its id too
            streams = producer._session._streams
            streams["signups"] = signups
            codes = []
            for stream in ("signups", "orders", "signups"):
                try:
                    producer.append(stream, b"v")
                    codes.append("stored")
                except WaldError as error:
                    codes.append(error.code)
            return codes

    with wald.connect(str(daemon.socket)) as producer:
        producer.append("signups", b"v")
        signups = producer._session._streams["signups"]
    assert as_user(ANN, action) == ["access-denied", "stored", "access-denied"]


ASKS = {
    "who reads one stream sees that one": (ANN, "status", ["orders-db"]),
    "who operates sees all": (BOB, "status", ["orders-db", "signups-db"]),
    "who only appends sees none": (EVE, "status", "access-denied"),
    "who reads one stream may not flush": (ANN, "drain.flush", "access-denied"),
    "who operates may": (BOB, "drain.flush", []),
    "a sign of life": (EVE, "ping", []),
}


@needs_root
@pytest.mark.parametrize("row", ASKS)
def test_who_may_ask(daemon: Daemon, row: str) -> None:
    uid, operation, expected = ASKS[row]

    def action() -> Any:
        answer: Any = daemon.ask(op=operation)
        return answer["error"]["code"] if not answer["ok"] else sorted(answer.get("routes", ()))

    assert as_user(uid, action) == expected


@needs_root
def test_refusals_are_counted_and_the_drainers_socket_is_nobody_elses(daemon: Daemon) -> None:
    as_user(EVE, append(daemon, "signups"))
    as_user(EVE, lambda: daemon.ask(op="status"))

    def counted() -> bool:
        said: Any = daemon.ask(op="status")
        return bool(said["refused"].get("access-denied", 0) >= 2)

    wait_until(counted, "both refusals are counted")

    def knock() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.data_dir / "drain.sock"))

    assert "PermissionError" in as_user(BOB, knock)


@needs_root
def test_users_do_not_take_each_others_sessions(daemon: Daemon) -> None:
    def named() -> int:
        with wald.connect(str(daemon.socket), name="importer", timeout=20) as producer:
            producer.append("signups", b"v")
            return producer.session.session_id

    own = as_user(EVE, named, WEB)
    assert as_user(ANN, named, WEB) != own
    assert as_user(0, named) != own
    assert as_user(EVE, named, WEB) == own  # a user comes back to its own

    def resume() -> str:
        with wald.connect(str(daemon.socket), name="mine", timeout=20) as producer:
            producer._session.outbox.session = own
            return "resumed" if producer.session.session_id == own else "another"

    assert as_user(ANN, resume, WEB) == "another"


# --- user namespaces ----------------------------------------------------------------------------


def serve(place: Path, *unshare: str) -> list[str]:
    places = ["--data-dir", f"{place}/data", "--socket", f"{place}/w.sock"]
    command = [sys.executable, "-m", "wald", "serve", "--config", f"{place}/wald.toml", *places]
    return ["unshare", *unshare, *command]


def has_namespaces() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-U", "true"], check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="no user namespaces here")


@needs_namespaces
def test_where_all_users_have_one_id_access_is_refused_at_the_start() -> None:
    with open_directory() as place:
        (place / "wald.toml").write_text(config(place))
        done = subprocess.run(
            serve(place, "-U"), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (78, "")
        assert "error[config]: [access] cannot be kept" in done.stderr
        assert "hint: " in done.stderr
        assert not (place / "data").exists()


@needs_root
@needs_namespaces
def test_who_is_not_mapped_into_the_namespace_is_nobody_there() -> None:
    with open_directory() as place:
        text = config(place).replace(f'append = ["@{WEB}"]', 'append = ["65534", "@65534"]')
        (place / "wald.toml").write_text(text)
        with (
            (place / "serve.log").open("wb") as log,
            subprocess.Popen(
                serve(place, "-U", "--map-root-user"), stdout=log, stderr=log
            ) as process,
        ):
            try:
                running = Daemon(place, config=text)
                wait_until(lambda: (running.ask(op="ping") or {}).get("ok") is True, "it serves")
                with wald.connect(str(running.socket), timeout=20) as own:
                    own.append("signups", b"v")
                # in there both have the overflow id, which the configuration lists
                assert as_user(EVE, append(running, "signups")) == "access-denied"
                assert as_user(ANN, append(running, "orders"), WEB) == "access-denied"
            finally:
                process.terminate()
                process.wait(60)


# --- sockets ------------------------------------------------------------------------------------


@needs_root
def test_mode_and_owner_of_the_sockets_are_those_of_the_settings() -> None:
    with open_directory() as place:
        text = config(place, "0660").replace(
            "[access]", f'socket_owner = "{ANN}"\nsocket_group = "{WEB}"\n[access]'
        )
        before = os.umask(0)  # whatever it is
        try:
            with Daemon(place, config=text) as running:
                for name in (running.socket, Path(f"{running.socket}.ctl")):
                    found = name.stat()
                    assert stat.S_IMODE(found.st_mode) == 0o660
                    assert (found.st_uid, found.st_gid) == (ANN, WEB)
                assert as_user(EVE, append(running, "signups"), WEB) == "stored"
                assert as_user(BOB, append(running, "signups")) == "unavailable"
        finally:
            os.umask(before)


def test_a_list_that_nobody_can_use_is_said() -> None:
    with open_directory() as place, Daemon(place, config=config(place, "0600")) as running:
        assert "socket_mode lets none of them connect" in running.log.read_text()


def test_a_user_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    text = config(tmp_path).replace(f'"{BOB}"', '"no-such-user"')
    (tmp_path / "wald.toml").write_text(text)
    for command in ("check", "serve"):
        done = subprocess.run(
            [sys.executable, "-m", "wald", command, "--config", str(tmp_path / "wald.toml")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 78
        assert "error[config.wrong-value]: access.operate: there is no user" in done.stderr
