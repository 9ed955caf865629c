"""Parts of the supervisor without processes: status from the pages, claims, back-off, control."""

import asyncio
import json
import os
import random
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wald import limits
from wald.errors import (
    Backpressure,
    BadFrame,
    DataDirectoryForeign,
    DataDirectoryHeld,
    DataDirectoryUnusable,
    DiskFull,
    RecordRefused,
    SocketHeld,
    SocketUnusable,
    Unavailable,
    WaldError,
    WrongSetting,
    reported,
)
from wald.storage.progress import TwoSlotPage
from wald.supervisor.calm import Calm
from wald.supervisor.children import backoff_s, failures_after, is_final
from wald.supervisor.claim import (
    Manner,
    claim_data_directory,
    claim_sockets,
    release_sockets,
)
from wald.supervisor.control import ControlServer
from wald.supervisor.observe import Figures, build_status, read_figures
from wald.system import PosixFileSystem
from wald.testing.clock import ManualClock

FS = PosixFileSystem()
RUNNING = {
    "ingest": {"pid": 11, "ready": True},
    "drain": {"pid": 12, "ready": True},
}


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


def ingest_figures(**changed: Any) -> dict[str, Any]:
    return {
        "pid": 11,
        "log_id": "ab" * 16,
        "frontier": [3, 8192, 107],
        "streams": [[1, "signups", 100, 5_000, 107]],
        "routes": [[9, "to-db", 1, "db", 7, 40]],
        **changed,
    }


def drain_figures(**changed: Any) -> dict[str, Any]:
    route = {
        "route_id": 9,
        "class": "transactional",
        "state": "delivering",
        "through_lsn": 90,
        "delivered": 50,
        "dead_letters": 2,
        "oldest_pending_ns": 1_000_000_000,
        **changed,
    }
    return {"pid": 12, "routes": {"to-db": route}}


def status_of(
    ingest: Mapping[str, Any] | None = None, drain: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    figures = Figures({"lsn": 110}, ingest or ingest_figures(), drain or drain_figures())
    return build_status(figures, RUNNING, 3_500_000_000)


def test_the_books_of_a_route_balance() -> None:
    route = status_of()["routes"]["to-db"]
    assert (route["accepted"], route["delivered"], route["dead_letters"]) == (60, 50, 2)
    assert route["pending"] == 60 - 50 - 2
    assert route["oldest_pending_s"] == 2.5
    assert (route["stream"], route["sink"], route["class"]) == ("signups", "db", "transactional")


def test_once_a_route_is_through_nothing_is_pending_and_the_rest_is_lost() -> None:
    route = status_of()["routes"]["to-db"]
    assert (route["pending"], route["lost"]) == (8, 0)
    route = status_of(drain=drain_figures(through_lsn=107))["routes"]["to-db"]
    assert (route["accepted"], route["pending"], route["lost"]) == (60, 0, 8)
    assert route["oldest_pending_s"] is None


def test_the_frontier_is_the_newest_that_any_page_knows() -> None:
    status = status_of()
    assert (status["frontier_lsn"], status["figures_lsn"]) == (110, 107)


def test_figures_of_an_older_moment_never_make_pending_negative() -> None:
    route = status_of(drain=drain_figures(delivered=75))["routes"]["to-db"]
    assert (route["accepted"], route["pending"]) == (77, 0)
    assert route["oldest_pending_s"] is None


def test_figures_of_another_life_of_the_name_do_not_count() -> None:
    route = status_of(drain=drain_figures(route_id=8))["routes"]["to-db"]
    assert (route["accepted"], route["delivered"], route["pending"]) == (60, 0, 60)
    assert route["state"] == "starting"
    assert route["through_lsn"] == 7


@pytest.mark.parametrize(
    ("ingest", "stale"),
    [
        ({"pid": 11, "ready": True}, False),
        ({"pid": 99, "ready": True}, True),
        ({"pid": 11, "ready": False}, True),
        ({"pid": None, "ready": False}, True),
    ],
)
def test_figures_of_a_process_that_is_gone_are_stale(
    ingest: Mapping[str, Any], *, stale: bool
) -> None:
    figures = Figures(None, ingest_figures(), drain_figures())
    status = build_status(figures, {**RUNNING, "ingest": ingest}, 0)
    assert status["stale"] is stale
    assert status["processes"]["ingest"]["stale"] is stale
    assert status["processes"]["drain"]["stale"] is False


def test_without_any_page_there_is_still_a_status(directory: Path) -> None:
    figures = read_figures(FS, str(directory))
    status = build_status(figures, {}, 0)
    assert (status["log_id"], status["frontier_lsn"], status["routes"]) == ("", 0, {})


def test_figures_are_read_from_the_pages(directory: Path) -> None:
    pages = (
        ("ingest.page", 0, limits.PAGE_SLOT_BYTES, {"lsn": 5}),
        ("ingest.page", limits.FIGURES_OFFSET_BYTES, limits.FIGURES_SLOT_BYTES, {"pid": 1}),
        ("drain.page", 0, limits.FIGURES_SLOT_BYTES, {"pid": 2}),
    )
    for name, offset, slot_bytes, statement in pages:
        path = str(directory / name)
        page = TwoSlotPage.open(FS, path, offset=offset, slot_bytes=slot_bytes, write=True)
        page.write(dict(statement), sync=False)
        page.close()
    assert read_figures(FS, str(directory)) == Figures({"lsn": 5}, {"pid": 1}, {"pid": 2}, [])


# --- claims -------------------------------------------------------------------------------------


def test_a_data_directory_is_made_private_with_those_above_it(directory: Path) -> None:
    data = directory / "a" / "b" / "data"
    lock = claim_data_directory(FS, str(data), pid=4711)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert (data / "serve.lock").read_text() == "4711\n"
    with pytest.raises(DataDirectoryHeld, match="held by another daemon, pid 4711") as caught:
        claim_data_directory(FS, str(data), pid=1)
    assert "--data-dir" in caught.value.hint
    lock.close()
    claim_data_directory(FS, str(data), pid=5).close()  # the name is stale, the lock was not
    assert (data / "serve.lock").read_text() == "5\n"


def test_a_directory_of_somebody_elses_files_is_refused_untouched(directory: Path) -> None:
    (directory / "letter.txt").write_text("mine")
    with pytest.raises(DataDirectoryForeign, match="none of them is wald's"):
        claim_data_directory(FS, str(directory), pid=1)
    assert [path.name for path in directory.iterdir()] == ["letter.txt"]


def test_log_files_without_an_identity_are_foreign(directory: Path) -> None:
    (directory / "log").mkdir()
    (directory / "log" / "seg-0000000001.wal").write_bytes(b"x")
    with pytest.raises(DataDirectoryForeign):
        claim_data_directory(FS, str(directory), pid=1)


@pytest.mark.parametrize("kind", ["link", "file", "open"])
def test_an_unsafe_data_directory_is_refused(directory: Path, kind: str) -> None:
    data = directory / "data"
    if kind == "link":
        data.symlink_to(directory)
    elif kind == "file":
        data.write_text("")
    else:
        data.mkdir()
        data.chmod(0o777)
    with pytest.raises(DataDirectoryUnusable) as caught:
        claim_data_directory(FS, str(data), pid=1)
    assert caught.value.hint
    assert caught.value.exit_code == 74


def test_a_lock_that_is_a_link_is_not_followed(directory: Path) -> None:
    (directory / "identity").write_text("")
    (directory / "elsewhere").write_text("precious")
    (directory / "serve.lock").symlink_to(directory / "elsewhere")
    with pytest.raises(DataDirectoryUnusable):
        claim_data_directory(FS, str(directory), pid=1)
    assert (directory / "elsewhere").read_text() == "precious"


def test_sockets_are_bound_for_their_owner_only(directory: Path) -> None:
    path = directory / "run" / "w.sock"
    before = os.umask(0)
    try:
        sockets, lock = claim_sockets(FS, str(path), None, pid=7)
    finally:
        os.umask(before)
    for name in (path, Path(f"{path}.ctl")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(SocketHeld, match="pid 7"):
        claim_sockets(FS, str(path), None, pid=8)
    release_sockets(FS, sockets)
    lock.close()
    assert [name.name for name in path.parent.iterdir()] == ["w.sock.lock"]


def test_a_stale_socket_is_replaced(directory: Path) -> None:
    path = directory / "w.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    sockets, lock = claim_sockets(FS, str(path), None, pid=7)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    release_sockets(FS, sockets)
    lock.close()


def test_a_file_in_the_place_of_a_socket_is_left_alone(directory: Path) -> None:
    path = directory / "w.sock"
    path.write_text("precious")
    with pytest.raises(SocketUnusable, match="not a socket"):
        claim_sockets(FS, str(path), None, pid=7)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["nowhere", "precious"])
def test_a_link_in_the_place_of_a_socket_is_not_followed(directory: Path, target: str) -> None:
    (directory / "precious").write_text("precious")
    path = directory / "w.sock"
    path.symlink_to(directory / target)
    with pytest.raises(SocketUnusable) as caught:
        claim_sockets(FS, str(path), None, pid=7)
    assert caught.value.hint
    assert path.is_symlink()
    assert not (directory / "nowhere").exists()
    assert (directory / "precious").read_text() == "precious"


def test_the_lock_of_a_socket_that_is_a_link_is_not_followed(directory: Path) -> None:
    (directory / "precious").write_text("precious")
    (directory / "w.sock.lock").symlink_to(directory / "precious")
    with pytest.raises(SocketUnusable):
        claim_sockets(FS, str(directory / "w.sock"), None, pid=7)
    assert (directory / "precious").read_text() == "precious"


def test_a_socket_gets_its_mode_only_with_its_owner(directory: Path) -> None:
    """Whatever the umask: nobody connects before the owner is right, nor more than may."""
    path = directory / "w.sock"
    before = os.umask(0)
    try:
        manner = Manner(0o660, os.geteuid(), os.getegid())
        sockets, lock = claim_sockets(FS, str(path), None, pid=7, manner=manner)
    finally:
        os.umask(before)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, os.geteuid())
    release_sockets(FS, sockets)
    lock.close()


def test_a_path_longer_than_the_kernel_takes_is_said_so(directory: Path) -> None:
    name = "x" * (limits.SOCKET_PATH_MAX_BYTES - 4 - len(f"{directory}/"))
    sockets, lock = claim_sockets(FS, f"{directory}/{name}", None, pid=7)
    release_sockets(FS, sockets)
    lock.close()
    with pytest.raises(WrongSetting, match="has 108 bytes") as caught:
        claim_sockets(FS, f"{directory}/{name}x", None, pid=7)
    assert caught.value.exit_code == 78


def test_a_socket_of_the_service_manager_is_kept_and_its_name_left(directory: Path) -> None:
    path = directory / "w.sock"
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(path))
        passed.listen()
        sockets, lock = claim_sockets(FS, str(path), passed, pid=7)
        assert sockets.data is passed
        release_sockets(FS, sockets)
        lock.close()
    assert path.exists()
    assert not Path(f"{path}.ctl").exists()


# --- children -----------------------------------------------------------------------------------


def test_the_pause_between_starts_doubles_with_jitter_up_to_a_bound() -> None:
    chance = random.Random(1)
    for failures in range(40):
        pause_s = backoff_s(failures, chance)
        bound_s = min(
            limits.CHILD_BACKOFF_CAP_S, limits.CHILD_BACKOFF_BASE_S * 2 ** max(failures - 1, 0)
        )
        assert bound_s / 2 <= pause_s <= bound_s


@pytest.mark.parametrize(
    ("served_s", "pauses_s"),
    [
        (0.0, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
        (0.6, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
        (60.0, [0.1] * 9),
    ],
    ids=["never ready", "dies soon", "lives long"],
)
def test_only_a_life_that_is_long_beside_the_pause_makes_the_next_one_short(
    served_s: float, pauses_s: list[float]
) -> None:
    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return max(a, b)

    failures, pauses = 0, []
    for _ in pauses_s:
        failures = failures_after(failures, served_s)
        pauses.append(backoff_s(failures, Longest()))
    assert pauses == pytest.approx(pauses_s)


def test_a_child_that_fails_at_times_starts_at_once_again_after_a_long_life() -> None:
    failures = 0
    for served_s in (0.6, 0.6, 0.6, 3.0):
        failures = failures_after(failures, served_s)
    assert failures == 4  # 3 s are not long beside 0.4 s
    assert failures_after(failures, limits.CHILD_SETTLED_PAUSES_COUNT * 0.8) == 0


def test_who_is_killed_while_it_serves_is_wanted_at_once_and_before_that_with_pauses() -> None:
    assert failures_after(7, 0.01, killed=True) == 0
    assert failures_after(7, 0.0, killed=True) == 8


@pytest.mark.parametrize(
    ("code", "exit_code", "final"),
    [
        ("config.unknown-key", 78, True),
        ("format.newer", 78, True),
        ("data.held", 69, True),
        ("data.unusable", 74, True),
        ("log.failed", 74, False),
        ("start.failed", 74, False),
        ("disk-full", 69, False),
    ],
)
def test_what_starting_again_cannot_mend_is_final(
    code: str, exit_code: int, *, final: bool
) -> None:
    error = reported({"code": code, "message": "m", "hint": "h", "exit_code": exit_code})
    assert (error.code, error.message, error.hint) == (code, "m", "h")
    assert error.exit_code == exit_code
    assert is_final(error, "ingest") is final
    assert is_final(error, "drain") is (final and code != "data.held")


def test_an_error_told_without_an_exit_code_gets_that_of_its_class() -> None:
    assert reported({"code": "data.held"}).exit_code == DataDirectoryHeld.exit_code
    assert reported({"code": "never-heard-of"}).exit_code == WaldError.exit_code


def test_a_told_error_is_caught_by_its_class() -> None:
    for kind in (Unavailable, DiskFull, DataDirectoryHeld, RecordRefused, BadFrame):
        error = reported({"code": kind.code, "message": "m", "exit_code": 75})
        assert isinstance(error, kind)
        assert (str(error), error.message, error.exit_code) == ("m", "m", 75)
        assert error.retryable is kind.retryable
    assert reported({"code": DiskFull.code}).hint == DiskFull.default_hint
    told = reported({"code": DiskFull.code})
    assert isinstance(told, Backpressure)
    assert told.retry_after_s == 0


# --- control ------------------------------------------------------------------------------------


async def _ping(_: Mapping[str, Any]) -> dict[str, Any]:
    return {"pid": 1}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "input"),
        (b"nonsense\n", "input"),
        (b"[]\n", "input"),
        (b'{"op": 1}\n', "input"),
        (b'{"op": "no\\u001b[31m"}\n', "input"),
        (b"[" * 100_000 + b"\n", "input"),
        (b'{"op": "drain.flush"}\n', "unavailable"),
    ],
)
def test_a_bad_line_is_answered_with_an_error(directory: Path, line: bytes, code: str) -> None:
    server = ControlServer({"ping": _ping}, str(directory / "drain.sock"))
    answer = json.loads(asyncio.run(server.answer(line)))
    assert answer["ok"] is False
    assert answer["error"]["code"] == code


def test_what_the_system_refuses_the_supervisor_is_told_to_who_asked(directory: Path) -> None:
    async def refused(_: object) -> dict[str, object]:
        raise OSError(24, "Too many open files", "reports")

    server = ControlServer({"status": refused}, str(directory / "drain.sock"))
    answer = json.loads(asyncio.run(server.answer(b'{"op":"status"}\n')))
    assert answer["ok"] is False
    assert answer["error"]["code"] == "unavailable"
    assert "Too many open files" in answer["error"]["message"]
    assert "limit of open files" in answer["error"]["hint"]


def test_what_the_loop_reports_again_and_again_is_logged_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    calm = Calm(clock)
    loop: Any = None
    context = {"message": "out of system resource", "exception": OSError(24, "Too many open files")}
    for _ in range(200):
        calm(loop, context)
    calm(loop, {"message": "another", "exception": ValueError("a bug")})
    assert len(caplog.records) == 2
    assert caplog.records[0].exc_info is None
    assert caplog.records[1].exc_info is not None
    clock.advance(limits.TOLD_EVERY_S)
    calm(loop, context)
    assert "and 199 times since" in caplog.records[2].message


def test_a_line_is_answered_by_its_operation(directory: Path) -> None:
    server = ControlServer({"ping": _ping}, str(directory / "drain.sock"))
    assert json.loads(asyncio.run(server.answer(b'{"op":"ping"}\n'))) == {"ok": True, "pid": 1}
