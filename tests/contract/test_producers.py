"""What every producer does alike: the blocking one, its asynchronous twin, and their fakes.

The first two talk to a real ingest, the fakes to a daemon in memory.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

import pytest

import wald
from tests.doorkeeper import Door, short_directory
from wald.client.encoding import decode_value
from wald.testing import AsyncFakeProducer, FakeProducer


class InLoop:
    """An asynchronous object as a blocking one: each call runs its loop until it is done."""

    def __init__(self, runner: asyncio.Runner, twin: Any) -> None:
        self._runner = runner
        self._twin = twin

    def __getattr__(self, name: str) -> Any:
        if name == "session":
            return self._called(self._twin.session)
        found = getattr(self._twin, name)
        if name == "stream":
            return lambda *arguments: InLoop(self._runner, found(*arguments))
        if inspect.iscoroutinefunction(found):
            return lambda *given, **options: self._called(found, *given, **options)
        return found

    def _called(self, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        async def call() -> Any:
            return await function(*given, **options)

        came = self._runner.run(call())
        return InLoop(self._runner, came) if isinstance(came, wald.AsyncPending) else came

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class World:
    """Producers, and what they talk to."""

    connect: Callable[..., Any]
    values: Callable[[], list[object]]  # stops the daemon
    stop: Callable[[], None]
    start: Callable[[], None]


@pytest.fixture(params=["blocking", "asynchronous", "fake", "asynchronous fake"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "asynchronous fake":
        made = AsyncFakeProducer()
        with asyncio.Runner() as runner:

            def twin(name: str = "") -> Any:
                return InLoop(runner, AsyncFakeProducer(name=name, beside=made))

            yield World(
                twin, lambda: [r.value for r in made.records], made.stop_daemon, made.start_daemon
            )
        return
    if request.param == "fake":
        first = FakeProducer()

        def another(name: str = "") -> FakeProducer:
            return FakeProducer(name=name, beside=first)

        daemon = first.daemon
        yield World(another, lambda: [r.value for r in daemon.records], daemon.stop, daemon.start)
        return
    with short_directory() as directory, Door(directory) as door, asyncio.Runner() as runner:

        def connect(name: str = "") -> Any:
            if request.param == "blocking":
                return wald.connect(door.path, name=name)
            return InLoop(runner, wald.connect_async(door.path, name=name))

        def values() -> list[object]:
            return [
                decode_value(
                    body.content if isinstance(body.content, int) else body.content[at], value
                )
                for body in door.stored_bodies()
                for at, value in enumerate(body.values)
            ]

        yield World(connect, values, door.stop, door.start)


def test_an_append_is_stored_and_says_where(world: World):
    with world.connect() as producer:
        assert producer.append("s", b"one") == wald.Receipt("s", 1, "durable", 1)
        assert producer.append("t", {"n": 2}, key="k", headers={"h": b"v"}, dedup_id="d").lsn == 2
        assert producer.append("s", "three", urgent=True).lsn == 3
    assert world.values() == [b"one", {"n": 2}, "three"]


def test_what_is_received_only_is_durable_a_moment_later(world: World):
    with world.connect() as producer:
        receipt = producer.append("s", b"early", ack="received")
        assert receipt.stream == "s"
        assert receipt.level in {"received", "durable"}  # whichever is known first
        with pytest.raises(wald.RecordRefused):
            producer.append("s", b"x", key="k" * 2_000, ack="received")
        producer.flush()
        assert producer.append("s", b"next").lsn == 2
    assert world.values() == [b"early", b"next"]


@dataclass
class Signup:
    user: str
    at: datetime
    paid: Decimal
    inner: "Inner"


@dataclass
class Inner:
    tags: list[str]


SIGNUP = Signup("ann", datetime(2026, 11, 22, 10, tzinfo=UTC), Decimal("12.50"), Inner(["a"]))
AS_MAP = {"user": "ann", "at": SIGNUP.at, "paid": SIGNUP.paid, "inner": {"tags": ["a"]}}


def test_values_of_a_type_have_a_handle(world: World):
    with world.connect() as producer:
        signups = producer.stream("signups", Signup)
        assert (signups.name, signups.type) == ("signups", Signup)
        assert signups.append(SIGNUP, key="ann").lsn == 1
        assert signups.submit(SIGNUP).result().lsn == 2
        assert len(signups.append_many([SIGNUP, SIGNUP], key=lambda each: each.user).accepted) == 2
        for wrong in (lambda: signups.append("x"), lambda: signups.submit({"user": "ann"})):
            with pytest.raises(wald.RecordRefused, match="not Signup"):
                wrong()
        with pytest.raises(wald.RecordRefused) as second:
            signups.append_many([SIGNUP, 2])
        assert second.value.index == 1
    assert world.values() == [AS_MAP] * 4


@pytest.mark.parametrize(
    "value",
    [date(2026, 11, 22), UUID(int=7), None, True, 1.5, [1, [2]], {"a": {"b": b"c"}}],
    ids=str,
)
def test_a_value_comes_back_as_it_was(world: World, value: object):
    with world.connect() as producer:
        producer.append("s", value)
    assert world.values() == [value]


def test_of_many_each_has_its_own_result(world: World):
    with world.connect() as producer:
        keys = ["k" * 2_000 if at == 46 else str(at) for at in range(50)]
        values: list[object] = [{"n": at} for at in range(50)]
        values[3] = {1}
        results = producer.append_many("s", values, keys=keys)
        assert [each.index for each in results.refused] == [3, 46]
        assert [each.code for each in results.refused] == ["record.value", "record.key"]
        assert [each.lsn for each in results.accepted] == list(range(1, 49))
        with pytest.raises(TypeError):
            producer.append_many("s", "one value")
        with pytest.raises(ValueError, match="key"):
            producer.append_many("s", [1], key="a", keys=["b"])
        assert list(producer.append_many("s", [])) == []
    assert len(world.values()) == 48


def test_submitted_records_are_answered_in_order(world: World):
    with world.connect() as producer:
        pendings = [producer.submit("s", b"%d" % n, key=str(n % 3)) for n in range(300)]
        refused = producer.submit("s", b"", key="k" * 2_000)
        assert [each.result().lsn for each in pendings] == list(range(1, 301))
        assert all(each.done() for each in pendings)
        assert isinstance(refused.exception(), wald.RecordRefused)
        producer.flush()
    assert world.values() == [b"%d" % n for n in range(300)]


def test_what_is_the_callers_fault_is_a_refusal(world: World):
    with world.connect() as producer:
        for call in (producer.append, producer.submit):
            with pytest.raises(wald.UnknownStream):
                call("NO", b"x")
            with pytest.raises(wald.RecordRefused) as value:
                call("s", {1})
            assert (value.value.reason, value.value.retryable) == ("record.value", False)
        with pytest.raises(wald.RecordRefused) as key:
            producer.append("s", b"x", key="k" * 2_000)
        assert key.value.reason == "record.key"
        with pytest.raises(wald.WaldError, match="not 'durable' or 'delivered'"):
            producer.append("s", b"x", ack="soon")
    assert world.values() == []


def test_a_name_goes_on_where_its_last_client_ended(world: World):
    with world.connect(name="ann") as producer:
        producer.append("s", b"1")
        assert producer.session.name == "ann"
        session = producer.session.session_id
    with world.connect(name="ann") as first, world.connect(name="ann") as second:
        assert first.session[:2] == (session, "ann")
        assert first.session.last_sequence == 1
        first.append("s", b"2")
        assert second.append("s", b"3").lsn == 3
        for _ in range(2):
            with pytest.raises(wald.Fenced):
                first.append("s", b"4")
    assert world.values() == [b"1", b"2", b"3"]


def test_a_restart_of_the_daemon_is_invisible(world: World):
    with world.connect() as producer:
        producer.append("s", b"1")
        pendings = [producer.submit("s", b"2"), producer.submit("s", b"3")]
        world.stop()
        world.start()
        assert producer.append("s", b"4").lsn == 4
        assert [each.result().lsn for each in pendings] == [2, 3]
    assert world.values() == [b"1", b"2", b"3", b"4"]


def test_without_a_daemon_nothing_was_sent(world: World):
    world.stop()
    if isinstance(fresh := world.connect(), FakeProducer):
        with fresh, pytest.raises(wald.Unavailable) as caught:
            fresh.append("s", b"x")
        assert caught.value.retryable
    with wald.connect("/nowhere/wald.sock") as producer, pytest.raises(wald.Unavailable) as real:
        producer.append("s", b"x")
    assert real.value.retryable


def test_a_wait_for_what_is_no_receipt_is_a_typed_error(world: World):
    with world.connect() as producer:
        producer.append("s", b"1")
        early = wald.Receipt("s", 0, "received", 0)
        wrong: Any
        for wrong in (1, None, producer.submit("s", b"3"), early):
            for level in ("durable", "delivered"):
                with pytest.raises(wald.InputError) as caught:
                    producer.wait(wrong, level)
                assert caught.value.hint


def test_a_closed_producer_says_so(world: World):
    producer = world.connect()
    assert producer.ping() >= 0
    producer.append("s", b"1")
    producer.close()
    producer.close()
    for call in (producer.append, producer.submit):
        with pytest.raises(wald.Closed):
            call("s", b"x")
    with pytest.raises(wald.Closed):
        producer.append_many("s", [b"x"])
    with pytest.raises(wald.Closed):
        producer.ping()
