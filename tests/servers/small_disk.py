"""A file system of a bounded size for a test that fills it: a tmpfs, which only root can mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BALLAST = "ballast"


def mount(place: Path, size: str) -> bool:
    """Mount a bounded file system at a directory; False where this user cannot."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(place: Path) -> None:
    """Unmount it, also while somebody still has a file of it open."""
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(place: Path) -> Iterator[None]:
    """Leave no byte of room while a block lasts."""
    ballast = place / BALLAST
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    yield
    ballast.unlink()
