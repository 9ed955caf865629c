"""What ``wald.ports`` says of files and names holds for the real and for the simulated one."""

import errno
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from wald import system
from wald.ports import FileSystem
from wald.system import PosixFileSystem
from wald.testing import Names, SimFileSystem


@dataclass
class Place:
    """A file system and an empty directory on it."""

    fs: FileSystem
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, data: bytes) -> None:
        file = self.fs.create(self.path(name))
        file.pwritev((data,), 0)
        file.close()

    def read(self, name: str) -> bytes:
        file = self.fs.open(self.path(name))
        data = file.pread(1 << 20, 0)
        file.close()
        return data

    def symlink(self, target: str, name: str) -> None:
        if isinstance(self.fs, SimFileSystem):
            self.fs.symlink(self.path(target), self.path(name))
        else:
            Path(self.path(name)).symlink_to(self.path(target))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=["posix", "posix-without-renameat2", "simulated", "simulated-any"])
def place(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    if request.param.startswith("simulated"):
        names = Names.ANY if request.param.endswith("any") else Names.JOURNAL
        sim = SimFileSystem(random.Random(1), directories=["/data"], names=names)
        yield Place(sim, "/data")
        assert sim.open_files == 0, "a test left files open"
        return
    if request.param == "posix-without-renameat2":
        monkeypatch.setattr(system, "_renameat2", None)
    before = open_descriptors()
    yield Place(PosixFileSystem(), str(tmp_path_factory.mktemp("fs")))
    assert open_descriptors() == before, "a test left files open"


def test_what_was_written_is_read_back(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev((b"abc", b"", b"defg"), 0)
    file.pwritev((b"XY",), 2)
    file.sync()
    assert file.pread(100, 0) == b"abXYefg"
    assert file.pread(2, 5) == b"fg"
    assert file.size() == 7
    file.close()


def test_a_read_is_short_only_at_the_end(place: Place):
    place.write("a", b"x" * 10_000)
    file = place.fs.open(place.path("a"))
    assert len(file.pread(20_000, 0)) == 10_000
    assert file.pread(10, 10_000) == b""
    assert file.pread(10, 20_000) == b""
    file.close()


def test_a_gap_reads_as_zeros(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev((b"end",), 5000)
    assert file.pread(5003, 0) == bytes(5000) + b"end"
    file.close()


def test_more_parts_than_one_system_call_takes_are_written(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev([b"%04d" % i for i in range(3000)], 7)
    assert file.pread(1 << 20, 7) == b"".join(b"%04d" % i for i in range(3000))
    file.close()


def test_nothing_to_write_writes_nothing(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev((), 10)
    file.pwritev((b"",), 10)
    assert file.size() == 0
    file.close()


def test_allocate_extends_with_zeros_and_never_cuts(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev((b"abc",), 0)
    file.allocate(0, 10_000)
    assert file.size() == 10_000
    assert file.pread(10_000, 0) == b"abc" + bytes(9_997)
    file.allocate(0, 10)
    assert file.size() == 10_000
    file.close()


def test_truncate_cuts_and_extends_with_zeros(place: Place):
    file = place.fs.create(place.path("a"))
    file.pwritev((b"x" * 5000,), 0)
    file.truncate(700)
    file.truncate(3000)
    assert file.pread(5000, 0) == b"x" * 700 + bytes(2300)
    file.close()


def test_create_refuses_a_used_name(place: Place):
    place.write("a", b"1")
    with pytest.raises(FileExistsError):
        place.fs.create(place.path("a"))
    assert place.read("a") == b"1"


def test_open_refuses_a_missing_name(place: Place):
    with pytest.raises(FileNotFoundError):
        place.fs.open(place.path("a"))
    with pytest.raises(FileNotFoundError):
        place.fs.open(place.path("missing/a"))
    with pytest.raises(FileNotFoundError):
        place.fs.create(place.path("missing/a"))


def test_a_file_opened_to_read_cannot_be_written(place: Place):
    place.write("a", b"1")
    file = place.fs.open(place.path("a"))
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        file.pwritev((b"2",), 0)
    assert caught.value.errno == errno.EBADF
    file.close()
    assert place.read("a") == b"1"


def test_a_closed_file_refuses_everything_but_another_close(place: Place):
    file = place.fs.create(place.path("a"))
    file.close()
    file.close()
    for use in (file.size, file.sync, lambda: file.pread(1, 0), lambda: file.pwritev((b"1",), 0)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()


def test_a_symbolic_link_is_not_followed_at_the_end_of_a_path(place: Place):
    place.write("a", b"1")
    place.symlink("a", "link")
    with pytest.raises(OSError, match="symbolic links") as caught:
        place.fs.open(place.path("link"), write=True)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileExistsError):
        place.fs.create(place.path("link"))
    found = place.fs.stat(place.path("link"))
    assert found is not None
    assert found.is_symlink


def test_a_symbolic_link_to_a_directory_is_followed_on_the_way(place: Place):
    place.fs.make_directory(place.path("real"))
    place.write("real/a", b"1")
    place.symlink("real", "alias")
    assert place.read("alias/a") == b"1"


def test_stat_tells_files_directories_and_nothing_apart(place: Place):
    place.write("a", b"12345")
    place.fs.make_directory(place.path("d"))
    file, directory = place.fs.stat(place.path("a")), place.fs.stat(place.path("d"))
    assert file is not None
    assert directory is not None
    assert (file.size_bytes, file.is_directory, file.is_symlink) == (5, False, False)
    assert (directory.is_directory, directory.is_symlink) == (True, False)
    assert (file.mode, directory.mode) == (0o600, 0o700)
    assert file.inode != directory.inode
    assert file.device == directory.device
    assert file.block_size_bytes >= 512
    assert place.fs.stat(place.path("b")) is None
    assert place.fs.stat(place.path("a/b")) is None


def test_names_are_listed_in_order(place: Place):
    for name in ("b", "a", "c"):
        place.write(name, b"")
    place.fs.make_directory(place.path("aa"))
    assert place.fs.list_directory(place.root) == ["a", "aa", "b", "c"]
    with pytest.raises(NotADirectoryError):
        place.fs.list_directory(place.path("a"))
    with pytest.raises(FileNotFoundError):
        place.fs.list_directory(place.path("x"))


def test_a_directory_is_made_once(place: Place):
    place.fs.make_directory(place.path("d"))
    with pytest.raises(FileExistsError):
        place.fs.make_directory(place.path("d"))


def test_a_link_is_the_same_file(place: Place):
    place.write("a", b"1")
    place.fs.link(place.path("a"), place.path("b"))
    file = place.fs.open(place.path("b"), write=True)
    file.pwritev((b"2",), 0)
    file.close()
    assert place.read("a") == b"2"
    a, b = place.fs.stat(place.path("a")), place.fs.stat(place.path("b"))
    assert a is not None
    assert b is not None
    assert a.inode == b.inode
    place.fs.unlink(place.path("a"))
    assert place.read("b") == b"2"


def test_a_link_never_replaces(place: Place):
    place.write("a", b"1")
    place.write("b", b"2")
    with pytest.raises(FileExistsError):
        place.fs.link(place.path("a"), place.path("b"))
    assert place.read("b") == b"2"


def test_rename_moves_a_name_and_never_replaces(place: Place):
    place.write("a", b"1")
    place.write("b", b"2")
    with pytest.raises(FileExistsError):
        place.fs.rename(place.path("a"), place.path("b"))
    assert (place.read("a"), place.read("b")) == (b"1", b"2")
    place.fs.make_directory(place.path("d"))
    place.fs.rename(place.path("a"), place.path("d/a"))
    assert place.fs.list_directory(place.root) == ["b", "d"]
    assert place.read("d/a") == b"1"
    with pytest.raises(FileNotFoundError):
        place.fs.rename(place.path("a"), place.path("e"))


def test_a_directory_is_renamed_with_all_in_it_and_never_replaces(place: Place):
    place.fs.make_directory(place.path("d"))
    place.write("d/a", b"1")
    place.fs.make_directory(place.path("e"))
    with pytest.raises(FileExistsError):
        place.fs.rename(place.path("d"), place.path("e"))
    place.fs.rename(place.path("d"), place.path("f"))
    assert place.read("f/a") == b"1"


def test_replace_moves_over_another(place: Place):
    place.write("a", b"1")
    place.write("b", b"2")
    place.fs.replace(place.path("a"), place.path("b"))
    assert place.fs.list_directory(place.root) == ["b"]
    assert place.read("b") == b"1"


def test_replacing_a_name_by_another_of_the_same_file_changes_nothing(place: Place):
    place.write("a", b"1")
    place.fs.link(place.path("a"), place.path("b"))
    place.fs.replace(place.path("a"), place.path("b"))
    assert place.fs.list_directory(place.root) == ["a", "b"]


def test_an_unlinked_file_can_still_be_used_by_who_has_it_open(place: Place):
    file = place.fs.create(place.path("a"))
    place.fs.unlink(place.path("a"))
    file.pwritev((b"1",), 0)
    file.sync()
    assert file.pread(10, 0) == b"1"
    file.close()
    with pytest.raises(FileNotFoundError):
        place.fs.unlink(place.path("a"))


def test_the_lock_has_one_holder_and_ends_with_close(place: Place):
    place.write("lock", b"")
    first, second = (place.fs.open(place.path("lock"), write=True) for _ in range(2))
    assert first.lock()
    assert first.lock()
    assert not second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_a_directory_can_be_synced(place: Place):
    place.write("a", b"1")
    place.fs.sync_directory(place.root)
    with pytest.raises(FileNotFoundError):
        place.fs.sync_directory(place.path("x"))
    with pytest.raises(NotADirectoryError):
        place.fs.sync_directory(place.path("a"))


def test_free_room_is_told(place: Place):
    assert place.fs.free_bytes(place.root) > 0
    assert isinstance(place.fs.machine_id(), str)


def test_a_directory_is_not_opened_to_write_nor_linked_nor_unlinked(place: Place):
    place.fs.make_directory(place.path("d"))
    with pytest.raises(IsADirectoryError):
        place.fs.open(place.path("d"), write=True)
    with pytest.raises(PermissionError):
        place.fs.link(place.path("d"), place.path("e"))
    with pytest.raises(IsADirectoryError):
        place.fs.unlink(place.path("d"))
    assert place.fs.list_directory(place.root) == ["d"]


def test_a_file_has_no_names_below_it(place: Place):
    place.write("a", b"1")
    for use in (place.fs.open, place.fs.create, place.fs.make_directory, place.fs.unlink):
        with pytest.raises(NotADirectoryError):
            use(place.path("a/b"))
    with pytest.raises(NotADirectoryError):
        place.fs.open(place.path("a/b/c"))


def test_links_in_a_circle_are_an_error(place: Place):
    place.symlink("two", "one")
    place.symlink("one", "two")
    with pytest.raises(OSError, match="symbolic links") as caught:
        place.fs.open(place.path("one/a"))
    assert caught.value.errno == errno.ELOOP
