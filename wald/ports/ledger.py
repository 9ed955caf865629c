"""The door to what the drainer remembers: transactions, dead letters, manifests."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from wald.model import (
    AskedRedrive,
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Mark,
    Purged,
    Revision,
    RevisionId,
    RouteBirth,
    RouteId,
)

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Underway(Protocol[_T_co]):
    """A transaction that is on its way. Any thread."""

    @property
    def took(self) -> bool:
        """Whether it is durable; what it returned, as that it did nothing, says ``wait``."""
        ...

    def is_settled_within(self, timeout_s: float) -> bool:
        """Wait no longer than that; tell whether ``wait`` returns at once now."""
        ...

    def wait(self) -> _T_co:
        """Wait until it is durable; return, or raise, what ``write`` would. May be repeated."""
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

    @property
    def is_usable(self) -> bool:
        """Whether it may still be read and written; once it is not, it must be opened anew."""
        ...

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction that changes nothing; return what it returned."""
        ...

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """Run a transaction, which may be run again; durable, all of it, on return."""
        ...

    def write_later(self, work: Callable[[Transaction], _T]) -> Underway[_T]:
        """Begin a transaction, behind those that were begun before, and return at once.

        Until it took, readers may see what was before it.
        """
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
        self,
        route_id: RouteId,
        lsns: Sequence[Lsn],
        transform: str,
        now_ns: int,
        *,
        forced: bool = False,
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

    def recall_purges(
        self,
        lane: tuple[RouteId, int, int],
        time_ns: int,
        letters: Sequence[tuple[Lsn, int, int]],
        *,
        told_at: tuple[int, int],
    ) -> None:
        """Take in that letters of a lane were purged by then; harmless to repeat.

        The lane is (route, layout, lane), each letter (LSN, records, file of its body). Those that
        were set aside since stay: their body lies behind (file, offset) where the dead log tells of
        the purge. Of those without a body the wall clock says it, in nanoseconds.
        """
        ...

    def purged(self, key: LaneKey, *, without_body: bool = False) -> Mapping[Lsn, int]:
        """Return purged letters that a chain in the dead log may still name, and their records.

        With ``without_body`` only those of damaged ranges, which no chain names.
        """
        ...

    def move_letters(
        self, route_id: RouteId, places: Mapping[Lsn, tuple[int, int]], below_file: int
    ) -> None:
        """Say where (file, offset) bodies lie now that lay in older files of the dead log."""
        ...

    def dead_files(self) -> Collection[int]:
        """Return the files of the dead log that letters, of open revisions too, refer to."""
        ...

    def forget_purged(self, below_file: int, named: Collection[Lsn]) -> int:
        """Forget purged letters whose body lay in an older file; those without a body stay.

        So do those that are ``named``: a chain may say of them that they are dead.
        """
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
        """T2, T7: open a manifest with ``attempts`` 1, if it continues the lane and none is open.

        A redrive is not sealed once a dead letter of it was purged.
        """
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

    def finish_later(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        following: Manifest,
    ) -> Underway[bool]:
        """T5 with the T2 of ``following``, on its way: what follows waits for it."""
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
