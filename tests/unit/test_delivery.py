"""The tables of delivery row by row; retry, reject guard, the search for refused records."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import printed_table
from wald import limits
from wald.core import delivery, manifests
from wald.core.delivery import (
    LIFE_OF_A_BATCH,
    Event,
    RejectGuard,
    Step,
    find_refused,
)
from wald.model import (
    Checkpoint,
    LaneProgress,
    LostRange,
    Manifest,
    Record,
    Rejected,
    RejectedRecord,
    Revision,
)

PREV, OPEN, OPEN_2, OTHER = (bytes([n]) * 16 for n in (1, 2, 3, 9))
AT_5 = Checkpoint(batch_no=5, rev_id=PREV, lsn=50)
AT_0 = Checkpoint(lsn=3)


# --- the life of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("transition", LIFE_OF_A_BATCH, ids=lambda item: item.label)
def test_the_life_of_a_batch_follows_the_table(transition):
    assert delivery.after(transition.step, transition.event) is transition


def test_labels_are_used_once():
    labels = [transition.label for transition in LIFE_OF_A_BATCH]
    assert len(set(labels)) == len(labels)


def test_no_attempt_is_made_before_something_durable_counts_it():
    into = [item for item in LIFE_OF_A_BATCH if item.then is Step.SENDING]
    assert {item.durable for item in into} == {"T2", "T4", "dead log, T3"}


def test_a_systemic_error_never_leads_to_a_dead_letter():
    for step in (Step.CHECKING, Step.SENDING, Step.SEARCHING):
        assert delivery.after(step, Event.SYSTEMIC).then is Step.WAITING


def test_a_batch_that_nobody_may_send_again_is_held_durably_before_it_is_parked():
    rows = [item for item in LIFE_OF_A_BATCH if item.event is Event.UNCERTAIN]
    assert {(item.step, item.durable) for item in rows} == {
        (Step.CHECKING, "-"),  # it was held before
        (Step.COLLECTING, "T11"),
        (Step.SENDING, "T11"),
    }
    assert {item.then for item in rows} == {Step.PARKED}


@pytest.mark.parametrize(
    ("excluded", "rest"),
    [
        ((), [(10, 14)]),
        ((9, 15), [(10, 14)]),
        ((10,), [(11, 14)]),
        ((14, 12), [(10, 11), (13, 13)]),
        (range(10, 15), []),
    ],
)
def test_what_was_set_aside_before_it_was_lost_is_not_lost(excluded, rest):
    found = delivery.without([LostRange(10, 14, 1, 4096, "why")], excluded)
    assert found == [LostRange(first, last, 1, 4096, "why") for first, last in rest]


def test_a_known_count_of_a_lost_range_is_less_what_was_set_aside():
    found = delivery.without([LostRange(10, 14, 1, 4096, "why", 4)], (11, 13))
    assert [item.records for item in found] == [2, 0, 0]


# --- the documents ------------------------------------------------------------------------------


def test_the_document_prints_the_life_of_a_batch():
    assert printed_table("Life of a batch") == [
        (f"`{item.label}`", item.step.value, item.event.value, item.then.value, item.durable)
        for item in LIFE_OF_A_BATCH
    ]


# --- retry --------------------------------------------------------------------------------------


def test_retry_has_full_jitter_below_a_cap():
    chance = Random(3)
    for failures in range(40):
        cap_s = min(limits.RETRY_CAP_S, limits.RETRY_BASE_S * 2**failures)
        drawn = [delivery.backoff_s(failures, chance) for _ in range(50)]
        assert all(0 <= pause_s <= cap_s for pause_s in drawn)
        assert max(drawn) - min(drawn) > cap_s / 3


def test_what_the_target_asks_for_is_a_floor_but_not_without_bound():
    assert delivery.backoff_s(0, Random(1), floor_s=5.0) == 5.0
    assert delivery.backoff_s(0, Random(1), floor_s=1e9) == limits.RETRY_AFTER_MAX_S


# --- the reject guard ---------------------------------------------------------------------------


def test_few_records_never_trip_the_guard():
    assert not RejectGuard().too_many(limits.REJECT_GUARD_RECORDS - 1, 99)


def test_a_large_batch_with_most_refused_trips_it():
    assert RejectGuard().too_many(2_000, 1_001)
    assert not RejectGuard().too_many(2_000, 1_000)


def test_the_guard_looks_over_batches_even_of_one_record():
    guard = RejectGuard()
    for _ in range(limits.REJECT_GUARD_RECORDS - 1):
        assert not guard.too_many(1, 1)
        guard = guard.with_batch(1, 1)
    assert guard.too_many(1, 1)


def test_the_guard_forgets_what_is_older_than_it_needs():
    guard = RejectGuard().with_batch(50, 50).with_batch(2_000, 0)
    assert guard.window == ((2_000, 0),)
    assert not guard.too_many(10, 10)


# --- the search ---------------------------------------------------------------------------------


def records(count):
    return [Record(lsn, 0, 0, b"") for lsn in range(1, count + 1)]


def run_search(search, answer):
    probes = 0
    try:
        asked = next(search)
        while True:
            probes += 1
            asked = search.send(answer(asked))
    except StopIteration as end:
        return end.value, probes


@given(st.integers(1, 60), st.sets(st.integers(1, 60), max_size=8))
def test_unnamed_refusals_are_found_by_bisection_in_k_log_n(count, bad):
    bad = {lsn for lsn in bad if lsn <= count}

    def answer(asked):
        return Rejected((), "no") if any(item.lsn in bad for item in asked) else ()

    found, probes = run_search(find_refused(records(count)), answer)
    assert {item.lsn for item in found} == bad
    assert probes <= (len(bad) + 1) * (2 + count.bit_length())


@given(st.integers(1, 40), st.sets(st.integers(1, 40), max_size=6))
def test_named_refusals_are_taken_until_the_rest_is_taken(count, bad):
    bad = {lsn for lsn in bad if lsn <= count}

    def answer(asked):  # names the first only
        first = [item.lsn for item in asked if item.lsn in bad][:1]
        return [RejectedRecord(lsn, "bad", "bad") for lsn in first]

    found, probes = run_search(find_refused(records(count)), answer)
    assert {item.lsn for item in found} == bad
    assert probes <= len(bad) + 1


@given(st.integers(1, 40), st.dictionaries(st.integers(1, 40), st.booleans(), max_size=6))
def test_each_culprit_gets_the_words_of_its_own_refusal(count, bad):
    """The target tells of the last one that it met, and some are named only where alone."""
    bad = {lsn: named for lsn, named in bad.items() if lsn <= count}

    def answer(asked):
        met = [item.lsn for item in asked if item.lsn in bad]
        if not met:
            return ()
        lsn, words = met[-1], f"no {met[-1]}"
        if len(met) == 1 and bad[lsn]:
            return [RejectedRecord(lsn, "named", words)]
        return Rejected((), words, "told")

    found, _ = run_search(find_refused(records(count)), answer)
    assert {item.lsn: item.message for item in found} == {lsn: f"no {lsn}" for lsn in bad}


def test_of_two_records_that_clash_the_later_one_is_refused():
    def answer(asked):
        both = {2, 5} <= {item.lsn for item in asked}
        return Rejected((), "twice") if both else ()

    found, _ = run_search(find_refused(records(8)), answer)
    assert [item.lsn for item in found] == [5]


def test_what_an_attempt_named_is_known_before_the_first_probe():
    known = [RejectedRecord(2, "bad", "bad"), RejectedRecord(99, "bad", "not ours")]
    search = find_refused(records(3), known)
    assert [item.lsn for item in next(search)] == [1, 3]
    found, probes = run_search(find_refused(records(3), known), lambda _: ())
    assert ([item.lsn for item in found], probes) == ([2], 1)


def test_a_batch_whose_every_record_is_named_needs_no_probe():
    known = [RejectedRecord(1, "bad", "bad")]
    assert run_search(find_refused(records(1), known), lambda _: ()) == (tuple(known), 0)


def test_a_sink_that_names_only_strangers_ends_the_search_without_a_culprit():
    stranger = Rejected((RejectedRecord(99, "bad", "bad"),), "no")
    assert run_search(find_refused(records(3)), lambda _: stranger) == ((), 1)


def test_a_record_that_was_proven_may_still_be_named_later():
    def answer(asked):
        lsns = [item.lsn for item in asked]
        if lsns == [1, 2, 4]:
            return [RejectedRecord(1, "late", "late")]
        return Rejected((), "no") if 3 in lsns else ()

    found, _ = run_search(find_refused(records(4)), answer)
    assert [item.lsn for item in found] == [1, 3]


# --- the ledger's steps -------------------------------------------------------------------------


def manifest(number=6, lo=51, prev=PREV, attempts=1):
    return Manifest(number, lo, prev, attempts, (Revision(OPEN, 60),), 10, 0)


@pytest.mark.parametrize(
    "wrong",
    [manifest(number=5), manifest(lo=50), manifest(prev=OTHER), manifest(attempts=0)],
)
def test_a_manifest_that_does_not_continue_the_lane_is_not_sealed(wrong):
    assert manifests.seal(LaneProgress(AT_5, None), wrong) is None


def test_with_a_batch_open_none_is_sealed_and_the_checkpoint_stands():
    held = LaneProgress(AT_5, manifest())
    assert manifests.seal(held, manifest()) is None
    assert manifests.advance(held, AT_5, Checkpoint(5, PREV, 99)) is None
