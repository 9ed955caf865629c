"""Ledgers that are set aside: so many are kept, and what cannot be removed stops nobody."""

from pathlib import Path

from wald import limits
from wald.storage.ledger_aside import list_aside, set_aside
from wald.system import PosixFileSystem

FS = PosixFileSystem()


def make(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"damaged")


def test_the_oldest_goes_and_one_that_cannot_be_removed_refuses_no_start(tmp_path: Path) -> None:
    for number in range(1, limits.LEDGERS_ASIDE_MAX + 2):
        make(tmp_path / "ledger")
        assert set_aside(FS, str(tmp_path)) == f"ledger.damaged-{number}"
    assert "ledger.damaged-1" not in list_aside(FS, str(tmp_path))
    (tmp_path / "ledger.damaged-2" / "a person put it here").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "ledger.damaged-3").rename(elsewhere)
    (tmp_path / "ledger.damaged-3").symlink_to(elsewhere)
    for _ in range(2):
        make(tmp_path / "ledger")
        newest = set_aside(FS, str(tmp_path))
        assert newest in list_aside(FS, str(tmp_path))
    assert (elsewhere / "data.mdb").exists()
