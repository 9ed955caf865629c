"""What status says of the delivery policy, and how it is shown."""

import pytest

from wald import limits
from wald.cli import policy
from wald.drainer.figures import fitting_the_page
from wald.supervisor.policy import policy_said

NS = limits.CLOCK_NS_PER_S
NOW = 1_800_000_000 * NS
TOLD = {
    "batch_size": 512,
    "batch_reason": "grown",
    "rate_per_s": 400.0,
    "rate_ns": NOW,
    "timeout_s": 10.0,
    "goal_age_s": 5.0,
}
OPEN = {
    "state": "open",
    "scope": "target",
    "kind": "unreachable",
    "message": "connection refused",
    "hint": "start the target",
    "since_ns": NOW - 30 * NS,
    "due_ns": NOW + 4 * NS,
}


def said(pending=1_200, oldest_s=3.0, now_ns=NOW, **changed):
    return policy_said({**TOLD, **changed}, pending, oldest_s, now_ns)


def shown(**changed):
    route = said(**changed)
    return {
        **route,
        "oldest_pending_s": changed.get("oldest_s", 3.0),
        "attempts": 0,
        "parked": None,
        "paused_ns": None,
        "state": "delivering",
        "last_error": "unreachable: connection refused",
    }


def test_the_estimate_follows_from_what_is_pending_and_the_rate():
    assert (said()["rate_per_s"], said()["eta_s"]) == (400.0, 3.0)
    assert said(pending=0)["eta_s"] == 0.0


def test_a_rate_fades_while_nothing_is_told_and_with_it_the_estimate():
    later = said(now_ns=NOW + round(limits.RATE_MEMORY_S * NS))
    assert later["rate_per_s"] == pytest.approx(400 / 2.718, rel=0.01)
    much_later = said(now_ns=NOW + 3_600 * NS)
    assert (much_later["rate_per_s"], much_later["eta_s"]) == (0.0, None)


@pytest.mark.parametrize(
    ("oldest_s", "late"), [(None, False), (4.0, False), (5.0, False), (5.1, True)]
)
def test_a_route_is_late_when_its_oldest_record_is_above_the_goal(oldest_s, late):
    assert said(oldest_s=oldest_s)["is_late"] is late


def test_without_a_goal_nothing_is_late():
    assert said(goal_age_s=None, oldest_s=1e6)["is_late"] is False


def test_before_the_first_attempt_there_is_nothing_to_say():
    route = policy_said({}, 10, 1.0, NOW)
    assert (route["rate_per_s"], route["eta_s"], route["batch_size"]) == (0.0, None, None)
    assert route["breaker"] == {"state": "closed"}
    assert list(policy.details({"a": {**route, "oldest_pending_s": 1.0}})) == []


def test_an_open_breaker_says_why_and_when_the_next_probe_comes():
    breaker = said(breaker=OPEN)["breaker"]
    assert (breaker["open_for_s"], breaker["probe_in_s"]) == (30.0, 4.0)
    assert policy.breaker(shown(breaker=OPEN)) == "open: connection refused, probe in 4.0 s"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "open: connection refused, probe in 4.0 s"),
        ({"due_ns": NOW - NS}, "open: connection refused, probe with the next batch"),
        ({"state": "half-open"}, "half-open: connection refused, probing"),
        ({"message": ""}, "open: unreachable, probe in 4.0 s"),
        ({"message": "x" * 25}, "open: unreachable, probe in 4.0 s"),
        ({"message": "\x1b[2J"}, "open: \\x1b[2J, probe in 4.0 s"),
    ],
)
def test_how_a_breaker_is_shown(changed, text):
    assert policy.breaker(shown(breaker={**OPEN, **changed})) == text


def test_what_to_do_is_said_of_open_breakers_only():
    routes = {
        "a": shown(),
        "b": shown(breaker=OPEN),
        "c": shown(breaker={**OPEN, "scope": "route"}),
    }
    assert list(policy.hints(routes)) == [
        "b: unreachable (its target, for 30 s): connection refused; start the target",
        "c: unreachable (this route, for 30 s): connection refused; start the target",
    ]


def test_rate_estimate_and_age_are_shown():
    assert policy.cells(shown()) == ("400/s", "3.0 s", "closed")
    assert policy.cells(shown(pending=0)) == ("400/s", "-", "closed")
    assert policy.oldest(shown()) == "3.0 s"
    assert policy.oldest(shown(oldest_s=38.0)) == "38 s (goal 5.0 s)"


@pytest.mark.parametrize(
    "standing", [{"parked": "halted"}, {"paused_ns": NOW}, shown(breaker=OPEN)]
)
def test_a_route_that_stands_has_no_estimate(standing):
    assert policy.cells({**shown(), **standing})[:2] == ("400/s", "-")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, True),
        ({"message": ""}, False),
        ({"message": "another one"}, False),
    ],
)
def test_what_the_breaker_says_is_not_said_twice(changed, told):
    assert policy.tells(shown(breaker={**OPEN, **changed})) is told
    assert policy.tells(shown()) is False
    unanswered = {**shown(breaker=OPEN), "last_error": "connection refused"}
    assert policy.tells(unanswered) is True


@pytest.mark.parametrize(
    ("changed", "eta"),
    [
        ({}, "3.0 s"),
        ({"state": "waiting"}, "-"),
        ({"parked": "diverged", "state": "parked"}, "-"),
        ({"paused_ns": 5, "state": "paused"}, "-"),
    ],
)
def test_where_nothing_is_sent_the_rate_of_before_estimates_nothing(changed, eta):
    assert policy.cells({**shown(), **changed})[1] == eta


def test_how_often_it_was_tried_stands_beside_the_reason():
    assert list(policy.hints({"b": {**shown(breaker=OPEN), "attempts": 7}})) == [
        "b: unreachable (its target, for 30 s, attempt 7): connection refused; start the target"
    ]


def test_the_size_of_batches_is_shown_with_its_reason():
    assert list(policy.details({"a": shown(held="rate")})) == [
        (
            "a: batches of up to 512 records (grown), an attempt may take 10 s, goal 5.0 s, "
            "held back by: rate"
        )
    ]


def test_words_of_breakers_are_cut_so_that_any_number_of_routes_fits_the_page():
    text = "\N{SNOWMAN}" * limits.ERROR_TEXT_MAX_CHARS
    breaker = {**OPEN, "message": text, "hint": text}

    def route():
        return {"last_error": text, "policy": {**TOLD, "breaker": breaker}}

    routes = fitting_the_page({str(number): route() for number in range(limits.ROUTES_MAX)})
    words = [
        each
        for one in routes.values()
        for each in (
            one["last_error"],
            one["policy"]["breaker"]["message"],
            one["policy"]["breaker"]["hint"],
        )
    ]
    assert sum(len(each.encode()) for each in words) <= limits.PAGE_ERRORS_MAX_BYTES
    assert fitting_the_page({"one": route()})["one"]["policy"]["breaker"]["hint"] == text


def test_notes_of_sinks_are_cut_so_that_any_number_of_routes_fits_the_page():
    noted = {f"{number:02d}" + "\N{SNOWMAN}" * 38: number for number in range(17)}

    def fitted(count):
        one = {"last_error": "", "policy": {**TOLD, "notes": noted}}
        return fitting_the_page({str(number): dict(one) for number in range(count)})

    assert fitted(1)["0"]["policy"]["notes"] == noted
    for count in (60, 100, limits.ROUTES_MAX):
        notes = [each["policy"]["notes"] for each in fitted(count).values()]
        assert all(sum(each.values()) == sum(noted.values()) for each in notes)
        size = sum(len(name.encode()) for each in notes for name in each)
        assert size <= limits.PAGE_NOTES_MAX_BYTES
