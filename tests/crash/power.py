"""Real power cuts, as near as one machine comes: a file system that stops dead under a daemon.

    python -m tests.crash.power --cuts 100 --kind ext4        as root; mkfs and mount are needed

A file system in an image is shut down by ioctl while producers append and the drainer delivers:
what was not flushed is gone, and the journal is replayed at the next mount. Nothing acknowledged
may be missing behind it. A kind that does not know the ioctl (Btrfs) lies in an image on an ext4
that is shut down under it: its disk stops dead, and has lost what was not flushed to it."""

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import wald
from tests.crash.workloads import Bench, numbers
from tests.daemon import Daemon
from wald.errors import WaldError

_GOING_DOWN = 0x8004587D  # FS_IOC_SHUTDOWN of ext4, xfs and others
_NO_LOG_FLUSH = 2
_STOPPED_BY_ITSELF = ("ext4", "xfs")  # the others by an ext4 under them
KINDS = {  # what makes one, quietly
    "ext4": ("-q", "-F"),
    "xfs": ("-q", "-f"),
    "btrfs": ("-q", "-f"),
}
_DISK_BYTES, _UNDER_BYTES = 512 << 20, 768 << 20
_PRODUCERS = 3
_REQUESTS_BEHIND_MAX = 200  # a cut that stops nobody must not hang the run
_JSON = "json_extract(value, '$.n')"
_CONFIG = """
[daemon]
segment_bytes = "16MiB"
[sinks.db]
type = "sqlite"
path = "{mount}/events.db"
[routes.db]
stream = "readings"
sink = "db"
batch = {{ max_records = 50, max_age = "20ms" }}
"""


@dataclass(slots=True)
class Cuts:
    """What was cut, and what is wrong; must be nothing."""

    cuts: int = 0
    acked: int = 0
    unanswered: int = 0
    wrong: list[str] = field(default_factory=list)


class Disk:
    """A file system in an image of its own."""

    def __init__(self, directory: Path, kind: str, size_bytes: int) -> None:
        self.kind = kind
        self.mount = directory / f"disk.{kind}"
        self.mount.mkdir()
        self._image = directory / f"image.{kind}"
        with self._image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run([f"mkfs.{kind}", *KINDS[kind], str(self._image)], check=True)

    def up(self) -> None:
        """Mount it; the journal is replayed."""
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.mount)], check=True)

    def stop(self) -> None:
        """Let everything that was not flushed be gone, and nothing be written any more."""
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _GOING_DOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def down(self, *how: str) -> None:
        """Unmount it.

        Raises:
            subprocess.CalledProcessError: it cannot be unmounted.
        """
        subprocess.run(["umount", *how, str(self.mount)], check=True)


class Machine:
    """What a daemon lies on, mounted; may lose its power."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._disks: list[Disk] = []  # each lies on the one before it
        if kind not in _STOPPED_BY_ITSELF:
            directory = self._add(Disk(directory, "ext4", _UNDER_BYTES))
        self.mount = self._add(Disk(directory, kind, _DISK_BYTES))

    def _add(self, disk: Disk) -> Path:
        disk.up()
        self._disks.append(disk)
        return disk.mount

    def up(self) -> None:
        """Mount what was unmounted."""
        for disk in self._disks:
            disk.up()

    def cut(self) -> None:
        """Let everything that was not flushed be gone, and nothing be written any more."""
        self._disks[0].stop()

    def down(self, *how: str) -> None:
        """Unmount it.

        Raises:
            subprocess.CalledProcessError: it cannot be unmounted.
        """
        for disk in reversed(self._disks):
            disk.down(*how)


@contextlib.contextmanager
def machine(kind: str = "ext4") -> Iterator[Machine]:
    """Return a machine on a disk of its own, in memory."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="wd", dir=base))
    try:
        made = Machine(directory, kind)
        try:
            yield made
        finally:
            made.down("-l")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def cut_power(machine: Machine, times: int, seed: int) -> Cuts:
    """Cut the power so often, each time under load, and look at everything after each."""
    chance, tally = random.Random(seed), Cuts()
    acked: dict[int, int] = {}
    sent: dict[int, str] = {}
    beside = Path(tempfile.mkdtemp(prefix="wd"))
    try:
        for _ in range(times):
            daemon = Daemon(
                beside,
                config=_CONFIG.format(mount=machine.mount),
                data_dir=machine.mount / "data",
            )
            with daemon:
                _under_load(Bench(daemon, chance, acked, sent), machine, chance)
                kill_all(daemon)
                machine.down()
                machine.up()
                tally.cuts += 1
                tally.wrong += [f"cut {tally.cuts}: {each}" for each in _look(daemon, acked, sent)]
        tally.acked, tally.unanswered = len(acked), len(sent) - len(acked)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return tally


def _under_load(bench: Bench, machine: Machine, chance: random.Random) -> None:
    """Append from several threads until the power goes, after a number of requests."""
    lock, left = threading.Lock(), [chance.randint(5, 120)]

    def produce(seed: int) -> None:
        mine = Bench(bench.daemon, random.Random(seed), bench.acked, bench.sent)
        producer = wald.connect(str(bench.daemon.socket), timeout=2.0)
        with contextlib.suppress(WaldError), producer:
            while left[0] > -_REQUESTS_BEHIND_MAX:
                with lock:
                    left[0] -= 1
                    if left[0] == 0:
                        machine.cut()
                        return
                    values = [mine.make() for _ in range(chance.randint(1, 8))]
                mine.send(producer, values)

    with ThreadPoolExecutor(_PRODUCERS) as crew:
        for _ in crew.map(produce, [chance.randrange(1 << 30) for _ in range(_PRODUCERS)]):
            pass  # an error of a producer's, or a power that cannot be cut, ends the run
    assert left[0] <= 0, "no producer came as far as the cut"


def kill_all(daemon: Daemon) -> None:
    """Kill every process of a daemon, and wait until they are gone."""
    assert daemon.process is not None
    family = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.process.kill()
    daemon.process.wait()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=60)


def _look(daemon: Daemon, acked: dict[int, int], sent: dict[int, str]) -> Iterator[str]:
    daemon.start()
    daemon.command("wait", "--all", "--timeout", "60s")
    daemon.command("audit")
    daemon.end()
    held = numbers(Path(daemon.data_dir).parent / "events.db", "readings", _JSON)
    if missing := set(acked.values()) - set(held):
        yield f"{len(missing)} acknowledged records are missing, such as {sorted(missing)[:5]}"
    if len(set(held)) != len(held):
        yield "records are doubled"
    if others := set(held) - sent.keys():
        yield f"{len(others)} records that nobody sent"
    order = {number: lsn for lsn, number in acked.items()}
    known = [order[number] for number in held if number in order]
    if known != sorted(known):
        yield "records are out of order"


def main() -> int:
    """Cut and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--kind", default="ext4", choices=KINDS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    began_s, total = time.monotonic(), Cuts()
    while total.cuts < chosen.cuts:
        with machine(chosen.kind) as made:
            found = cut_power(made, min(20, chosen.cuts - total.cuts), chosen.seed + total.cuts)
        total.cuts += found.cuts
        total.acked += found.acked
        total.unanswered += found.unanswered
        total.wrong += found.wrong
        print(f"{total.cuts} of {chosen.cuts} cuts, {len(total.wrong)} wrong", file=sys.stderr)
    if chosen.json:
        said = {"kind": chosen.kind, "cuts": total.cuts, "acked": total.acked, "seed": chosen.seed}
        print(json.dumps({**said, "wrong": total.wrong}))
    else:
        print(
            f"{total.cuts} power cuts of {chosen.kind}, {total.acked:,} acknowledged records, "
            f"{total.unanswered:,} unanswered, {len(total.wrong)} wrong, seed {chosen.seed}, "
            f"{time.monotonic() - began_s:.0f} s"
        )
    for problem in total.wrong:
        print(f"        {problem}", file=sys.stderr)
    return int(bool(total.wrong))


if __name__ == "__main__":
    sys.exit(main())
