"""The fake producer goes wrong as the real one can, on demand, on any system, in no time."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wald
from wald import limits
from wald.testing import AsyncFakeProducer, FakeProducer, MemoryRecord, assert_delivered

ROOT = Path(__file__).parents[2]


def test_it_remembers_what_was_stored():
    with FakeProducer() as producer:
        producer.append("s", {"n": 1}, key="k", headers={"h": "v"}, dedup_id="d")
        producer.append_many("t", [b"2", b"3"])
        assert producer.records[0] == MemoryRecord("s", 1, {"n": 1}, "k", {"h": "v"}, "d")
        assert producer.values("t") == [b"2", b"3"]


def test_it_compares_ids_if_wanted():
    with FakeProducer(dedup=True) as producer:
        first = producer.append("s", b"1", dedup_id="a")
        again = producer.append("s", b"1", dedup_id="a")
        assert (again.lsn, again.duplicate) == (first.lsn, True)
        results = producer.append_many("s", [b"2", b"3"], dedup_ids=["b", "b"])
        assert [(each.lsn, each.duplicate) for each in results.accepted] == [(2, False), (2, True)]
        assert not producer.append("t", b"1", dedup_id="a").duplicate  # another stream
        assert producer.values("s") == [b"1", b"2"]


def test_it_refuses_records_on_demand():
    with FakeProducer() as producer:
        producer.refuse("record.fields", "no field 'user'", times=2)
        with pytest.raises(wald.RecordRefused, match="no field") as caught:
            producer.append("s", b"1")
        assert caught.value.reason == "record.fields"
        results = producer.append_many("s", [b"2", b"3"])
        assert [each.index for each in results.refused] == [0]
        producer.refuse_stream("secret")
        with pytest.raises(wald.UnknownStream):
            producer.append("secret", b"4")
        assert producer.values("s") == [b"3"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [(FakeProducer.throttle, wald.Backpressure), (FakeProducer.fill_disk, wald.DiskFull)],
    ids=["throttled", "disk full"],
)
def test_it_has_no_room_on_demand(fault, error):
    with FakeProducer(timeout=1.0) as producer:
        producer.append("s", b"0")
        fault(producer, retry_after=2.5)
        with pytest.raises(error) as caught:
            producer.append("s", b"1")
        assert caught.value.retry_after_s == 2.5
        fault(producer, retry_after=2.5)
        pending = producer.submit("s", b"2")
        assert isinstance(pending.exception(), error)
        producer.append("s", b"3")
        assert producer.values("s") == [b"0", b"3"]


def test_what_is_on_its_way_behind_one_without_room_is_not_stored_either():
    with FakeProducer(timeout=1.0) as producer:
        producer.append("s", b"0")
        producer.throttle()
        pendings = [producer.submit("s", b"1"), producer.submit("s", b"2")]
        assert [type(each.exception()) for each in pendings] == [wald.Backpressure] * 2
        assert producer.submit("s", b"3").result().lsn == 2
        assert producer.values("s") == [b"0", b"3"]


def test_what_is_submitted_goes_out_at_once_unless_it_is_one_of_a_flood():
    with FakeProducer() as producer:
        for number in range(1, 101):
            producer.clock.advance(0.001)
            producer.submit("s", number)
            assert len(producer.records) == number
        flood = [producer.submit("s", number) for number in range(101, 1_001)]
        assert len(producer.records) < 1_000  # the rest waits for company, or the next call
        producer.clock.advance(0.002)
        assert producer.submit("s", 1_001).was_sent
        assert producer.values("s") == list(range(1, 1_002))
        assert [each.result().lsn for each in flood] == list(range(101, 1_001))
        assert producer.session.last_sequence < 100 + limits.SUBMIT_AT_ONCE_REQUESTS + 10


def test_it_loses_answers_on_demand_and_settles_them():
    with FakeProducer() as producer:
        producer.lose_answer()
        began = time.monotonic()
        with pytest.raises(wald.OutcomeUnknown) as unknown:
            producer.append("s", b"1")
        assert time.monotonic() - began < 5  # 30 s by its own clock
        assert producer.settle(unknown.value) == wald.Receipt("s", 1, "durable", 1)
        producer.lose_answer()
        pending = producer.submit("s", b"2")
        with pytest.raises(wald.OutcomeUnknown):
            pending.result()
        assert pending.result().lsn == 2
        producer.lose_answer()
        with pytest.raises(wald.OutcomeUnknown) as gone:
            producer.append("s", b"3")
        producer.lose_sessions()
        with pytest.raises(wald.OutcomeUnknown):
            producer.settle(gone.value)
        assert producer.values("s") == [b"1", b"2", b"3"]


def test_it_has_no_daemon_on_demand():
    with FakeProducer() as producer:
        producer.stop_daemon()
        with pytest.raises(wald.Unavailable):
            producer.append("s", b"1")
        producer.start_daemon()
        producer.append("s", b"2")
        producer.stop_daemon()
        for call in (producer.append, producer.submit):  # nothing was sent: no record is left over
            with pytest.raises(wald.Unavailable):
                call("s", b"3")
        with pytest.raises(wald.Unavailable):
            producer.append_many("s", [b"3"])
        with pytest.raises(wald.Unavailable):
            producer.status(1)
        producer.start_daemon()
        assert producer.append("s", b"4").lsn == 2
        assert producer.values("s") == [b"2", b"4"]


def test_it_delivers_or_does_not_on_demand():
    with FakeProducer() as producer:
        assert producer.append("s", b"1", ack="delivered").level == "delivered"
        assert producer.status(1).delivered
        producer.hold_delivery()
        with pytest.raises(wald.DeliveryTimeout) as late:
            producer.append("s", b"2", ack="delivered")
        assert late.value.receipt.lsn == 2
        producer.hold_delivery("parked: target-behind")
        with pytest.raises(wald.DeliveryPending, match="target-behind"):
            producer.append("s", b"3", ack="delivered")
        producer.refuse_delivery("no such column")
        with pytest.raises(wald.DeliveryRefused, match="no such column"):
            producer.append("s", b"4", ack="delivered")
        assert producer.status(4).routes["memory"].fate == "dead-letter"
        producer.deliver()
        assert producer.wait(late.value.receipt).level == "delivered"
        with pytest.raises(wald.NoRecord):
            producer.status(9)


def test_its_twin_goes_wrong_in_the_same_ways():
    async def main() -> None:
        began = time.monotonic()
        async with AsyncFakeProducer(timeout=20.0, dedup=True) as producer:
            assert (await producer.append("s", b"1", dedup_id="a", ack="delivered")).lsn == 1
            assert (await producer.append("s", b"1", dedup_id="a")).duplicate
            producer.refuse("record.fields")
            with pytest.raises(wald.RecordRefused):
                await producer.append("s", b"refused")
            producer.throttle(retry_after=60.0)
            with pytest.raises(wald.Backpressure):
                await producer.append("s", b"no room")
            producer.fill_disk(retry_after=60.0)
            with pytest.raises(wald.DiskFull):
                await producer.append_many("s", [b"no room"])
            producer.lose_answer()
            with pytest.raises(wald.OutcomeUnknown) as unknown:
                await producer.append("s", b"2")
            assert await producer.settle(unknown.value) == wald.Receipt("s", 2, "durable", 2)
            producer.lose_answer()
            pending = await producer.submit("s", b"3")
            with pytest.raises(wald.OutcomeUnknown):
                await pending
            assert (await pending).lsn == 3
            producer.stop_daemon()
            with pytest.raises(wald.Unavailable):
                await producer.append("s", b"nobody there")
            with pytest.raises(wald.Unavailable):
                await producer.status(1)
            producer.start_daemon()
            producer.hold_delivery()
            with pytest.raises(wald.DeliveryTimeout):
                await producer.append("s", b"4", ack="delivered")
            producer.refuse_delivery("no such column")
            with pytest.raises(wald.DeliveryRefused):
                await producer.append("s", b"5", ack="delivered")
            producer.deliver()
            assert (await producer.status(5)).delivered
            assert_delivered(producer, "s", [b"1", b"2", b"3", b"4", b"5"])
        assert time.monotonic() - began < 15  # its calls alone would wait for longer

    asyncio.run(main())


_ELSEWHERE = """
import os, select, socket, sys, time
for module in "fcntl termios pwd grp resource google_crc32c lmdb uvloop click rich".split():
    sys.modules[module] = None
for module, name in ((os, "fork"), (os, "register_at_fork"), (os, "geteuid"), (select, "poll"),
                     (socket, "AF_UNIX"), (socket, "MSG_NOSIGNAL"), (time, "CLOCK_BOOTTIME")):
    delattr(module, name)
import wald
from wald import limits
from wald.testing import FakeProducer
with FakeProducer() as producer:
    assert producer.append("s", {"n": 1}).lsn == 1
    assert producer.submit("s", b"2").result().lsn == 2
    producer.lose_answer()
    try:
        producer.append("s", b"3")
    except wald.OutcomeUnknown as unknown:
        assert producer.settle(unknown).lsn == 3
for call in (wald.connect, wald.connect_async):
    try:
        call()
    except wald.Unavailable as error:
        assert "no Unix sockets" in error.message, error
    else:
        raise AssertionError
"""


def test_on_a_system_without_unix_sockets_the_fake_works():
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("timeout", ["5s", float("nan"), float("inf"), (5,)])
def test_a_timeout_that_is_no_number_of_seconds_is_said_so(timeout):
    with FakeProducer() as producer:
        with pytest.raises(wald.errors.InputError, match="not a number of seconds"):
            producer.append("s", b"1", timeout=timeout)
        producer.append("s", b"2")
        assert producer.values("s") == [b"2"]
