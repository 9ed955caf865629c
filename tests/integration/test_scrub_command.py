"""``wald log scrub``: beside a running daemon, at a pace, with LSN ranges where damage is found."""

import json
from pathlib import Path

import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon
from wald.cli.paced import Pace, PacedFileSystem
from wald.core.packed import CHUNK_HEADER_BYTES, PackedHead
from wald.errors import EXIT_CONFIG
from wald.model import Frontier
from wald.storage.packed import PackWriter, packed_path, read_tail
from wald.storage.stream import StreamReader
from wald.supervisor.observe import read_hint
from wald.system import PosixFileSystem
from wald.testing import ManualClock

FS = PosixFileSystem()


def pack(data_dir: Path, log_id: bytes, through: int) -> str:
    """Pack what the log holds up to an LSN, as the drainer would of a closed segment."""
    hint = read_hint(FS, str(data_dir))
    assert hint is not None
    frontier = Frontier(hint["segment"], hint["end"], hint["lsn"])
    writer = PackWriter(FS, str(data_dir), PackedHead(log_id, 1, 0, through, 1, 99))
    reader = StreamReader(FS, str(data_dir), log_id, stream=1, after=0)
    for item in reader.read(frontier):
        if reader.cursor > through:
            break
        writer.add(item)
    reader.close()
    return packed_path(str(data_dir), writer.finish())


def test_a_running_daemon_is_scrubbed_and_damage_is_named_with_its_lsns(place):
    with Daemon(place, to=f"sqlite:{place}/x.db") as daemon:
        with wald.connect(daemon.socket) as producer:
            for number in range(5):
                producer.append("events", {"n": number})
        daemon.command("wait", "events")
        assert "all whole, through LSN 5" in daemon.command("log", "scrub", "--max-rate", "1GiB")
        log_id = bytes.fromhex(json.loads(daemon.command("status", "--json"))["log_id"])
        path = Path(pack(daemon.data_dir, log_id, 5))
        told = daemon.command("log", "scrub", str(daemon.data_dir))
        assert "5 records, 1 packed file, all whole" in told
        assert "packed/pack-0000000001" in daemon.command("log", "inspect", str(daemon.data_dir))
        file = FS.open(str(path))
        chunk = read_tail(file).chunks[0]
        file.close()
        data = bytearray(path.read_bytes())
        data[chunk.offset + CHUNK_HEADER_BYTES] ^= 1
        path.write_bytes(data)
        told = daemon.command("log", "scrub", expect=1)
        assert "a packed chunk does not match its checksum   LSN 1 .. 5 (5 records)" in told
        for command in ("scrub", "verify", "inspect"):
            said = json.loads(
                daemon.command("log", command, str(daemon.data_dir), "--json", expect=1)
            )
            assert said["clean"] is False
            assert said["damages"] == []
            (damage,) = said["file_damages"]
            assert (damage["first_lsn"], damage["last_lsn"]) == (1, 5)


def test_a_file_that_goes_before_it_is_measured_ends_no_scrub(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "gone.wal").symlink_to(tmp_path / "nowhere")
    said = call("log", "scrub", str(tmp_path))
    assert (said.returncode, "error[data.foreign]" in said.stderr) == (EXIT_CONFIG, True)


def test_reading_is_paid_for_by_the_second(tmp_path):
    class Clock(ManualClock):
        slept_s = 0.0

        def sleep(self, seconds: float) -> None:
            self.slept_s += seconds
            self.advance(seconds)

    clock = Clock()
    seen: list[int] = []
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))
    file = PacedFileSystem(Pace(clock, 100_000, seen.append)).open(str(path))
    for offset in range(0, 1_000_000, 1_000):
        assert len(file.pread(1_000, offset)) == 1_000
    file.close()
    assert sum(seen) == 1_000_000
    assert clock.slept_s == pytest.approx(10.0, rel=0.01)


def test_no_link_is_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        PacedFileSystem(Pace(ManualClock(), 1)).open(str(tmp_path / "link"))
