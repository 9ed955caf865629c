"""The units: accepted by systemd, and what the service can reach stays small."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wald import config
from wald.errors import EXIT_CONFIG, EXIT_USAGE
from wald.system import listen_fds, sd_notify

SYSTEMD = Path(__file__).parents[2] / "systemd"
EXPOSURE_MAX = 2.0


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


@pytest.fixture
def units(directory: Path) -> Path:
    """Copies of the units that name a program which is installed."""
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is absent: apt install systemd")
        pytest.skip("systemd-analyze is not installed")
    for unit in SYSTEMD.glob("wald.*"):
        text = re.sub(
            r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE
        )
        (directory / unit.name).write_text(text)
    return directory


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


def test_systemd_accepts_the_units(units: Path) -> None:
    done = analyze("verify", str(units / "wald.service"), str(units / "wald.socket"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_exposed_little(units: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(units / "wald.service"))
    found = re.search(r"Overall exposure level for wald\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX


def test_the_service_keeps_to_the_places_of_the_configuration() -> None:
    service = (SYSTEMD / "wald.service").read_text()
    listen = (SYSTEMD / "wald.socket").read_text()
    places = config.default_places({}, 0)
    assert f"ListenStream={places.socket}\n" in listen
    assert f"StateDirectory={Path(places.data_dir).name}\n" in service
    assert "Type=notify\n" in service
    assert f"RestartPreventExitStatus={EXIT_USAGE} {EXIT_CONFIG}\n" in service
    assert "wald replay" in service
    # the users of [access] must be told apart
    assert not re.search(r"^PrivateUsers=(yes|true|1|self|identity)", service, re.MULTILINE)
    # windows of targets are measured by the name of the boot, which is in /proc/sys
    assert not re.search(r"^ProcSubset=pid", service, re.MULTILINE)
    # daemon.socket_group: what is denied as privileged is allowed again behind it
    denied = service.find("\nSystemCallFilter=~@privileged")
    assert 0 < denied < service.find("\nSystemCallFilter=@chown\n")


# --- what the units rely on ---------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_is_told_to_the_manager(directory: Path, *, abstract: bool) -> None:
    address = f"@wald-test-{os.getpid()}" if abstract else str(directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        assert sd_notify({"NOTIFY_SOCKET": address}, "READY=1", "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all"])
def test_nobody_to_tell_is_no_error(address: str | None) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    assert not sd_notify(environment, "READY=1")


@pytest.mark.parametrize(
    ("pid", "count", "fds"),
    [("ours", "2", [3, 4]), ("1", "2", []), ("", "2", []), ("ours", "", []), ("ours", "x", [])],
)
def test_passed_sockets_are_taken_once_and_only_if_they_are_ours(
    pid: str, count: str, fds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    environment = {
        "LISTEN_PID": str(os.getpid()) if pid == "ours" else pid,
        "LISTEN_FDS": count,
        "LISTEN_FDNAMES": "wald",
        "OTHER": "1",
    }
    assert listen_fds(environment) == fds
    assert environment == {"OTHER": "1"}
    assert listen_fds(environment) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_child_ends_with_its_parent(directory: Path) -> None:
    """A parent that is killed takes the child with it that asked for that."""
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from wald.system import end_with_parent
reading, writing = os.pipe()
if os.fork() == 0:
    end_with_parent(signal.SIGTERM)
    os.write(writing, b"x")
    while True:
        signal.pause()
os.read(reading, 1)
print("asked", flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"asked\n"
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == b""  # its end: the child, which holds it too, is gone
    finally:
        parent.stdout.close()
