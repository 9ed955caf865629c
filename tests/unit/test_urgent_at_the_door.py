"""An urgent record in a flood of ordinary ones: it waits for one group at most beside its own.

Rounds of the loop, as the real one makes them: each connection that may be read brings one read, as
much as a socket holds; then the turn's commit. The urgent record comes last in its round.
"""

from collections.abc import Sequence

import pytest

from tests.turns import Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import Ack, Append

SOCKET_BYTES = 212_992  # what Linux lets a Unix socket hold by default
assert SOCKET_BYTES < limits.RECEIVE_BUFFER_BYTES


class Flooded:
    """A connection whose client sends as fast as it is read, one request of one record each."""

    def __init__(self, site: Site, value_bytes: int) -> None:
        self.client = site.client()
        self.client.hello()
        self._value = b"x" * value_bytes
        self._sequence = 0
        self._rest = b""

    @property
    def is_read(self) -> bool:
        return not self.client.connection._pauses

    def read(self) -> None:
        """One read of a full socket."""
        parts, size = [self._rest], len(self._rest)
        while size < SOCKET_BYTES:
            self._sequence += 1
            frame = Append(1, self._sequence, 1, bodies.encode(Body(0, [self._value]))).encode()
            parts.append(frame)
            size += len(frame)
        data = b"".join(parts)
        self._rest = data[SOCKET_BYTES:]
        self.client.send(data[:SOCKET_BYTES])


def rounds(site: Site, flood: Sequence[Flooded]) -> None:
    for each in flood:
        if each.is_read:
            each.read()


def urgent_frame(sequence: int) -> bytes:
    headers = {limits.URGENT_HEADER_NAME: ""}
    return Append(1, sequence, 1, bodies.encode(Body(0, [b"now"], None, [headers]))).encode()


def acked(client: Client) -> bool:
    return any(isinstance(each, Ack) for each in client.wire.events())


@pytest.mark.parametrize(
    ("connections", "value_bytes"), [(1, 128), (8, 128), (32, 1_000), (32, 100_000)]
)
def test_a_flood_delays_an_urgent_record_by_one_group_at_most(connections: int, value_bytes: int):
    site = Site()
    flood = [Flooded(site, value_bytes) for _ in range(connections)]
    urgent = site.client()
    urgent.hello()
    for sequence in range(1, 4):
        rounds(site, flood)
        groups = site.committer.groups
        if sequence % 2:
            urgent.send(urgent_frame(sequence))  # in this round, behind all others
            site.loop.turn()
        else:
            site.loop.turn()
            rounds(site, flood)  # it came when this round was read already
            urgent.send(urgent_frame(sequence))
            site.loop.turn()
        assert acked(urgent)
        assert site.committer.groups - groups <= 2  # one beside its own


def test_an_urgent_record_behind_a_flood_on_its_own_connection_is_in_the_next_group():
    site = Site()
    client = site.client()
    client.hello()
    body = bodies.encode(Body(0, [b"x" * 128]))
    frames = [Append(1, n, 1, body).encode() for n in range(1, 1_000)]
    client.send(*frames, urgent_frame(1_000))
    groups = site.committer.groups
    site.loop.turn()
    assert site.committer.groups == groups + 1
    (ack,) = client.wire.events()
    assert isinstance(ack, Ack)
    assert ack.through == 1_000
