"""The null sink takes everything, and plays a slow target."""

from dataclasses import replace

import pytest

from tests.unit.test_sqlite_sink import KEY, attempt, record
from wald.errors import UnknownSetting, WrongSetting
from wald.model import Delivered, ReplayClass, Unknown
from wald.sinks.null import make


def test_it_takes_whatever_comes_and_remembers_nothing():
    sink = make("r", "events", {})
    sent = attempt(record(1, b"\xc1"), record(2, {"a": 1}))
    assert [sink.deliver(sent), sink.deliver(sent)] == [Delivered(), Delivered()]
    assert sink.read_row(KEY) is None
    assert sink.probe(sent, sent.records) == ()
    assert sink.capabilities.replay is ReplayClass.KEYED


def test_a_delay_is_kept_within_the_time_of_an_attempt():
    sink = make("r", "events", {"delay": "10ms"})
    assert sink.deliver(attempt(record(1, 1))) == Delivered()
    slow = make("r", "events", {"delay": "1h"})
    assert isinstance(slow.deliver(replace(attempt(record(1, 1)), timeout_s=0.01)), Unknown)


def test_a_wrong_setting_is_refused():
    with pytest.raises(UnknownSetting):
        make("r", "events", {"delays": "1s"})
    with pytest.raises(WrongSetting):
        make("r", "events", {"delay": "2h"})
