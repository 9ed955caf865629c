"""Files as the contract's target: a directory of a small disk, read as whoever gets them would."""

import csv
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
from backports import zstd

from tests.servers import small_disk
from wald.model import SystemicKind
from wald.sinks.files.place import HIDDEN
from wald.testing.sink_contract import DOCUMENT_INPUT, NO_MAP, Held, Trouble, Workbench

csv.field_size_limit(1 << 24)


class FilesBench(Workbench):
    """NDJSON, mode ``document``."""

    factory = "wald.sinks.files:make"
    options: Mapping[str, object] = {}
    poison: object = {"host": "poison", "n": -1, "strange": msgpack.ExtType(99, b"")}

    def __init__(self, place: Path) -> None:
        self.disk = place / "disk"
        self.disk.mkdir()
        self.is_small = small_disk.mount(self.disk, "64m")
        self.path = self.disk / "target" / "out"
        self.path.parent.mkdir()
        self.settings = {"path": str(self.path), **self.options}

    @property
    def absent(self) -> Mapping[str, str]:
        return {
            "secret": "a path is all that it needs",
            "server": "files are written in the drain process",
            "connection": "there is none: files are written in the drain process",
            "hang": "a write to a disk that hangs ends with the process: the watchdog sees to it",
            "trouble.authentication": "root may write everywhere",
            **({} if self.is_small else {"trouble.full": "only root can mount a small disk"}),
        }

    @property
    def bad_input(self) -> Mapping[str, str]:
        return DOCUMENT_INPUT

    def files(self) -> list[Path]:
        found = [path for path in self.path.rglob("*") if path.is_file()]
        return sorted((path for path in found if HIDDEN not in path.parts), key=lambda p: p.name)

    def held(self) -> Sequence[Held]:
        return [self.record(line) for path in self.files() for line in self.lines(path)]

    def lines(self, path: Path) -> list[Any]:
        content = path.read_bytes()
        if path.suffix == ".zst":
            content = zstd.decompress(content)
        assert content.endswith(b"\n")
        return [json.loads(line) for line in content.decode().split("\n")[:-1]]

    def record(self, line: Any) -> Held:
        return Held(bytes.fromhex(line["log_id"]), line["lsn"], line["key"], line["value"])

    def backup(self) -> Path:
        backup = self.disk / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(self.path, backup)
        return backup

    def restore(self, backup: object) -> None:
        assert isinstance(backup, Path)
        shutil.rmtree(self.path)
        shutil.copytree(backup, self.path)

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            SystemicKind.UNREACHABLE: self.out_of_reach,
            SystemicKind.BUSY: self.locked,
            SystemicKind.CONFIGURATION: self.a_file,
            SystemicKind.DAMAGED: self.overwritten,
            SystemicKind.FULL: partial(small_disk.filled, self.disk),
        }

    @contextmanager
    def out_of_reach(self) -> Iterator[None]:
        away = self.disk / "away"
        self.path.parent.rename(away)
        yield
        away.rename(self.path.parent)

    @contextmanager
    def locked(self) -> Iterator[None]:
        (lock,) = (self.path / HIDDEN).glob("*.lock")
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    @contextmanager
    def a_file(self) -> Iterator[None]:
        away = self.disk / "away"
        self.path.rename(away)
        self.path.write_text("not a directory")
        yield
        self.path.unlink()
        away.rename(self.path)

    @contextmanager
    def overwritten(self) -> Iterator[None]:
        (row,) = (self.path / HIDDEN).glob("*.row")
        before = row.read_bytes()
        row.write_bytes(b"\0" * len(before))
        yield
        row.write_bytes(before)

    def close(self) -> None:
        if self.is_small:
            small_disk.unmount(self.disk)


class Values(FilesBench):
    """NDJSON, mode ``columns`` without columns, by date and host, zstd."""

    options: Mapping[str, object] = {
        "mode": "columns",
        "partitions": ["date", "field:host"],
        "compression": "zstd",
    }

    def record(self, line: Any) -> Held:
        value = line if isinstance(line, dict) else {}
        return Held(None, None, None, value)


class CsvColumns(FilesBench):
    """CSV, mode ``columns``."""

    columns: Mapping[str, str] = {"host": "host", "n": "n", "text": "text"}
    options: Mapping[str, object] = {"format": "csv", "mode": "columns", "columns": columns}

    @property
    def bad_input(self) -> Mapping[str, str]:
        refused = (*NO_MAP, "half of a surrogate pair in JSON")
        return {**DOCUMENT_INPUT, **dict.fromkeys(refused, "record.value")}

    def lines(self, path: Path) -> list[Any]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def record(self, line: Any) -> Held:
        value = {"host": line["host"], "n": number(line["n"])}
        return Held(None, None, None, value | ({"text": line["text"]} if line["text"] else {}))


def number(text: str) -> object:
    return int(text) if text.isdigit() else text


class Parquet(CsvColumns):
    """Parquet, mode ``columns``, with a column for everything else."""

    columns: Mapping[str, str] = {"host": "host", "n": "n", "text": "text", "rest": "*"}
    options: Mapping[str, object] = {
        "format": "parquet",
        "mode": "columns",
        "columns": columns,
        "types": {"n": "integer"},
    }

    @property
    def bad_input(self) -> Mapping[str, str]:
        wrong = (
            "a text for a number",
            "a map for a number",
            "a fraction for a whole number",
            "a number of 64 bits without a sign",
            "a number of 400 digits",
            "NaN",
            "infinity",
        )
        return {**super().bad_input, **dict.fromkeys(wrong, "record.value")}

    def lines(self, path: Path) -> list[Any]:
        import pyarrow.parquet as pq

        # with no threads of its own: they would stay
        return list(pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist())

    def record(self, line: Any) -> Held:
        value = {name: line[name] for name in ("host", "n", "text") if line[name] is not None}
        return Held(None, None, None, value)
