"""What a disk does not give counts as lost after so many tries in a row, and not of a life."""

import errno
import os

import pytest

from wald import limits
from wald.drainer.unread import Unread
from wald.errors import LogFailed

PAGE = 4096


class Disk:
    """A file system whose files do not give the pages in ``bad``."""

    def __init__(self):
        self.bad = set()

    def open(self, _path, **_options):
        return DiskFile(self)


class DiskFile:
    def __init__(self, disk):
        self.disk = disk

    def pread(self, length, offset):
        if self.disk.bad & set(range(offset // PAGE, (offset + length - 1) // PAGE + 1)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(length)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def file(disk):
    return Unread().files(disk).open("log")


def test_a_disk_that_falters_now_and_then_loses_nothing(disk, file):
    for _ in range(3 * limits.UNREAD_TRIES_COUNT):
        disk.bad = {5}
        with pytest.raises(LogFailed):
            file.pread(4 * PAGE, 3 * PAGE)
        disk.bad = set()
        for page in range(2, 9, 2):  # read otherwise after the lane began anew
            file.pread(2 * PAGE, page * PAGE)


def test_a_page_that_is_gone_is_lost_whatever_is_read_around_it(disk, file):
    disk.bad = {5}
    for _ in range(limits.UNREAD_TRIES_COUNT - 1):
        with pytest.raises(LogFailed):
            file.pread(4 * PAGE, 3 * PAGE)
        for page in (0, 3, 4, 6, 7, 8):
            file.pread(PAGE, page * PAGE)
    with pytest.raises(OSError, match="Input/output error"):
        file.pread(4 * PAGE, 3 * PAGE)
