"""The table of the progress row, case by case; the counts of an adopted row; the words of it."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import printed_table
from wald.core.delivery import Event, Parked
from wald.core.healing import Healing, from_numbers, words
from wald.core.row import (
    ROW_CASES,
    Between,
    LogFinding,
    RowFacts,
    adopted,
    effective_dead_rev,
    judge_row,
)
from wald.model import NO_ANCHOR, NO_REVISION, Anchor, Checkpoint, ProgressRow, Revision

OURS, THEIRS = 11, 12
PREV, OPEN, OPEN_2, OTHER = (bytes([n]) * 16 for n in (1, 2, 3, 9))
AT_5 = Checkpoint(batch_no=5, rev_id=PREV, lsn=50)
AT_0 = Checkpoint(lsn=3)


def row(batch_no, rev_id, owner=OURS):
    return ProgressRow(batch_no, rev_id, 50, NO_ANCHOR, owner, NO_REVISION)


def facts(found, checkpoint=AT_5, lane_owner=OURS, **more):
    return RowFacts(found, checkpoint, (OPEN, OPEN_2), OURS, lane_owner, **more)


GONE = {"log": LogFinding.GONE}
DIFFERS = {"log": LogFinding.DIFFERS}
BEYOND = {"log": LogFinding.BEYOND}
SHORT = {"log_short": True}
BROKEN = {"chain": False}
DECIDED = {"decided": True}
MOVED = {"decided": True, "moved": True}
ASK = {"ask_first": True}

JUDGED = [
    ("directory-moved", facts(None, AT_0, THEIRS), Parked.DIVERGED),
    ("directory-moved", facts(row(5, PREV), AT_5, THEIRS), Parked.DIVERGED),
    ("directory-moved", facts(row(5, PREV), AT_5, THEIRS, **DECIDED), Parked.DIVERGED),
    ("taken-over", facts(row(5, PREV, THEIRS), **DECIDED), None),
    ("taken-over", facts(row(6, OPEN, THEIRS), **DECIDED), None),
    ("taken-over", facts(row(9, OTHER), **DECIDED, **DIFFERS), None),
    ("taken-over", facts(row(9, OTHER), **DECIDED, **BEYOND), None),
    ("taken-over", facts(row(4, OTHER), **DECIDED, **BROKEN), None),
    ("taken-over", facts(row(4, OTHER), **DECIDED, **GONE), None),
    ("other-owner", facts(row(5, PREV, THEIRS)), Parked.DIVERGED),
    ("other-owner", facts(row(6, OPEN, THEIRS)), Parked.DIVERGED),
    ("applied", facts(row(6, OPEN)), None),
    ("applied", facts(row(6, OPEN_2)), None),
    ("applied", facts(row(6, OPEN), **DECIDED), None),
    ("log-short", facts(row(5, PREV), **SHORT), Parked.TARGET_BEHIND),
    ("log-short", facts(None, AT_0, **SHORT), Parked.TARGET_BEHIND),
    ("at-checkpoint", facts(row(5, PREV)), None),
    ("at-checkpoint", facts(row(5, PREV), **GONE), None),
    ("at-checkpoint", facts(row(5, PREV), **SHORT, **DECIDED), None),
    ("at-birth", facts(None, AT_0), None),
    ("at-birth", facts(None, AT_0, **SHORT, **DECIDED), None),
    ("other-anchor", facts(row(4, OTHER), **DIFFERS), Parked.DIVERGED),
    ("other-anchor", facts(row(9, OTHER), **DIFFERS, **BROKEN), Parked.DIVERGED),
    ("beyond-the-log", facts(row(9, OTHER), **BEYOND), Parked.DIVERGED),
    ("broken-chain", facts(row(4, OTHER), **BROKEN), Parked.DIVERGED),
    ("log-gone", facts(row(4, OTHER), **GONE), Parked.TARGET_BEHIND),
    ("log-gone", facts(row(9, OTHER), **GONE), Parked.TARGET_BEHIND),
    ("log-gone", facts(row(4, OTHER), **BROKEN, **GONE), Parked.TARGET_BEHIND),
    ("log-gone", facts(None, **GONE), Parked.TARGET_BEHIND),
    ("ask-first", facts(row(4, OTHER), **ASK), Parked.WENT_BACK),
    ("ask-first", facts(None, **ASK), Parked.WENT_BACK),
    ("row-lost", facts(None), None),
    ("row-lost", facts(None, **ASK, **DECIDED), None),
    ("row-lost", facts(None, **GONE, **DECIDED), None),
    ("row-behind", facts(row(4, OTHER)), None),
    ("row-behind", facts(row(4, OTHER), **ASK, **DECIDED), None),
    ("row-behind", facts(row(4, OTHER), **GONE, **MOVED), None),
    ("row-ahead", facts(row(6, OTHER)), None),
    ("row-ahead", facts(row(6, OPEN), **SHORT), None),
    ("row-ahead", facts(row(7, OPEN), **ASK), None),
    ("row-ahead", facts(row(1, OTHER), AT_0), None),
    ("other-revision", facts(row(5, OTHER), **ASK), None),
]


@pytest.mark.parametrize(("label", "found", "parked"), JUDGED)
def test_the_row_is_judged_by_the_table(label, found, parked):
    case = judge_row(found)
    assert case.label == label
    assert case.parked is parked
    assert (case.event is Event.ROW_STRANGE) == (parked is not None)


def test_every_row_of_the_table_is_tested():
    assert {label for label, *_ in JUDGED} == {case.label for case in ROW_CASES}


ROWS = [
    None,
    *(
        row(number, rev_id, owner)
        for number, rev_id, owner in product((4, 5, 6, 7), (PREV, OPEN, OTHER), (OURS, THEIRS))
    ),
]
EVERYTHING = [
    facts(
        found, checkpoint, owner, log=log, log_short=short, chain=chain, decided=said, moved=moved
    )
    for found, checkpoint, owner, log, short, chain, said, moved in product(
        ROWS, (AT_5, AT_0), (OURS, THEIRS), LogFinding, *[(False, True)] * 4
    )
    if said or not moved
]


def test_a_row_is_adopted_only_where_our_own_log_and_dead_log_tell_what_it_stands_for():
    for found in EVERYTHING:
        if judge_row(found).event is Event.ADOPTED:
            assert found.owner == found.lane_owner
            assert found.row is None or found.row.owner == found.owner
            assert found.log is LogFinding.HOLDS or (found.log is LogFinding.GONE and found.decided)
            assert found.chain


def test_nothing_is_sent_on_where_the_directory_is_another_s_or_the_row_is_and_nobody_decided():
    for found in EVERYTHING:
        foreign = found.row is not None and found.row.owner != found.owner
        if found.owner != found.lane_owner or (foreign and not found.decided):
            assert judge_row(found).parked is Parked.DIVERGED


def test_only_a_known_revision_counts_as_applied_and_only_the_previous_one_as_ours():
    for found in EVERYTHING:
        event = judge_row(found).event
        n = found.checkpoint.batch_no
        if event is Event.ROW_APPLIED:
            assert found.row is not None
            assert (found.row.batch_no, found.row.rev_id) == (n + 1, OPEN)
        if event is Event.ROW_FITS and found.row is not None:
            assert (found.row.batch_no, found.row.rev_id) == (n, found.checkpoint.rev_id)


def test_dead_rev_moves_only_with_an_exclusion_or_a_redrive():
    assert effective_dead_rev(AT_5, Revision(OPEN, 60)) == AT_5.dead_rev
    assert effective_dead_rev(AT_5, Revision(OPEN, 60, (51,))) == OPEN
    assert effective_dead_rev(AT_5, Revision(OPEN, 50, redriven=(7,))) == OPEN


# --- the counts ---------------------------------------------------------------------------------

BEFORE = Checkpoint(9, PREV, 90, Anchor(1, 2), OTHER, 70, 12, 5, 3)  # 85 accepted up to 90


def at(lsn, **more):
    return Checkpoint(4, OPEN, lsn, Anchor(3, 4), PREV, **more)


@pytest.mark.parametrize(
    ("where", "between", "dead", "delivered"),
    [
        (at(40), Between(50), 4, 31),  # behind: 85 - 50 accepted, 4 of them dead
        (at(40, purged=2), Between(50), 4, 29),
        (at(90), Between(), 13, 72),  # a redrive was undone: one more is dead
        (at(140), Between(50), 12, 123),  # ahead
        (at(140), Between(accepted=200), 12, 188),  # ahead, and the log's counts say it
        (at(10), Between(99), 0, 0),  # a count that cannot be right is none below zero
    ],
)
def test_what_is_not_dead_up_to_the_row_is_delivered(where, between, dead, delivered):
    after = adopted(BEFORE, where, between, dead)
    assert (after.delivered, after.dead_letters, after.purged) == (delivered, dead, where.purged)
    assert replace(after, delivered=0, dead_letters=0, superseded=0) == replace(where, superseded=0)


def test_no_more_are_superseded_than_delivered():
    assert adopted(BEFORE, at(40, superseded=99), Between(50), 4).superseded == 31
    assert adopted(BEFORE, at(40, superseded=2), Between(50), 4).superseded == 2


# --- the words ----------------------------------------------------------------------------------


def clock(time_ns):
    return f"{time_ns // 3600:02}:{time_ns // 60 % 60:02}:{time_ns % 60:02}"


def test_status_says_in_words_that_a_target_went_back_and_when_all_was_sent_again():
    began = Healing(3 * 3600 + 12 * 60 + 9, 81_204, 81_377, 500, 41_022, 10)
    under_way = began.at(400, 1_010, 7)
    assert words(under_way.said(), clock) == (
        "target went back in time at 03:12:09: it held batch 81,204, we had delivered up to "
        "batch 81,377. "
        "Redelivered 1,000 records of 41,022"
    )
    done = under_way.at(500, 99_999, 3 * 3600 + 12 * 60 + 31)
    assert words(done.said(), clock) == (
        "target went back in time at 03:12:09: it held batch 81,204, we had delivered up to "
        "batch 81,377. "
        "Redelivered 41,022 records, done 03:12:31"
    )
    assert done.at(600, 0, 99) == done


def test_status_says_in_words_that_the_target_held_nothing_or_that_our_ledger_was_older():
    assert "it held nothing of the route" in words(Healing(0, 0, 7).said(), clock)
    assert words(Healing(60, 9, 7).said(), clock) == (
        "ledger was older than the target at 00:01:00: batch 9 had been delivered, we knew of "
        "batch 7. Nothing that is known to be delivered is sent again"
    )


def test_status_says_in_words_that_a_person_took_the_route_over():
    said = Healing(60, 9, 7, taken_over=1).said()
    assert said["taken_over"] is True
    assert words(said, clock) == "taken over at 00:01:00: this directory goes on behind batch 9"
    went_back = Healing(60, 7, 9, taken_over=1).said()
    assert words(went_back, clock).startswith("target went back in time at 00:01:00")
    for held in (7, 9):
        said = Healing(60, held, 9, taken_over=1, unsure_through=41_022).said()
        assert f"goes on behind batch {held}. What was delivered up to" in words(said, clock)
        assert "up to LSN 41022 may be missing at the target" in words(said, clock)


@given(st.lists(st.integers(0, 1 << 62), min_size=3, max_size=9))
def test_a_note_is_read_back_from_its_numbers(numbers):
    note = from_numbers(numbers)
    assert note is not None
    assert from_numbers(note.numbers()) == note


@pytest.mark.parametrize("said", [None, [], [1, 2], "123", [1, 2, "3"], [0] * 11, 7])
def test_what_is_no_note_is_none(said):
    assert from_numbers(said) is None


# --- the document -------------------------------------------------------------------------------

FOLLOWS = {
    Event.ROW_FITS: "go on",
    Event.ROW_APPLIED: "finish the open batch (T5)",
    Event.ADOPTED: "ADOPT (T12)",
    Event.TAKE_OVER: "move the row to us, and look again",
}


def test_the_document_prints_the_table_of_the_row():
    assert printed_table("The progress row") == [
        (
            f"`{case.label}`",
            case.when,
            f"park `{case.parked.value}`" if case.parked else FOLLOWS[case.event],
        )
        for case in ROW_CASES
    ]
