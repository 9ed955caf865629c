"""Clients that misbehave at a real daemon: each costs only itself, and nothing once it is gone."""

import contextlib
import itertools
import random
import resource
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.doorkeeper import Peer
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    APPEND_KIND,
    HEADER,
    Append,
    Failed,
    Goodbye,
    Hello,
    OpenStream,
    Ping,
)

SEED = 20_261_128
NEIGHBOUR_APPENDS = 1_000
CONNECTIONS = 200
RSS_SLACK_BYTES = 48 * limits.MIB  # what the allocator keeps of 32 MiB of unread answers
CONFIG = """
[daemon]
segment_bytes = "16MiB"
[daemon.clients]
connections = {connections}
hello_timeout = "1s"
frame_timeout = "2s"
[sinks.db]
type = "sqlite"
path = "{place}/x.db"
[routes.s]
stream = "s"
sink = "db"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="w") as directory:
        config = CONFIG.format(place=directory, connections=CONNECTIONS)
        with Daemon(Path(directory), config=config) as running:
            with wald.connect(str(running.socket)) as warm:  # what is made once is made
                warm.append_many("s", [b"v"] * 5_000)
            yield running


def ingest_of(daemon: Daemon) -> psutil.Process:
    return psutil.Process(daemon.pids()["ingest"])


def sockets_of(process: psutil.Process) -> int:
    """How many connections a process holds; its files come and go with the log."""
    found = 0
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(path.readlink()).startswith("socket:")
    return found


@contextlib.contextmanager
def unharmed(daemon: Daemon) -> Iterator[wald.Producer]:
    """A neighbour that appends meanwhile; behind it descriptors and memory are as before."""
    ingest = ingest_of(daemon)
    files, resident = sockets_of(ingest), ingest.memory_info().rss
    with wald.connect(str(daemon.socket), timeout=30) as neighbour:
        session = neighbour.session.session_id
        yield neighbour
        lsns = [neighbour.append("s", b"v").lsn for _ in range(NEIGHBOUR_APPENDS)]
        assert lsns == sorted(set(lsns))
        assert neighbour.session.session_id == session
    wait_until(lambda: sockets_of(ingest) <= files, "all descriptors are given back")
    assert ingest.memory_info().rss <= resident + RSS_SLACK_BYTES
    assert ingest.pid == daemon.pids()["ingest"]  # it is the same process


@contextlib.contextmanager
def at_the_same_time(*actions: Callable[[], None]) -> Iterator[None]:
    """Run actions in threads meanwhile; they must end by themselves."""
    failed: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - shown to the test
            failed.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed, failed


def ended(peer: Peer) -> bool:
    """Read what there is; tell whether the daemon has closed."""
    try:
        return peer.socket.recv(1 << 16) == b""
    except (TimeoutError, BlockingIOError):
        return False
    except ConnectionError:
        return True


# --- slow ---------------------------------------------------------------------------------------


def one_byte_at_a_time(daemon: Daemon, frames: bytes) -> None:
    with Peer(str(daemon.socket)) as peer:
        if not frames.startswith(Hello(1).encode()[:4]):
            peer.hello()
        peer.socket.settimeout(0.2)  # the pace
        for at in range(len(frames)):
            try:
                peer.send(frames[at : at + 1])
            except ConnectionError:
                return
            if ended(peer):
                return
        message = "nobody ended it"
        raise AssertionError(message)


def test_one_byte_at_a_time(daemon: Daemon) -> None:
    hello, ping = Hello(1, "a" * 100).encode(), Ping(1, bytes(64)).encode()
    with (
        unharmed(daemon),
        at_the_same_time(
            *[lambda: one_byte_at_a_time(daemon, hello)] * 5,
            *[lambda: one_byte_at_a_time(daemon, ping)] * 5,
        ),
        wald.connect(str(daemon.socket), timeout=30) as other,
    ):
        other.append_many("s", [b"v"] * 1_000)


# --- many ---------------------------------------------------------------------------------------


def test_ten_thousand_connections(daemon: Daemon) -> None:
    with unharmed(daemon) as neighbour, contextlib.ExitStack() as stack:
        crowd = []
        for number in range(10_000):
            crowd.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            crowd[-1].connect(str(daemon.socket))  # blocking: it waits for a place in the queue
            crowd[-1].settimeout(30)
            if number % 100 == 99:
                neighbour.append("s", b"v")
        said = [one.recv(200) for one in crowd]
        told = sum(b"too many connections" in each for each in said)
        slow = sum(b"no HELLO came in time" in each for each in said)
        assert (told + slow, told > slow) == (10_000, True)


@pytest.mark.parametrize("what", ["half a HELLO", "a HELLO and a request"])
def test_ten_thousand_that_come_and_go(daemon: Daemon, what: str) -> None:
    append = Append(1, 1, 1, bodies.encode_one(0, b"v")).encode()
    data = {
        "half a HELLO": Hello(1).encode()[:20],
        "a HELLO and a request": Hello(1).encode() + OpenStream(1, "s").encode() + append,
    }[what]
    with unharmed(daemon):
        for _ in range(10_000 if what == "half a HELLO" else 500):
            with socket.socket(socket.AF_UNIX) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.connect(str(daemon.socket))  # blocking: it waits for a place in the queue
                with contextlib.suppress(ConnectionError):  # it was one too many at a time
                    one.sendall(data)


# --- answers that nobody reads ------------------------------------------------------------------


def test_answers_that_are_never_read(daemon: Daemon) -> None:
    bad = bodies.encode(Body(9, [b""] * 1_000))  # each record is refused, with words
    flood = b"".join(
        HEADER.pack(len(bad), APPEND_KIND, 1, 1, number) + bad for number in range(1, 257)
    )

    def attack() -> None:
        with Peer(str(daemon.socket)) as peer:
            peer.hello()
            with contextlib.suppress(TimeoutError, ConnectionError):
                while True:
                    peer.send(flood)  # until it is ended

    with unharmed(daemon), at_the_same_time(*[attack] * 3):
        pass


def test_answers_that_are_read_one_byte_at_a_time(daemon: Daemon) -> None:
    pings = Ping(1, bytes(64)).encode() * 5_000

    def attack() -> None:
        with Peer(str(daemon.socket)) as peer:
            peer.hello()
            peer.socket.settimeout(0)
            with contextlib.suppress(ConnectionError):
                while True:
                    with contextlib.suppress(BlockingIOError):
                        peer.socket.send(pings)
                    with contextlib.suppress(BlockingIOError):
                        if not peer.socket.recv(1):
                            return

    with unharmed(daemon), at_the_same_time(attack):
        pass


# --- nonsense -----------------------------------------------------------------------------------


def test_garbage(daemon: Daemon) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    greeting = Hello(1).encode()
    with unharmed(daemon) as neighbour:
        for number in range(120):
            data = chance.randbytes(chance.randrange(1, 3_000))
            with Peer(str(daemon.socket)) as peer, contextlib.suppress(ConnectionError):
                peer.send((greeting if number % 2 else b"") + data)
                peer.socket.shutdown(socket.SHUT_WR)
                while not ended(peer):
                    pass
            if number % 50 == 0:
                neighbour.append("s", b"v")


def test_what_clients_do_wrong_is_logged_seldom(daemon: Daemon) -> None:
    before = daemon.log.stat().st_size
    for _ in range(500):
        with Peer(str(daemon.socket)) as peer:
            peer.send(b"\xff" * 100)
            peer.rest()
    assert daemon.log.stat().st_size - before < 2_000


def test_bodies_that_decode_to_much_more_cost_little_memory(daemon: Daemon) -> None:
    """Two megabytes of empty maps would take 155 MB: they are counted before they are made."""
    ingest = ingest_of(daemon)
    worst = [
        b"\x95\x00\xdd" + struct.pack(">I", 2_000_000) + b"\x80" * 2_000_000 + b"\xc0" * 3,
        b"\x95\x00" + b"\x91" * 100_000 + b"\xc0" * 4,
        b"\x95\x00\xdd\xff\xff\xff\xff" + b"\x80" * 60_000,
        b"\x95\x00\xdc\xff\xff"
        + b"\xc4\x00" * 65_535
        + b"\xc0\xdc\xff\xff"
        + b"\x80" * 65_535
        + b"\xc0",
    ]
    with unharmed(daemon), Peer(str(daemon.socket)) as peer:
        peer.hello()
        stream = peer.open("s")
        before = ingest.memory_info().rss
        highest = before
        for sequence, body in enumerate(worst * 5, 1):
            peer.send(Append(stream, sequence, 1, body).encode())
            peer.next()
            highest = max(highest, ingest.memory_info().rss)
        assert highest < before + 80 * limits.MIB


# --- a greedy one -------------------------------------------------------------------------------


def test_a_full_pipe_does_not_starve_the_others(daemon: Daemon) -> None:
    """While one sends as fast as it can, each append of another is in the next group or two."""
    records = 3_500  # a request of nearly 4 MiB
    request = bodies.encode(Body(0, [b"v" * 1_000] * records))
    stop = threading.Event()

    def flood(peer: Peer, stream: int) -> None:
        for sequence in itertools.count(1):
            with contextlib.suppress(ConnectionError):
                peer.send(Append(stream, sequence, 256, request).encode())
            if stop.is_set():
                peer.socket.shutdown(socket.SHUT_RDWR)
                return

    def read(peer: Peer) -> None:
        while not ended(peer):
            pass

    with unharmed(daemon) as neighbour, Peer(str(daemon.socket)) as greedy:
        greedy.hello()
        stream = greedy.open("s")
        with at_the_same_time(lambda: flood(greedy, stream), lambda: read(greedy)):
            try:
                lsns = [neighbour.append("s", b"v").lsn for _ in range(60)]
            finally:
                stop.set()
        # in the LSNs between two of its appends stands what the other was granted meanwhile
        gaps = sorted(behind - before for before, behind in itertools.pairwise(lsns))
        assert records <= gaps[-1], "the flood was one"
        assert gaps[len(gaps) // 2] <= 2 * records, gaps


# --- descriptors --------------------------------------------------------------------------------


def test_running_out_of_descriptors_is_survived_and_said_seldom(daemon: Daemon) -> None:
    ingest = ingest_of(daemon)
    before = resource.prlimit(ingest.pid, resource.RLIMIT_NOFILE)
    log_bytes = daemon.log.stat().st_size
    with unharmed(daemon) as neighbour:
        resource.prlimit(ingest.pid, resource.RLIMIT_NOFILE, (ingest.num_fds() + 20, before[1]))
        try:
            told = 0
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(Peer(str(daemon.socket))) for _ in range(120)]
                for peer in peers[40:]:
                    told += b"too many connections" in peer.socket.recv(200)
                neighbour.append("s", b"v")
            assert told == 80

            def gets_in() -> bool:
                with wald.connect(str(daemon.socket), timeout=10) as producer:
                    return producer.append("s", b"v").lsn > 0

            wait_until(gets_in, "there are descriptors again")
        finally:
            resource.prlimit(ingest.pid, resource.RLIMIT_NOFILE, before)
    said = daemon.log.read_text()[log_bytes:]
    assert said.count("no connection can be accepted") == 1
    assert len(said) < 3_000


def test_with_few_descriptors_there_are_fewer_connections_and_the_log_has_its_own() -> None:
    with tempfile.TemporaryDirectory(prefix="w") as directory:
        config = CONFIG.format(place=directory, connections=1_000)
        few = ("prlimit", "--nofile=100:100", sys.executable, "-m", "wald")
        daemon = Daemon(Path(directory), config=config, launcher=few)
        with daemon, contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Peer(str(daemon.socket))) for _ in range(60)]
            for peer in peers[:20]:
                peer.hello()
            assert any(isinstance(each, Failed) for each in peers[-1].rest())
            for peer in peers[:20]:
                peer.send(Goodbye().encode())
                peer.rest()
            with wald.connect(str(daemon.socket), timeout=30) as producer:
                producer.append_many("s", [b"v" * 1_000] * 40_000)  # rolls to new segments
            assert "Too many open files" not in daemon.log.read_text()


def test_the_control_socket_without_descriptors_is_said_seldom(daemon: Daemon) -> None:
    supervisor = psutil.Process(daemon.pids()["supervisor"])
    before = resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)
    log_bytes = daemon.log.stat().st_size
    with contextlib.ExitStack() as stack:
        resource.prlimit(
            supervisor.pid, resource.RLIMIT_NOFILE, (supervisor.num_fds() + 5, before[1])
        )
        try:
            for _ in range(50):
                asking = stack.enter_context(socket.socket(socket.AF_UNIX))
                asking.connect(f"{daemon.socket}.ctl")
            wait_until(lambda: daemon.log.stat().st_size > log_bytes, "it is said")
        finally:
            resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, before)
            stack.close()
    wait_until(lambda: (daemon.ask(op="ping") or {}).get("ok") is True, "it answers again")
    assert len(daemon.log.read_text()[log_bytes:].splitlines()) <= 5
