"""An earlier release beside this one: its wheel, unpacked, and daemons whose code is exchanged.

``WALD_PREVIOUS`` names a git ref, else the newest tag stands for the earlier release.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def earlier_ref() -> str | None:
    """Return the git ref of the release before this one; None: there is none yet."""
    named = os.environ.get("WALD_PREVIOUS")
    if named:
        return named
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    done = subprocess.run(
        [git, "describe", "--tags", "--abbrev=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def wheel_of(ref: str, place: Path) -> Path:
    """Build the wheel of a ref and unpack it; returns the directory that Python is to search."""
    source, unpacked = place / "source", place / "site"
    source.mkdir(parents=True)
    packed_source = place / "source.tar"
    subprocess.run(["git", "archive", "-o", str(packed_source), ref], cwd=ROOT, check=True)
    with tarfile.open(packed_source) as packed:
        packed.extractall(source, filter="data")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(place)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = place.glob("wald-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


class Installed:
    """A place where daemons find their code; what is there may be exchanged under them.

    Args:
        place: a directory of its own.
        site: the code that is there at first; None: this release.
    """

    def __init__(self, place: Path, site: Path | None) -> None:
        self._link = place / "installed"
        self.put(site)

    def put(self, site: Path | None) -> None:
        """Exchange the code: processes that run keep what they have loaded."""
        fresh = self._link.with_name("installing")
        fresh.symlink_to(site or ROOT)
        fresh.rename(self._link)
        assert self.loaded() == (site or ROOT).resolve()

    def loaded(self) -> Path:
        """Return which code a process finds that begins now."""
        found = subprocess.run(
            [sys.executable, "-P", "-c", "import wald; print(wald.__file__)"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(found.stdout.strip()).resolve().parent.parent

    @property
    def environment(self) -> Mapping[str, str]:
        """What a daemon must be given to find it."""
        return {"PYTHONPATH": str(self._link), "PYTHONDONTWRITEBYTECODE": "1"}
