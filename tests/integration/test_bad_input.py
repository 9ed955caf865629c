"""Bad input to commands, row by row: code, exit code, hint, no traceback, nothing half-written.

Frames and bodies that break the wire protocol have their own table beside the ingest process.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon
from wald.core.frame import crc32c

GOOD_CONFIG = """
[sinks.db]
type = "sqlite"
path = "{directory}/x.db"
[routes.things]
stream = "things"
sink = "db"
"""


@dataclass(frozen=True)
class Prepared:
    """A data directory that a daemon has used and left, in a directory of the test's own."""

    directory: Path

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    def config(self, more: str = "") -> list[str]:
        text = GOOD_CONFIG.format(directory=self.directory) + more
        (self.directory / "wald.toml").write_text(text)
        return ["--config", str(self.directory / "wald.toml"), *self.places()]

    def places(self) -> list[str]:
        return ["--data-dir", str(self.data_dir), "--socket", f"{self.directory}/w.sock"]

    def log_bytes(self) -> dict[str, str]:
        """What the log holds, by name: to be the same before and after.

        A temporary file is nothing yet; every start removes what was left of preparing one.
        """
        log = self.data_dir / "log"
        return {
            str(path.relative_to(log)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(log.rglob("*"))
            if path.is_file() and path.suffix != ".tmp"
        }


@pytest.fixture(scope="module")
def used() -> Iterator[Path]:
    """A data directory with some records in it, stopped cleanly."""
    path = Path(tempfile.mkdtemp(prefix="w"))
    with Daemon(path, config=GOOD_CONFIG.format(directory=path)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("things", [{"n": n} for n in range(100)])
        daemon.command("wait", "--all", "--timeout", "30s")
    yield daemon.data_dir
    shutil.rmtree(path)


@pytest.fixture
def prepared(used: Path) -> Iterator[Prepared]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    shutil.copytree(used, path / "data")
    (path / "data").chmod(0o700)
    yield Prepared(path)
    for one in path.rglob("*"):
        if one.is_dir():
            one.chmod(0o700)
    shutil.rmtree(path)


def run(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "wald", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


# --- what a start meets -------------------------------------------------------------------------


def unknown_key(prepared: Prepared) -> list[str]:
    return prepared.config("max_recrods = 5\n")


def wrong_type(prepared: Prepared) -> list[str]:
    return prepared.config("[daemon]\nstop_deliver_for = true\n")


def not_toml(prepared: Prepared) -> list[str]:
    return prepared.config("[[[\n")


def newer_identity(prepared: Prepared) -> list[str]:
    file = prepared.data_dir / "identity"
    packed = file.read_bytes()
    packed = packed[:10] + (99).to_bytes(2, "little") + packed[12:-4]
    file.write_bytes(packed + crc32c(packed).to_bytes(4, "little"))
    return prepared.config()


def newer_segment(prepared: Prepared) -> list[str]:
    """The newest segment's header as a later release would write it."""
    file = max((prepared.data_dir / "log").glob("seg-*.wal"))
    data = bytearray(file.read_bytes())
    data[10:12] = (99).to_bytes(2, "little")
    data[96:100] = crc32c(bytes(data[:96])).to_bytes(4, "little")
    file.write_bytes(data)
    return prepared.config()


def without_identity(prepared: Prepared) -> list[str]:
    (prepared.data_dir / "identity").unlink()
    return prepared.config()


def other_log(prepared: Prepared) -> list[str]:
    """A segment of another log, with a header that fits its checksum."""
    file = max((prepared.data_dir / "log").glob("seg-*.wal"))
    data = bytearray(file.read_bytes())
    data[24:40] = bytes(16)
    data[96:100] = crc32c(bytes(data[:96])).to_bytes(4, "little")
    file.write_bytes(data)
    return prepared.config()


def not_writable(prepared: Prepared) -> list[str]:
    for path in (prepared.data_dir, prepared.data_dir / "log"):
        path.chmod(0o500)
    return prepared.config()


def writable_for_others(prepared: Prepared) -> list[str]:
    prepared.data_dir.chmod(0o777)
    return prepared.config()


def somebody_elses_files(prepared: Prepared) -> list[str]:
    arguments = prepared.config()
    documents = prepared.directory / "documents"
    documents.mkdir()
    (documents / "letter.txt").write_text("mine")
    arguments[arguments.index("--data-dir") + 1] = str(documents)
    return arguments


ROWS = [
    (unknown_key, 78, "config.unknown-key", "did you mean batch.max_records?"),
    (wrong_type, 78, "config.wrong-value", "stop_deliver_for:"),
    (not_toml, 78, "config", ""),
    (newer_identity, 78, "format.newer", "run the release that wrote it"),
    (newer_segment, 78, "format.newer", "run the release that wrote it"),
    (without_identity, 78, "data.foreign", "bring back the identity file"),
    (other_log, 78, "data.foreign", ""),
    (not_writable, 74, "data.unusable", ""),
    (writable_for_others, 74, "data.unusable", "chmod"),
    (somebody_elses_files, 78, "data.foreign", "--data-dir"),
]


@pytest.mark.parametrize("command", ["serve", "replay"])
@pytest.mark.parametrize(
    ("spoil", "exit_code", "code", "hint"), ROWS, ids=[row[0].__name__ for row in ROWS]
)
def test_a_start_that_cannot_be_says_why_and_changes_nothing(
    prepared: Prepared,
    command: str,
    spoil: Callable[[Prepared], list[str]],
    exit_code: int,
    code: str,
    hint: str,
) -> None:
    arguments = spoil(prepared)
    before = prepared.log_bytes()
    prefix: tuple[str, ...] = ()
    if spoil is not_writable and os.geteuid() == 0:
        # root writes anywhere unless it gives that up; setpriv belongs to every Debian
        prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    done = run(command, *arguments, prefix=prefix)
    assert f"error[{code}]: " in done.stderr
    assert hint in done.stderr
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert "Traceback" not in done.stderr
    assert prepared.log_bytes() == before


# --- beside a daemon that others use ------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    with Daemon(path, to=f"sqlite:{path}/x.db") as running:
        yield running
    shutil.rmtree(path)


def held_directory(daemon: Daemon, directory: Path) -> list[str]:
    target = f"sqlite:{directory}/x.db"
    places = ["--data-dir", str(daemon.data_dir), "--socket", f"{directory}/w.sock"]
    return ["serve", "--to", target, *places]


def held_by_replay(daemon: Daemon, directory: Path) -> list[str]:
    return ["replay", "--to", f"sqlite:{directory}/x.db", "--data-dir", str(daemon.data_dir)]


def held_socket(daemon: Daemon, directory: Path) -> list[str]:
    return ["serve", "--to", f"sqlite:{directory}/x.db", "--socket", str(daemon.socket)]


def ragged_csv(daemon: Daemon, directory: Path) -> list[str]:
    (directory / "in.csv").write_text("a,b\n1,2\n3\n4,5,6\n7,8\n")
    return ["append", "rows", str(directory / "in.csv"), "--socket", str(daemon.socket)]


def csv_without_header(daemon: Daemon, directory: Path) -> list[str]:
    (directory / "in.csv").write_text("")
    return ["append", "rows", str(directory / "in.csv"), "--socket", str(daemon.socket)]


def path_as_stream(daemon: Daemon, directory: Path) -> list[str]:
    (directory / "in.csv").write_text("a\n1\n")
    return ["append", "../rows", str(directory / "in.csv"), "--socket", str(daemon.socket)]


def control_characters_as_stream(daemon: Daemon, directory: Path) -> list[str]:
    (directory / "in.csv").write_text("a\n1\n")
    return ["append", "a\x1b[2Jb\n", str(directory / "in.csv"), "--socket", str(daemon.socket)]


BESIDE = [
    (held_directory, 69, "error[data.held]: ", "--data-dir"),
    (held_by_replay, 69, "error[data.held]: ", ""),
    (held_socket, 69, "error[socket.held]: ", "--socket"),
    (ragged_csv, 1, "refused: record 1: csv.ragged: line 3: 1 fields", "record 2: csv.ragged"),
    (csv_without_header, 2, "error[input]: the CSV has no header line", "the first line names"),
    (path_as_stream, 1, "error[unknown-stream]: ", "a-z 0-9 . _ -"),
    (control_characters_as_stream, 1, "error[unknown-stream]: ", "a-z 0-9 . _ -"),
]


@pytest.mark.parametrize(
    ("spoil", "exit_code", "said", "hint"), BESIDE, ids=[row[0].__name__ for row in BESIDE]
)
def test_bad_input_harms_no_neighbour(
    daemon: Daemon,
    tmp_path: Path,
    spoil: Callable[[Daemon, Path], list[str]],
    exit_code: int,
    said: str,
    hint: str,
) -> None:
    arguments = spoil(daemon, tmp_path)
    with wald.connect(str(daemon.socket)) as neighbour:
        lsns = [neighbour.append("neighbour", {"n": n}).lsn for n in range(500)]
        session = neighbour.session.session_id
        done = run(*arguments)
        lsns += [neighbour.append("neighbour", {"n": n}).lsn for n in range(500)]
        assert neighbour.session.session_id == session
    assert lsns == sorted(set(lsns))
    assert said in done.stderr
    assert hint in done.stderr
    assert done.returncode == exit_code
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_the_rows_that_were_not_ragged_are_stored(daemon: Daemon, tmp_path: Path) -> None:
    arguments = ragged_csv(daemon, tmp_path)
    arguments[1] = "stored"
    run(*arguments)
    answer = daemon.ask(op="status")
    assert answer is not None
    daemon.command("wait", "stored", "--timeout", "30s")
    answer = daemon.ask(op="status")
    assert answer is not None
    routes = answer["routes"]
    assert isinstance(routes, dict)
    assert (routes["stored"]["accepted"], routes["stored"]["delivered"]) == (2, 2)
