"""Delivery to files: one file for each batch, or for each batch and partition, published whole.

Class ``transactional``: ``wald.sinks.files.place`` keeps the progress row and publishes a batch by
it. Errors of the system become outcomes here and nowhere else.
"""

import errno
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from wald import limits
from wald.errors import ConfigError, WaldError
from wald.model import (
    NO_REVISION,
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.files.encoding import Csv, Encoder, Made, Ndjson
from wald.sinks.files.options import Options, read_options
from wald.sinks.files.partitions import path_of
from wald.sinks.files.place import HIDDEN, Kept, LockHeld, Place, RowDamaged
from wald.sinks.values import BAD_VALUE, refusal

Parts: TypeAlias = Mapping[str, tuple[list[Record], list[object]]]  # by directory

MAX_RECORDS = limits.REQUEST_MAX_RECORDS
MAX_BYTES = limits.SEGMENT_BYTES
ZSTD_LEVEL = 3
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

_KINDS = {
    errno.ENOSPC: SystemicKind.FULL,
    errno.EDQUOT: SystemicKind.FULL,
    errno.EFBIG: SystemicKind.FULL,
    errno.EACCES: SystemicKind.AUTHENTICATION,
    errno.EPERM: SystemicKind.AUTHENTICATION,
    errno.EROFS: SystemicKind.CONFIGURATION,
    errno.ENOTDIR: SystemicKind.CONFIGURATION,
    errno.EEXIST: SystemicKind.CONFIGURATION,  # a file where a directory is to be
    errno.EISDIR: SystemicKind.CONFIGURATION,
    errno.EXDEV: SystemicKind.CONFIGURATION,
    errno.ENAMETOOLONG: SystemicKind.CONFIGURATION,
    errno.EMFILE: SystemicKind.BUSY,
    errno.ENFILE: SystemicKind.BUSY,
}
_HINTS = {
    SystemicKind.UNREACHABLE: "the directory's parent must exist: is its file system mounted?",
    SystemicKind.FULL: "free space on the file system of the directory",
    SystemicKind.AUTHENTICATION: "the user of wald must own the directory, or may write in it",
    SystemicKind.CONFIGURATION: "one file system, writable, with directories where files are to go",
    SystemicKind.DAMAGED: f"put {HIDDEN} of the directory back from a backup, with its files",
    SystemicKind.BUSY: "",
}


def make(route: str, stream: str, settings: Mapping[str, object]) -> "FilesSink":
    """Make the sink of a route; touches no file.

    Raises:
        ConfigError: a setting is unknown, missing or wrong, or a module that it needs is absent.
    """
    options = read_options(route, stream, settings)
    if options.format == "parquet":
        _require(route, "pyarrow", "parquet")
    elif options.compression == "zstd":
        _require(route, _ZSTD, "zstd")
    return FilesSink(options)


class FilesSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._path_of = path_of(options.partitions)
        self._encoder: Encoder | None = None
        self._places: dict[LaneKey, Place] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once for ever: the row publishes the files."""
        return Capabilities(ReplayClass.TRANSACTIONAL, MAX_RECORDS, MAX_BYTES, awaits_seal=True)

    def close(self) -> None:
        """Forget what was seen; nothing is open between calls."""
        self._places.clear()

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row, with the files of its last batch published."""
        try:
            place = self._place(key)
            with place.locked():
                kept = place.read()
        except (OSError, RowDamaged) as error:
            return self._failed(error)
        return kept.row if kept else None

    def deliver(self, attempt: Attempt) -> Outcome:
        """Write the files of a batch, and publish them with the row."""
        made, directories = self._made(attempt, attempt.records)
        if made.refused:
            return Rejected(made.refused, made.refused[0].message)
        parts = _divided(directories, attempt.records, made.parts)
        if len(parts) > limits.FILES_PER_BATCH_MAX:
            return TooLarge(f"{len(parts):,} partitions in one batch")
        try:
            outcome = self._publish(attempt, parts)
        except (OSError, RowDamaged) as error:
            return self._failed(error)
        notes = {"extra-fields": made.extra_fields} if made.extra_fields else {}
        return outcome or Delivered(notes)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Name the records that have no form in a file; a file refuses nothing else."""
        return self._made(attempt, records)[0].refused

    # --- one batch ------------------------------------------------------------------------------

    def _publish(self, attempt: Attempt, parts: Parts) -> Outcome | None:
        """Publish the files of a batch if the row fits; returns what stands in its way."""
        place = self._place(attempt.key)
        with place.locked():
            kept = place.read()
            if _stand(kept, attempt) != attempt.stands_on:
                return RowMoved(kept.row if kept else None)
            return self._write(place, attempt, parts)

    def _write(self, place: Place, attempt: Attempt, parts: Parts) -> Outcome | None:
        """Stage, commit and publish; returns what stands in its way, None for nothing."""
        end_s = None if attempt.timeout_s is None else _now_s() + attempt.timeout_s
        staged: list[str] = []
        files: list[tuple[str, str]] = []
        try:
            for number, (directory, (records, lines)) in enumerate(parts.items()):
                if end_s is not None and _now_s() > end_s:
                    place.discard(staged)
                    return Systemic(
                        SystemicKind.BUSY, "the disk is too slow for the attempt's time"
                    )
                published = directory + self._name(attempt, records)
                staged.append(place.stage(attempt.row.rev_id, number, self._content(lines)))
                place.make_room(published)
                files.append((staged[-1], published))
            kept = Kept(attempt.row, tuple(files))
            attempt.await_seal()
            place.commit(kept)  # COMMIT POINT: the row, and with it the files
            place.publish(kept)
        except OSError as error:
            if place.in_doubt:
                return Unknown(f"{self._options.path}: {_words(error)}")
            place.discard(staged)
            raise
        except WaldError:  # the batch could not be sealed
            place.discard(staged)
            raise
        return None

    def _made(self, attempt: Attempt, records: Sequence[Record]) -> tuple[Made, list[str]]:
        """Return a line for each record and its directory, or the records that can have none."""
        made = self._loaded().make(attempt.key.log_id, records)
        if made.refused or not self._options.partitions:
            return made, [""] * len(records)
        directories: list[str] = []
        refused: list[RejectedRecord] = []
        for record in records:
            try:
                directories.append(self._path_of(record))
            except BAD_VALUE as error:  # of a field that is in no column
                refused.append(refusal(record, error))
        return made._replace(refused=tuple(refused)), directories

    def _name(self, attempt: Attempt, records: Sequence[Record]) -> str:
        """Return a file's name: stream, log, range of LSNs, id of the batch."""
        log = attempt.key.log_id[:8].hex()
        lsns = f"{records[0].lsn:020d}-{records[-1].lsn:020d}"
        return f"{self._options.stream}-{log}-{lsns}-{attempt.row.rev_id.hex()}{self._suffix()}"

    def _suffix(self) -> str:
        return self._loaded().suffix + (".zst" if self._compresses() else "")

    def _content(self, lines: Sequence[object]) -> bytes:
        content = self._loaded().join(lines)
        return _zstd(content) if self._compresses() else content

    def _compresses(self) -> bool:
        return self._options.compression == "zstd" and self._options.format != "parquet"

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            self._encoder = _encoder(self._options)
        return self._encoder

    def _place(self, key: LaneKey) -> Place:
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = Place(self._options.path, key)
        return found

    def _failed(self, error: Exception) -> Systemic:
        return _systemic(error, self._options.path)

    # --- check ----------------------------------------------------------------------------------

    def grants(self) -> Sequence[str]:
        """Return what gives the user wald the directory."""
        return [f"install -d -o wald {shlex.quote(self._options.path)}"]

    def check(self) -> Sequence[Finding]:
        """Look at the directory without writing."""
        return list(_check(Path(self._options.path)))


def _divided(
    directories: Sequence[str], records: Sequence[Record], lines: Sequence[object]
) -> Parts:
    """Return the records and lines of each directory, in order."""
    if records and not any(directories):
        return {"": (list(records), list(lines))}
    parts: dict[str, tuple[list[Record], list[object]]] = {}
    for directory, record, line in zip(directories, records, lines, strict=True):
        ours, theirs = parts.setdefault(directory, ([], []))
        ours.append(record)
        theirs.append(line)
    return parts


def _stand(kept: Kept | None, attempt: Attempt) -> tuple[int, bytes, int]:
    """Return number, revision and owner of what is kept; of nothing, as a first batch expects."""
    if kept is None:
        return 0, NO_REVISION, attempt.stands_on[2]
    return kept.row.batch_no, kept.row.rev_id, kept.row.owner


def _encoder(options: Options) -> Encoder:
    if options.format == "parquet":
        from wald.sinks.files.parquet import Parquet  # noqa: PLC0415 - 60 MB, only where it is used

        return Parquet(options)
    return Csv(options) if options.format == "csv" else Ndjson(options)


def _zstd(content: bytes) -> bytes:
    compress: Any = import_module(_ZSTD).compress
    return bytes(compress(content, ZSTD_LEVEL))


def _require(route: str, module: str, extra: str) -> None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        msg = f"route {route!r}: the module {module} is not installed"
        raise ConfigError(msg, hint=f"pip install 'wald[{extra}]'")


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - the disk's time: a factory gets no clock


def _systemic(error: Exception, path: str) -> Systemic:
    kind = SystemicKind.UNREACHABLE
    if isinstance(error, RowDamaged):
        kind = SystemicKind.DAMAGED
    elif isinstance(error, LockHeld):
        kind = SystemicKind.BUSY
    elif isinstance(error, OSError):
        kind = _KINDS.get(error.errno or 0, SystemicKind.UNREACHABLE)
    return Systemic(kind, f"{path}: {_words(error)}", _HINTS[kind])


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return str(error)[: limits.ERROR_TEXT_MAX_CHARS]


def _check(path: Path) -> Iterator[Finding]:
    place = path if path.exists() else path.parent
    if not place.is_dir():
        kind = SystemicKind.UNREACHABLE
        yield Finding(Severity.ERROR, f"files.{kind.value}", f"{place}: no directory", _HINTS[kind])
        return
    if not _may_write(place):
        kind = SystemicKind.AUTHENTICATION
        msg = f"{place}: this user may not write it"
        hint = "check as the user of the daemon: sudo -u USER wald check"
        yield Finding(Severity.ERROR, f"files.{kind.value}", msg, hint)
        return
    found = "directory found, writable" if place is path else "the directory will be made"
    yield Finding(Severity.OK, "files.found", found)


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK)
