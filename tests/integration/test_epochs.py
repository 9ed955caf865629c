"""Two clients of one name: the newer goes on, the older is fenced, whatever it missed meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.doorkeeper import Door, Peer, short_directory
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import Ack, Append, Capability, Event, Failed, Hello, Welcome


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def door(directory: Path) -> Iterator[Door]:
    with Door(directory) as opened:
        yield opened


def hello(peer: Peer, name: str = "", session: int = 0, epoch: int = 0) -> Event | None:
    peer.send(Hello(1, name, session, Capability.EPOCH, epoch=epoch).encode())
    return peer.next()


def welcomed(peer: Peer, name: str = "", session: int = 0, epoch: int = 0) -> Welcome:
    answer = hello(peer, name, session, epoch)
    assert isinstance(answer, Welcome), answer
    return answer


def append(peer: Peer, stream: int, sequence: int, value: bytes) -> Event | None:
    peer.send(Append(stream, sequence, 1, bodies.encode(Body(0, [value]))).encode())
    return peer.next()


def restarted(door: Door, *, restart: bool) -> None:
    if restart:
        door.stop()
        door.start()


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_an_older_client_that_missed_fenced_is_told_when_it_comes_back(
    door: Door, *, restart: bool
):
    with door.peer() as older:
        first = welcomed(older, "billing")
        assert first.epoch == 1
        stream = older.open()
        with door.peer() as newer:
            second = welcomed(newer, "billing")
            assert (second.session, second.epoch) == (first.session, 2)
            # the same body under the same sequence as the older one has in flight
            assert isinstance(append(newer, stream, 1, b"bill"), Ack)
    restarted(door, restart=restart)
    with door.peer() as older:
        failed = hello(older, "billing", first.session, first.epoch)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == ("fenced", True)
    with door.peer() as newer:
        assert welcomed(newer, "billing", second.session, second.epoch).last_sequence == 1
        assert isinstance(append(newer, stream, 2, b"bill"), Ack)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_producer_that_was_replaced_is_fenced_for_good(door: Door, *, restart: bool):
    with wald.connect(door.path, name="billing") as older:
        older.append("s", b"1")
        with wald.connect(door.path, name="billing") as newer:
            newer.append("s", b"2")
            restarted(door, restart=restart)
            for _ in range(2):
                with pytest.raises(wald.Fenced):
                    older.append("s", b"3")
            assert newer.append("s", b"4").lsn > 2


def test_a_reconnect_keeps_the_epoch(door: Door):
    with door.peer() as peer:
        first = welcomed(peer, "billing")
    for _ in range(3):
        with door.peer() as peer:
            assert welcomed(peer, "billing", first.session, first.epoch).epoch == first.epoch


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_each_takeover_is_an_epoch_of_its_own(door: Door, *, restart: bool):
    epochs = []
    for _ in range(3):
        with door.peer() as peer:
            epochs.append(welcomed(peer, "billing").epoch)
        restarted(door, restart=restart)
    assert epochs == [1, 2, 3]


def test_takeovers_at_the_same_time_are_epochs_of_their_own(door: Door):
    peers = [door.peer() for _ in range(8)]
    for peer in peers:
        peer.send(Hello(1, "billing", 0, Capability.EPOCH).encode())
    answers = [peer.next() for peer in peers]
    epochs = [each.epoch for each in answers if isinstance(each, Welcome)]
    assert len(set(epochs)) == len(epochs)
    live = [
        peer
        for peer, answer in zip(peers, answers, strict=True)
        if isinstance(answer, Welcome) and answer.epoch == max(epochs)
    ]
    assert len(live) == 1
    stream = live[0].open("s")
    assert isinstance(append(live[0], stream, 1, b"x"), Ack)
    for peer in peers:
        peer.socket.close()


def test_an_epoch_that_is_not_begun_yet_is_of_a_log_that_went_back(door: Door):
    with door.peer() as peer:
        first = welcomed(peer, "billing")
    with door.peer() as peer:
        failed = hello(peer, "billing", first.session, first.epoch + 1)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.closing) == ("outcome-unknown", False)


def test_a_client_that_does_not_speak_of_epochs_comes_back_as_before(door: Door):
    with door.peer() as peer:
        first = welcomed(peer, "billing")
    with door.peer() as peer:
        assert welcomed(peer, "billing").epoch == 2
    with door.peer() as peer:
        answer = peer.hello("billing", first.session)
        assert answer.epoch == 0
