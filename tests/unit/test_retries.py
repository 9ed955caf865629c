"""The table of docs/explanation/retries.md at the real door, row by row, over every kind of end."""

from collections.abc import Callable

import pytest

from tests.logtools import STREAM
from tests.turns import Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    Ack,
    Append,
    Capability,
    Event,
    Failed,
    Goodbye,
    Hello,
    RefusedRecords,
    Skip,
    Welcome,
)

LIVES: dict[str, Callable[[Site], Site]] = {
    "running": lambda at: at,
    "restarted": lambda at: at.restarted(),
    "killed": lambda at: at.killed(),
    "power cut": lambda at: at.killed(cut=True),
    "killed, and a power cut": lambda at: at.killed().killed(cut=True),
}
CAPABILITIES = Capability.EPOCH | Capability.RECEIVED

pytestmark = pytest.mark.parametrize("life", LIVES)


def request(sequence: int, *values: object, lag: int = 1, stream: int = STREAM) -> bytes:
    body = bodies.encode(Body(0, list(values)))  # type: ignore[arg-type]
    return Append(stream, sequence, lag, body).encode()


def hello(client: Client, name: str = "", session: int = 0, epoch: int = 0) -> Event:
    client.send(Hello(1, name, session, CAPABILITIES, epoch=epoch).encode())
    client.turn()
    (answer,) = client.wire.events()
    return answer


def told(client: Client) -> list[Event]:
    client.turn()
    return client.wire.events()


class Door:
    """A client that has sent something, the end of what it talked to, and its return."""

    def __init__(self, life: str) -> None:
        self.site = Site()
        self.life = life
        self.client = self.site.client()
        welcome = hello(self.client, "billing")
        assert isinstance(welcome, Welcome)
        self.session, self.epoch = welcome.session, welcome.epoch

    def send(self, *frames: bytes) -> list[Event]:
        self.client.send(*frames)
        return told(self.client)

    def come_back(self) -> Event:
        """What the process or the machine did ends; the client comes back."""
        self.site = LIVES[self.life](self.site)
        self.client = self.site.client()
        return hello(self.client, "billing", self.session, self.epoch)


@pytest.fixture
def door(life: str) -> Door:
    return Door(life)


def test_what_was_answered_is_answered_so_again_and_stored_once(door: Door):
    sent = [request(1, b"a", b"b"), request(2, b"c", "no bytes", b"d", lag=2)]
    refused, ack = door.send(*sent)
    assert isinstance(refused, RefusedRecords)
    assert isinstance(ack, Ack)
    welcome = door.come_back()
    assert isinstance(welcome, Welcome)
    assert welcome.last_sequence == 2
    again = door.send(*sent)
    assert [type(each) for each in again] == [Ack, RefusedRecords, Ack]
    first, refused_again, second = again
    assert isinstance(first, Ack)
    assert isinstance(second, Ack)
    assert isinstance(refused_again, RefusedRecords)
    assert (first.first_lsn, second.first_lsn) == (ack.first_lsn, ack.first_lsn + 2)
    assert [(each.record, each.code) for each in refused_again.refusals] == [
        (each.record, each.code) for each in refused.refusals
    ]
    (new,) = door.send(request(3, b"e"))
    assert isinstance(new, Ack)
    assert new.first_lsn > second.first_lsn + 1


def test_a_request_refused_as_a_whole_is_refused_so_again(door: Door):
    broken = Append(STREAM, 1, 1, b"\xc1").encode()
    door.send(broken)
    door.come_back()
    refused, ack = door.send(broken)
    assert isinstance(refused, RefusedRecords)
    assert refused.refusals[0].code == "request.malformed"
    assert isinstance(ack, Ack)


def the_code(events: list[Event]) -> str:
    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.hint
    return failed.code


def test_another_body_under_a_sequence_is_a_conflict(door: Door):
    door.send(request(1, b"a"))
    door.come_back()
    assert the_code(door.send(request(1, b"b"))) == "sequence-conflict"


def test_what_the_client_has_the_answer_of_is_unknown(door: Door):
    door.send(request(1, b"a"), request(2, b"b"))  # the second says that it has the first's answer
    door.come_back()
    assert the_code(door.send(request(1, b"a"))) == "outcome-unknown"


def test_what_is_older_than_the_window_is_unknown(door: Door):
    count = limits.WINDOW_REQUESTS + 1
    door.send(*(request(n, b"x", lag=min(n, limits.WINDOW_REQUESTS)) for n in range(1, count + 1)))
    door.come_back()
    assert the_code(door.send(request(1, b"x", lag=1))) == "outcome-unknown"
    (ack,) = door.send(request(2, b"x", lag=1))
    assert isinstance(ack, Ack)


def test_a_gap_is_told_and_stores_nothing(door: Door):
    door.send(request(1, b"a"))
    door.come_back()
    assert the_code(door.send(request(3, b"c"))) == "sequence-gap"
    (ack,) = door.send(request(2, b"b"))
    assert isinstance(ack, Ack)


def test_what_was_skipped_is_unknown(door: Door):
    door.send(request(1, b"a"), Skip(3).encode(), request(4, b"d"))
    welcome = door.come_back()
    assert isinstance(welcome, Welcome)
    assert welcome.last_sequence == 4
    assert the_code(door.send(request(2, b"b", lag=2))) == "outcome-unknown"


def test_a_session_that_was_left_is_unknown(life: str):
    site = Site()
    client = site.client()
    welcome = hello(client)
    assert isinstance(welcome, Welcome)
    client.send(request(1, b"a"), Goodbye().encode())
    client.turn()
    site.committer.commit(mentioned=True)
    site = LIVES[life](site)
    answer = hello(site.client(), "", welcome.session, welcome.epoch)
    assert isinstance(answer, Failed)
    assert answer.code == "outcome-unknown"


def test_an_evicted_session_is_unknown(life: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SESSIONS_MAX", 2)  # one is in every test's first group
    site = Site()
    client = site.client()
    welcome = hello(client)
    assert isinstance(welcome, Welcome)
    client.send(request(1, b"a"))
    told(client)
    client.leave()
    assert isinstance(hello(site.client()), Welcome)
    site.committer.commit(mentioned=True)
    site = LIVES[life](site)
    answer = hello(site.client(), "", welcome.session, welcome.epoch)
    assert isinstance(answer, Failed)
    assert answer.code == "outcome-unknown"


def test_who_was_replaced_is_fenced_with_what_it_has_in_flight(door: Door):
    door.client.send(request(1, b"accepted"))
    newer = door.site.client()
    newer.send(Hello(1, "billing", 0, CAPABILITIES).encode())
    door.site.loop.turn()
    ack, fenced = door.client.wire.events()
    assert isinstance(ack, Ack)  # what was accepted of it is answered first
    assert isinstance(fenced, Failed)
    assert (fenced.code, fenced.closing) == ("fenced", True)
    (welcome,) = newer.wire.events()
    assert isinstance(welcome, Welcome)
    assert (welcome.last_sequence, welcome.epoch) == (1, 2)
    answer = door.come_back()
    assert isinstance(answer, Failed)
    assert (answer.code, answer.closing) == ("fenced", True)
    back = door.site.client()
    assert isinstance(hello(back, "billing", welcome.session, welcome.epoch), Welcome)
    back.send(request(2, b"of the newer"))
    assert isinstance(told(back)[0], Ack)
