"""The tables of outcomes row by row: what an attempt came to, what is sent again, what is left."""

import itertools
from typing import Any, cast

import pytest

from tests.documents import printed_table
from wald import limits
from wald.core import outcomes
from wald.core.delivery import LIFE_OF_A_BATCH, Event, Step
from wald.core.outcomes import (
    OUTCOMES,
    PASSED_OVER,
    RESENDS,
    RETRIES_EXHAUSTED,
    Facts,
    cut_at,
    judge,
    leaves_no_doubt,
    read_outcome,
    resend_of,
    settle,
)
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Delivered,
    Outcome,
    Partial,
    ProgressRow,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)

ROW, MONOTONE, KEYED, WINDOW, NONE = (
    ReplayClass.TRANSACTIONAL,
    ReplayClass.MONOTONE,
    ReplayClass.KEYED,
    ReplayClass.WINDOW,
    ReplayClass.NONE,
)


# what a sink returns is anybody's: these take whatever they are given
PartialOf: Any = Partial
RejectedOf: Any = Rejected
RowMovedOf: Any = RowMoved
SystemicOf: Any = Systemic
TooLargeOf: Any = TooLarge
UnknownOf: Any = Unknown


def refused(lsn, code="bad", message="no"):
    return RejectedRecord(lsn, code, message)


# --- sending again ------------------------------------------------------------------------------

AGAIN = [
    *[("no-doubt", Facts(replay), True) for replay in ReplayClass],
    ("row-was-asked", Facts(ROW, in_doubt=True), True),
    ("idempotent", Facts(MONOTONE, in_doubt=True), True),
    ("idempotent", Facts(KEYED, in_doubt=True, resend=False), True),
    ("in-window", Facts(WINDOW, in_doubt=True, window_open=True), True),
    ("in-window", Facts(WINDOW, in_doubt=True, window_open=True, resend=False), True),
    ("window-over", Facts(WINDOW, in_doubt=True), False),
    ("may-double", Facts(NONE, in_doubt=True, resend=True), True),
    ("held", Facts(NONE, in_doubt=True, resend=False), False),
]


@pytest.mark.parametrize(("label", "facts", "send"), AGAIN)
def test_whether_a_batch_is_sent_again_follows_the_table(label, facts, send):
    row = resend_of(facts)
    assert (row.label, row.send) == (label, send)


def test_every_row_of_sending_again_is_tested():
    assert {label for label, *_ in AGAIN} == {row.label for row in RESENDS}


# --- outcomes -----------------------------------------------------------------------------------

SAID: dict[str, Outcome] = {
    "delivered": Delivered(),
    "partial": Partial(retry=(refused(1),)),
    "rejected": Rejected((), "no"),
    "too-large": TooLarge("413"),
    "systemic": Systemic(SystemicKind.BUSY, "busy"),
    "row-moved": RowMoved(None),
    "unknown": Unknown("?"),
}
EVERY_FACTS = [
    Facts(replay, *flags)
    for replay in ReplayClass
    for flags in itertools.product([False, True], repeat=3)
]


def expected(name, facts):
    """The meaning of the table, said another way."""
    guarded = facts.replay is WINDOW or (facts.replay is NONE and not facts.resend)
    if name == "unknown":
        again = facts.window_open if facts.replay is WINDOW else not guarded
        return Event.UNKNOWN if again else Event.UNCERTAIN
    if name in {"rejected", "too-large"} and facts.in_doubt and guarded:
        return Event.UNCERTAIN  # what is sent must not change: it may have taken effect
    return {
        "delivered": Event.DELIVERED,
        "partial": Event.PARTIAL,
        "rejected": Event.REJECTED,
        "too-large": Event.TOO_LARGE,
        "systemic": Event.SYSTEMIC,
        "row-moved": Event.ROW_MOVED,
    }[name]


def can_be(name, facts):
    """Whether ``read_outcome`` lets such an outcome of a sink of the class through."""
    return {"partial": facts.replay is not ROW, "row-moved": facts.replay is ROW}.get(name, True)


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("facts", EVERY_FACTS)
def test_every_outcome_at_every_class_has_one_meaning_and_a_next_step(name, facts):
    if not can_be(name, facts):
        assert isinstance(read_outcome(SAID[name], [1], facts.replay), Unknown)
        return
    event = judge(SAID[name], facts).event
    assert event is expected(name, facts)
    assert any(row.step is Step.SENDING and row.event is event for row in LIFE_OF_A_BATCH)


def test_every_row_of_the_outcomes_is_reached():
    reached = {
        judge(SAID[name], facts).label
        for name, facts in itertools.product(SAID, EVERY_FACTS)
        if can_be(name, facts)
    }
    assert reached == {row.label for row in OUTCOMES}


@pytest.mark.parametrize(
    ("outcome", "in_doubt", "clear"),
    [
        (Delivered(), False, True),
        (Delivered(), True, True),
        (Partial(retry=(refused(1),)), True, True),
        (Systemic(SystemicKind.BUSY, ""), False, True),
        (Systemic(SystemicKind.BUSY, ""), True, False),
        (Rejected((), ""), True, False),
        (TooLarge(""), True, False),
        (Unknown(""), False, False),
    ],
)
def test_only_what_answers_for_each_record_clears_the_doubt_of_an_attempt_before(
    outcome, in_doubt, clear
):
    assert leaves_no_doubt(outcome, in_doubt=in_doubt) is clear


# --- wrong sinks --------------------------------------------------------------------------------

NONSENSE: list[tuple[Any, ReplayClass, str]] = [
    (None, KEYED, "returned None"),
    (True, KEYED, "returned True"),
    ("ok", ROW, "returned 'ok'"),
    ([refused(1)], KEYED, "is no outcome"),
    (Delivered, KEYED, "is no outcome"),
    (PartialOf(retry=(refused(9),)), KEYED, "LSN 9, which was not sent"),
    (PartialOf(rejected=(refused(9),)), NONE, "LSN 9, which was not sent"),
    (PartialOf((refused(1),), (refused(1),)), KEYED, "LSN 1 twice"),
    (PartialOf(retry=(refused(1), refused(1))), KEYED, "LSN 1 twice"),
    (PartialOf(retry=(1,)), KEYED, "names records by"),
    (PartialOf(retry=3), KEYED, "names records by"),
    (PartialOf(retry=(refused(1, 5),)), KEYED, "names records by"),
    (PartialOf(retry=(refused("1"),)), KEYED, "names records by"),
    (PartialOf(retry=(refused(1),), message=None), KEYED, "None is no text"),
    (PartialOf(retry=(refused(1),)), ROW, "whole or not at all"),
    (RejectedOf((refused(9),), "no"), ROW, "LSN 9, which was not sent"),
    (RejectedOf((), b"no"), KEYED, "is no text"),
    (RowMovedOf(None), KEYED, "has no progress row"),
    (RowMovedOf("row"), ROW, "'row' is no row"),
    (SystemicOf("down", "down"), KEYED, "'down' is no kind"),
    (SystemicOf(SystemicKind.BUSY, 7), KEYED, "7 is no text"),
    (TooLargeOf(None), KEYED, "None is no text"),
    (UnknownOf(None), KEYED, "None is no text"),
]


@pytest.mark.parametrize(("said", "replay", "why"), NONSENSE)
def test_what_a_wrong_sink_says_is_unknown_with_a_clear_text(said, replay, why):
    outcome = read_outcome(said, [1, 2, 3], replay)
    assert isinstance(outcome, Unknown)
    assert outcome.message.startswith("the sink is wrong: ")
    assert why in outcome.message
    assert len(outcome.message) < limits.ERROR_TEXT_MAX_CHARS


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (Delivered({"ignored": 2}), Delivered({"ignored": 2})),
        (cast("Any", Delivered)(["ignored"]), Delivered({outcomes.UNREADABLE_NOTES: 1})),
        (Partial(), Delivered()),
        (Partial(retry=(refused(2),)), Partial(retry=(refused(2),))),
        (Partial(retry=(refused(2),), retry_after_s=2.0), None),
        (
            Partial(retry=(refused(2),), retry_after_s=float("nan")),
            Partial(retry=(refused(2),)),
        ),
        (
            Systemic(SystemicKind.BUSY, "busy", retry_after_s=-1.0),
            Systemic(SystemicKind.BUSY, "busy"),
        ),
        (Rejected((), "no", "code"), None),
        (TooLarge("413"), None),
        (Unknown("cut"), None),
    ],
)
def test_what_a_right_sink_says_is_believed_but_for_senseless_pauses(said, read):
    assert read_outcome(said, [1, 2, 3], KEYED) == (said if read is None else read)


def test_a_row_that_moved_is_believed_of_a_transactional_target():
    for row in (None, ProgressRow(1, NO_REVISION, 1, NO_ANCHOR, 1, NO_REVISION)):
        assert read_outcome(RowMoved(row), [1], ROW) == RowMoved(row)


# --- what a part leaves -------------------------------------------------------------------------

SENT = [1, 2, 3, 4, 5]


def test_what_is_not_named_took_effect_and_the_rest_is_wanted_again():
    found = settle(Partial((refused(2),), (refused(4),)), SENT, KEYED, 3)
    assert (found.taken, found.rest) == ((1, 3, 5), (4,))
    assert [item.lsn for item in found.refused] == [2]


def test_tries_are_counted_from_the_last_one_that_took_something():
    """A target that takes a little at a time, for hours, refuses nothing."""
    some, none = Partial(retry=(refused(4),)), Partial(retry=tuple(map(refused, SENT)))
    retries = 0
    for part, count in ((none, 1), (none, 2), (some, 1), (none, 2), (some, 1), (some, 1)):
        found = settle(part, SENT, KEYED, retries)
        retries = found.retries
        assert retries == count


def test_of_records_that_are_wanted_again_and_again_the_last_words_are_kept():
    part = Partial((refused(2),), (refused(4, "busy", "come back"),))
    found = settle(part, [2, 4], KEYED, limits.RECORD_ATTEMPTS_MAX - 1)
    assert found.rest == ()
    assert [(item.lsn, item.code) for item in found.refused] == [(2, "bad"), (4, RETRIES_EXHAUSTED)]
    assert f"{limits.RECORD_ATTEMPTS_MAX} attempts" in found.refused[1].message
    assert "busy: come back" in found.refused[1].message


def test_a_record_that_a_monotone_target_has_passed_is_never_sent_again():
    found = settle(Partial(retry=(refused(2), refused(5))), SENT, MONOTONE, 0)
    assert found.taken == (1, 3, 4)
    assert [(item.lsn, item.code) for item in found.refused] == [(2, PASSED_OVER)]
    assert found.rest == (5,)


def test_a_monotone_target_that_took_nothing_has_passed_nothing():
    found = settle(Partial(retry=tuple(map(refused, SENT))), SENT, MONOTONE, 0)
    assert (found.taken, found.refused, found.rest) == ((), (), tuple(SENT))


def test_each_record_is_in_one_place_and_none_is_forgotten():
    names: list[tuple[RejectedRecord, ...]] = [(), (refused(1),), (refused(2), refused(5))]
    for rejected, retry, replay, retries in itertools.product(names, names, ReplayClass, (0, 9)):
        if {item.lsn for item in rejected} & {item.lsn for item in retry} or replay is ROW:
            continue
        found = settle(Partial(rejected, retry), SENT, replay, retries)
        places = [*found.taken, *[item.lsn for item in found.refused], *found.rest]
        assert sorted(places) == SENT


@pytest.mark.parametrize(
    ("sent", "settled", "hi"),
    [
        ([], (), None),
        ([1], (), None),
        ([1, 2], (), 1),
        ([1, 5, 9], (), 5),
        ([1, 2, 3, 4], (), 2),
        ([1, 2, 3, 4], (3,), 3),  # what took effect belongs to this batch
        ([1, 2, 3, 4], (9,), None),
        ([2, 4], (1,), 2),
    ],
)
def test_a_batch_is_cut_in_half_but_not_below_what_took_effect(sent, settled, hi):
    assert cut_at(sent, settled) == hi


# --- the documents ------------------------------------------------------------------------------


def classes_in_words(classes):
    if classes == outcomes.EVERY_CLASS:
        return "every"
    missing = outcomes.EVERY_CLASS - classes
    if len(missing) == 1:
        return f"all but {next(iter(missing)).value}"
    return ", ".join(each.value for each in ReplayClass if each in classes)


def test_the_document_prints_the_table_of_outcomes():
    assert printed_table("Outcomes") == [
        (
            f"`{row.label}`",
            row.outcome.__name__,
            classes_in_words(row.classes),
            row.when.value,
            row.event.value,
        )
        for row in OUTCOMES
    ]


def test_the_document_prints_the_table_of_sending_again():
    assert printed_table("Sending again") == [
        (
            f"`{row.label}`",
            classes_in_words(row.classes),
            row.when.value,
            "send" if row.send else "hold",
        )
        for row in RESENDS
    ]
