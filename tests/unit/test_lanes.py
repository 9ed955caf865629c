"""Lanes: which records are whose, for ever; how their number changes; places at work."""

import random
from dataclasses import replace

import pytest

from tests.documents import printed_table
from wald.core.lanes import (
    LANE_CHANGES,
    WHOLE,
    WORST_FIRST,
    Change,
    Layout,
    Outage,
    Share,
    badness,
    changed,
    decide,
    lane_of,
    named_sink,
    told_sink,
    wanted_sink,
)
from wald.drainer.crew import Crew
from wald.errors import LedgerFailed
from wald.model import (
    NO_REVISION,
    Checkpoint,
    FinishedBatch,
    LaneKey,
    Manifest,
    Revision,
    RouteBirth,
)
from wald.storage.layouts import Layouts
from wald.storage.orders import ALL_ROUTES, Drop, Orders
from wald.testing.memory_ledger import MemoryLedger

LOG_ID = bytes(16)
BIRTH = RouteBirth(5, "r", 1, "s", "sink", 10, 77)


# --- whose a record is: format, never to be changed ---------------------------------------------


@pytest.mark.parametrize(
    ("key", "lsn", "lanes", "lane"),
    [
        ("ann", 1, 4, 0),
        (b"ann", 999, 4, 0),
        ("zoe", 1, 64, 48),
        ("b-77", 1, 7, 1),
        ("", 1, 4, 0),
        ("\N{SNOWMAN}", 1, 8, 5),
        (b"\x00\xff", 1, 5, 2),
        (None, 9, 4, 1),
        (None, 2**62 + 3, 4, 3),
        ("anything", 17, 1, 0),
    ],
)
def test_the_lane_of_a_record_is_part_of_the_format(key, lsn, lanes, lane):
    assert lane_of(key, lsn, lanes) == lane


def test_text_and_the_same_bytes_are_the_same_key():
    for word in ("a", "schlüssel", "\N{SNOWMAN}" * 9):
        assert lane_of(word, 1, 13) == lane_of(word.encode(), 2, 13)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 64])
def test_every_record_is_in_exactly_one_share(lanes):
    chance = random.Random(lanes)
    keys = [chance.choice([None, "", f"k{n % 40}", b"b%d" % (n % 9)]) for n in range(500)]
    for first, column in ((1, keys), (2**40 + 3, keys), (7, None)):
        picked = [
            (index, lane)
            for lane in range(lanes)
            for index in Share(lanes, lane).picks(first, len(keys), column)
        ]
        expected = column or [None] * len(keys)
        assert sorted(picked) == [
            (index, lane_of(key, first + index, lanes)) for index, key in enumerate(expected)
        ]


def test_records_without_a_key_are_spread_evenly_and_keys_nearly():
    for lanes in (2, 4, 16):
        shares = [Share(lanes, lane).picks(5, 1600, None) for lane in range(lanes)]
        assert {len(share) for share in shares} == {1600 // lanes}
        keys = [f"customer-{number}" for number in range(16_000)]
        counts = [len(Share(lanes, lane).picks(1, len(keys), keys)) for lane in range(lanes)]
        assert max(counts) < 1.25 * len(keys) / lanes


def test_the_only_lane_has_everything_and_the_first_tells_of_losses():
    assert WHOLE.is_whole
    assert [Share(3, lane).tells_losses for lane in range(3)] == [True, False, False]


# --- the change of a layout ---------------------------------------------------------------------

STEADY = Layout(2, 4, 100)
CHANGING = Layout(2, 4, 100, 8, 500)


@pytest.mark.parametrize(
    ("label", "layout", "wanted", "after"),
    [
        ("called-off", CHANGING, 4, STEADY),
        ("goes-on", CHANGING, 8, CHANGING),
        ("retargeted", CHANGING, 2, replace(CHANGING, next_lanes=2)),
        ("fits", STEADY, 4, STEADY),
        ("begun", STEADY, 1, Layout(2, 4, 100, 1, 700)),
    ],
)
def test_each_row_of_the_table_of_lane_changes(label, layout, wanted, after):
    assert decide(layout, wanted).label == label
    assert changed(layout, wanted, 700) == after


def test_every_kind_of_change_has_a_row_and_a_layout_is_followed_by_the_next():
    assert {case.change for case in LANE_CHANGES} == set(Change)
    assert CHANGING.following() == Layout(3, 8, 500)
    assert STEADY.share(1) == Share(4, 1, None)
    assert CHANGING.share(1) == Share(4, 1, 500)


def test_a_route_is_as_good_as_its_worst_lane():
    assert sorted(WORST_FIRST, key=badness, reverse=True) == list(WORST_FIRST)
    assert badness("never heard of") == 0


# --- in the ledger (T9) -------------------------------------------------------------------------


def ledger():
    opened = MemoryLedger(LOG_ID)
    opened.birth(BIRTH)
    return opened


def key(layout, lane):
    return LaneKey(LOG_ID, BIRTH.route_id, layout, lane)


def move(opened, layout, lane, lsn):
    held = opened.lane(key(layout, lane)).checkpoint
    assert opened.advance(key(layout, lane), held, replace(held, lsn=lsn))


def seal(opened, layout, lane, hi):
    held = opened.lane(key(layout, lane)).checkpoint
    revision = Revision(b"r" * 16, hi)
    manifest = Manifest(held.batch_no + 1, held.lsn + 1, NO_REVISION, 1, (revision,), 1, 0)
    assert opened.seal(key(layout, lane), manifest)


def test_a_new_route_has_its_lanes_at_once_each_from_its_birth():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    assert layouts.of(5) is None
    assert layouts.settle(BIRTH, 3, 400) == Layout(0, 3, 10)
    assert layouts.settle(BIRTH, 3, 999) == layouts.of(5) == Layout(0, 3, 10)
    held = opened.lanes(5)
    assert list(held) == [key(0, lane) for lane in range(3)]
    assert {each.checkpoint.lsn for each in held.values()} == {10}


def test_a_route_of_before_has_one_lane_and_changes_behind_what_was_ever_sealed():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    seal(opened, 0, 0, 450)
    changing = layouts.settle(BIRTH, 4, 400)
    assert changing == Layout(0, 1, 10, 4, 450)
    assert layouts.switch(5, changing) == changing, "a batch is open"


def test_the_switch_waits_for_every_lane_and_happens_once():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    layouts.settle(BIRTH, 2, 0)
    move(opened, 0, 0, 300)
    changing = layouts.settle(BIRTH, 3, 400)
    assert changing == Layout(0, 2, 10, 3, 400)
    move(opened, 0, 0, 400)
    assert layouts.switch(5, changing) == changing
    move(opened, 0, 1, 400)
    assert layouts.switch(5, changing) == Layout(1, 3, 400)
    assert layouts.former(5) == [Layout(0, 2, 10)]
    assert opened.lane(key(1, 2)).checkpoint == Checkpoint(lsn=400)
    assert opened.lane(key(0, 1)).checkpoint.lsn == 400, "its chain stays"
    with pytest.raises(LedgerFailed):
        layouts.switch(5, replace(changing, barrier=399))


def test_a_change_that_is_called_off_leaves_the_lanes_as_they_were():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    seal(opened, 0, 0, 20)
    layouts.settle(BIRTH, 4, 100)
    assert layouts.settle(BIRTH, 1, 900) == Layout(0, 1, 10)
    assert layouts.former(5) == []


# --- what people say ----------------------------------------------------------------------------


def test_a_pause_is_remembered_since_when_it_began():
    orders = Orders(ledger().store)
    assert orders.pause(5, 100) == 100
    assert orders.pause(5, 200) == 100
    assert orders.pause(ALL_ROUTES, 300) == 300
    assert orders.paused() == {0: 300, 5: 100}
    assert orders.resume(5)
    assert not orders.resume(5)
    assert orders.paused() == {0: 300}


def test_a_drop_is_remembered_as_it_was_first_said_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr("wald.limits.DROPS_KEPT_MAX", 3)
    orders = Orders(ledger().store)
    for number in range(1, 6):
        orders.drop(number, Drop(f"r{number}", number, 10 * number))
    assert orders.drop(5, Drop("other", 99, 1)) == Drop("r5", 5, 50)
    assert sorted(orders.dropped()) == [3, 4, 5]


# --- places -------------------------------------------------------------------------------------


def test_places_are_taken_in_turn_and_given_back():
    woken = []
    crew = Crew(lambda: woken.append(1), places=1)
    assert crew.enter("a")
    assert crew.enter("a"), "who has one keeps it"
    assert not crew.enter("b")
    assert not crew.enter("c")
    crew.leave("a")
    assert woken == [1]
    assert not crew.enter("c"), "b asked before"
    assert crew.enter("b")
    crew.leave("b")
    assert crew.enter("c")
    crew.leave("c")
    crew.leave("c")
    assert len(woken) == 2, "nobody waits any more"


def test_who_stops_waiting_is_in_nobody_s_way():
    crew = Crew(places=1)
    assert crew.enter("a")
    assert not crew.enter("b")
    assert not crew.enter("c")
    crew.leave("b")
    crew.leave("a")
    assert crew.enter("c")


def test_more_places_wake_who_waits_and_fewer_take_none_away():
    woken = []
    crew = Crew(lambda: woken.append(1), places=1)
    crew.enter("a")
    crew.enter("b")
    crew.resize(2)
    assert woken == [1]
    assert crew.enter("b")
    crew.resize(1)
    assert crew.enter("a")
    assert crew.enter("b")
    crew.leave("a")
    assert not crew.enter("a")


def test_a_pause_wakes_once_when_it_begins_and_once_when_it_ends():
    woken = []
    crew = Crew(lambda: woken.append(1))
    crew.hold(None)
    assert woken == []
    seen = []
    for since_ns in (7, 7, None):
        crew.hold(since_ns)
        seen.append(crew.paused_ns)
    assert seen == [7, 7, None]
    assert len(woken) == 2


# --- a ledger that does not know of a change any more ------------------------------------------

TOLD = [Layout(0, 1, 10), Layout(1, 4, 300), Layout(2, 2, 500)]


def test_a_new_ledger_learns_the_layouts_that_were_told():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    assert layouts.settle(BIRTH, 2, 900, TOLD) == TOLD[-1]
    assert layouts.former(5) == TOLD[:2]
    assert {at: each.checkpoint.lsn for at, each in opened.lanes(5).items()} == {
        key(each.number, lane): each.since for each in TOLD for lane in range(each.lanes)
    }


def test_an_older_ledger_keeps_what_it_knows_and_changes_on_from_the_newest_layout():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    move(opened, 0, 0, 250)
    layouts.settle(BIRTH, 1, 250)
    assert layouts.settle(BIRTH, 3, 900, TOLD) == Layout(2, 2, 500, 3, 900)
    assert layouts.former(5) == TOLD[:2]
    assert opened.lane(key(0, 0)).checkpoint.lsn == 250


def test_a_route_of_before_a_ledger_was_lost_had_one_lane_and_changes_behind_all_that_was_sealed():
    layouts = Layouts(ledger().store, LOG_ID)
    assert layouts.settle(BIRTH, 3, 20, sealed_through=400) == Layout(0, 1, 10, 3, 400)
    assert layouts.settle(BIRTH, 3, 20, sealed_through=700) == Layout(0, 1, 10, 3, 700)
    assert layouts.settle(BIRTH, 2, 900, sealed_through=700) == Layout(0, 1, 10, 2, 700)
    assert layouts.settle(BIRTH, 1, 900, sealed_through=700) == Layout(0, 1, 10)


def test_a_route_that_was_born_since_gets_its_lanes_at_once():
    layouts = Layouts(ledger().store, LOG_ID)
    assert layouts.settle(BIRTH, 3, 400, sealed_through=10) == Layout(0, 3, 10)


def test_a_ledger_that_knows_more_than_was_told_is_believed():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    layouts.settle(BIRTH, 2, 900, TOLD)
    assert layouts.settle(BIRTH, 2, 900, TOLD[:2]) == TOLD[-1]


def test_a_switch_that_was_not_told_of_is_found_again():
    opened = ledger()
    layouts = Layouts(opened.store, LOG_ID)
    seal(opened, 0, 0, 20)
    changing = layouts.settle(BIRTH, 2, 10)
    assert opened.finish(
        key(0, 0),
        b"r" * 16,
        Checkpoint(1, b"r" * 16, 20),
        FinishedBatch(1, b"r" * 16, 11, 20, 1, 0, 1, 0, 0),
    )
    after = layouts.switch(5, changing)
    assert after == changing.following()
    assert layouts.switch(5, changing) == after


# --- the documents ------------------------------------------------------------------------------


def test_the_document_prints_the_table_of_lane_changes():
    assert printed_table("Lanes") == [
        (f"`{case.label}`", case.when, case.done) for case in LANE_CHANGES
    ]


# --- the fallback -------------------------------------------------------------------------------

OWN, SPARE = Layout(3, 2, 100), Layout(4, 2, 200, sink="spare")


def test_a_fallback_is_told_by_a_mark_that_only_its_own_name_makes():
    marks = {told_sink(name) for name in ("spare", "other", "third")}
    assert len(marks) == 3
    assert not marks & {"*1", ""}
    told = told_sink("spare")
    assert named_sink(told, ["other", "spare"], "other") == "spare"
    assert named_sink(told, ["other"], "other") == told
    assert named_sink("*1", ["other"], "other") == "other"  # as an older release told it
    assert named_sink("*1", ["other"], None) == "*1"


DOWN_LONG, DOWN_SHORT = Outage(down_s=600.0), Outage(down_s=599.9)
WELL_LONG, WELL_SHORT = Outage(well_s=10.0), Outage(well_s=9.9)


@pytest.mark.parametrize(
    ("layout", "fallback", "own", "wanted"),
    [
        (OWN, None, DOWN_LONG, ""),
        (OWN, "spare", DOWN_SHORT, ""),
        (OWN, "spare", DOWN_LONG, "spare"),
        (OWN, "spare", WELL_LONG, ""),
        (SPARE, "spare", DOWN_LONG, "spare"),
        (SPARE, "spare", WELL_SHORT, "spare"),
        (SPARE, "spare", WELL_LONG, ""),
        (SPARE, "another", DOWN_LONG, "spare"),
        (SPARE, None, DOWN_LONG, ""),
    ],
)
def test_where_the_lanes_deliver(
    layout: Layout, fallback: str | None, own: Outage, wanted: str
) -> None:
    assert wanted_sink(layout, fallback, own, after_s=600.0, back_s=10.0) == wanted


def test_a_turn_begins_behind_all_that_was_sealed_and_drops_a_change_of_lanes() -> None:
    changing = Layout(3, 2, 100, next_lanes=4, barrier=150)
    assert changing.turned("spare", 140) == Layout(4, 2, 140, sink="spare")
    assert SPARE.turned("", 260) == Layout(5, 2, 260)
