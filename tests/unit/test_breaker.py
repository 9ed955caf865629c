"""The breaker's table row by row; what opens it, for how long, and what closes it."""

from random import Random

import pytest

from tests.documents import printed_table
from wald import limits
from wald.core.breaker import (
    BREAKER,
    PERMIT,
    PROBE,
    TRIPS,
    Breaker,
    BreakerEvent,
    BreakerState,
    Scope,
    admit,
    after,
    answered,
    asked,
    event_of,
    given_back,
    wait_s,
)
from wald.model import (
    Delivered,
    Partial,
    Rejected,
    RowMoved,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)

NS = limits.CLOCK_NS_PER_S
NOW = 1_000 * NS
CLOSED, OPEN, HALF = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
TARGET, ROUTE = Scope.TARGET, Scope.ROUTE
DOWN = Systemic(SystemicKind.UNREACHABLE, "connection refused")
DENIED = Systemic(SystemicKind.AUTHENTICATION, "password expired")
FULL = Systemic(SystemicKind.FULL, "no space left")
BUSY = Systemic(SystemicKind.BUSY, "lock wait")
NO_TABLE = Systemic(SystemicKind.CONFIGURATION, "no such table", "create table events")
WORKED = Delivered()


class Longest(Random):
    """Draws the longest pause."""

    def uniform(self, _a, b, /):
        return b


def told(value, *outcomes, permit=PERMIT, chance=None, now_ns=NOW, scope=TARGET):
    for outcome in outcomes:
        value = after(value, permit, outcome, now_ns, chance or Longest(1), scope)
    return value


OPENED = told(Breaker(), DENIED)


def probing(opened=OPENED):
    half, permit = admit(opened, opened.due_ns)
    assert permit is PROBE
    return half


# --- the table ----------------------------------------------------------------------------------

STORIES = {
    "healthy": lambda: told(told(Breaker(), DOWN), WORKED),
    "counted": lambda: told(Breaker(), DOWN),
    "tripped": lambda: told(Breaker(), DOWN, DOWN, DOWN),
    "busy": lambda: told(Breaker(), BUSY),
    "probe": probing,
    "probe-works": lambda: told(probing(), WORKED, permit=PROBE),
    "probe-fails": lambda: told(probing(), DOWN, permit=PROBE),
    "probe-busy": lambda: told(probing(), BUSY, permit=PROBE),
    "probe-unused": lambda: given_back(probing(), PROBE),
}


@pytest.mark.parametrize("row", BREAKER, ids=lambda row: row.label)
def test_the_breaker_follows_its_table(row):
    assert STORIES[row.label]().state is row.then


def test_every_row_of_the_table_is_tested_once():
    assert sorted(STORIES) == sorted(row.label for row in BREAKER)
    assert len({(row.state, row.event) for row in BREAKER}) == len(BREAKER)


@pytest.mark.parametrize("outcome", [WORKED, DOWN, BUSY, Unknown("gone"), Rejected((), "no")])
@pytest.mark.parametrize("state", [CLOSED, HALF])
def test_every_outcome_has_a_row_in_every_state_that_lets_an_attempt_through(state, outcome):
    value = probing() if state is HALF else Breaker()
    assert told(value, outcome, permit=PROBE if state is HALF else PERMIT)


# --- what opens it ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SystemicKind)
def test_each_kind_opens_the_breaker_of_its_scope_after_its_number_of_failures(kind):
    trip = TRIPS[kind]
    value = Breaker()
    for number in range(1, 6):
        value = told(value, Systemic(kind, "it fails"), scope=trip.scope)
        assert (value.state is OPEN) == (0 < trip.failures <= number)


@pytest.mark.parametrize("kind", SystemicKind)
def test_each_kind_says_what_to_do(kind):
    assert TRIPS[kind].hint


def test_a_wrong_route_opens_its_own_breaker_and_is_a_working_target():
    assert told(Breaker(), NO_TABLE, scope=ROUTE).state is OPEN
    assert told(told(Breaker(), DOWN), NO_TABLE, scope=TARGET) == Breaker()


def test_a_target_that_is_down_says_nothing_of_a_route():
    assert told(Breaker(), DOWN, DOWN, DOWN, DENIED, scope=ROUTE) == Breaker()
    half = probing(told(Breaker(), NO_TABLE, scope=ROUTE))
    assert told(half, DOWN, permit=PROBE, scope=ROUTE).state is OPEN
    assert told(half, DOWN, permit=PROBE, scope=ROUTE).openings == 1


def test_configuration_and_authentication_are_told_apart_and_named():
    wrong = told(Breaker(), NO_TABLE, scope=ROUTE)
    assert (wrong.kind, wrong.message, wrong.hint) == (
        SystemicKind.CONFIGURATION,
        "no such table",
        "create table events",
    )
    assert OPENED.kind is SystemicKind.AUTHENTICATION
    assert OPENED.hint == TRIPS[SystemicKind.AUTHENTICATION].hint


@pytest.mark.parametrize("outcome", [WORKED, Rejected((), "no"), RowMoved(None), Partial()])
def test_a_target_that_answers_works(outcome):
    assert told(Breaker(), DOWN, DOWN, outcome, DOWN, DOWN).state is CLOSED


def test_a_batch_that_is_too_large_was_answered():
    assert event_of(Breaker(), TooLarge("413"), TARGET) is BreakerEvent.WORKS


def test_answers_that_are_lost_count_as_a_target_out_of_reach():
    value = told(Breaker(), Unknown("timeout"), DOWN, Unknown("timeout"))
    assert (value.state, value.kind) == (OPEN, SystemicKind.UNREACHABLE)


# --- for how long -------------------------------------------------------------------------------


def test_pauses_grow_with_each_opening_up_to_the_cap():
    value, pauses = told(Breaker(), DENIED), []
    for _ in range(9):
        pauses.append((value.due_ns - NOW) / NS)
        value = told(probing(value), DENIED, permit=PROBE)
    base = limits.BREAKER_BASE_S
    assert pauses[:4] == [base, 2 * base, 4 * base, 8 * base]
    assert pauses[-1] == limits.BREAKER_CAP_S


def test_pauses_are_drawn_so_that_hosts_do_not_beat_in_step():
    drawn = {told(Breaker(), DENIED, chance=Random(seed)).due_ns for seed in range(20)}
    assert len(drawn) == 20
    assert all(NOW <= due <= NOW + limits.BREAKER_BASE_S * NS for due in drawn)


def test_a_busy_probe_makes_the_pause_no_longer():
    again = told(probing(), BUSY, permit=PROBE)
    assert again.openings == OPENED.openings
    assert again.kind is SystemicKind.BUSY


@pytest.mark.parametrize(
    ("asked_s", "pause_s"), [(7.0, 7.0), (0.001, 0.5), (86_400.0, limits.RETRY_AFTER_MAX_S)]
)
def test_retry_after_is_a_floor_with_a_bound(asked_s, pause_s):
    outcome = Systemic(SystemicKind.FULL, "later", retry_after_s=asked_s)
    assert (told(Breaker(), outcome).due_ns - NOW) / NS == pause_s


def test_a_breaker_that_reopens_keeps_the_time_it_opened():
    again = told(probing(), DENIED, permit=PROBE, now_ns=NOW + 9 * NS)
    assert again.since_ns == OPENED.since_ns == NOW


# --- the probe ----------------------------------------------------------------------------------


def test_an_open_breaker_lets_nothing_through_before_its_time():
    assert admit(OPENED, OPENED.due_ns - 1) == (OPENED, None)
    assert wait_s(OPENED, NOW) == limits.BREAKER_BASE_S
    assert wait_s(OPENED, OPENED.due_ns + 5) == 0


def test_exactly_one_probe_is_let_through():
    half = probing()
    assert admit(half, NOW + 3_600 * NS) == (half, None)
    assert wait_s(half, NOW) == limits.BREAKER_LOOK_S


def test_a_person_may_have_the_target_asked_at_once():
    now_ns = OPENED.due_ns - 5
    half, permit = admit(asked(OPENED, now_ns), now_ns)
    assert permit is PROBE
    assert half.openings == OPENED.openings
    assert asked(OPENED, OPENED.due_ns + 5).due_ns == OPENED.due_ns


def test_a_closed_breaker_lets_everybody_through():
    assert admit(Breaker(), NOW) == (Breaker(), PERMIT)
    assert wait_s(Breaker(), NOW) == 0


@pytest.mark.parametrize("value", [OPENED, probing()])
@pytest.mark.parametrize("outcome", [WORKED, DOWN, BUSY])
def test_attempts_that_began_before_it_opened_change_nothing(value, outcome):
    assert told(value, outcome) == value


def test_lanes_can_tell_that_a_breaker_has_closed_since():
    closed = told(probing(), WORKED, permit=PROBE)
    assert (closed.times_closed, closed.openings, closed.failures) == (1, 0, 0)
    assert told(probing(told(closed, FULL)), WORKED, permit=PROBE).times_closed == 2


def test_a_probe_that_is_given_back_goes_to_another_lane_at_once():
    again, permit = admit(given_back(probing(), PROBE), OPENED.due_ns)
    assert permit is PROBE
    assert again.openings == OPENED.openings


def test_leave_without_a_probe_needs_no_giving_back():
    assert given_back(Breaker(), PERMIT) == Breaker()
    assert given_back(probing(), PERMIT) == probing()


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (SystemicKind.UNREACHABLE, CLOSED),
        (SystemicKind.AUTHENTICATION, CLOSED),
        (SystemicKind.FULL, OPEN),
        (SystemicKind.DAMAGED, OPEN),
    ],
)
def test_an_answer_without_a_batch_proves_what_it_can(kind, state):
    half = probing(told(Breaker(), *[Systemic(kind, "it fails")] * 3))
    assert answered(half, PROBE).state is state
    assert answered(half, PERMIT) == half


# --- the document -------------------------------------------------------------------------------


def test_the_document_prints_the_table():
    assert printed_table("Delivery policy") == [
        (f"`{row.label}`", row.state.value, row.event.value, row.then.value, row.what)
        for row in BREAKER
    ]


def test_the_document_prints_what_opens_it():
    def count(failures):
        return {0: "never", 1: "at once"}.get(failures, f"after {failures}")

    assert printed_table("What opens a breaker") == [
        (f"`{kind.value}`", f"the {trip.scope.value}'s", count(trip.failures))
        for kind, trip in TRIPS.items()
    ]
