"""Errors as a person and another process meet them."""

import copy
import pickle
import traceback
from typing import Any

import pytest

import wald
from wald import errors
from wald.errors import WaldError, reported
from wald.testing import FakeProducer


def kinds(root: type[WaldError] = WaldError) -> list[type[WaldError]]:
    return [root, *(each for kind in root.__subclasses__() for each in kinds(kind))]


def made(kind: type[WaldError]) -> WaldError:
    facts: dict[str, Any] = {}
    if issubclass(kind, errors.Backpressure):
        facts = {"retry_after_s": 1.5}
    elif issubclass(kind, errors.RecordRefused):
        facts = {"reason": "record.key", "index": 3}
    elif issubclass(kind, errors.BadFrame):
        facts = {"reason": "frame.length"}
    return kind("why", **facts)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_comes_whole_from_another_process(kind: type[WaldError]):
    error = made(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "why"
        assert again.as_dict() == error.as_dict()
        assert vars(again) == vars(error)


def test_a_traceback_says_code_and_hint_and_the_message_does_not():
    error = wald.Unavailable("no daemon answers at '/x'")
    shown = "".join(traceback.format_exception(error)).splitlines()
    assert shown[0] == "wald.errors.Unavailable: no daemon answers at '/x'"
    assert shown[1].startswith("[unavailable] start it with 'wald serve'")
    assert str(error) == error.message
    told = reported({"code": "of.a.newer.release", "message": "m", "hint": "h"})
    assert "[of.a.newer.release] h" in "".join(traceback.format_exception(told))
    assert traceback.format_exception(WaldError("m"))[-1] == "[error]\n"


def test_what_is_unsettled_stays_with_its_producer():
    with FakeProducer() as producer:
        producer.lose_answer()
        with pytest.raises(wald.OutcomeUnknown) as unknown:
            producer.append("s", b"1")
        assert unknown.value.unsettled is not None
        elsewhere = pickle.loads(pickle.dumps(unknown.value))
        assert elsewhere.unsettled is None
        with pytest.raises(wald.OutcomeUnknown):
            producer.settle(elsewhere)
        assert producer.settle(unknown.value) == wald.Receipt("s", 1, "durable", 1)


def test_what_a_wait_over_many_says_goes_to_another_process():
    with FakeProducer() as producer:
        producer.hold_delivery()
        with pytest.raises(wald.DeliveryTimeout) as late:
            producer.append_many("s", [b"1", b"2"], ack="delivered", timeout=0.1)
        elsewhere = pickle.loads(pickle.dumps(late.value))
        assert [each.lsn for each in elsewhere.results.accepted] == [1, 2]
        assert elsewhere.receipt == late.value.receipt
