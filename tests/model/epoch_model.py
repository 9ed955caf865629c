"""Two clients of one name, in all orders: messages, lost connections, kills, takeovers.

Each has one record to append, and both records have the same body: only then is the request of one
taken for a retry of the other. Every state that can be reached is looked at, breadth first, so that
a counter-example is a shortest one. What must hold: no more clients are acknowledged than records
are stored.

The daemon is what docs/protocol.md says; ``rule`` is how a HELLO that comes back by session is
judged, and what of a takeover survives a kill.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class Rule(Enum):
    """Which protocol is searched."""

    NONE = "no epochs"
    VOLATILE = "epochs that a kill of the daemon forgets"
    LATE = "epochs that are told before they are durable"
    DURABLE = "epochs that are durable before they are told"


class Client(NamedTuple):
    """What one client knows."""

    session: bool = False
    epoch: int = 0
    sequence: int = 0  # of its request; 0: none is assigned
    sent: bool = False  # the daemon may have seen it
    connected: bool = False
    acked: bool = False
    ended: bool = False  # it was told that it is fenced


class World(NamedTuple):
    """The daemon and its two clients.

    ``arriving`` and ``answering``: whose request is on its way to the daemon, and whose ACK on its
    way back.
    """

    stored: int = 0  # records; the last sequence is the same
    epoch: int = 1
    durable_epoch: int = 1
    holder: int | None = None  # whose connection has the session
    clients: tuple[Client, Client] = (Client(), Client())
    arriving: frozenset[int] = frozenset()
    answering: frozenset[int] = frozenset()


Step = tuple[str, World]
TAKEOVERS_MAX = 4


def _put(world: World, who: int, client: Client) -> World:
    clients = (client, world.clients[1]) if who == 0 else (world.clients[0], client)
    return world._replace(clients=clients)


def _cut(world: World, who: int) -> World:
    """A connection ends; what was on its way over it is gone."""
    world = _put(world, who, world.clients[who]._replace(connected=False))
    return world._replace(
        arriving=world.arriving - {who},
        answering=world.answering - {who},
        holder=None if world.holder == who else world.holder,
    )


def _fence(world: World, who: int) -> Iterator[World]:
    """Another connection takes the session: the older client is told, or misses it."""
    older = 1 - who
    if world.holder != older:
        yield world
        return
    missed = _cut(world, older)
    yield missed
    yield _put(missed, older, missed.clients[older]._replace(ended=True))


def steps(world: World, rule: Rule) -> Iterator[Step]:
    """Yield what may happen next."""
    for who in (0, 1):
        client = world.clients[who]
        if client.ended or client.acked:
            continue
        if client.connected:
            yield from _talk(world, who, "AB"[who])
        else:
            yield from _connect(world, who, "AB"[who], rule)
    killed = _cut(_cut(world, 0), 1)
    if rule in {Rule.VOLATILE, Rule.LATE}:
        killed = killed._replace(epoch=world.durable_epoch)
    yield "the daemon is killed", killed
    if rule is Rule.LATE and world.durable_epoch < world.epoch:
        yield "the epoch becomes durable", world._replace(durable_epoch=world.epoch)


def _talk(world: World, who: int, name: str) -> Iterator[Step]:
    client = world.clients[who]
    yield f"{name}'s connection is lost", _cut(world, who)
    if not client.sent:
        sent = _put(world, who, client._replace(sent=True))
        yield f"{name} sends", sent._replace(arriving=sent.arriving | {who})
    if who in world.arriving:
        yield from _arrive(world, who, name)
    if who in world.answering:
        acked = _put(world, who, client._replace(acked=True))
        yield f"{name} is acknowledged", acked


def _connect(world: World, who: int, name: str, rule: Rule) -> Iterator[Step]:
    client = world.clients[who]
    if not client.session:
        if world.epoch > TAKEOVERS_MAX:
            return
        for after in _fence(world, who):
            epoch = after.epoch + 1
            taken = after._replace(
                epoch=epoch,
                durable_epoch=epoch if rule is Rule.DURABLE else after.durable_epoch,
                holder=who,
            )
            new = client._replace(
                session=True, epoch=epoch, sequence=after.stored + 1, connected=True
            )
            yield f"{name} comes by its name", _put(taken, who, new)
        return
    if rule is not Rule.NONE and client.epoch < world.epoch:
        yield f"{name} comes back, fenced", _put(world, who, client._replace(ended=True))
        return
    for after in _fence(world, who):
        sent_through = client.sequence if client.sent else client.sequence - 1
        if after.stored > sent_through:
            fenced = _put(after._replace(holder=None), who, client._replace(ended=True))
            yield f"{name} comes back, and sees that it was replaced", fenced
            continue
        back = _put(after._replace(holder=who), who, client._replace(connected=True))
        if client.sent:
            back = back._replace(arriving=back.arriving | {who})
        yield f"{name} comes back", back


def _arrive(world: World, who: int, name: str) -> Iterator[Step]:
    """The daemon takes a request: the next one is stored, one in the window is answered again."""
    taken = world._replace(arriving=world.arriving - {who})
    sequence = world.clients[who].sequence
    if sequence == world.stored + 1:
        stored = taken._replace(stored=world.stored + 1, answering=taken.answering | {who})
        yield f"the daemon stores {name}'s", stored
    elif sequence <= world.stored:  # the same body: a retry, as far as the daemon can tell
        again = taken._replace(answering=taken.answering | {who})
        yield f"the daemon answers {name}'s once more", again


def counter_example(rule: Rule) -> tuple[list[str], int]:
    """Return the shortest way to more acknowledgements than records, and how many states there are.

    The way is empty where there is none.
    """
    start = World()
    before: dict[World, Step | None] = {start: None}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        if sum(client.acked for client in world.clients) > world.stored:
            return _way(before, world), len(before)
        for told, after in steps(world, rule):
            if after not in before:
                before[after] = (told, world)
                waiting.append(after)
    return [], len(before)


def _way(before: dict[World, Step | None], world: World) -> list[str]:
    way: list[str] = []
    step = before[world]
    while step is not None:
        way.append(step[0])
        step = before[step[1]]
    return way[::-1]
