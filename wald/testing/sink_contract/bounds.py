"""The lines of the contract about bounds: time, order, sizes, and what is left behind."""

import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from time import monotonic  # noqa: TID251 - the sink's own time is what is looked at

from wald.model import Delivered, Outcome, ReplayClass, RowMoved, Systemic, Unknown
from wald.testing.proxy import CuttingProxy
from wald.testing.sink_contract.host import Host
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.once import attempt_of, deliver
from wald.testing.sink_contract.promises import Line

_TIMEOUT_S = 0.3
_RECORDS_MAX = 2_500
_LARGE_MAX = 30


class BoundLines(Lines):
    """Bounds.

    ``patience_s``: so much later than its time an attempt may end, on a machine under load.
    """

    patience_s: float = 20.0

    def test_an_attempt_ends_in_its_time(self, host: Host) -> None:
        """A target that does not answer costs no more than ``timeout_s``; nothing is raised."""
        bench = host.bench
        with ExitStack() as stack:
            hold, settings = bench.hangs, bench.settings
            if "connection" not in bench.absent:
                proxy = stack.enter_context(CuttingProxy(bench.address()))
                hold, settings = proxy.holding, bench.settings_through(proxy.address)
            else:
                bench.need("hang")
            attempt = replace(attempt_of(host, 5), timeout_s=_TIMEOUT_S)
            sink = stack.enter_context(closing(bench.make(settings)))
            sink.read_row(host.key)
            with hold():
                began = monotonic()
                outcomes: list[Outcome] = []
                thread = threading.Thread(target=lambda: outcomes.append(deliver(sink, attempt)))
                thread.start()
                thread.join(self.patience_s)
                took_s = monotonic() - began
            thread.join()
        assert outcomes, "it raised, which no sink may"
        (outcome,) = outcomes
        assert took_s < self.patience_s, "it did not end in its time"
        assert isinstance(outcome, Unknown | Systemic), outcome
        assert took_s >= _TIMEOUT_S * 0.5, "the target hangs, and the sink did not wait for it"
        with closing(bench.make()) as again:  # as a lane does: the same batch
            outcome = deliver(again, replace(attempt, timeout_s=30.0))
        assert isinstance(outcome, Delivered | RowMoved), outcome
        self.check_held(host, Line.TWICE)

    def test_order_is_kept(self, host: Host) -> None:
        """Batches of many sizes, over several keys, with answers lost between."""
        host.bench.need("order")
        for count in (1, 40, 3, 300, 17):
            host.append(count, keys=5)
            if host.replay is not ReplayClass.NONE:
                host.lost_answers = 1
            host.through()
        self.check_held(host)

    def test_no_batch_is_larger_than_the_target_takes(self, host: Host) -> None:
        """The lane keeps to ``max_records`` and ``max_bytes``; a full batch is taken whole."""
        able = host.bench.make().capabilities
        assert able.max_records >= 1
        host.append(min(2 * able.max_records + 1, _RECORDS_MAX))
        large_bytes = host.bench.large_bytes
        if large_bytes:
            count = min(2 * able.max_bytes // large_bytes + 1, _LARGE_MAX)
            host.append(count, text="x" * large_bytes)
        host.through()
        for attempt in host.attempts:
            assert len(attempt.records) <= able.max_records
            sizes = sum(len(record.value) for record in attempt.records)
            assert sizes <= able.max_bytes or len(attempt.records) == 1
        full = min(able.max_records, _RECORDS_MAX)
        checkpoint = host.ledger.lane(host.key).checkpoint
        number, prev = checkpoint.batch_no + 1, checkpoint.rev_id
        sink, attempt = host.bench.make(), attempt_of(host, full, number=number, prev=prev)
        try:
            assert isinstance(deliver(sink, attempt), Delivered)
        finally:
            sink.close()
        self.check_held(host)

    def test_an_empty_batch_is_taken(self, host: Host) -> None:
        """All of its records were refused: at a target with a row it still moves the row."""
        attempt = attempt_of(host, 5)
        if host.replay is not ReplayClass.TRANSACTIONAL:
            return  # no row waits for it, and none is made
        sink = host.bench.make()
        try:
            assert isinstance(deliver(sink, replace(attempt, records=())), Delivered)
            assert sink.read_row(host.key) == attempt.row
        finally:
            sink.close()
        assert host.bench.held() == []

    def test_closing_is_harmless_to_repeat(self, host: Host) -> None:
        """Before anything, twice, behind work; and a sink that was closed connects again."""
        sink = host.bench.make()
        sink.close()
        sink.close()
        before = open_descriptors()
        attempt = attempt_of(host, 5)
        assert isinstance(deliver(sink, attempt), Delivered)
        sink.close()
        sink.close()
        assert settles_at(before, self.patience_s), "a descriptor was left open"
        sink.read_row(host.key)
        sink.close()
        self.check_held(host)


def settles_at(most: int, patience_s: float) -> bool:
    """Wait until no more than so many are open: a bench's own proxy may close them a bit later."""
    ends_s, pause = monotonic() + patience_s, threading.Event()
    while open_descriptors() > most and monotonic() < ends_s:
        pause.wait(0.01)
    return open_descriptors() <= most


def open_descriptors() -> int:
    """Return how many files and sockets this process has open."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.exists() else 0
