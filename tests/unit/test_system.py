"""The real clock and what only the real file system has."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wald import system
from wald.system import PosixFileSystem, SystemClock


def test_clocks_go_forward_and_name_the_boot():
    clock = SystemClock()
    for read in (clock.monotonic_ns, clock.boot_ns):
        first = read()
        assert read() >= first > 0
    assert abs(clock.wall_ns() - Path("/proc/self").stat().st_mtime_ns) < 86_400 * 10**9
    assert clock.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    before = clock.monotonic_ns()
    clock.sleep(0.001)
    assert clock.monotonic_ns() - before >= 1_000_000


def test_a_machine_without_a_name_has_an_empty_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "_MACHINE_ID", "/nowhere/machine-id")
    assert PosixFileSystem().machine_id() == ""


def test_descriptors_are_not_inherited(tmp_path: Path):
    file = PosixFileSystem().create(str(tmp_path / "a"))
    (link,) = [fd for fd in Path("/proc/self/fd").iterdir() if target(fd) == str(tmp_path / "a")]
    assert not os.get_inheritable(int(link.name))
    file.close()


def test_a_file_that_nobody_closed_is_closed_and_that_is_said(tmp_path: Path):
    file = PosixFileSystem().create(str(tmp_path / "a"))
    with pytest.warns(ResourceWarning, match="was not closed"):
        del file
    assert str(tmp_path / "a") not in map(target, Path("/proc/self/fd").iterdir())


def target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # the descriptor of the listing itself
        return ""


def test_a_pipe_in_the_way_is_an_error_and_not_a_wait(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    file = PosixFileSystem().open(str(tmp_path / "pipe"))
    with pytest.raises(OSError, match="Illegal seek"):
        file.pread(1, 0)
    file.close()


def test_a_short_write_goes_on_until_the_system_says_why(tmp_path: Path):
    file = PosixFileSystem().create(str(tmp_path / "a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        with pytest.raises(OSError, match="File too large") as caught:
            file.pwritev((b"a" * 4000, b"b" * 4000), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert file.pread(10_000, 0) == b"a" * 4000 + b"b" * 1000
    file.close()


def test_short_writes_and_reads_of_the_system_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real_pwritev, real_pwrite, real_pread = os.pwritev, os.pwrite, os.pread
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: real_pwrite(fd, parts[0][:3], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_pwrite(fd, data[:2], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: real_pread(fd, min(length, 3), at))
    file = PosixFileSystem().create(str(tmp_path / "a"))
    file.pwritev((b"abcdef", b"ghij"), 1)
    assert file.pread(100, 0) == b"\0abcdefghij"
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="Input/output"):
        file.pwritev((b"abcdef",), 0)
    monkeypatch.setattr(os, "pwritev", real_pwritev)
    file.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_where_renameat2_is_not_to_be_had_link_and_unlink_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(system, "_renameat2", refuse)
    fs = PosixFileSystem()
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    with pytest.raises(FileExistsError):
        fs.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    fs.rename(str(tmp_path / "a"), str(tmp_path / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]


def test_a_lock_is_seen_by_other_processes_and_ends_with_its_holder(tmp_path: Path):
    path = str(tmp_path / "lock")
    program = """
        import sys
        from wald.system import PosixFileSystem
        file = PosixFileSystem().open(sys.argv[1], write=True)
        print(file.lock(), flush=True)
        sys.stdin.read()
    """
    fs = PosixFileSystem()
    fs.create(path).close()
    mine = fs.open(path, write=True)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        assert not mine.lock()
        child.kill()
        child.wait()
    assert mine.lock()
    mine.close()
