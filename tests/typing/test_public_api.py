"""The types of the public names as mypy tells them to an application, and that they are true.

mypy checks this file with the rest: ``assert_type`` fails there, and so does a ``type: ignore``
that is not needed, which is how a wrong call shows that it is refused.
"""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import assert_type

import pytest

import wald
from tests.doorkeeper import Door, short_directory


def append_one(producer: wald.Producer) -> wald.Receipt:
    receipt = producer.append(
        "s", {"user": "ann"}, key="ann", headers={"a": "text", "b": b"bytes"}, dedup_id=b"1"
    )
    assert_type(receipt, wald.Receipt)
    assert_type(receipt.stream, str)
    assert_type(receipt.lsn, int)
    assert_type(receipt.durable_lsn, int)
    assert_type(receipt.level, str)
    return receipt


def follow(producer: wald.Producer, receipt: wald.Receipt) -> None:
    assert_type(producer.wait(receipt), wald.Receipt)
    assert_type(producer.wait(receipt, "delivered", timeout=1.0), wald.Receipt)
    assert_type(producer.append("s", 1, ack="delivered"), wald.Receipt)
    assert_type(producer.append_many("s", [1], ack="delivered"), wald.Results)
    status = producer.status(receipt.lsn)
    assert_type(status, wald.RecordStatus)
    assert_type(status.delivered, bool)
    assert_type(status.stream, str | None)
    for name, route in status.routes.items():
        assert_type(name, str)
        assert_type(route, wald.RouteStatus)
        assert_type(route.fate, str)
        assert_type(route.batch, int | None)
        assert_type(route.reason, str)


def append_many(producer: wald.Producer) -> wald.Results:
    values: list[object] = [b"a", "b", object()]
    results = producer.append_many("s", values, keys=["ann", b"bob", None], timeout=5)
    assert_type(results, wald.Results)
    assert_type(results[0], wald.Receipt | wald.Refused)
    assert_type(results[:2], wald.Results)
    assert_type(results.accepted, list[wald.Receipt])
    assert_type(results.refused, list[wald.Refused])
    assert_type(len(results), int)
    for each in results:
        assert_type(each, wald.Receipt | wald.Refused)
        if isinstance(each, wald.Refused):
            assert_type(each.index, int)
            assert_type(each.code, str)
            assert_type(each.message, str)
        else:
            assert_type(each, wald.Receipt)
    as_sequence: Sequence[wald.Receipt | wald.Refused] = results
    assert as_sequence is results
    return results


@dataclass
class Signup:
    user: str


def submit_one(producer: wald.Producer) -> wald.Pending:
    pending = producer.submit("s", {"user": "ann"}, key=b"ann", urgent=True)
    assert_type(pending, wald.Pending)
    assert_type(pending.result(), wald.Receipt)
    assert_type(pending.result(1.0), wald.Receipt)
    assert_type(pending.exception(), wald.WaldError | None)
    assert_type(pending.done(), bool)
    assert_type(pending.stream, str)
    return pending


def settle(producer: wald.Producer, unknown: wald.OutcomeUnknown, results: wald.Results) -> None:
    assert_type(producer.settle(unknown), wald.Receipt | wald.Results)
    assert_type(producer.settle(results, timeout=1.0), wald.Results)


def typed(producer: wald.Producer) -> None:
    signups = producer.stream("signups", Signup)
    assert_type(signups, wald.Stream[Signup])
    assert_type(signups.append(Signup("ann"), key="ann", timeout=1.0), wald.Receipt)
    assert_type(signups.submit(Signup("ann")), wald.Pending)
    assert_type(signups.append_many([Signup("ann")], key=lambda _: b"k"), wald.Results)
    with pytest.raises(wald.RecordRefused):
        signups.append({"user": "ann"})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        signups.append(Signup("ann"), colour="red")  # type: ignore[call-arg]


def test_what_is_submitted_and_typed_is_what_mypy_says() -> None:
    with short_directory() as directory, Door(directory) as door, wald.connect(door.path) as one:
        assert submit_one(one).done()
        typed(one)
        settle_as_told: object = settle
        assert callable(settle_as_told)
        answer = wald.http_answer(wald.Unavailable("why"))
        assert_type(answer, wald.HttpAnswer)
        assert_type(answer.status, int)
        assert_type(wald.decode_value(*wald.encode_value({"n": 1})), object)


async def twin(producer: wald.AsyncProducer) -> None:
    assert_type(await producer.append("s", 1), wald.Receipt)
    assert_type(await producer.append_many("s", [1]), wald.Results)
    pending = await producer.submit("s", 1)
    assert isinstance(assert_type(pending, wald.AsyncPending), wald.AsyncPending)
    assert_type(await pending, wald.Receipt)
    assert_type(await pending.result(), wald.Receipt)
    assert_type(await pending.exception(), wald.WaldError | None)
    signups = producer.stream("signups", Signup)
    assert_type(signups, wald.AsyncStream[Signup])
    assert_type(await signups.append(Signup("ann")), wald.Receipt)
    assert_type(await (await signups.submit(Signup("ann"))), wald.Receipt)
    assert_type(await producer.session(), wald.SessionInfo)
    assert_type(await producer.ping(), float)
    with pytest.raises(wald.RecordRefused):
        await signups.append("ann")  # type: ignore[arg-type]


def test_the_twin_is_what_mypy_says() -> None:
    async def main(path: str) -> None:
        async with wald.connect_async(path) as producer:
            assert_type(producer, wald.AsyncProducer)
            await twin(producer)

    with short_directory() as directory, Door(directory) as door:
        asyncio.run(main(door.path))


def test_the_types_are_what_mypy_says_and_what_comes() -> None:
    with short_directory() as directory, Door(directory) as door:
        producer = wald.connect(Path(door.path), name="ann", timeout=10.0, wait_for_daemon=True)
        assert_type(producer, wald.Producer)
        with producer as entered:
            assert_type(entered, wald.Producer)
            receipt = append_one(producer)
            assert (type(receipt), receipt.lsn, type(receipt.level)) == (wald.Receipt, 1, str)
            results = append_many(producer)
            kinds = [type(each) for each in results]
            assert kinds == [wald.Receipt, wald.Receipt, wald.Refused]
            assert isinstance(results[:2], wald.Results)
            with pytest.raises(wald.RecordRefused) as caught:
                results.raise_for_refused()
            assert_type(caught.value, wald.RecordRefused)
            assert_type(producer.session, wald.SessionInfo)
            assert isinstance(producer.session, wald.SessionInfo)
            assert_type(producer.ping(), float)
            assert isinstance(producer.ping(), float)


def test_what_mypy_refuses_is_refused() -> None:
    with wald.connect("/nowhere/wald.sock") as producer, pytest.raises(TypeError):
        producer.append(b"s", key="a")  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError):
        wald.connect(name="a", retries=3)  # type: ignore[call-arg]
    receipt = wald.Receipt("s", 1, "durable", 1)
    with pytest.raises(AttributeError):
        receipt.lsn = 2  # type: ignore[misc]


def test_a_wait_that_ends_says_what_is_durable() -> None:
    for kind in (wald.DeliveryTimeout, wald.DeliveryPending):
        assert issubclass(kind, wald.WaitTimeout)
        assert not kind.retryable  # it is stored: sending it again would store it twice
    assert issubclass(wald.DeliveryPending, wald.DeliveryTimeout)
    assert not issubclass(wald.DeliveryRefused, wald.DeliveryTimeout)
    with wald.connect("/nowhere/wald.sock") as producer:
        with pytest.raises(wald.WaldError, match="not 'durable' or 'delivered'"):
            producer.append("s", 1, ack="soon")  # type: ignore[arg-type]
        with pytest.raises(wald.Unavailable):
            producer.status(1)
        receipt = wald.Receipt("s", 1, "durable", 1)
        assert producer.wait(receipt, "durable") is receipt
        with pytest.raises(wald.DeliveryTimeout) as late:
            producer.wait(receipt, timeout=0)
        assert late.value.receipt is receipt
        delivered = wald.Receipt("s", 1, "delivered", 1)
        assert producer.wait(delivered) is delivered


def test_every_public_callable_says_its_types() -> None:
    kinds = (wald.Producer, wald.AsyncProducer, wald.Pending, wald.AsyncPending, wald.Stream)
    methods = [each for kind in kinds for _, each in inspect.getmembers(kind, callable)]
    for function in (wald.connect, wald.connect_async, *methods):
        if function.__name__.startswith("_") or not inspect.isfunction(function):
            continue
        said = inspect.signature(function)
        assert said.return_annotation is not said.empty, function
        parameters = [each for each in said.parameters.values() if each.name != "self"]
        assert all(each.annotation is not each.empty for each in parameters), function


def test_the_package_says_that_it_has_types() -> None:
    assert (files("wald") / "py.typed").is_file()
