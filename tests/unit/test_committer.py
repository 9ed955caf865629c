"""What is in a group: bounded, statements and appends together; over a real log, turn by turn."""

import random

import pytest

from tests.logtools import DATA
from tests.model.log_reader import read_log
from tests.turns import Client, Site
from wald import limits
from wald.core import body
from wald.core.commit import READ_SLACK_BYTES
from wald.core.events import Ack, Append, Event, Failed, Goodbye, Hello, OpenStream, Welcome


def append(sequence: int, size: int, lag: int = 1) -> bytes:
    return Append(1, sequence, lag, body.encode(body.Body(0, [bytes(size)]))).encode()


# --- the bound of a group -----------------------------------------------------------------------


def test_greetings_behind_a_nearly_full_group_are_the_next_group(monkeypatch: pytest.MonkeyPatch):
    site = Site()
    producer = site.client()
    producer.hello()
    late = [site.client() for _ in range(200)]
    monkeypatch.setattr(limits, "GROUP_MAX_BYTES", 4 * READ_SLACK_BYTES)
    sequence = 0
    while site.committer.size_bytes + READ_SLACK_BYTES + 2_000 <= limits.GROUP_MAX_BYTES:
        sequence += 1
        producer.send(append(sequence, 1_000))
    groups = site.committer.groups
    for number, client in enumerate(late):
        client.send(Hello(1, f"producer {number} " + "x" * 100).encode())
    for number, client in enumerate(late):
        client.send(OpenStream(2, f"stream-{number}").encode())
    site.loop.turn()
    assert site.failures == []
    assert site.committer.groups > groups
    assert [type(each) for each in producer.wire.events()][-1] is Ack
    assert {type(client.wire.events()[0]) for client in late} == {Welcome}
    site.log.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_in_a_turn_no_group_is_above_its_bound(
    monkeypatch: pytest.MonkeyPatch, seed: int
):
    monkeypatch.setattr(limits, "GROUP_MAX_BYTES", 2 * READ_SLACK_BYTES)
    site, chance = Site(), random.Random(seed)
    clients = [site.client() for _ in range(20)]
    for client in clients:
        client.hello()
    sequences = dict.fromkeys(clients, 0)
    cut: dict[Client, bytes] = {}
    for step in range(3_000):
        client = chance.choice(clients)
        match chance.randrange(12):
            case 0 if client not in cut:
                client.send(OpenStream(step + 5, f"s{step}" + "x" * 40).encode())
            case 1:
                site.client().send(Hello(1, "n" * chance.randrange(128)).encode())
            case 2:
                site.loop.turn()
            case 3 if client not in cut:  # a read that ends within a frame
                sequences[client] += 1
                frame = append(sequences[client], chance.randrange(3_000), 256)
                at = chance.randrange(1, len(frame))
                client.send(frame[:at])
                cut[client] = frame[at:]
            case _:
                sequences[client] += 1
                frame = append(sequences[client], chance.randrange(3_000), 256)
                client.send(cut.pop(client, b"") + frame)
    site.loop.turn()
    assert site.failures == []
    site.log.close()
    refused = [each for client in clients for each in client.wire.events()]
    assert not [each for each in refused if isinstance(each, Failed) and each.closing]


# --- the end of sessions ------------------------------------------------------------------------


def test_sessions_that_were_left_do_not_come_back_with_a_restart():
    site = Site()
    known: set[int] = set()
    for _ in range(3):
        for _ in range(50):
            client = site.client()
            client.hello()
            client.send(Goodbye().encode())
        named, silent = site.client(), site.client()
        named.hello("ann")
        silent.hello()
        known = set(site.log.state.sessions)
        site.committer.commit(mentioned=True)
        site = site.restarted()
        assert set(site.log.state.sessions) == known
    assert len(known) == 5  # that of the first group, ann's, and the silent ones


def test_the_end_of_a_session_makes_no_group_of_its_own_until_there_are_many():
    site = Site()
    clients = [site.client() for _ in range(limits.MENTIONS_MAX_COUNT)]
    for client in clients:
        client.hello()
    groups = site.committer.groups
    for client in clients[:-1]:
        client.send(Goodbye().encode())
    site.loop.turn()
    assert site.committer.groups == groups
    clients[-1].send(Goodbye().encode())
    site.loop.turn()
    assert site.committer.groups == groups + 1
    site = site.restarted()
    assert len(site.log.state.sessions) == 1


def test_on_a_full_disk_the_end_of_a_session_waits_for_room():
    site = Site()
    producer, leaving = site.client(), site.client()
    producer.hello()
    session = leaving.hello().session
    site.fs.capacity_bytes = 0
    sequence, told = 0, list[Event]()
    while not (told and isinstance(told[-1], Failed)):
        sequence += 1
        producer.send(append(sequence, 1_000_000))
        site.loop.turn()
        told = producer.wire.events()
    leaving.send(Goodbye().encode())
    producer.send(append(sequence, 1_000_000))
    site.loop.turn()
    assert isinstance(producer.wire.events()[-1], Failed)
    site.fs.capacity_bytes = None
    site.clock.advance(limits.DISK_FULL_RETRY_S)
    producer.send(append(sequence, 1_000_000))
    site.loop.turn()
    assert isinstance(producer.wire.events()[-1], Ack)
    site = site.restarted()
    assert session not in site.log.state.sessions
    site.log.close()


def test_idleness_counts_from_the_lost_connection(monkeypatch: pytest.MonkeyPatch):
    site = Site()
    first, second, third = site.client(), site.client(), site.client()
    ids = [client.hello().session for client in (first, second, third)]
    monkeypatch.setattr(limits, "SESSIONS_MAX", len(site.log.state.sessions))
    for client, session in ((first, ids[0]), (second, ids[1]), (third, ids[2])):
        client.send(append(1, 10))
        site.loop.turn()
        assert session in site.log.state.sessions
    # the first appended first, and left last
    for client in (second, third, first):
        client.leave()
        site.clock.advance(1.0)
    newer = site.client()
    newer.hello()
    assert [session in site.log.state.sessions for session in ids] == [True, False, True]
    again = site.client()  # whoever comes back has a connection, and stays
    again.hello(session=ids[2])
    site.client().hello()
    assert [session in site.log.state.sessions for session in ids] == [False, False, True]
    site.committer.commit(mentioned=True)
    site = site.restarted()
    assert [session in site.log.state.sessions for session in ids] == [False, False, True]
    site.log.close()


# --- who is answered what -----------------------------------------------------------------------


def test_each_is_told_the_lsns_of_its_own_records_whatever_else_is_in_the_group():
    site = Site()
    clients = [site.client() for _ in range(6)]
    for client in clients:
        client.hello()
        client.send(append(1, 0))
    site.loop.turn()
    for client in clients:
        assert [type(each) for each in client.wire.events()] == [Ack]
    for size, client in enumerate(clients, 1):
        client.send(append(2, 10 * size))  # alone, or of a run of two
        if size % 3 == 0:
            client.send(append(3, 10 * size + 1, lag=2))
    clients[0].send(OpenStream(9, "more").encode())
    site.loop.turn()
    found = read_log(site.fs, DATA, site.log.frontier).requests
    stored = {(each.session, each.sequence): (each.first_lsn, len(each.body)) for each in found}
    for size, client in enumerate(clients, 1):
        (ack,) = [each for each in client.wire.events() if isinstance(each, Ack)]
        assert (ack.first, ack.through) == (2, 3 if size % 3 == 0 else 2)
        assert ack.durable_lsn == site.log.frontier.lsn
        session = client.connection.session
        assert stored[session, 2] == (ack.first_lsn, 10 * size + 8)
        if size % 3 == 0:
            assert stored[session, 3] == (ack.first_lsn + 1, 10 * size + 9)
    site.log.close()
