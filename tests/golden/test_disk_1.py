"""Disk format 1 never changes: committed files are read, and packed again come out the same."""

import json
import mmap
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from tests.golden.generate_disk_1 import CASES, DIRECTORY, OPTIONS, build
from tests.logtools import SESSION, records_on_disk
from wald.core import frame
from wald.core.frame import SegmentKind
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.inspect import inspect_log
from wald.storage.log import Log
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem

DATA = "/golden/data"


def committed(name: str) -> dict[str, bytes]:
    root = DIRECTORY / name
    return {str(path.relative_to(root)): path.read_bytes() for path in files_in(root)}


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "report.json")


def loaded(name: str) -> SimFileSystem:
    """The committed files on a simulated disk."""
    fs = SimFileSystem(Random(2), directories=("/golden", DATA, f"{DATA}/log", f"{DATA}/log/pool"))
    for path, data in committed(name).items():
        file = fs.create(f"{DATA}/{path}")
        file.pwritev([data], 0)
        file.close()
    fs.settle()
    return fs


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_same_content_gives_the_same_bytes(case: str):
    if mmap.PAGESIZE != 4096:
        pytest.skip("the golden files have blocks aligned to 4,096 bytes")
    assert build(case) == committed(case)


def test_identity_comes_out_the_same(case: str):
    data = committed(case)["identity"]
    assert identities.encode(identities.decode(data)) == data


def test_every_header_block_and_section_comes_out_the_same(case: str):
    kinds = set()
    for path, data in committed(case).items():
        if not path.startswith("log/"):
            continue
        header = frame.decode_segment_header(data)
        rebuilt = bytearray(frame.encode_segment_header(header))
        assert data[: header.alignment] == rebuilt
        at = header.alignment
        while (block := frame.decode_block_header(data, at)) is not None:
            kinds.add(block.kind)
            assert frame.belongs(block, header, at)
            payload = data[at + frame.BLOCK_HEADER_BYTES :][: block.payload_length]
            assert frame.crc32c(payload) == block.payload_crc
            again = frame.join_sections(list(frame.decode_sections(payload, block.sections)))
            packed = frame.encode_block_header(block) + again
            end = block.end(header.alignment)
            assert data[at:end] == packed.ljust(end - at, b"\0")
            at = end
        assert not any(data[at:])
    wanted = {"rolled": {"SEAL"}}.get(case, {"IDLE_CLOSE"})
    assert {kind.name for kind in kinds} == {"RECORDS", "CONTROL", "SNAPSHOT"} | wanted


def test_the_report_says_what_it_said(case: str):
    report = json.loads(json.dumps(asdict(inspect_log(loaded(case), DATA))))
    expected = json.loads((DIRECTORY / case / "report.json").read_text())
    assert report == expected


def test_a_start_reads_everything(case: str):
    fs = loaded(case)
    log = Log.open(fs, DATA, ManualClock(), Random(3), OPTIONS)
    assert not log.recovery.losses
    found = records_on_disk(fs, log.log_id, log.frontier, DATA)
    if case == "clean":
        assert list(found.values()) == [b"one", b"two", b"three", b"kept", "déjà vu".encode()]
        assert set(log.state.sessions) == {SESSION, 2**64 - 1}
        assert log.state.sessions[SESSION].last_sequence == 4
        assert log.state.streams_by_name["orders"].records == 5
    elif case == "ended":
        assert list(found.values()) == [b"one", b"two", b"three"]
        assert set(log.state.sessions) == {SESSION}
        assert log.state.streams_by_name["orders"].records == 3
    elif case == "taken":
        assert list(found.values()) == [b"one", b"two", b"of the newer", b"three"]
        assert log.state.sessions[SESSION].epoch == 3
        assert log.state.sessions[SESSION].last_sequence == 3
    else:
        assert [int(value.split(b":")[0]) for value in found.values()] == [1, 2, 3, 4, 5]
        assert log.state.routes == {}
        assert log.state.streams_by_name["orders"].records == 5


def test_all_kinds_of_segments_are_among_the_files():
    kinds = {
        frame.decode_segment_header(data).kind
        for case in CASES
        for path, data in committed(case).items()
        if segments.segment_number(path.removeprefix("log/")) is not None
    }
    assert kinds == set(SegmentKind)
