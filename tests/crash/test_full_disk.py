"""Disks that are full for real: refused by type, delivered on, accepted again; nothing is lost.

A small file system in memory that is filled; and an ext4 image on one that is shrunk under it, so
that a sync fails although the image has room (a thin device).
"""

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.servers import small_disk
from tests.servers.need import absent
from wald.errors import WaldError

VALUE = b"v" * 100_000
CONFIG = """
[daemon]
segment_bytes = "16MiB"
reserve = "24MiB"
retain = {{ after_delivery = "0s", max_bytes = "0B" }}
[sinks.db]
type = "sqlite"
path = "{beside}/x.db"
[routes.s]
stream = "s"
sink = "db"
"""


@contextlib.contextmanager
def small_file_system(size: str) -> Iterator[Path]:
    """A file system of a size, mounted; and unmounted behind it."""
    place = Path(tempfile.mkdtemp(prefix="w"))
    if not small_disk.mount(place, size):
        place.rmdir()
        absent("a file system of its own", "run the tests as root, where mount is allowed")
    try:
        yield place
    finally:
        small_disk.unmount(place)
        place.rmdir()


@pytest.fixture
def beside() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


def fill(daemon: Daemon, lsns: list[int]) -> wald.DiskFull:
    """Append until there is no room, then until there is none for one more either."""
    with wald.connect(str(daemon.socket), timeout=0.9) as producer:  # less than is asked for
        with contextlib.suppress(wald.DiskFull):
            while True:
                lsns += append(producer, [VALUE] * 20)
        try:
            while True:
                lsns += append(producer, [VALUE])
        except wald.DiskFull as full:
            return full


def append(producer: wald.Producer, values: list[bytes]) -> list[int]:
    """Return the LSNs of what was stored, however slow the machine is."""
    try:
        results = producer.append_many("s", values)
    except wald.OutcomeUnknown as slow:
        settled = producer.settle(slow, timeout=60)
        assert isinstance(settled, wald.Results)
        results = settled
    if results.is_unsettled:
        results = producer.settle(results, timeout=60)
    return [each.lsn for each in results.accepted]


def status(daemon: Daemon) -> Any:
    answer: Any = daemon.ask(op="status")
    return answer


def rows(beside: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(beside / "x.db")) as database:
        return [lsn for (lsn,) in database.execute("select lsn from s order by lsn")]


def test_on_a_full_disk_delivery_goes_on_and_acceptance_resumes_by_itself(beside: Path) -> None:
    with small_file_system("120m") as disk:
        config = CONFIG.format(beside=beside)
        with Daemon(beside, config=config, data_dir=disk / "data") as daemon:
            daemon.command("route", "pause", "--all")
            lsns: list[int] = []
            pids = daemon.pids()
            full = fill(daemon, lsns)
            assert full.code == "disk-full"
            assert full.retry_after_s > 0
            assert "free space" in full.hint
            assert len(lsns) > 200
            assert shutil.disk_usage(disk).free > 8 << 20  # the reserve is there for the others
            heard: list[float] = []

            def hear(_: str, pause_s: float) -> None:
                heard.append(pause_s)
                if len(heard) == 1:
                    threading.Thread(
                        target=daemon.command, args=("route", "resume", "--all")
                    ).start()

            with wald.connect(str(daemon.socket), timeout=60, on_throttle=hear) as producer:
                lsns.append(producer.append("s", VALUE).lsn)  # it waits for what delivery frees
                assert heard
            assert daemon.pids() == pids  # nobody ended for it
            daemon.command("wait", "--all", "--timeout", "60s")
            said = status(daemon)
            assert said["refused"]["disk-full"] >= 1
            route = said["routes"]["s"]
            assert (route["accepted"], route["delivered"], route["pending"]) == (
                len(lsns),
                len(lsns),
                0,
            )
        assert rows(beside) == lsns == sorted(set(lsns))


def test_what_is_kept_for_targets_that_go_back_makes_room_for_new_records(beside: Path) -> None:
    kept = CONFIG.replace('"0s", max_bytes = "0B"', '"1h", max_bytes = "1GiB"')
    assert kept != CONFIG
    with small_file_system("120m") as disk:
        config = kept.format(beside=beside)
        with Daemon(beside, config=config, data_dir=disk / "data") as daemon:
            lsns: list[int] = []
            daemon.command("route", "pause", "--all")
            fill(daemon, lsns)
            wait_until(lambda: status(daemon)["no_room"] is not None, "status says so")
            assert "ALARM: the disk is full" in daemon.command("status")
            daemon.command("route", "resume", "--all")
            daemon.command("wait", "--all", "--timeout", "60s")
            with wald.connect(str(daemon.socket), timeout=60) as producer:
                lsns.append(producer.append("s", VALUE).lsn)
            wait_until(lambda: status(daemon)["no_room"] is None, "status is silent again")
            daemon.command("wait", "--all", "--timeout", "60s")
            told = daemon.log.read_text()
        assert rows(beside) == lsns == sorted(set(lsns))
    assert told.count("no new record is accepted: ") == 1
    assert told.count("new records are accepted again") == 1


def test_what_is_kept_for_targets_that_go_back_makes_room_for_the_ledger(beside: Path) -> None:
    kept = CONFIG.replace('"0s", max_bytes = "0B"', '"1h", max_bytes = "1GiB"')
    with small_file_system("120m") as disk:
        config = kept.format(beside=beside)
        with Daemon(beside, config=config, data_dir=disk / "data") as daemon:
            lsns: list[int] = []
            fill(daemon, lsns)
            daemon.command("wait", "--all", "--timeout", "60s")
        with daemon:  # which told at its end that all is delivered
            with small_disk.filled(disk):  # nobody appends now: the reserve is what is missing
                wait_until(lambda: shutil.disk_usage(disk).free >= 24 << 20, "the reserve is back")
            with wald.connect(str(daemon.socket), timeout=60) as producer:
                lsns.append(producer.append("s", VALUE).lsn)
            daemon.command("wait", "--all", "--timeout", "60s")
            told = daemon.log.read_text()
        assert rows(beside) == lsns == sorted(set(lsns))
    assert "less is free on the disk than ledger and restarts may need" in told


def test_when_somebody_else_takes_the_reserve_too_nothing_is_lost(beside: Path) -> None:
    with small_file_system("120m") as disk:
        config = CONFIG.format(beside=beside)
        with Daemon(beside, config=config, data_dir=disk / "data") as daemon:
            lsns: list[int] = []
            with wald.connect(str(daemon.socket), timeout=30) as producer:
                lsns += [each.lsn for each in producer.append_many("s", [VALUE] * 50).accepted]
                with small_disk.filled(disk):
                    more: list[int] = []
                    fill(daemon, more)  # what was prepared before is used up first
                    lsns += more
                lsns.append(producer.append("s", b"behind it", timeout=60).lsn)
            daemon.command("wait", "--all", "--timeout", "60s")
        assert rows(beside) == lsns == sorted(set(lsns))


# --- a thin device ------------------------------------------------------------------------------


@contextlib.contextmanager
def thin_device(size_mib: int) -> Iterator[tuple[Path, Path]]:
    """An ext4 image on a file system in memory: where both are mounted, thin one first."""
    if shutil.which("mkfs.ext4") is None:
        absent("mkfs.ext4", "apt install e2fsprogs")
    with small_file_system(f"{size_mib}m") as thin:
        mount = Path(tempfile.mkdtemp(prefix="w"))
        image = thin / "image"
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        mounted = ["mount", "-o", "loop", str(image), str(mount)]
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            absent("a loop device", "run the tests as root, where mount -o loop is allowed")
        try:
            yield thin, mount
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=False)
            mount.rmdir()


def resize(thin: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(thin)], check=True)


def append_until_refused(daemon: Daemon, acked: list[int]) -> WaldError:
    """Append one by one; what is acknowledged is noted."""
    with wald.connect(str(daemon.socket), timeout=5) as producer:
        for number in range(10_000):
            try:
                acked.append(producer.append("s", b"%06d" % number + VALUE).lsn)
            except WaldError as error:
                return error
    message = "no sync failed"
    raise AssertionError(message)


def test_where_a_sync_fails_nothing_is_acknowledged_that_is_not_there(beside: Path) -> None:
    config = CONFIG.format(beside=beside)
    with thin_device(200) as (thin, mount):
        daemon = Daemon(beside, config=config, data_dir=mount / "data")
        acked: list[int] = []
        with daemon:
            daemon.command("route", "pause", "--all")
            with wald.connect(str(daemon.socket)) as producer:
                acked += [each.lsn for each in producer.append_many("s", [VALUE] * 10).accepted]
            used = (thin / "image").stat().st_blocks * 512
            resize(thin, used + (4 << 20))
            error = append_until_refused(daemon, acked)
            assert error.code in {"outcome-unknown", "disk-full", "unavailable"}
            assert len(acked) > 10
            wait_until(lambda: "failed" in daemon.log.read_text(), "a failed write or sync is said")
        subprocess.run(["umount", str(mount)], check=True)  # what the page cache held is gone
        resize(thin, 400 << 20)
        subprocess.run(["mount", "-o", "loop", str(thin / "image"), str(mount)], check=True)
        with daemon:
            daemon.command("route", "resume", "--all")
            daemon.command("wait", "--all", "--timeout", "60s")
            with wald.connect(str(daemon.socket)) as producer:
                assert producer.append("s", b"and on").lsn > max(acked)
            daemon.command("wait", "--all", "--timeout", "60s")
        assert set(acked) <= set(rows(beside))
