"""The commit: one write and one flush for all that was accepted, then all answers.

Called by the loop behind the reads of a turn, so that everything that was ready is in one group;
what arrives meanwhile waits in the sockets and is the next group: no timer, no hand-over.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from wald import limits
from wald.core import frame
from wald.core.commit import Contribution, Group
from wald.core.frame import Section
from wald.core.lone import LONE_BYTES, Lone, LoneSections
from wald.errors import Backpressure, DiskFull
from wald.storage.log import Log

_log = logging.getLogger("wald.ingest")

Self_ = TypeVar("Self_", bound="Contributor")


class Contributor(Protocol):
    """What the commit asks of a connection."""

    armed: bool

    def contribution(self) -> "Contribution[Self]":
        """Hand over what was accepted since the last commit; no longer armed."""
        ...

    def answer(self, frames: bytes, /) -> None:
        """Send the answer to a durable contribution."""
        ...

    def refuse_from(self, first_sequence: int, error: Backpressure) -> None:
        """Say that what was accepted since the last commit is not stored."""
        ...


Peer = TypeVar("Peer", bound=Contributor)


class Statement(NamedTuple):
    """A control section, and whom to tell when it is durable, or that there was no room."""

    section: Section
    durable: Callable[[], None]
    refused: Callable[[Backpressure], None]


class Committer(Generic[Peer]):
    """Collects what is accepted and makes it durable.

    Args:
        loop: to be called behind the reads of this turn.
        log: the only writer's log.
        committed: called after the answers of each group, also one that found no room.
        fatal: called when the log failed: nothing is answered, the process is to end.

    Attributes:
        no_room: why the last group found no room on the disk; empty if it did.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        committed: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._committed = committed
        self._fatal = fatal
        self._armed: list[Peer] = []
        self._lone: dict[Peer, Lone] = {}
        self._statements: list[Statement] = []
        self._mentioned: list[Section] = []
        self._scheduled = False
        self._failed = False
        self.size_bytes = 0
        self.groups = 0
        self.refused: Counter[str] = Counter()
        self.duplicates = 0
        self.no_room = ""

    def accept(self, peer: Peer, size_bytes: int) -> None:
        """Note that a connection accepted something more for the next group."""
        if not peer.armed:
            peer.armed = True
            self._armed.append(peer)
        self.size_bytes += size_bytes
        if not self._scheduled:
            self._arm()

    def accept_lone(self, peer: Peer, request: Lone) -> bool:
        """Take the one request of a connection since the last commit.

        False if it is not the only one, or there is no room: it belongs in a contribution then.
        """
        size_bytes = self.size_bytes + LONE_BYTES + len(request[4])
        if peer.armed or peer in self._lone or size_bytes > limits.GROUP_MAX_BYTES:
            return False
        self._lone[peer] = request
        self.size_bytes = size_bytes
        if not self._scheduled:
            self._arm()
        return True

    def take_back(self, peer: Peer) -> Lone | None:
        """Return what ``accept_lone`` took since the last commit: its connection has more."""
        request = self._lone.pop(peer, None)
        if request is not None:
            self.size_bytes -= LONE_BYTES + len(request[4])
        return request

    def state(self, *statements: Statement) -> None:
        """Put statements into the next group, all into the same one."""
        size_bytes = sum(frame.section_bytes(each.section) for each in statements)
        self._make_room(size_bytes)
        self._statements += statements
        self.size_bytes += size_bytes
        if not self._scheduled:
            self._arm()

    def mention(self, section: Section) -> None:
        """Put a statement into the next group, whenever that is: nobody waits for it."""
        size_bytes = frame.section_bytes(section)
        self._make_room(size_bytes)
        self._mentioned.append(section)
        self.size_bytes += size_bytes
        if self._is_due and not self._scheduled:
            self._arm()

    @property
    def _is_due(self) -> bool:
        """Whether so much was mentioned that it is a group of its own."""
        return len(self._mentioned) >= limits.MENTIONS_MAX_COUNT

    def _make_room(self, size_bytes: int) -> None:
        if self.size_bytes + size_bytes > limits.GROUP_MAX_BYTES:
            self.commit()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Do something in the next turn of the loop."""
        self._loop.call_soon(action)

    def _arm(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self.commit()

    def commit(self, *, mentioned: bool = False) -> None:
        """Make durable what was accepted, and answer it. Nothing is answered after a failure.

        Args:
            mentioned: also if there is nothing but what was mentioned: before a stop.
        """
        due = bool(self._mentioned) and (mentioned or self._is_due)
        if self._failed or not (self._armed or self._lone or self._statements or due):
            return
        statements, self._statements = self._statements, []
        told, self._mentioned = self._mentioned, []
        armed, self._armed = self._armed, []
        lone, self._lone = self._lone, {}
        self.size_bytes = 0
        mine = [peer.contribution() for peer in armed]
        group = Group(told + [each.section for each in statements], mine)
        alone = LoneSections(list(lone.values()))
        ids = group.settle(self._log.next_lsn, self._log.ids.table) if self._log.ids.table else ()
        try:
            receipt = self._log.append_group(group.sections(), alone, ids)  # the commit point
        except DiskFull as error:
            self._mentioned = told
            self.no_room = error.message
            self.size_bytes = sum(map(frame.section_bytes, told))
            self._refuse(statements, mine, lone, error)
            self._committed()
            return
        except BaseException as error:
            self._failed = True
            self._fatal(error)
            raise
        self.groups += 1
        self.no_room = ""
        for statement in statements:
            statement.durable()
        durable_lsn = receipt.frontier.lsn
        for peer, frames in group.answers(receipt.first_lsn, durable_lsn):
            peer.answer(frames)
        acks = alone.acks(durable_lsn - len(alone) + 1, durable_lsn)
        for peer, frames in zip(lone, acks, strict=True):
            peer.answer(frames)
        self._count(mine)
        self._committed()

    def _refuse(
        self,
        statements: list[Statement],
        mine: list[Contribution[Peer]],
        lone: dict[Peer, Lone],
        error: DiskFull,
    ) -> None:
        self.refused[error.code] += len(mine) + len(lone) + len(statements)
        for statement in statements:
            statement.refused(error)
        for each in mine:
            each.holder.refuse_from(each.first_sequence, error)
        for peer, (_, _, sequence, _, _) in lone.items():
            peer.refuse_from(sequence, error)

    def _count(self, mine: list[Contribution[Peer]]) -> None:
        for each in mine:
            self.duplicates += sum(len(request.duplicates) for request in each.duplicates)
            for request in each.refused:
                self.refused.update(refusal.code for refusal in request.refusals)
