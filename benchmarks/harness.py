"""What every comparison needs: servers on private sockets, alternation, medians and ratios.

The machine is noisy: figures are compared within one run only, A B A B ..., as medians, and the
ratio is the median of the ratios of neighbours.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
HERE = Path(__file__).parent
LOAD = HERE / "load" / "build" / "load"


@dataclass(frozen=True)
class Comparison:
    """Two series of figures taken in turn."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float
    smaller_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        return sorted(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartile(self) -> float:
        """What three quarters of the alternations reach."""
        quarter = len(self.ratios) // 4
        return self.ratios[-1 - quarter] if self.smaller_is_better else self.ratios[quarter]

    @property
    def reached(self) -> bool:
        return self.ratio <= self.goal if self.smaller_is_better else self.ratio >= self.goal

    def row(self) -> str:
        sign = "<=" if self.smaller_is_better else ">="
        return (
            f"{self.name:<44} {statistics.median(self.ours):>12,.0f} "
            f"{statistics.median(self.theirs):>12,.0f} {self.unit:<6} "
            f"ratio {self.ratio:.2f} ({self.ratios[0]:.2f} .. {self.ratios[-1]:.2f}, "
            f"quartile {self.quartile:.2f}) "
            f"goal {sign} {self.goal}: {'reached' if self.reached else 'NOT REACHED'}"
        )


def alternate(
    ours: Callable[[], T], theirs: Callable[[], T], times: int
) -> tuple[list[T], list[T]]:
    """Call both in turn ``times`` times."""
    first, second = list[T](), list[T]()
    for _ in range(times):
        first.append(ours())
        second.append(theirs())
    return first, second


def report(comparisons: Sequence[Comparison], name: str) -> int:
    """Print the rows, keep them as JSON in results/, return 0 if all goals were reached."""
    for comparison in comparisons:
        print(comparison.row(), flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(
        json.dumps(
            [
                {
                    "name": c.name,
                    "unit": c.unit,
                    "ours": list(c.ours),
                    "theirs": list(c.theirs),
                    "ratio": c.ratio,
                    "quartile": c.quartile,
                    "goal": c.goal,
                    "reached": c.reached,
                }
                for c in comparisons
            ],
            indent=1,
        )
    )
    return 0 if all(c.reached for c in comparisons) else 1


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose socket paths fit into 107 bytes, on the disk that is measured."""
    base = os.environ.get("WALD_BENCH_DIR", tempfile.gettempdir())
    path = Path(tempfile.mkdtemp(prefix="wb", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def process(
    command: Sequence[str], ready: Callable[[], bool], timeout_s: float = 20.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; waits until it is ready; ends it by its own pid."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if child.poll() is not None:
                message = f"{command[0]} ended with {child.returncode}"
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                message = f"{command[0]} was not ready after {timeout_s} s"
                raise RuntimeError(message)
            time.sleep(0.01)
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def build_load() -> Path:
    """Compile the load generator with gcc."""
    subprocess.run(["make", "-s", "-C", str(HERE / "load")], check=True)
    return LOAD


def run_load(
    kind: str,
    socket: Path,
    shape: tuple[int, int, int],
    value_bytes: int = 128,
    seconds: float = 2.0,
) -> dict[str, float]:
    """Run the generator once; ``shape`` is connections, requests in flight each, records each."""
    arguments = [*map(str, shape), str(value_bytes), str(seconds)]
    done = subprocess.run(
        [str(LOAD), kind, str(socket), *arguments], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@contextmanager
def redis(directory: Path, fsync: str = "always") -> Iterator[Path]:
    """A redis-server with an append-only file, by default one that syncs each write."""
    binary = shutil.which("redis-server")
    if binary is None:
        message = "redis-server is missing: apt install redis-server"
        raise RuntimeError(message)
    socket = directory / "redis.sock"
    command = [
        binary, "--port", "0", "--unixsocket", str(socket), "--dir", str(directory),
        "--appendonly", "yes", "--appendfsync", fsync, "--save", "",
        "--auto-aof-rewrite-percentage", "0",
    ]  # fmt: skip
    with process(command, socket.exists):
        yield socket


@contextmanager
def echo(directory: Path) -> Iterator[Path]:
    """The generator's own echo server: its ceiling."""
    socket = directory / "echo.sock"
    with process([str(LOAD), "echo", str(socket)], socket.exists):
        yield socket


def wald_command(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "wald", *arguments]
