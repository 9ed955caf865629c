"""No two clients of one name are acknowledged for one record, whatever they miss: by exhaustion."""

import pytest

from tests.model.epoch_model import Rule, counter_example
from wald.core.sessions import Greeting, plan_greeting
from wald.core.state import LogState, SessionState, session_issued, session_taken


@pytest.mark.parametrize("rule", [Rule.NONE, Rule.VOLATILE, Rule.LATE], ids=lambda rule: rule.value)
def test_the_search_finds_the_flaw_of(rule: Rule):
    way, states = counter_example(rule)
    print(f"{rule.value}: {states:,} states\n" + "\n".join(f"  {step}" for step in way))
    assert way
    assert way.count("A is acknowledged") == way.count("B is acknowledged") == 1
    assert sum("stores" in step for step in way) == 1


def test_there_is_none_where_an_epoch_is_durable_before_it_is_told():
    way, states = counter_example(Rule.DURABLE)
    print(f"{states:,} states")
    assert way == []
    assert states > 100


def state_of(takeovers: int) -> LogState:
    state = LogState()
    state.apply(session_issued(7, "billing"), 1, 1)
    for _ in range(takeovers):
        state.apply(session_taken(state.sessions[7]), 1, 1)
    return state


@pytest.mark.parametrize("takeovers", range(4))
@pytest.mark.parametrize("epoch", range(6))
def test_the_daemon_judges_who_comes_back_as_the_model_does(takeovers: int, epoch: int):
    state = state_of(takeovers)
    present = takeovers + 1
    expected = (
        Greeting.RESUME
        if epoch == present
        else Greeting.FENCED
        if epoch < present
        else Greeting.UNKNOWN
    )
    assert plan_greeting(state, 7, "", {}, 0, epoch=epoch).greeting is expected


def test_the_epoch_is_in_the_snapshot_and_absent_where_there_was_no_takeover():
    for takeovers in (0, 3):
        state = state_of(takeovers)
        again = LogState()
        parts = list(state.snapshot())
        for part in parts:
            again.apply(part, 0, 0)
        assert again.sessions[7].takeovers == takeovers
    assert SessionState(1, "").epoch == 1
