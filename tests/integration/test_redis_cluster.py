"""A cluster of Valkey and of Redis: a lane goes where its stream is, and follows it."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backlog import eventually
from tests.integration.test_redis_sink import KEY, LOG, attempt, records, sink_of
from tests.servers.local_server import free_port
from tests.servers.redis import KINDS, RedisServer
from wald.model import Delivered, Severity, Systemic, SystemicKind
from wald.sinks.redis import make

SLOTS = 16_384


@pytest.fixture(params=KINDS)
def nodes(request) -> Iterator[list[RedisServer]]:
    """Two nodes that know each other, with half of the slots each."""
    place = Path(tempfile.mkdtemp(prefix="wrc"))
    made = []
    for name in ("a", "b"):
        ports = {"port": free_port(), "cluster_port": free_port()}
        made.append(RedisServer(place / name, request.param, cluster_enabled="yes", **ports))
    try:
        for node in made:
            node.start()
        first, second = made
        meet = ("127.0.0.1", port_of(second), port_of(second, "cluster-port"))
        first.call("CLUSTER", "MEET", *meet)
        first.call("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS // 2 - 1)
        second.call("CLUSTER", "ADDSLOTSRANGE", SLOTS // 2, SLOTS - 1)
        for node in made:
            eventually(lambda node=node: is_whole(node))  # type: ignore[misc]
        yield made
    finally:
        for node in made:
            node.kill()
        shutil.rmtree(place)


def is_whole(node: RedisServer) -> bool:
    said = str(node.call("CLUSTER", "INFO"))
    return "cluster_state:ok" in said and f"cluster_slots_ok:{SLOTS}" in said


def port_of(node: RedisServer, name: str = "port") -> int:
    port = node.settings[name]
    assert isinstance(port, int)
    return port


def url_of(node: RedisServer) -> str:
    return f"redis://127.0.0.1:{port_of(node)}"


def ids_at(node: RedisServer, key: str) -> list[str]:
    return [name.decode() for name, _ in node.client().xrange(key)]


def key_of_the_slots_at(nodes: list[RedisServer], at: int) -> str:
    """A stream's name whose slot one of the nodes has."""
    names = (f"events{number}" for number in range(100))
    slot = nodes[0].call
    return next(name for name in names if slot("CLUSTER", "KEYSLOT", name) * 2 // SLOTS == at)


def move(name: str, there: RedisServer, here: RedisServer) -> None:
    """Move the slot of a stream, with all that is in it, as an operator does."""
    slot = there.call("CLUSTER", "KEYSLOT", name)
    here_id, there_id = (node.call("CLUSTER", "MYID").decode() for node in (here, there))
    here.call("CLUSTER", "SETSLOT", slot, "IMPORTING", there_id)
    there.call("CLUSTER", "SETSLOT", slot, "MIGRATING", here_id)
    for key in there.call("CLUSTER", "GETKEYSINSLOT", slot, 10):
        there.call("MIGRATE", "127.0.0.1", port_of(here), key, 0, 5_000)
    for node in (here, there):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", here_id)


@pytest.mark.parametrize("at", [0, 1])
def test_a_stream_is_found_at_its_node_whichever_is_named(nodes, at):
    key = key_of_the_slots_at(nodes, at)
    for number, named in enumerate(nodes, 1):
        with sink_of(named, url=url_of(named), stream_key=key) as sink:
            sent = attempt(number, records(5 * number, 5))
            assert sink.deliver(sent) == Delivered()
            assert sink.read_row(KEY) == sent.row
            assert not [each for each in sink.check() if each.severity is Severity.ERROR]
    assert ids_at(nodes[at], key) == [f"{lsn}-0" for lsn in range(5, 15)]


def test_a_lane_follows_a_slot_that_moves(nodes):
    key = key_of_the_slots_at(nodes, 0)
    with sink_of(nodes[0], url=url_of(nodes[0]), stream_key=key) as sink:
        assert sink.deliver(attempt(1, records(5, 5))) == Delivered()
        move(key, nodes[0], nodes[1])
        assert sink.deliver(attempt(1, records(5, 5))) != Delivered(), "the row came along"
        assert sink.deliver(attempt(2, records(10, 5))) == Delivered()
        assert ids_at(nodes[1], key) == [f"{lsn}-0" for lsn in range(5, 15)]
        move(key, nodes[1], nodes[0])
        assert sink.deliver(attempt(3, records(15, 5))) == Delivered()
    assert ids_at(nodes[0], key) == [f"{lsn}-0" for lsn in range(5, 20)]


def test_lanes_lie_at_several_nodes_and_an_audit_finds_all(nodes):
    with sink_of(nodes[0], url=url_of(nodes[0])) as sink:
        for lane in range(4):
            sent = records(10 * lane + 1, 5)
            assert sink.deliver(attempt(1, sent, key=KEY._replace(lane=lane))) == Delivered()
        lsns = range(1, 41)
        held = sink.holds(LOG, lsns)  # type: ignore[attr-defined]
    assert held == {lsn: int(lsn % 10 in range(1, 6)) for lsn in lsns}


def test_a_slot_on_its_way_is_waited_for(nodes):
    key = key_of_the_slots_at(nodes, 0)
    slot = nodes[0].call("CLUSTER", "KEYSLOT", key)
    with sink_of(nodes[0], url=url_of(nodes[0]), stream_key=key) as sink:
        ids = [node.call("CLUSTER", "MYID").decode() for node in nodes]
        nodes[1].call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        nodes[0].call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        told = sink.deliver(attempt(1, records(5, 5)))
        assert isinstance(told, Systemic)
        assert told.kind is SystemicKind.BUSY
        nodes[0].call("CLUSTER", "SETSLOT", slot, "STABLE")
        assert sink.deliver(attempt(1, records(5, 5))) == Delivered()


@contextmanager
def sending_on(to: str) -> Iterator[tuple[int, list[int]]]:
    """A node that sends every command on; ``{port}`` is its own."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                asked.append(1)
                with link:
                    while link.recv(1 << 20):
                        link.sendall(f"-MOVED 1 {to.format(port=port)}\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield port, asked
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("to", ["127.0.0.1:{port}", ":{port}", "?:{port}"])
def test_a_cluster_that_sends_on_in_circles_is_given_up(to):
    with sending_on(to) as (port, asked):
        sink = make("route", "events", {"url": f"redis://127.0.0.1:{port}"})
        told = sink.deliver(attempt(1, records(5, 1)))
        sink.close()
    assert isinstance(told, Systemic)
    assert (told.kind, "circles" in told.message) == (SystemicKind.UNREACHABLE, True)
    assert 2 <= len(asked) <= 5


def test_a_node_that_is_named_and_away_is_told_by_its_name_and_the_next_try_begins_at_the_url():
    away = free_port()
    with sending_on(f"127.0.0.1:{away}") as (port, asked):
        sink = make("route", "events", {"url": f"redis://127.0.0.1:{port}"})
        for times in (1, 2):
            told = sink.deliver(attempt(1, records(5, 1)))
            assert isinstance(told, Systemic)
            assert told.kind is SystemicKind.UNREACHABLE
            assert told.message.startswith(f"127.0.0.1:{away}: ")
            assert len(asked) == times
        sink.close()
