"""The next batch on its way while the ledger's flush is: what a slow ledger may cost others."""

from contextlib import contextmanager
from typing import Any

from tests.onelane import Bench, values
from wald import limits
from wald.model import ReplayClass
from wald.storage.tickets import Ticket
from wald.testing.recording_sink import RecordingSink, RecordingTarget


class Slow(Ticket[bool]):
    """On its way until somebody has all the time in the world; knows if that was in a sink."""

    def __init__(self, write, work, target):
        super().__init__(work)
        self.write, self.target, self.waits = write, target, []

    def is_settled_within(self, timeout_s):
        assert timeout_s == limits.SEAL_WAIT_S
        return False

    def wait(self):
        self.waits.append(self.target.busy)
        if not self.took:
            self.settle(self.write(self.work))
        return super().wait()


class BusyTarget(RecordingTarget):
    """Knows whether a transaction is open here."""

    busy = False

    @contextmanager
    def open(self):
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


class Busy(RecordingSink):
    """Opens one for each attempt."""

    target: Any

    def deliver(self, attempt):
        with self.target.open():
            return super().deliver(attempt)


def test_a_slow_ledger_keeps_no_transaction_of_the_target_open(backlog, monkeypatch):
    bench = Bench(backlog, ReplayClass.TRANSACTIONAL)
    bench.target, bench.kind = BusyTarget(), Busy
    store, tickets = bench.ledger.store, []

    def later(work):
        tickets.append(Slow(store.write, work, bench.target))
        return tickets[-1]

    monkeypatch.setattr(store, "write_later", later)
    lsns = backlog.append(*values(30))
    bench.start()
    bench.through()
    assert bench.target.lsns == lsns
    assert tickets
    assert not any(inside for each in tickets for inside in each.waits)
