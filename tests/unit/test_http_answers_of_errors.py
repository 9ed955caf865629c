"""What a web handler does with each error: the table of docs/how-to/errors.md, row by row."""

import re
from pathlib import Path

import pytest

import wald
from wald import errors
from wald.client.web import ERROR_ANSWERS, ErrorAnswer
from wald.testing import FakeProducer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "errors.md"
RAISED = {
    "Unavailable": (wald.Unavailable("why"), {"Retry-After": "1"}),
    "DiskFull": (wald.DiskFull("why", retry_after_s=2.5), {"Retry-After": "3"}),
    "Backpressure": (wald.Backpressure("why", retry_after_s=0.01), {"Retry-After": "1"}),
    "RecordRefused": (wald.RecordRefused("why", reason="record.key", index=0), {}),
    "AccessDenied": (errors.AccessDenied("why"), {}),
    "UnknownStream": (wald.UnknownStream("why"), {}),
    "SequenceConflict": (wald.SequenceConflict("why"), {}),
    "Refusal": (wald.Refusal("why"), {}),
    "OutcomeUnknown": (wald.OutcomeUnknown("why"), {}),
    "DeliveryTimeout": (wald.DeliveryTimeout("why"), {}),
    "DeliveryRefused": (wald.DeliveryRefused("why"), {}),
    "Fenced": (wald.Fenced("why"), {}),
    "WaldError": (wald.Closed("why"), {}),
}


def printed() -> list[list[str]]:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\d+)(.*) \|$", PAGE.read_text(), re.MULTILINE)
    return [list(row) for row in rows]


def test_the_page_prints_the_table():
    def retry(row: ErrorAnswer) -> str:
        if row.retry_after_s is not None:
            return f", Retry-After: {row.retry_after_s:g}"
        return (
            ", Retry-After: its `retry_after_s`" if issubclass(row.kind, wald.Backpressure) else ""
        )

    expected = [[r.kind.__name__, r.means, str(r.status), retry(r)] for r in ERROR_ANSWERS]
    assert printed() == expected
    assert [row[0] for row in expected] == list(RAISED)


@pytest.mark.parametrize("row", ERROR_ANSWERS, ids=lambda row: row.kind.__name__)
def test_each_error_is_answered_as_its_row_says(row: ErrorAnswer):
    error, headers = RAISED[row.kind.__name__]
    said = wald.http_answer(error)
    assert (said.status, said.headers) == (row.status, headers)
    assert said.body == {"code": error.code, "message": "why", "hint": error.hint}


def test_no_row_stands_behind_one_that_takes_its_error():
    kinds = [row.kind for row in ERROR_ANSWERS]
    for at, kind in enumerate(kinds):
        assert not [before for before in kinds[:at] if issubclass(kind, before)]


def test_kinds_of_an_error_are_answered_as_it():
    assert wald.http_answer(wald.NotOurs("why")).status == 202
    assert wald.http_answer(wald.DeliveryPending("why")).status == 202
    assert wald.http_answer(wald.SequenceConflict("why")).status == 409


def test_what_the_page_says_of_an_unknown_outcome_is_so():
    with FakeProducer() as producer:
        producer.lose_answer()
        with pytest.raises(wald.OutcomeUnknown) as unknown:
            producer.append("bookings", {"id": 1}, timeout=0.5)
        assert producer.settle(unknown.value, timeout=5.0) == wald.Receipt(
            "bookings", 1, "durable", 1
        )
        assert producer.values("bookings") == [{"id": 1}]
