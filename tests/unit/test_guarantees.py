"""What a class of target promises, and a route that asks for more."""

import pytest

from tests.documents import printed_table
from wald.app import check_sinks
from wald.config import RouteSettings, Settings, SinkSettings
from wald.core.guarantees import PROMISES, Wish, findings
from wald.errors import ConfigError
from wald.model import Capabilities, ReplayClass, Severity
from wald.testing.recording_sink import RecordingSink

ROW, MONOTONE, KEYED, WINDOW, NONE = (
    ReplayClass.TRANSACTIONAL,
    ReplayClass.MONOTONE,
    ReplayClass.KEYED,
    ReplayClass.WINDOW,
    ReplayClass.NONE,
)
EXACT, LEAST = "exactly-once", "at-least-once"


def wish(replay, guarantee=None, *, window_s=None, n=None, encodes=True, unknown="resend"):
    able = Capabilities(replay, 10, 10, window_s, n)
    return Wish(able, encodes, guarantee, unknown, 10.0)


FOUND: list[tuple[Wish, list[tuple[str, Severity]]]] = [
    *[(wish(each, said), []) for each in (ROW, MONOTONE, KEYED) for said in (None, EXACT, LEAST)],
    (wish(WINDOW, EXACT, window_s=300.0), []),
    (wish(WINDOW, EXACT, n=100), []),
    (wish(WINDOW, window_s=300.0), []),
    (wish(WINDOW, EXACT), [("guarantee.no-window", Severity.ERROR)]),
    (wish(WINDOW), [("guarantee.no-window", Severity.WARNING)]),
    (wish(WINDOW, EXACT, window_s=20.0), [("guarantee.short-window", Severity.WARNING)]),
    (wish(WINDOW, window_s=300.0, encodes=False), [("sink.no-encoder", Severity.ERROR)]),
    (wish(NONE, EXACT), [("guarantee.exactly-once", Severity.ERROR)]),
    (wish(NONE, EXACT, unknown="hold"), [("guarantee.exactly-once", Severity.ERROR)]),
    (wish(NONE), [("guarantee.at-least-once", Severity.WARNING)]),
    (wish(NONE, unknown="hold"), [("guarantee.at-least-once", Severity.WARNING)]),
    (wish(NONE, LEAST), []),
]


@pytest.mark.parametrize(("wished", "found"), FOUND)
def test_what_a_route_asks_for_is_judged_by_the_class_of_its_target(wished, found):
    said = findings(wished)
    assert [(item.code, item.severity) for item in said] == found
    assert all(item.message and item.hint for item in said)


def test_a_warning_says_what_becomes_of_a_lost_answer():
    (resent,) = findings(wish(NONE))
    (held,) = findings(wish(NONE, unknown="hold"))
    assert "sent again" in resent.message
    assert "waits for a person" in held.message


@pytest.mark.parametrize(
    ("replay", "guarantee", "refused"),
    [(NONE, EXACT, "class none"), (WINDOW, EXACT, "states no window"), (NONE, LEAST, None)],
)
def test_a_route_that_asks_for_more_than_its_sink_can_give_is_refused_at_the_start(
    monkeypatch, replay, guarantee, refused
):
    made: list[RecordingSink] = []

    def make(*_):
        made.append(RecordingSink(replay=replay))
        return made[-1]

    monkeypatch.setattr("wald.app.make_sink", make)
    route = RouteSettings("bookings-bi", "bookings", "bi", guarantee=guarantee)
    sinks = {"bi": SinkSettings("bi", "recording")}
    settings = Settings("/data", "/socket", sinks, {"bookings-bi": route})
    if refused is None:
        check_sinks(settings)
    else:
        with pytest.raises(ConfigError, match=refused) as said:
            check_sinks(settings)
        assert "route 'bookings-bi'" in said.value.message
        assert said.value.hint
    assert all(sink.closed for sink in made)


def test_the_document_prints_what_each_class_promises():
    assert printed_table("Classes of targets") == [
        (f"`{row.replay.value}`", row.promise, row.why) for row in PROMISES
    ]
