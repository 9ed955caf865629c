"""What the world of a lane is made of: its log, the file system, the fuse, the net, the copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.logtools import DATA, SMALL, append, first_group, new_fs, open_log
from wald.errors import DiskFull
from wald.model import (
    Attempt,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    RevisionId,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import File, FileSystem
from wald.storage.segment import segment_number
from wald.testing.recording_sink import RecordingSink, RecordingTarget

GROUPS = (1, 2, 1, 1, 3, 1, 1)  # records of each group
VALUE = b"v" * 9_000  # a few groups fill a segment
POISON = (3, 7)
OWNER = 77
DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
LEDGER_STEPS = (
    *("seal", "revise", "attempt", "finish", "finish_later"),
    *("advance", "adopt", "note"),
)
FULL_STEPS = (*LEDGER_STEPS, "append", "move_letters", "roll")  # what needs room on the disk
STEPS_MAX = 2_000


class Killed(BaseException):
    """The process is gone, in the middle of something."""


class HistoryLog:
    """A log with a few groups in several segments; the frontier behind each. Read only.

    ``more`` are groups behind those, for what takes place at the end.
    """

    def __init__(self, more: Sequence[int] = ()) -> None:
        self.fs = new_fs()
        log = open_log(self.fs, options=SMALL)
        log.append_group(first_group())
        self.log_id = log.log_id
        self.frontiers = [log.frontier]
        self.ends: dict[int, Lsn] = {}  # the last LSN of each segment
        for sequence, count in enumerate([*GROUPS, *more], 1):
            log.append_group([append(sequence, *[VALUE] * count)])
            self.frontiers.append(log.frontier)
            self.ends[log.frontier.segment] = log.frontier.lsn
        log.close()


class RetiringFs:
    """The log's files, less those that were retired; everything else of a file system beside it."""

    def __init__(self, log: FileSystem, own: FileSystem) -> None:
        self._log = log
        self._own = own
        self.retired_through = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _of(self, path: str) -> FileSystem:
        return self._log if path.startswith(f"{DATA}/log") else self._own

    def _is_gone(self, path: str) -> bool:
        number = segment_number(path.rsplit("/", 1)[-1])
        return number is not None and number <= self.retired_through

    def open(self, path: str, *, write: bool = False) -> File:
        if self._is_gone(path):
            raise FileNotFoundError(path)
        return self._of(path).open(path, write=write)

    def stat(self, path: str) -> Any:
        return None if self._is_gone(path) else self._of(path).stat(path)

    def list_directory(self, path: str) -> list[str]:
        return [name for name in self._of(path).list_directory(path) if not self._is_gone(name)]


class Fuse:
    """Kills the process at the n-th durable step from now, before or behind its effect.

    The next ``full`` durable steps find no room on the disk: nothing changes then. ``meanwhile``
    is called before each: what others do between what the lane read and what it writes.
    """

    def __init__(self) -> None:
        self.left = 0
        self.behind = False
        self.full = 0
        self.refused = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def arm(self, steps: int, *, behind: bool) -> None:
        self.left, self.behind = steps, behind

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.meanwhile()
        if self.full and method.__name__ in FULL_STEPS:
            self.full -= 1
            self.refused += 1
            msg = "no room"
            raise DiskFull(msg, retry_after_s=1.0)
        blows = self.left == 1
        self.left = max(0, self.left - 1)
        if blows and not self.behind:
            raise Killed
        result = method(*args, **kwargs)
        if blows:
            raise Killed
        return result


class Guarded:
    """Passes calls on; those named go through the fuse."""

    def __init__(self, inner: Any, fuse: Fuse, *names: str) -> None:
        self._inner, self._fuse, self._names = inner, fuse, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args, **kwargs: self._fuse.call(found, *args, **kwargs)


@dataclass(slots=True)
class Net:
    """Between us and the target: what the next attempt meets, and attempts that are on their way.

    ``fate`` is "" (nothing happens), "down", "lost" (it takes effect, the answer is lost) or "late"
    (it may take effect whenever it likes).
    """

    fate: str = ""
    late: list[Attempt] = field(default_factory=list)
    sent: dict[RevisionId, Attempt] = field(default_factory=dict)


class NetSink(RecordingSink):
    """A sink of a target behind a net; ``tried`` is called with each attempt."""

    def __init__(
        self, target: RecordingTarget, net: Net, tried: Callable[[Attempt], None] = lambda _: None
    ) -> None:
        super().__init__(target)
        self._net = net
        self._tried = tried

    def deliver(self, attempt: Attempt) -> Outcome:
        fate, self._net.fate = self._net.fate, ""
        self._net.sent[attempt.row.rev_id] = attempt
        self._tried(attempt)
        if fate == "down":
            return DOWN
        if fate == "late":
            self._net.late.append(attempt)
            return Unknown("no answer in time")
        outcome = super().deliver(attempt)
        return Unknown("the answer was lost") if fate == "lost" else outcome


@dataclass(frozen=True, slots=True)
class Copy:
    """The target as a backup has it."""

    records: tuple[Record, ...]
    rows: tuple[tuple[LaneKey, ProgressRow], ...]


class Chances(Random):
    """No pauses; random revisions."""

    def uniform(self, a: float, _b: float, /) -> float:
        return a
