"""Connections of one loop share it: who brings much, or odd frames, waits for the others."""

import pytest

from tests.turns import Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import Ack, Append, Ping, Pong


def append(sequence: int, size: int) -> bytes:
    return Append(1, sequence, 1, bodies.encode(Body(0, [bytes(size)]))).encode()


def greeted(site: Site) -> Client:
    client = site.client()
    client.hello()
    return client


def reads(client: Client) -> bool:
    return client.wire.reads


def test_who_has_brought_its_share_is_not_read_from_before_the_next_group() -> None:
    site = Site()
    greedy, other = greeted(site), greeted(site)
    size = 200_000
    count = limits.TURN_MAX_BYTES // size + 1
    for number in range(1, count + 1):
        assert reads(greedy)
        greedy.send(append(number, size))
    assert not reads(greedy)
    other.send(append(1, 1))
    assert reads(other)
    site.loop.turn()
    assert reads(greedy)
    assert [each.through for each in greedy.wire.events() if isinstance(each, Ack)] == [count]
    assert [each.through for each in other.wire.events() if isinstance(each, Ack)] == [1]
    assert site.committer.groups == 1 + 2  # the two greetings', and one for both
    site.log.close()


@pytest.mark.parametrize("rest", [b"", Ping(999).encode()[:10]], ids=["whole", "cut in a frame"])
def test_odd_frames_are_taken_some_at_a_time(rest: bytes) -> None:
    site = Site()
    odd, other = greeted(site), greeted(site)
    many = 3 * limits.EVENTS_PER_TURN_COUNT
    odd.send(*[Ping(number).encode() for number in range(many)], rest)
    answered = [each.request for each in odd.wire.events() if isinstance(each, Pong)]
    assert answered == list(range(limits.EVENTS_PER_TURN_COUNT))
    assert not reads(odd)
    other.send(append(1, 1))
    site.loop.turn()  # the other's turn comes before the rest
    assert [type(each) for each in other.wire.events()] == [Ack]
    for _ in range(5):
        answered += [each.request for each in odd.wire.events() if isinstance(each, Pong)]
        site.loop.turn()
    assert answered == list(range(many))
    assert reads(odd)
    if rest:
        odd.send(Ping(999).encode()[10:])
        assert odd.wire.events() == [Pong(999)]
    site.log.close()


def test_frames_that_wait_are_dropped_with_their_connection() -> None:
    site = Site()
    odd = greeted(site)
    odd.send(*[Ping(number).encode() for number in range(2 * limits.EVENTS_PER_TURN_COUNT)])
    odd.leave()
    site.loop.turn()
    assert site.failures == []
    assert len(odd.wire.events()) == limits.EVENTS_PER_TURN_COUNT
    site.log.close()


def test_unread_answers_stop_the_reading_and_begin_it_again() -> None:
    site = Site()
    lazy = greeted(site)
    lazy.wire.get_write_buffer_size = lambda: limits.CLOGGED_BYTES  # type: ignore[attr-defined]
    lazy.connection.pause_writing()
    assert not reads(lazy)
    assert site.house.clogged == {lazy.connection}
    lazy.connection.resume_writing()
    assert reads(lazy)
    assert not site.house.clogged


def test_unread_answers_of_all_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_BUFFERS_MAX_BYTES", 3 * limits.MIB)
    site = Site()
    clients = [greeted(site) for _ in range(4)]
    for client in clients:
        client.wire.get_write_buffer_size = lambda: limits.MIB  # type: ignore[attr-defined]
        client.connection.pause_writing()
    assert [client.wire.closed for client in clients] == [False, False, False, True]
    assert site.house.refused["answers-unread"] == 1
