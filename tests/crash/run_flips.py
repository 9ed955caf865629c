"""Flipped bits of a log at rest: ``python -m tests.crash.run_flips --flips 10000 --seed 1``.

Every byte of a small log has one of its bits flipped, then so many random bits of a large one, one
at a time. Each flip is found, or harms nothing: what is read is what was written, what is missing
is said to be lost, and no record is missing or said to be lost that the block which was hit did not
hold. Exit code 1 where that is not so.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.notebook import Unit, add_options, work_off
from tests.logtools import append, first_group
from tests.model.log_reader import FoundRequest, Misread, requests_of
from wald.core import frame
from wald.core.frame import BlockKind, SectionKind
from wald.model import Frontier, LostRange, Lsn
from wald.storage.log import Log, LogOptions
from wald.storage.tail import TailReader
from wald.system import PosixFileSystem
from wald.testing import ManualClock

SMALL = LogOptions(segment_bytes=64 << 10)
LARGE = LogOptions(segment_bytes=16 << 20)
_PER_UNIT = 1_000
_SMALL_BYTES, _SMALL_VALUE = 24 << 10, 900
_LARGE_VALUE = 60_000


class Flip(NamedTuple):
    """One bit of one byte of a segment."""

    segment: int
    byte: int
    bit: int


class Block(NamedTuple):
    """A block on the disk: where it stands, with its padding, and the LSNs of its records."""

    segment: int
    offset: int
    end: int
    first_lsn: Lsn
    last_lsn: Lsn


@dataclass
class Written:
    """A log as a killed process left it, and what is in it.

    Attributes:
        data: the data directory.
        kept: the files that a start may change, as they were.
        truth: the requests by their first LSN.
        ends: of each segment its last LSN and where it ends.
    """

    data: Path
    kept: Path
    options: LogOptions
    frontier: Frontier
    log_id: bytes
    truth: dict[Lsn, FoundRequest] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    ends: dict[int, Frontier] = field(default_factory=dict)

    def path(self, segment: int) -> Path:
        """Return where a segment stands."""
        return self.data / "log" / f"seg-{segment:010d}.wal"

    def restore(self) -> None:
        """Put the data directory back as it was; its own name and inode stay."""
        for found in self.data.iterdir():
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        shutil.copytree(self.kept, self.data, dirs_exist_ok=True)


def write(place: Path, options: LogOptions, size_bytes: int, most: int, seed: int) -> Written:
    """Write a log of so many bytes, of values of at most ``most``; leave it as a kill does."""
    fs, chance, data = PosixFileSystem(), random.Random(seed), place / "data"
    log = Log.open(fs, str(data), ManualClock(), chance, options)
    log.append_group(first_group())
    truth, ends, written = dict[Lsn, FoundRequest](), dict[int, Frontier](), 0
    for sequence in itertools.count(1):
        values = [chance.randbytes(chance.randint(1, most)) for _ in range(chance.randint(1, 4))]
        section = append(sequence, *values)
        receipt = log.append_group([section])
        while log.preallocator.step():
            pass
        truth |= {each.first_lsn: each for each in requests_of(section, receipt.first_lsn)}
        ends[receipt.frontier.segment] = receipt.frontier
        written += sum(map(len, values))
        if written >= size_bytes:
            break
    shutil.copytree(data, place / "kept")
    found = Written(data, place / "kept", options, log.frontier, log.log_id, truth, [], ends)
    log.close()
    found.restore()
    found.blocks = list(_blocks(found))
    return found


def write_small(place: Path, seed: int) -> Written:
    """Write a log of a few small segments: every byte of it is soon tried."""
    return write(place, SMALL, _SMALL_BYTES, _SMALL_VALUE, seed)


def write_large(place: Path, megabytes: int, seed: int) -> Written:
    """Write a log of so many megabytes."""
    return write(place, LARGE, megabytes << 20, _LARGE_VALUE, seed)


def _blocks(written: Written) -> Iterator[Block]:
    for segment, end in written.ends.items():
        data = written.path(segment).read_bytes()[: end.end_bytes]
        alignment = frame.decode_segment_header(data).alignment
        offset = alignment
        while offset < len(data):
            block = frame.decode_block_header(data, offset)
            assert block is not None, f"no block at {offset} of segment {segment}"
            after = block.end(alignment)
            if block.kind is BlockKind.RECORDS:
                yield Block(segment, offset, after, block.first_lsn, block.last_lsn)
            offset = after


def judge(written: Written, flip: Flip, *, start: bool) -> tuple[bool, list[str]]:
    """Flip a bit, read what is left, and put it back.

    Args:
        written: the log.
        flip: which bit.
        start: whether ingest starts on it first; else the drainer alone reads its segment.

    Returns:
        Whether it was found, and what is wrong.
    """
    path = written.path(flip.segment)
    _flip(path, flip)
    try:
        found, read, lost = _read(written, flip.segment, start=start)
    except Misread as error:
        return False, [f"a record that is not what was written: {error}"]
    finally:
        written.restore() if start else _flip(path, flip)
    first, last = _lsns(written, flip.segment, start=start)
    truth = {lsn: each for lsn, each in written.truth.items() if first <= lsn <= last}
    held = {
        lsn
        for block in written.blocks
        if block.segment == flip.segment and block.offset <= flip.byte < block.end
        for lsn in truth
        if block.first_lsn <= lsn <= block.last_lsn
    }
    said = {lsn for lsn in truth if any(low <= lsn <= high for low, high in lost)}
    return found, list(_wrong(truth, read, held, said))


def _wrong(
    truth: dict[Lsn, FoundRequest], read: list[FoundRequest], held: set[Lsn], said: set[Lsn]
) -> Iterator[str]:
    if others := [each.first_lsn for each in read if truth.get(each.first_lsn) != each]:
        yield f"records that were not written, at LSN {others[:3]}"
    if len({each.first_lsn for each in read}) != len(read):
        yield "records twice"
    missing = truth.keys() - {each.first_lsn for each in read}
    if silent := missing - said:
        yield f"gone without a word: LSN {sorted(silent)[:3]}"
    if more := (missing | said) - held:
        yield f"more is lost than the block that was hit: LSN {sorted(more)[:3]}"


def _lsns(written: Written, segment: int, *, start: bool) -> tuple[Lsn, Lsn]:
    """Return the LSNs that are read: all behind a start, else those of the segment."""
    before = max((end.lsn for number, end in written.ends.items() if number < segment), default=0)
    return (1, written.frontier.lsn) if start else (before + 1, written.ends[segment].lsn)


def _read(
    written: Written, segment: int, *, start: bool
) -> tuple[bool, list[FoundRequest], list[tuple[Lsn, Lsn]]]:
    """Return whether damage was found, the requests, and the ranges that are said to be lost."""
    fs, found, frontier = PosixFileSystem(), False, written.ends[segment]
    read, lost = list[FoundRequest](), list[tuple[Lsn, Lsn]]()
    log = None
    if start:
        chance = random.Random(1)
        log = Log.open(fs, str(written.data), ManualClock(), chance, written.options)
        frontier = log.frontier
        lost += [(each.first_lsn, each.last_lsn) for each in log.recovery.losses]
        found = bool(log.recovery.losses or log.recovery.notes)
    after = _lsns(written, segment, start=start)[0] - 1
    reader = TailReader(fs, str(written.data), written.log_id, after=after)
    try:
        for item in reader.read(frontier):
            if isinstance(item, LostRange):
                lost.append((item.first_lsn, item.last_lsn))
                found = True
                continue
            for first_lsn, section in item.sections:
                if section.kind is SectionKind.APPEND:
                    read += requests_of(section, first_lsn)
    finally:
        reader.close()
        if log is not None:
            log.close()
    return found, read, lost


def _flip(path: Path, flip: Flip) -> None:
    with path.open("r+b") as file:
        file.seek(flip.byte)
        value = file.read(1)[0]
        file.seek(flip.byte)
        file.write(bytes([value ^ 1 << flip.bit]))


def small_flips(written: Written, seed: int) -> list[Flip]:
    """Return a bit of every byte below the end of each segment."""
    chance = random.Random(seed)
    return [
        Flip(segment, byte, chance.randrange(8))
        for segment, end in written.ends.items()
        for byte in range(end.end_bytes)
    ]


def large_flips(written: Written, count: int, seed: int) -> list[Flip]:
    """Return random bits below the ends, each byte as likely as the others."""
    chance, ends = random.Random(seed), written.ends
    segments = chance.choices([*ends], [end.end_bytes for end in ends.values()], k=count)
    return [
        Flip(segment, chance.randrange(ends[segment].end_bytes), chance.randrange(8))
        for segment in segments
    ]


def flips(log: str, seed: int, first: int, count: int, megabytes: int) -> dict[str, Any]:
    """Write a log, judge flips of it, and return what came of them."""
    tally: dict[str, Any] = {"flips": 0, "found": 0, "bytes": 0, "wrong": []}
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="wd", dir=base) as place:
        if log == "large":
            written = write_large(Path(place), megabytes, seed)
            todo = large_flips(written, first + count, seed)[first:]
        else:
            written = write_small(Path(place), seed)
            todo = small_flips(written, seed)[first : first + count]
        last = written.frontier.segment
        for flip in todo:
            found, wrong = judge(written, flip, start=log == "small" or flip.segment == last)
            tally["flips"] += 1
            tally["found"] += found
            tally["wrong"] += [f"{flip}: {each}" for each in wrong]
        tally["bytes"] = sum(end.end_bytes for end in written.ends.values())
    return tally


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000, help="of the large log")
    parser.add_argument("--megabytes", type=int, default=128, help="the size of the large log")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="a line of JSON a log")
    add_options(parser, workers=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wd") as place:
        every = len(small_flips(write_small(Path(place), chosen.seed), 0))
    failed = False
    for name, total in (("small", every), ("large", chosen.flips)):
        units = [
            Unit(
                f"{name} log, seed {chosen.seed}, flips from {first}, of {total}",
                flips,
                (name, chosen.seed, first, min(_PER_UNIT, total - first), chosen.megabytes),
            )
            for first in range(0, total, _PER_UNIT)
        ]
        done = [said for _, said in work_off(units, chosen) if said is not None]
        said = {
            "log": name,
            "flips": sum(each.get("flips", 0) for each in done),
            "of": total,
            "found": sum(each.get("found", 0) for each in done),
            "bytes": max((each.get("bytes", 0) for each in done), default=0),
            "seed": chosen.seed,
            "wrong": [problem for each in done for problem in each["wrong"]],
        }
        failed = failed or bool(said["wrong"])
        _tell(said, as_json=chosen.json)
    return int(failed)


def _tell(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(said), flush=True)
        return
    print(
        f"{said['flips']:,} of {said['of']:,} flips of a {said['log']} log of {said['bytes']:,} "
        f"bytes: {said['found']:,} found, {len(said['wrong'])} wrong, seed {said['seed']}",
        flush=True,
    )
    for problem in said["wrong"][:20]:
        print(f"        {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
