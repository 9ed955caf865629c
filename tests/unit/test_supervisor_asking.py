"""Whether a child answers: a refusal is an answer, silence is none."""

import asyncio
import contextlib
import socket

import pytest

from wald.supervisor.asking import Patient, greet_ingest
from wald.testing import ManualClock


@pytest.fixture
def listening(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "w.sock"))
        listening.listen(1)
        yield listening


def greet(path):
    return asyncio.run(greet_ingest(str(path), within_s=0.05))


def test_silence_is_no_answer(listening, tmp_path):
    assert greet(tmp_path / "w.sock") is None


def test_a_queue_of_connections_that_nobody_takes_is_no_answer(listening, tmp_path):
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(tmp_path / "w.sock"))
        assert greet(tmp_path / "w.sock") is None


@pytest.mark.parametrize("says", [b"\0" * 32, b""], ids=["a word", "a hang-up"])
def test_a_word_and_a_hang_up_are_answers(tmp_path, says):
    async def ask():
        async def answer(reader, writer):
            await reader.read(1)
            writer.write(says)
            writer.close()

        async with await asyncio.start_unix_server(answer, str(tmp_path / "w.sock")):
            return await greet_ingest(str(tmp_path / "w.sock"), within_s=30.0)

    assert asyncio.run(ask()) is True


def test_without_a_name_nothing_is_held_against_it(tmp_path):
    assert greet(tmp_path / "gone.sock") is True


@pytest.mark.parametrize(
    ("keeps", "says", "asked"), [(False, 1, 2), (True, 1, 1), (False, None, 1), (True, None, 1)]
)
def test_one_that_hangs_is_not_asked_at_every_question(keeps, says, asked):
    clock, times = ManualClock(), []

    async def ask():
        times.append(1)
        return says

    async def questions():
        patient = Patient(clock, ask, keeps=keeps)
        first = [await patient.ask() for _ in range(2)]
        count = len(times)
        clock.advance(1.1)
        await patient.ask()
        return first, count, len(times)

    assert asyncio.run(questions()) == ([says, says], asked, asked + 1)
