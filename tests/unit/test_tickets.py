"""Works of several threads in one transaction: each gets its own answer."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from wald import limits
from wald.config import Settings
from wald.drainer.audit_desk import AuditDesk
from wald.drainer.burying import Grounds, Undertaker
from wald.drainer.lane_figures import LaneFigures, Shown
from wald.errors import DiskFull, LedgerFailed
from wald.storage.lmdb_store import LmdbStore, _open
from wald.storage.tickets import Ticket, Tickets
from wald.testing import ManualClock


class Book:
    """Transactions over a dict: what raises inside, or in the commit, changes nothing."""

    def __init__(self):
        self.rows = {}
        self.commits = 0
        self.fails = []

    def write(self, work):
        rows = dict(self.rows)
        result = work(rows)
        if self.fails:
            raise self.fails.pop()
        self.rows = rows
        self.commits += 1
        return result


@pytest.fixture
def book():
    return Book()


def putting(key):
    def work(rows):
        rows[key] = len(rows)
        return key

    return work


def raising(rows):
    rows["half"] = 1
    int("no")


def test_what_waits_goes_into_one_transaction_in_order(book):
    tickets = Tickets(book.write)
    waiting = [tickets.put(putting(key)) for key in "abc"]
    assert not any(ticket.took for ticket in waiting)
    tickets.commit()
    assert [ticket.wait() for ticket in waiting] == ["a", "b", "c"]
    assert book.rows == {"a": 0, "b": 1, "c": 2}
    assert book.commits == 1
    assert all(ticket.took for ticket in waiting)


def test_a_ticket_is_waited_for_no_longer_than_told(book):
    tickets = Tickets(book.write)
    ticket = tickets.put(putting("a"))
    assert not ticket.is_settled_within(0.0)
    tickets.commit()
    assert ticket.is_settled_within(0.0)


def test_one_that_raises_costs_the_others_nothing(book):
    tickets = Tickets(book.write)
    before, bad, behind = tickets.put(putting("a")), tickets.put(raising), tickets.put(putting("b"))
    tickets.commit()
    assert (before.wait(), behind.wait()) == ("a", "b")
    assert book.rows == {"a": 0, "b": 1}
    with pytest.raises(ValueError, match="no"):
        bad.wait()
    assert not bad.took


def test_a_commit_that_fails_fails_for_all_and_is_not_repeated(book):
    tickets = Tickets(book.write)
    waiting = [tickets.put(putting(key)) for key in "ab"]
    book.fails = [DiskFull("no room", retry_after_s=1.0)]
    tickets.commit()
    for ticket in waiting:
        with pytest.raises(DiskFull):
            ticket.wait()
        assert not ticket.took
    assert (book.rows, book.commits) == ({}, 0)


def test_the_end_of_the_process_leaves_nobody_waiting(book):
    tickets = Tickets(book.write)
    ticket = tickets.put(putting("a"))
    book.fails = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        tickets.commit()
    with pytest.raises(KeyboardInterrupt):
        ticket.wait()


def test_the_end_of_the_process_in_the_middle_leaves_nobody_waiting_either(book):
    tickets = Tickets(book.write)

    def ends(rows):
        raise KeyboardInterrupt

    waiting = [tickets.put(work) for work in (putting("a"), raising, ends, putting("b"))]
    with pytest.raises(KeyboardInterrupt):
        tickets.commit()
    assert waiting[0].wait() == "a"
    for ticket in waiting[2:]:
        with pytest.raises(KeyboardInterrupt):
            ticket.wait()


# --- over LMDB ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    (tmp_path / "ledger").mkdir()
    store = LmdbStore(_open(str(tmp_path / "ledger"), limits.MIB))
    yield store
    store.close()


def test_what_is_written_later_is_there_once_it_took(store):
    ticket = store.write_later(lambda txn: txn.put("meta", b"a", b"1"))
    ticket.wait()
    assert ticket.took
    assert store.read(lambda txn: txn.get("meta", b"a")) == b"1"


def no_thread(_: threading.Thread) -> None:
    msg = "can't start new thread"
    raise RuntimeError(msg)


def test_where_the_system_gives_no_thread_nothing_waits_for_ever(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        first = store.write_later(lambda txn: txn.put("meta", b"a", b"1"))
        assert first.is_settled_within(60)
    second = store.write_later(lambda txn: txn.put("meta", b"b", b"2"))
    assert second.is_settled_within(60)
    assert store.read(lambda txn: txn.get("meta", b"a")) == b"1"


def test_a_round_or_an_audit_without_a_thread_is_begun_later(monkeypatch):
    clock: Any = ManualClock()
    nothing: Any = SimpleNamespace(clock=clock, ledger=SimpleNamespace(store=None))
    undertaker = Undertaker(nothing)
    desk = AuditDesk(Settings("/d", "/s"), nothing, list, lambda: None)
    monkeypatch.setattr(limits, "DEAD_LOOK_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        undertaker.look(lambda: Grounds({}))
        undertaker.close()
        with pytest.raises(RuntimeError):
            desk.operations["drain.audit"]({})
    assert desk.operations["drain.audit"]({})["number"] == 1
    desk.close()


def test_what_was_begun_before_comes_first(store):
    def write(number):
        return lambda txn: txn.put("meta", b"last", b"%d" % number)

    tickets = [store.write_later(write(number)) for number in range(20)]
    store.write(write(20))
    assert all(ticket.took for ticket in tickets)
    assert store.read(lambda txn: txn.get("meta", b"last")) == b"20"


def test_many_threads_share_transactions_and_each_is_answered(store):
    inside, go = threading.Event(), threading.Event()

    def hold(txn):
        inside.set()
        go.wait(60)

    first = threading.Thread(target=lambda: store.write(hold))
    first.start()
    assert inside.wait(60)
    answers = {}

    def write(number):
        key = b"%d" % number
        answers[number] = store.write(lambda txn: (txn.put("meta", key, key), number)[1])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while len(store._tickets._waiting) < len(threads):
        inside.wait(0.001)
    before = store._environment.info()["last_txnid"]
    go.set()
    for thread in [first, *threads]:
        thread.join(60)
    assert answers == {number: number for number in range(8)}
    assert store._environment.info()["last_txnid"] <= before + 2


def test_a_store_that_is_closed_writes_what_waits_and_then_refuses(store):
    ticket = store.write_later(lambda txn: txn.put("meta", b"a", b"1"))
    store.close()
    assert ticket.took
    with pytest.raises(LedgerFailed):
        store.write_later(lambda txn: txn.put("meta", b"b", b"1")).wait()


def test_what_is_shown_never_goes_back_while_each_step_follows_the_one_before():
    took, shown = True, Shown()
    tickets = [Ticket(lambda _: took) for _ in range(3)]
    shown.put(LaneFigures(delivered=0))
    seen = []
    for number, ticket in enumerate(tickets, 1):
        shown.put(LaneFigures(delivered=number), once=ticket)
        seen.append(shown.now.delivered)  # the step is on its way
        ticket.settle(took)
        seen.append(shown.now.delivered)
    assert seen == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(("took", "state"), [(True, "delivering"), (False, "idle")])
def test_what_the_ledger_refused_is_not_shown(took, state):
    shown, ticket = Shown(), Ticket(lambda _: took)
    shown.put(LaneFigures("idle"))
    shown.put(LaneFigures("delivering"), once=ticket)
    assert shown.now.state == "idle"
    ticket.settle(took)
    assert shown.now.state == state
