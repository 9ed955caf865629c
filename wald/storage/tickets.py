"""Works that wait to become durable: those of several threads go into one transaction."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from wald.ports import Transaction

_T = TypeVar("_T")


class Ticket(Generic[_T]):
    """See ``wald.ports.Underway``. Settled once, by whoever commits."""

    def __init__(self, work: Callable[[Transaction], _T]) -> None:
        self.work = work
        self._settled = threading.Event()
        self._error: BaseException | None = None
        self._result: _T | None = None

    @property
    def took(self) -> bool:
        """Whether it is durable."""
        return self._settled.is_set() and self._error is None

    def is_settled_within(self, timeout_s: float) -> bool:
        """Wait no longer than that; tell whether ``wait`` returns at once now."""
        return self._settled.wait(timeout_s)

    def wait(self) -> _T:
        """Return what the work returned, or raise what kept it from becoming durable."""
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return cast("_T", self._result)

    def settle(self, result: _T) -> None:
        """Say that it is durable."""
        self._result = result
        self._settled.set()

    def fail(self, error: BaseException) -> None:
        """Say why it is not."""
        self._error = error
        self._settled.set()


class Tickets:
    """Works in the order in which they came. ``put`` from any thread, ``commit`` one at a time.

    Args:
        write: runs one transaction, which may be run again; durable when it returns.
    """

    def __init__(self, write: Callable[[Callable[[Transaction], object]], object]) -> None:
        self._write = write
        self._waiting: deque[Ticket[Any]] = deque()

    def put(self, work: Callable[[Transaction], _T]) -> Ticket[_T]:
        """Let a work wait for the next ``commit``."""
        ticket = Ticket(work)
        self._waiting.append(ticket)
        return ticket

    def commit(self) -> None:
        """Run all that wait, in one transaction.

        If one of them raises, nothing of the others is lost: each then has a transaction of its
        own. What fails behind them, in the commit, fails for all.
        """
        together = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not together:
            return
        run = _Run(together)
        try:
            results = cast("list[object]", self._write(run))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            if run.is_under_way and len(together) > 1:
                self._commit_each(together)
            else:
                _fail(together, error)
        except BaseException as error:
            _fail(together, error)
            raise
        else:
            for ticket, result in zip(together, results, strict=True):
                ticket.settle(result)

    def _commit_each(self, tickets: list[Ticket[Any]]) -> None:
        for number, ticket in enumerate(tickets):
            try:
                ticket.settle(self._write(ticket.work))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                ticket.fail(error)
            except BaseException as error:
                _fail(tickets[number:], error)
                raise


class _Run:
    """The works of some tickets as one; of what raises it knows whether it was one of them."""

    def __init__(self, tickets: Sequence[Ticket[Any]]) -> None:
        self._tickets = tickets
        self.is_under_way = False

    def __call__(self, txn: Transaction) -> list[object]:
        self.is_under_way = True
        results = [ticket.work(txn) for ticket in self._tickets]
        self.is_under_way = False
        return results


def _fail(tickets: Sequence[Ticket[Any]], error: BaseException) -> None:
    for ticket in tickets:
        ticket.fail(error)
