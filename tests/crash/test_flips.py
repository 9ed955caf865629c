"""Flipped bits of a log at rest: found, or harmless; no block but the one that was hit is lost.

``python -m tests.crash.run_flips`` flips a bit of every byte of a small log, and thousands of a
large one.
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.crash.run_flips import Written, judge, large_flips, small_flips, write_large, write_small
from wald.core import frame
from wald.storage import tail

SMALL_FLIPS, LARGE_FLIPS = 300, 30


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))


def wrong_of(written: Written, log: str, seed: int) -> tuple[int, list[str]]:
    if log == "small":
        flips = random.Random(seed).sample(small_flips(written, seed), SMALL_FLIPS)
    else:
        flips = large_flips(written, LARGE_FLIPS, seed)
    last, found, wrong = written.frontier.segment, 0, list[str]()
    for flip in flips:
        seen, problems = judge(written, flip, start=log == "small" or flip.segment == last)
        found += seen
        wrong += [f"{flip}: {problem}" for problem in problems]
    return found, wrong


@pytest.mark.parametrize("log", ["small", "large"])
def test_a_flipped_bit_is_found_or_harmless_and_costs_its_block_at_most(
    log: str, tmp_path: Path, seed: int
) -> None:
    written = write_small(tmp_path, seed) if log == "small" else write_large(tmp_path, 20, seed)
    found, wrong = wrong_of(written, log, seed)
    assert wrong == [], f"WALD_TEST_SEED={seed}"
    assert found


class Blind:
    """The frame, with checksums that match whatever is there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(frame, name)

    def crc32c(self, _: bytes) -> Any:
        class Anything(int):
            def __eq__(self, other: object) -> bool:
                return True

            def __ne__(self, other: object) -> bool:
                return False

            __hash__ = int.__hash__

        return Anything()


def test_a_reader_that_compares_no_checksum_is_found(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_large(tmp_path, 20, seed)
    monkeypatch.setattr(tail, "frame", Blind())
    _, wrong = wrong_of(written, "large", seed)
    assert wrong, f"WALD_TEST_SEED={seed}"
