"""The lines of the contract about effects: once, whatever dies, is lost, or comes late."""

from dataclasses import replace

import pytest

from wald.errors import LedgerFailed
from wald.model import (
    NO_REVISION,
    Attempt,
    Delivered,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    ReplayClass,
    RowMoved,
    SystemicKind,
)
from wald.ports import Sink
from wald.testing.sink_contract.host import STREAM, Host, numbers
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.promises import HOLDS, Line

_TIME_NS = 1_763_806_443_120_456_789


def attempt_of(host: Host, count: int, *, number: int = 1, prev: bytes = NO_REVISION) -> Attempt:
    """Append some records, and return the attempt that delivers them as batch ``number``."""
    lsns = host.append(count)
    sent = host.sent[-count:]
    records = [
        Record(lsn, _TIME_NS, 1, host.packed(each.value), key=each.key)  # type: ignore[arg-type]
        for lsn, each in zip(lsns, sent, strict=True)
    ]
    # the true one: where it lands after all, the lane goes on from there
    anchor = host.lane.route.find_anchor(lsns[-1], host.log.frontier)
    assert anchor is not None
    row = ProgressRow(number, _revision(number), lsns[-1], anchor, host.owner, NO_REVISION)
    return Attempt(host.key, STREAM, prev, row, records, timeout_s=30.0)


def _revision(number: int) -> bytes:
    return number.to_bytes(16, "big")


def deliver(sink: Sink, attempt: Attempt) -> Outcome:
    """Deliver as a lane does: what a sink freezes is encoded first."""
    if sink.capabilities.freezes and attempt.body is None:
        attempt = replace(attempt, body=sink.encode(attempt))  # type: ignore[attr-defined]
    return sink.deliver(attempt)


class OnceLines(Lines):
    """Once."""

    def test_the_same_batch_twice_has_one_effect(self, host: Host) -> None:
        """By the sink that sent it, and by another one, as behind a restart."""
        attempt = attempt_of(host, 20)
        first, second = host.bench.make(), host.bench.make()
        try:
            assert isinstance(deliver(first, attempt), Delivered)
            for sink in (first, second):
                outcome = deliver(sink, attempt)
                if sink.capabilities.replay is ReplayClass.TRANSACTIONAL:
                    assert outcome == RowMoved(attempt.row), "the row tells what was applied"
                else:
                    assert isinstance(outcome, Delivered)
        finally:
            first.close()
            second.close()
        self.check_held(host, Line.TWICE)

    def test_a_batch_whose_answer_was_lost_has_one_effect(self, host: Host) -> None:
        """The target took it, and nobody was told; three times over several batches."""
        for _ in range(3):
            host.append(15)
            host.lost_answers = 1
            host.through()
        self.check_held(host, Line.LOST_ANSWER)

    def test_an_attempt_that_arrives_late_has_no_effect(self, host: Host) -> None:
        """It was given up and repeated; then it comes after all, and later batches go on."""
        host.append(15)
        host.late_attempts = 1
        host.through()
        host.land()
        host.append(5)
        host.through()
        self.check_held(host, Line.LATE)

    def test_a_new_process_goes_on_where_the_last_one_ended(self, host: Host) -> None:
        """The drainer is begun anew between batches, behind lost answers too."""
        for _ in range(3):
            host.append(10)
            host.through()
            host.restart()
            host.append(10)
            host.lost_answers = 1
            host.run(lambda: not host.lost_answers)
            host.restart()
        host.through()
        self.check_held(host, Line.LOST_ANSWER)

    def test_two_hosts_feed_one_place(self, host: Host, other: Host) -> None:
        """Their logs have other ids and the same LSNs; neither sees the other.

        Where a place has one owner, the second one is told so, and changes nothing.
        """
        if host.bench.one_owner:
            host.append(10)
            host.through()
            other.append(10)
            if host.replay is ReplayClass.TRANSACTIONAL:
                assert other.parked() == "diverged"
            else:  # nothing asks such a target whose it is before an attempt
                assert self.trouble_told(other).kind is SystemicKind.OWNED
            assert not other.dead
            host.append(10)
            host.through()
            self.check_held(host)
            return
        for _ in range(3):
            for each in (host, other):
                each.append(10)
                each.through()
        assert host.log.log_id != other.log.log_id
        assert {each.lsn for each in host.sent} & {each.lsn for each in other.sent}
        self.check_held(host)
        self.check_held(other)

    def test_a_clone_is_parked_as_diverged(self, host: Host) -> None:
        """The same log id, another owner: a copy of the data directory beside the original."""
        self.promised(host, Line.CLONE)
        host.append(10)
        host.through()
        original, host.owner = host.owner, host.owner + 1
        host.forget_ledger()
        host.append(10)
        assert host.parked() == "diverged"
        assert numbers(host.bench.held()) == numbers(host.sent[:10])
        host.owner = original
        host.forget_ledger()
        host.through()
        self.check_held(host)

    def test_a_target_that_was_restored_gets_the_rest_again(self, host: Host) -> None:
        """It went back in time behind the lane's back; the lane finds out by itself."""
        host.bench.need("backup")
        self.promised(host, Line.RESTORED)
        host.append(10)
        host.through()
        backup = host.bench.backup()
        host.append(25)
        host.through()
        host.bench.restore(backup)
        assert numbers(host.bench.held()) == numbers(host.sent[:10])
        host.run(lambda: numbers(host.bench.held()) == numbers(host.sent))
        host.append(5)
        host.through()
        self.check_held(host)

    def test_a_gap_and_a_second_writer_are_detected(self, host: Host) -> None:
        """Neither a batch that skips one nor one of another owner moves the row, or anything."""
        self.promised(host, Line.GAP)
        first = attempt_of(host, 5)
        skips = attempt_of(host, 5, number=3, prev=_revision(2))
        strange = replace(skips, row=replace(skips.row, batch_no=2), prev_rev=_revision(5))
        other = replace(
            skips, row=replace(skips.row, batch_no=2, owner=3), prev_rev=first.row.rev_id
        )
        sink = host.bench.make()
        try:
            assert deliver(sink, skips) == RowMoved(None)
            assert isinstance(deliver(sink, first), Delivered)
            for attempt in (skips, strange, other):
                assert deliver(sink, attempt) == RowMoved(first.row)
            assert sink.read_row(host.key) == first.row
        finally:
            sink.close()
        del host.sent[5:]
        self.check_held(host)

    def test_nothing_takes_effect_before_its_batch_is_sealed(self, host: Host) -> None:
        """The ledger refuses it at the last moment: nothing is there, and the next attempt goes."""
        sink, attempt, sealed = host.bench.make(), attempt_of(host, 20), list[int]()

        def refuse() -> None:
            msg = "the contract: the batch cannot be sealed"
            raise LedgerFailed(msg)

        try:
            if not sink.capabilities.awaits_seal:
                pytest.skip("the sink is only called behind the seal (Capabilities.awaits_seal)")
            with pytest.raises(LedgerFailed):
                deliver(sink, replace(attempt, await_seal=refuse))
            assert sink.read_row(host.key) is None
            assert not host.bench.held()
            waited = replace(attempt, await_seal=lambda: sealed.append(1))
            assert isinstance(deliver(sink, waited), Delivered)
            assert sealed == [1]
        finally:
            sink.close()
        self.check_held(host)

    def test_lanes_and_logs_have_rows_of_their_own(self, host: Host) -> None:
        """A row is found again by its own key, and by no other."""
        attempt = attempt_of(host, 5)
        sink = host.bench.make()
        if sink.capabilities.replay is not ReplayClass.TRANSACTIONAL:
            assert sink.read_row(host.key) is None, "of another class nothing is remembered"
            sink.close()
            return
        key = host.key
        others = (
            LaneKey(bytes(16), key.route_id, key.layout, key.lane),
            key._replace(route_id=9),
            key._replace(layout=1),
            key._replace(lane=1),
        )
        try:
            assert sink.read_row(key) is None
            assert isinstance(deliver(sink, attempt), Delivered)
            assert sink.read_row(key) == attempt.row
            found = [sink.read_row(each) for each in others]
            if host.bench.one_owner:
                strange, found = found[:2], found[2:]
                assert [getattr(each, "kind", None) for each in strange] == [SystemicKind.OWNED] * 2
            assert found == [None] * len(found)
        finally:
            sink.close()

    def promised(self, host: Host, line: Line) -> None:
        """Skip a line that the class does not promise, with what is true instead."""
        self.stated(host.replay, line, only=HOLDS)
