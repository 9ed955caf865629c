"""The HTTP sink: what JSON that passes through saves, and what producers notice of their target.

python -m benchmarks.compare.http [ALTERNATIONS]
"""

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgpack

import wald
from benchmarks import flights
from benchmarks.harness import Comparison, alternate, process, report
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Content,
    Delivered,
    LaneKey,
    ProgressRow,
    Record,
)
from wald.ports import EncodingSink
from wald.sinks.http import make

ROWS, BATCHES, BATCH = 20_000, 10, 2_000
PASS_GOAL = 5.0
APPENDS, APPEND_TURNS = 50, 12  # short turns: the disk's speed drifts within a second
SLOW_S = 0.3
UNMOVED_GOAL = 1.1
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


# --- a server that takes everything -------------------------------------------------------------


def serve(port: str, wait_s: str) -> int:
    """Read each request, wait, answer 204."""
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_answer, args=(connection, float(wait_s)), daemon=True).start()


def _answer(connection: socket.socket, wait_s: float) -> None:
    with connection:
        while _read(connection):
            time.sleep(wait_s)
            connection.sendall(ANSWER)


def _read(connection: socket.socket) -> bool:
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(65_536)
        if not part:
            return False
        head += part
    head, _, body = head.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
    left = int(lengths[0].partition(b":")[2]) - len(body)
    while left > 0:
        left -= len(connection.recv(min(left, 1 << 20)))
    return True


@contextmanager
def server(wait_s: float) -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", __spec__.name, "serve", str(port), str(wait_s)]
    with process(command, lambda: _listens(port)):
        yield f"http://127.0.0.1:{port}/"


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# --- passing through ----------------------------------------------------------------------------


def attempts(content: Content, encode: Callable[[object], bytes]) -> list[Attempt]:
    rows = flights.read()[:ROWS]
    records = [Record(n, 0, int(content), encode(row)) for n, row in enumerate(rows, 1)]
    made = []
    for number in range(BATCHES):
        sent = records[number * BATCH : (number + 1) * BATCH]
        row = ProgressRow(1, bytes([number]) * 16, sent[-1].lsn, Anchor(1, 1), 1, NO_REVISION)
        made.append(Attempt(LaneKey(bytes(16), 1, 0, 0), "flights", NO_REVISION, row, sent))
    return made


def rows_per_s(sink: EncodingSink, batches: Sequence[Attempt]) -> float:
    """Rows a second, encoded, sent and answered, by the time of the sink's own thread."""
    began = time.thread_time()
    for attempt in batches:
        outcome = sink.deliver(replace(attempt, body=sink.encode(attempt)))
        assert outcome == Delivered(), outcome
    return ROWS / (time.thread_time() - began)


def passing_through(times: int) -> list[Comparison]:
    compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    as_json = attempts(Content.JSON, lambda row: compact(row).encode())
    packed = attempts(Content.MSGPACK, msgpack.packb)
    found = []
    with server(0.0) as url, closing(make("r", "flights", {"url": url})) as sink:
        for name, theirs in (("decoded from msgpack", packed), ("fields of JSON", as_json)):
            fields = {"fields": flights.COLUMNS} if theirs is as_json else {}
            with closing(make("r", "flights", {"url": url, **fields})) as other:
                ours = partial(rows_per_s, sink, as_json)
                beside = partial(rows_per_s, other, theirs)
                series = alternate(ours, beside, times)
            found.append(Comparison(f"JSON passed through : {name}", "rows/s", *series, PASS_GOAL))
    return found


# --- what producers notice ----------------------------------------------------------------------


def append_us(producer: wald.Producer) -> float:
    """The median of Producer.append of one value of 128 bytes."""
    took = []
    for _ in range(APPENDS):
        start = time.perf_counter_ns()
        producer.append("bench", b"v" * 128)
        took.append(time.perf_counter_ns() - start)
    return statistics.median(took) / 1_000


@contextmanager
def appending_to(place: Path, url: str) -> Iterator[wald.Producer]:
    place.mkdir()
    config = f"""
[sinks.web]
type = "http"
url = "{url}"
[routes.web]
stream = "bench"
sink = "web"
guarantee = "at-least-once"
batch = {{ max_age = "50ms" }}
"""
    with Daemon(place, config=config) as daemon, wald.connect(str(daemon.socket)) as producer:
        producer.append("bench", b"first")
        yield producer


def noticed(times: int) -> list[Comparison]:
    with directory() as place, ExitStack() as stack:
        urls = {
            "quick": stack.enter_context(server(0.0)),
            "slow": stack.enter_context(server(SLOW_S)),
            "down": f"http://127.0.0.1:{_free_port()}/",
        }
        to = {name: stack.enter_context(appending_to(place / name, urls[name])) for name in urls}
        found = []
        for name, words in (("slow", f"takes {SLOW_S * 1_000:.0f} ms"), ("down", "is down")):
            series = alternate(
                partial(append_us, to[name]), partial(append_us, to["quick"]), times * APPEND_TURNS
            )
            title = f"append, its target {words} : a quick one"
            found.append(Comparison(title, "us", *series, UNMOVED_GOAL, smaller_is_better=True))
    return found


def main(times: int) -> int:
    return report([*passing_through(times), *noticed(times)], "http")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(*sys.argv[2:]))
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
