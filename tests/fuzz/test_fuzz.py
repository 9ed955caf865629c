"""Bytes from outside, by the thousand: taken, or refused by type; never anything else.

Quick: seeds, what was found before (``corpus/``), and seeded mutations. Long, guided by coverage,
as ``make torture`` does it: ``python -m tests.fuzz.run --runs 1000000`` (needs atheris).
"""

import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.fuzz.targets import TARGETS, seeds
from wald.core import shaping
from wald.errors import WaldError

RUNS = int(os.environ.get("WALD_FUZZ_RUNS", "1500"))
SECONDS_MAX = 5.0  # of one input, under any load
MEMORY_MAX_BYTES = 128 << 20
CORPUS = Path(__file__).with_name("corpus")


def inputs_of(name: str) -> list[bytes]:
    found = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*seeds(name), *(path.read_bytes() for path in found)]


def mutations(inputs: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Yield inputs with some bytes flipped, set, cut, doubled, or taken from another one."""
    interesting = (0, 1, 0x7F, 0x80, 0xFF, 0x92, 0xC0, 0xC1, 0xC6, 0xDB, 0xDD, 0xDF)
    while True:
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at = chance.randrange(len(data) + 1)
            length = chance.choice((1, 1, 2, 4, 8, 64))
            match chance.randrange(6):
                case 0 if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
                case 1 if at < len(data):
                    data[at] = chance.choice(interesting)
                case 2:
                    data[at : at + length] = chance.randbytes(length)
                case 3:
                    del data[at : at + length]
                case 4:
                    data[at:at] = data[at : at + length]
                case _:
                    other = chance.choice(inputs)
                    start = chance.randrange(len(other) + 1)
                    data[at : at + length] = other[start : start + length]
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused_by_type(name: str) -> None:
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    inputs = inputs_of(name)
    taken = sum(_is_taken(name, data, seed) for data in inputs)
    assert taken, "no seed is taken: nothing behind the first check is tried"
    tracemalloc.start()
    try:
        source = mutations(inputs, random.Random(seed))
        slow = name in {"segment_file", "packed_file", "configuration"}
        for _ in range(RUNS // 10 if slow else RUNS):
            _is_taken(name, next(source), seed)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MEMORY_MAX_BYTES, f"WALD_TEST_SEED={seed}"


def test_a_target_that_raises_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "unpack", msgpack.unpackb)  # as if its errors were nobody's
    source = mutations(inputs_of("frozen_batch"), random.Random(1))
    with pytest.raises(AssertionError, match="frozen_batch raised"):
        any(_is_taken("frozen_batch", next(source), 1) and False for _ in range(RUNS))


def _is_taken(name: str, data: bytes, seed: int) -> bool:
    began_s = time.monotonic()
    try:
        TARGETS[name](data)
    except WaldError:
        return False
    except Exception as error:
        message = f"{name} raised {error!r} for {data.hex()}, WALD_TEST_SEED={seed}"
        raise AssertionError(message) from error
    finally:
        assert time.monotonic() - began_s < SECONDS_MAX, f"{name} took long for {data.hex()}"
    return True
