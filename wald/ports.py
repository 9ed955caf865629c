"""The doors to the outside, as protocols whose docstrings are the contract.

Real and simulated implementations pass the same contract tests. Blocking code only.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from wald.model import (
    AskedRedrive,
    Attempt,
    AttemptStamp,
    Capabilities,
    Checkpoint,
    DeadLetter,
    Finding,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Mark,
    Outcome,
    ProgressRow,
    Purged,
    Record,
    RejectedRecord,
    Revision,
    RevisionId,
    RouteBirth,
    RouteId,
)

_T = TypeVar("_T")


class Clock(Protocol):
    """Time as an argument: monotonic for durations, wall clock for people and for records."""

    def wall_ns(self) -> int:
        """Return the wall clock, nanoseconds since the epoch. May jump either way."""
        ...

    def monotonic_ns(self) -> int:
        """Return a clock that never goes back, in nanoseconds; comparable in one process only."""
        ...

    def boot_ns(self) -> int:
        """Return nanoseconds since boot, suspend included; comparable within one boot."""
        ...

    def boot_id(self) -> str:
        """Return what names this boot of this machine."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; only drivers of real processes call it, never the core."""
        ...


class Chance(Protocol):
    """Randomness as an argument; ``random.Random`` and ``random.SystemRandom`` fit."""

    def randbytes(self, n: int, /) -> bytes:
        """Return n random bytes."""
        ...

    def uniform(self, a: float, b: float, /) -> float:
        """Return a float between a and b."""
        ...


class FileStat(NamedTuple):
    """What a file system says of a name."""

    size_bytes: int
    inode: int
    device: int
    block_size_bytes: int
    is_directory: bool
    is_symlink: bool
    uid: int
    mode: int
    modified_ns: int


class File(Protocol):
    """An open file. One thread at a time. Every method raises ``OSError`` as the system does.

    Nothing is durable before ``sync`` returned without an error. After ``sync`` raised once, the
    file's unsynced bytes may be lost although a later ``sync`` succeeds and a read shows them:
    no caller may sync this file again and believe it.
    """

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; short only at the end of the file."""
        ...

    def pwritev(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all parts at ``offset``, or raise; after an error any prefix may be written."""
        ...

    def sync(self) -> None:
        """Make bytes and size durable (fdatasync)."""
        ...

    def allocate(self, offset: int, length: int) -> None:
        """Reserve room and extend the size (posix_fallocate); bytes read as zeros."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros; durable after ``sync``."""
        ...

    def size(self) -> int:
        """Return the size in bytes."""
        ...

    def lock(self) -> bool:
        """Take the exclusive lock of the file without waiting; False if another holds it.

        The lock ends with the process or with ``close`` (flock; descriptors are close-on-exec).
        """
        ...

    def close(self) -> None:
        """Close; harmless to repeat. Does not sync."""
        ...


class FileSystem(Protocol):
    """Names. Paths are absolute or relative strings with ``/``. Raises ``OSError``.

    A new, removed or changed name is durable only after ``sync_directory`` of its directory.
    Files are opened without following a symbolic link in the last component.
    """

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file."""
        ...

    def create(self, path: str, *, mode: int = 0o600) -> File:
        """Make a new, empty file to read and write; ``FileExistsError`` if the name is used."""
        ...

    def make_directory(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory; ``FileExistsError`` if the name is used."""
        ...

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def stat(self, path: str) -> FileStat | None:
        """Return what is at the name, itself if a link; None if nothing is there."""
        ...

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; ``FileExistsError`` if ``target`` is used."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a name."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move a name to one that must not exist (RENAME_NOREPLACE); ``FileExistsError`` if so."""
        ...

    def replace(self, source: str, target: str) -> None:
        """Move a name over another in one step: for small whole files, never for the log."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        ...

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may still be written on the file system of ``path``."""
        ...

    def machine_id(self) -> str:
        """Return what names this machine; empty where the system has none."""
        ...


class Sink(Protocol):
    """The code that writes to one kind of target; one instance per lane, one thread at a time.

    Methods return values and never raise for what a target does; a raised exception is a bug of
    the sink, counts as ``Unknown``, and the sink is closed and made anew.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the target can express; constant, known without a connection."""
        ...

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Ask the target what it remembers of the lane; connects if need be.

        Returns None where it remembers nothing, an ``Outcome`` (``Systemic``) where it cannot
        be asked.
        """
        ...

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the row and apply the records in one transaction of the target.

        Durable at the target when ``Delivered`` is returned. ``RowMoved`` if the row was not
        (row.batch_no - 1, prev_rev, owner).
        """
        ...

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Try some records of an attempt and roll back, whatever comes of it.

        Returns the records that the target names as refused, an empty sequence if all would be
        taken; ``Rejected`` without records where it refuses but does not say which.
        """
        ...

    def check(self) -> Sequence[Finding]:
        """Verify at the target what can be verified without writing data."""
        ...

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        ...


class SinkFactory(Protocol):
    """Makes the sink of one route; registered under the sink's ``type``."""

    def __call__(self, route: str, stream: str, settings: Mapping[str, object]) -> Sink:
        """Make a sink from the merged tables of sink and route; connects lazily.

        Raises:
            ConfigError: a setting is unknown, missing or wrong.
        """
        ...


class EncodingSink(Sink, Protocol):
    """A sink whose requests are encoded once and kept: ``Capabilities.freezes``."""

    @property
    def encoder(self) -> str:
        """Name and version of the encoding; another version may encode otherwise."""
        ...

    def encode(self, attempt: Attempt) -> bytes:
        """Return the body that ``deliver`` sends as ``Attempt.body``; the same for the same."""
        ...


class AuditableSink(Sink, Protocol):
    """A sink that can tell which records its target has; what it says is compared by audits."""

    def holds(self, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int] | Outcome | None:
        """Return which of some records of a log the target has, and how often each.

        None where the target does not keep what names a record; an ``Outcome`` (``Systemic``)
        where it cannot be asked. Records are in order.
        """
        ...


class Transaction(Protocol):
    """What may be done inside one transaction of a ``Store``; of no use behind its end."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a value; None if the key has none."""
        ...

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        ...

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; False if it had no value."""
        ...

    def scan(
        self, table: str, prefix: bytes = b"", *, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys with a prefix, from ``start`` on, in order, with their values.

        Take them all before changing the table.
        """
        ...


class Store(Protocol):
    """Tables of ordered keys with transactions, one after the other; any thread.

    Both methods raise ``LedgerFailed`` if it cannot be read or written, ``DiskFull`` if there is
    no room (then nothing changed and the same call may succeed later).
    """

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction that changes nothing; return what it returned."""
        ...

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction, which may be run again; durable, all of it, on return."""
        ...

    def close(self) -> None:
        """Close; harmless to repeat."""
        ...


class DeadLetters(Protocol):
    """The part of the ``Ledger`` that keeps dead letters; what holds for that holds here."""

    def dead_letters(
        self, route_id: RouteId, *, after: Lsn = 0, limit: int = 1000
    ) -> Sequence[DeadLetter]:
        """Return dead letters of a route with a higher LSN than ``after``, in order."""
        ...

    def dead_letter(self, route_id: RouteId, lsn: Lsn) -> DeadLetter | None:
        """Return one dead letter; None if there is none."""
        ...

    def lanes(self, route_id: RouteId) -> Mapping[LaneKey, LaneProgress]:
        """Return what is held of all lanes of a route, those of former layouts among them."""
        ...

    def ask_redrive(
        self, route_id: RouteId, lsns: Sequence[Lsn], transform: str, now_ns: int
    ) -> int:
        """Ask for dead letters to be sent again; those without a body are left out.

        Stays until T8 of the batch that sends them; returns how many were not asked for before.
        """
        ...

    def asked_redrives(self, key: LaneKey, limit: int) -> Sequence[AskedRedrive]:
        """Return what a lane is asked to send again, in the order of LSNs."""
        ...

    def asked_redrive(self, key: LaneKey, lsn: Lsn) -> AskedRedrive | None:
        """Return one dead letter of a lane, with the transform asked for; None if it is none."""
        ...

    def count_redrives(self, key: LaneKey) -> int:
        """Return how many dead letters a lane is asked to send again."""
        ...

    def give_up_redrives(self, key: LaneKey, lsns: Sequence[Lsn]) -> None:
        """Ask no more for these to be sent again."""
        ...

    def allow_aside(self, key: LaneKey, lsns: Sequence[Lsn], now_ns: int) -> None:
        """Let a lane that halts at a refused record set these aside."""
        ...

    def allowed_aside(self, key: LaneKey) -> Collection[Lsn]:
        """Return which records a lane that halts may set aside."""
        ...

    def purge(
        self, route_id: RouteId, lsns: Sequence[Lsn], now_ns: int, *, spare_asked: bool = False
    ) -> Purged:
        """Forget dead letters for good, counted in their lane's checkpoint.

        What is being sent again is spared, and with ``spare_asked`` what is to be.
        """
        ...

    def purged(self, key: LaneKey) -> Mapping[Lsn, int]:
        """Return purged letters that a chain in the dead log may still name, and their records."""
        ...

    def move_letters(
        self, route_id: RouteId, places: Mapping[Lsn, tuple[int, int]], below_file: int
    ) -> None:
        """Say where (file, offset) bodies lie now that lay in older files of the dead log."""
        ...

    def dead_files(self) -> Collection[int]:
        """Return the files of the dead log that letters, of open revisions too, refer to."""
        ...

    def forget_purged(self, below_file: int) -> int:
        """Forget purged letters whose body lay in an older file; those without a body stay."""
        ...

    def note(self, name: str, value: object = None) -> object:
        """Keep a value under a name, or return the one that is kept; None if none is."""
        ...


class Ledger(DeadLetters, Protocol):
    """Manifests, checkpoints, index of dead letters, history: durable on return of each method.

    Any thread may call; transactions come one after the other. A transaction reads anew what it
    changes and returns False, having done nothing, if that is not what the caller worked on.
    Raises ``LedgerFailed`` if it cannot be read or written, ``DiskFull`` if there is no room (then
    nothing changed and the same call may succeed later).
    """

    @property
    def store(self) -> Store:
        """What it stands on; what else the drainer keeps there has a class of its own."""
        ...

    def birth(self, birth: RouteBirth) -> RouteBirth:
        """T1: take in a route with a checkpoint at its birth; returns what stands, old or new."""
        ...

    def births(self) -> Sequence[RouteBirth]:
        """Return the routes that were taken in, by id."""
        ...

    def lane(self, key: LaneKey) -> LaneProgress:
        """Return checkpoint and open manifest of a lane; a fresh checkpoint if it has none."""
        ...

    def seal(self, key: LaneKey, manifest: Manifest) -> bool:
        """T2: open a manifest with ``attempts`` 1, if it continues the lane and none is open."""
        ...

    def revise(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        revision: Revision,
        set_aside: Sequence[DeadLetter],
        stamp: AttemptStamp,
        *,
        replaces: bool = False,
    ) -> bool:
        """T3: add a revision with all its dead letters; it ``replaces`` those no row can name."""
        ...

    def mark(self, key: LaneKey, worked_on: RevisionId, mark: Mark) -> bool:
        """T11: hold the open batch for a person, take a decision on a held one, clear doubt."""
        ...

    def set_aside(self, key: LaneKey, rev_id: RevisionId) -> Sequence[DeadLetter]:
        """Return the dead letters of an open manifest's revision; none if it has none."""
        ...

    def attempt(self, key: LaneKey, worked_on: RevisionId, stamp: AttemptStamp) -> bool:
        """T4: count a further attempt of the open manifest's current revision."""
        ...

    def finish(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        lost: Sequence[DeadLetter] = (),
        following: Manifest | None = None,
    ) -> bool:
        """T5: close the open manifest, one of whose revisions, ``worked_on``, took effect.

        Moves the checkpoint, takes what that revision set aside, and what was ``lost`` in the
        range, into the index of dead letters, and what it redrove out of it (T8), adds to the
        history, and seals ``following``.
        """
        ...

    def advance(
        self,
        key: LaneKey,
        worked_on: Checkpoint,
        checkpoint: Checkpoint,
        lost: Sequence[DeadLetter] = (),
    ) -> bool:
        """T6: move the checkpoint over LSNs that are not the lane's; only with nothing open."""
        ...

    def adopt(
        self,
        key: LaneKey,
        worked_on: LaneProgress,
        checkpoint: Checkpoint,
        letters: Sequence[DeadLetter],
    ) -> bool:
        """T12: believe the target's row: drop the open manifest, move the checkpoint to the row.

        ``letters`` are all dead letters of the lane from now on.
        """
        ...

    def history(self, key: LaneKey) -> Sequence[FinishedBatch]:
        """Return the last finished batches of a lane, oldest first; a ring."""
        ...

    def close(self) -> None:
        """Close; harmless to repeat."""
        ...
