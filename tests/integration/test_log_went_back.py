"""A daemon whose log was brought back from a copy, or that lost sessions: no silent repetition."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from wald.cli.records import Entry, Parsed
from wald.cli.sending import Report, Sender
from wald.client.link import Deadline
from wald.client.session import Session
from wald.errors import OutcomeUnknown
from wald.model import Content
from wald.system import SystemClock

CLOCK = SystemClock()


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def door(directory: Path) -> Iterator[Door]:
    with Door(directory) as made:
        yield made


def keep_copy(door: Door) -> Path:
    door.stop()
    copy = Path(door.data_dir).with_name("copy")
    shutil.copytree(door.data_dir, copy)
    door.start()
    return copy


def bring_back(door: Door, copy: Path) -> None:
    door.stop()
    shutil.rmtree(door.data_dir)
    copy.rename(door.data_dir)
    door.start()


@pytest.mark.parametrize("name", ["", "ann"])
def test_when_the_log_went_back_the_producer_goes_on(door: Door, name: str):
    with wald.connect(door.path, name=name, timeout=DEADLINE_S) as producer:
        producer.append("s", b"kept")
        copy = keep_copy(door)
        for _ in range(3):
            producer.append("s", b"gone with the copy")
        bring_back(door, copy)
        for _ in range(3):  # nothing was on its way, so that no outcome is unknown
            producer.append("s", b"new")
        assert producer.session.last_sequence == (4 if name else 3)  # a name has its session again


def once(door: Door, entries: Iterator[Entry]) -> Report:
    session = Session(door.path, "once:job", patient=False, chance=random.Random(1), single=True)
    try:
        return Sender(session, "s", CLOCK, DEADLINE_S, lambda _: None).send_all(entries)
    finally:
        session.close(Deadline(CLOCK, DEADLINE_S))


def test_once_ends_with_an_error_when_the_log_goes_back_under_it(door: Door):
    def entries() -> Iterator[Entry]:
        yield from (Parsed(Content.BYTES, b"%d" % at) for at in range(500 * 20))
        copy = keep_copy(door)
        yield from (Parsed(Content.BYTES, b"%d" % at) for at in range(500 * 60))
        bring_back(door, copy)
        yield from (Parsed(Content.BYTES, b"%d" % at) for at in range(500 * 40))

    with pytest.raises(OutcomeUnknown) as caught:
        once(door, entries())
    assert "another name" in caught.value.hint


def damage(door: Door, value: bytes) -> None:
    """Flip a bit of a durable record behind which others stand."""
    (path,) = (
        path for path in Path(door.data_dir, "log").glob("*.wal") if value in path.read_bytes()
    )
    data = bytearray(path.read_bytes())
    data[data.index(value)] ^= 1
    path.write_bytes(data)


def test_after_a_recorded_loss_once_does_not_send_everything_again(door: Door):
    def entries() -> Iterator[Entry]:
        yield from (Parsed(Content.BYTES, b"value %d" % at) for at in range(2_000))

    assert once(door, entries()).accepted == 2_000
    with wald.connect(door.path) as producer:
        producer.append("s", b"the one that is damaged")
        producer.append("s", b"behind it")
    door.stop()
    damage(door, b"the one that is damaged")
    for _ in range(2):  # a later start, which finds no damage, knows it too
        door.start()
        with pytest.raises(OutcomeUnknown) as caught:
            once(door, entries())
        assert "another name" in caught.value.hint
        door.stop()
    door.start()
    with wald.connect(door.path, name="once:other") as producer:
        producer.append("s", b"under another name")
