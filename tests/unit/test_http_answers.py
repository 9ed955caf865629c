"""What an answer means: the table of statuses, answers for each record, success that is none."""

import json

import pytest

from tests.documents import printed_table
from tests.httptools import LOG_ID, options, record, records
from wald.model import (
    Delivered,
    Partial,
    Rejected,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.http.answers import Answer, Judge, retry_after
from wald.sinks.http.statuses import STATUSES, codes_of, status_row

ITEMS = {"path": "items"}
DATE = "Sat, 28 Nov 2026 12:00:00 GMT"
DATE_S = 1_795_867_200.0


def judge(**settings):
    return Judge(options(**settings), lambda text: text.replace("canary", "***"), lambda: DATE_S)


def answer(status=200, body="", kind="application/json", **headers):
    text = body if isinstance(body, str) else json.dumps(body)
    return Answer(status, {"Content-Type": kind, **headers}, text.encode())


def outcome(status=200, body="", *, count=3, headers=None, kind="application/json", **settings):
    found = answer(status, body, kind, **(headers or {}))
    return judge(**settings).outcome(found, LOG_ID, records(count))


# --- statuses -----------------------------------------------------------------------------------


def test_the_reference_prints_the_table_of_statuses():
    printed = printed_table("What an answer means")
    rows = [(f"`{r.label}`", r.codes, r.when.value, r.meaning.value) for r in STATUSES]
    assert printed == rows


def test_every_status_has_a_row_whatever_a_conflict_is():
    for conflict in ("taken", "running", "retry", "refused"):
        for status in (*range(100, 1000), -1, 0, 99, 1000):
            assert status_row(status, conflict)
    assert all(codes_of(row) for row in STATUSES)


KINDS = {
    200: Delivered,
    201: Delivered,
    202: Delivered,
    204: Delivered,
    207: Unknown,
    **dict.fromkeys((301, 302, 307, 308, 304), SystemicKind.CONFIGURATION),
    **dict.fromkeys((400, 422), Rejected),
    **dict.fromkeys((401, 403, 407), SystemicKind.AUTHENTICATION),
    **dict.fromkeys((402, 404, 405, 406, 410, 411, 415, 418, 426, 431), SystemicKind.CONFIGURATION),
    **dict.fromkeys((408, 425, 429), SystemicKind.BUSY),
    409: Unknown,
    413: TooLarge,
    **dict.fromkeys((501, 505), SystemicKind.CONFIGURATION),
    **dict.fromkeys((500, 502, 504, 508, 520, 599), Unknown),
    503: SystemicKind.UNREACHABLE,
    507: SystemicKind.FULL,
    **dict.fromkeys((100, 199, 600, 999), Unknown),
}


@pytest.mark.parametrize(("status", "means"), KINDS.items())
def test_a_status_becomes_an_outcome(status, means):
    found = outcome(status, "")
    if isinstance(means, SystemicKind):
        assert isinstance(found, Systemic)
        assert found.kind is means
    else:
        assert isinstance(found, means), found


@pytest.mark.parametrize(
    ("settings", "means"),
    [
        ({}, Unknown),
        ({"conflict": "taken"}, Delivered),
        ({"conflict": "retry"}, Systemic),
        ({"conflict": "refused"}, Rejected),
        ({"idempotency": {"header": "none"}}, Rejected),
    ],
)
def test_what_a_conflict_is_depends_on_whether_an_id_was_sent(settings, means):
    assert isinstance(outcome(409, **settings), means)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Sat, 28 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 28 Nov 2026 11:59:00 GMT", 0.0),
        ("Saturday, 28-Nov-26 12:00:30 GMT", 30.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("99999999999999999999", None),
        ("Sat, 99 Nov 2026 12:00:00 GMT", None),
    ],
)
def test_a_pause_is_seconds_or_a_date(text, seconds):
    assert retry_after(answer(503, **{"Retry-After": text}), DATE_S) == seconds


def test_a_date_is_taken_by_the_clock_of_the_server():
    headers = {"Retry-After": "Sat, 28 Nov 2026 12:01:00 GMT", "Date": DATE}
    assert retry_after(answer(503, **headers), DATE_S + 10_000) == 60.0


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
def test_a_pause_is_kept_with_what_is_sent_again(status):
    found = outcome(status, headers={"Retry-After": "7"})
    assert isinstance(found, Systemic | Unknown)
    assert found.retry_after_s == 7.0


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"message": "no seat"}, "no seat"),
        ({"error": {"code": 3, "message": "no seat"}}, "no seat"),
        ({"title": "Bad", "status": 400}, "Bad"),
        ({"unheard": "of"}, '{"unheard": "of"}'),
        ("line one\nline\x1b[31m two", "line one line [31m two"),
        ("<html><head><title>502 Bad\nGateway</title></head><body>...", "502 Bad Gateway"),
        ("", ""),
        ("kein Platz für 2 Sitze", "kein Platz für 2 Sitze"),
    ],
)
def test_a_refusal_has_the_servers_own_words_in_one_line(body, words):
    found = outcome(400, body)
    assert isinstance(found, Rejected)
    assert found.message == "http://127.0.0.1:9/in answered 400" + (f": {words}" if words else "")


def test_words_are_bounded_and_hold_no_secret():
    found = outcome(403, "canary " * 10_000)
    assert isinstance(found, Systemic)
    assert len(found.message) <= 500
    assert "canary" not in found.message


def test_where_a_redirect_leads_is_said_without_its_parameters():
    found = outcome(302, "", headers={"Location": "https://login.example.com/?key=canary"})
    assert isinstance(found, Systemic)
    assert found.message.endswith("answered 302: to https://login.example.com/")
    assert "redirects are not followed" in found.hint


# --- a success that is none ---------------------------------------------------------------------

PAGE = "\n <!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    ("body", "kind", "settings"),
    [
        (PAGE, "text/html; charset=utf-8", {}),
        (PAGE, "application/json", {}),
        (PAGE, "text/plain", {}),
        ("ok", "text/html", {}),
        ('{"items": [', "application/json", {}),
        ("ok", "text/plain", {"answer": "json"}),
        ("", "text/plain", {"answer": "json"}),
        ("Code: 60. DB::Exception", "text/plain", {"answer": "empty"}),
        ("", "application/json", {"results": ITEMS}),
        ("[" * 100_000, "application/json", {}),
    ],
)
def test_a_success_that_cannot_be_believed_is_unknown(body, kind, settings):
    assert isinstance(outcome(200, body, kind=kind, **settings), Unknown)


def test_a_success_that_was_not_read_whole_is_unknown():
    found = answer(200, "{}")._replace(is_whole=False)
    assert isinstance(judge().outcome(found, LOG_ID, records(1)), Unknown)


@pytest.mark.parametrize(
    ("body", "kind"),
    [("", "application/json"), ("ok", "text/plain"), ({"a": 1}, "application/json"), ("1", "")],
)
def test_a_success_may_say_what_it_likes(body, kind):
    assert outcome(200, body, kind=kind) == Delivered()


# --- answers for each record --------------------------------------------------------------------


def items(*statuses, **more):
    return {"items": [{"status": each, "error": f"e{each}", **more} for each in statuses]}


def test_every_record_taken_is_delivered():
    assert outcome(200, items(201, 200, 204), results=ITEMS) == Delivered()
    assert outcome(207, items(201, 200, 204), results=ITEMS) == Delivered()


def test_a_part_is_taken_a_part_refused_and_a_part_wanted_again():
    found = outcome(
        207,
        items(201, 400, 429, 503, 413, 500),
        count=6,
        results=ITEMS,
        headers={"Retry-After": "3"},
    )
    assert isinstance(found, Partial)
    assert [(each.lsn, each.code, each.message) for each in found.rejected] == [
        (2, "400", "400: e400"),
        (5, "413", "413: e413"),
    ]
    assert [each.lsn for each in found.retry] == [3, 4, 6]
    assert found.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, SystemicKind.BUSY),
        (503, SystemicKind.UNREACHABLE),
        (404, SystemicKind.CONFIGURATION),
        (403, SystemicKind.AUTHENTICATION),
        (507, SystemicKind.FULL),
    ],
)
def test_trouble_said_of_every_record_is_the_targets(status, kind):
    found = outcome(200, items(status, status, status), results=ITEMS)
    assert isinstance(found, Systemic)
    assert found.kind is kind


def test_trouble_said_of_some_records_is_theirs():
    found = outcome(200, items(404, 404, 200), results=ITEMS)
    assert isinstance(found, Partial)
    assert [each.lsn for each in found.retry] == [1, 2]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (items(200, 200), "2 items for 3 records"),
        (items(200, 200, 200, 200), "4 items for 3 records"),
        ({"items": []}, "0 items for 3 records"),
        ({"items": {}}, "there is no list at items"),
        ({"other": []}, "there is no list at items"),
        ([], "there is no list at items"),
        ({"items": [{"status": 200}, {"status": 200}, {}]}, "an item has no status"),
        ({"items": [{"status": 200}, {"status": 200}, 7]}, "an item has no status"),
        ({"items": [{"status": 200}, {"status": 200}, {"status": None}]}, "an item has no status"),
    ],
)
def test_another_number_of_items_than_records_is_unknown(body, why):
    found = outcome(200, body, results=ITEMS)
    assert isinstance(found, Unknown)
    assert why in found.message


@pytest.mark.parametrize(
    ("status", "taken"),
    [
        (200, True),
        ("200", True),
        (True, True),
        ("ok", True),
        ("SUCCESS", True),
        ("queued", True),
        (False, False),
        ("failed", False),
        ("400", False),
    ],
)
def test_a_status_is_a_number_a_word_or_a_truth(status, taken):
    results = {**ITEMS, "taken": ["ok", "success", "queued"]}
    found = outcome(200, items(status), count=1, results=results)
    assert isinstance(found, Delivered if taken else Partial)
    if isinstance(found, Partial):
        assert [each.lsn for each in found.rejected] == [1]


def test_a_number_that_is_no_status_is_asked_again():
    found = outcome(200, items(7, 200), count=2, results=ITEMS)
    assert isinstance(found, Partial)
    assert [each.lsn for each in found.retry] == [1]


BY_ID = {"path": "items", "match": "id", "record_field": "b"}


def by_id(body, *values, **results):
    sent = [record(lsn, {"b": value}) for lsn, value in enumerate(values, 1)]
    found = judge(results={**BY_ID, **results})
    return found.outcome(answer(200, body), LOG_ID, sent)


def test_items_are_matched_by_an_id_in_any_order():
    body = {"items": [{"id": "y", "status": 400}, {"id": 7, "status": 200}]}
    found = by_id(body, 7, "y")
    assert isinstance(found, Partial)
    assert [each.lsn for each in found.rejected] == [2]


def test_items_are_matched_by_the_ids_of_envelopes():
    name = f"{LOG_ID.hex()}-2"
    results = {"path": ".", "lists": "failed", "match": "id"}
    found = judge(records="envelopes", results=results)
    said = found.outcome(answer(200, [{"id": name, "error": "no"}]), LOG_ID, records(2))
    assert isinstance(said, Partial)
    assert [(each.lsn, each.message) for each in said.rejected] == [(2, "no")]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"items": [{"id": "x", "status": 200}, {"id": "z", "status": 200}]}, "names no record"),
        ({"items": [{"id": "x", "status": 200}, {"id": "x", "status": 200}]}, "a record twice"),
        ({"items": [{"status": 200}, {"id": "x", "status": 200}]}, "names no record"),
    ],
)
def test_an_id_that_is_nobodys_or_stands_twice_is_unknown(body, why):
    found = by_id(body, "x", "y")
    assert isinstance(found, Unknown)
    assert why in found.message


def test_records_that_share_an_id_cannot_be_told_apart():
    body = {"items": [{"id": "x", "status": 200}, {"id": "y", "status": 200}]}
    found = by_id(body, "x", "x")
    assert isinstance(found, Unknown)
    assert "the same b" in found.message


FAILED = {"path": "failed", "lists": "failed"}


def test_a_list_of_those_that_failed_names_them_by_index():
    body = {"failed": [{"index": 2, "error": "no"}, {"index": "0", "error": {"why": 1}}]}
    found = outcome(200, body, results=FAILED)
    assert isinstance(found, Partial)
    assert [(each.lsn, each.message) for each in found.rejected] == [(3, "no"), (1, '{"why":1}')]
    assert outcome(200, {"failed": []}, results=FAILED) == Delivered()


def test_a_refusal_may_name_the_culprits_of_a_batch_that_was_refused_whole():
    body = {"failed": [{"index": 1, "error": "no"}]}
    found = outcome(422, body, results=FAILED)
    assert isinstance(found, Rejected)
    assert [(each.lsn, each.code) for each in found.records] == [(2, "422")]
    assert outcome(422, "no", results=FAILED).records == ()


@pytest.mark.parametrize("item", [{"index": 3}, {"index": -1}, {}, {"index": 0, "status": 200}])
def test_a_list_of_those_that_failed_which_makes_no_sense_is_unknown(item):
    results = {**FAILED, "status": "status"} if "status" in item else FAILED
    assert isinstance(outcome(200, {"failed": [item]}, results=results), Unknown)


def test_of_several_items_of_one_record_the_worst_counts():
    sent = [record(1, 1), record(1, 2), record(2, 3)]
    found = judge(results=ITEMS).outcome(answer(200, items(429, 400, 200)), LOG_ID, sent)
    assert isinstance(found, Partial)
    assert [each.lsn for each in found.rejected] == [1]
    assert found.retry == ()


# --- presets ------------------------------------------------------------------------------------


def created(*statuses):
    reasons = {400: {"error": {"type": "mapper", "reason": "failed to parse"}}}
    return {
        "errors": True,
        "items": [{"create": {"status": n, **reasons.get(n, {})}} for n in statuses],
    }


def test_elasticsearch_a_record_that_is_there_already_is_a_success():
    found = outcome(200, created(201, 409, 409), preset="elasticsearch")
    assert found == Delivered({"already-there": 2})


def test_elasticsearch_says_what_became_of_each_record():
    found = outcome(200, created(201, 400, 429), preset="elasticsearch")
    assert isinstance(found, Partial)
    assert [(each.lsn, each.message) for each in found.rejected] == [(2, "400: failed to parse")]
    assert [each.lsn for each in found.retry] == [3]


@pytest.mark.parametrize(
    ("status", "kind"), [(404, SystemicKind.CONFIGURATION), (403, SystemicKind.AUTHENTICATION)]
)
def test_elasticsearch_an_index_that_is_gone_makes_no_dead_letters(status, kind):
    found = outcome(200, created(status, status, status), preset="elasticsearch")
    assert isinstance(found, Systemic)
    assert found.kind is kind


CODES = {
    27: Rejected,
    60: SystemicKind.CONFIGURATION,
    241: SystemicKind.BUSY,
    252: SystemicKind.BUSY,
    243: SystemicKind.FULL,
    319: Unknown,
    516: SystemicKind.AUTHENTICATION,
    77777: Unknown,
}


@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize(("code", "means"), CODES.items())
def test_clickhouse_its_own_number_says_more_than_the_status(status, code, means):
    if code == 77777 and status in (400, 404):
        return  # a number that nobody knows: the status counts
    headers = {"X-ClickHouse-Exception-Code": str(code)}
    found = outcome(status, f"Code: {code}. DB::Exception", headers=headers, preset="clickhouse")
    if isinstance(means, SystemicKind):
        assert isinstance(found, Systemic)
        assert found.kind is means
    else:
        assert isinstance(found, means)


def test_a_success_with_the_servers_own_number_of_an_error_is_none():
    headers = {"X-ClickHouse-Exception-Code": "77777"}
    assert isinstance(outcome(200, "", headers=headers, preset="clickhouse"), Unknown)


def test_clickhouse_names_the_row_that_it_cannot_read():
    body = "Code: 27. DB::Exception: Cannot parse input: (at row 2)\n: While executing"
    headers = {"X-ClickHouse-Exception-Code": "27"}
    found = outcome(400, body, headers=headers, preset="clickhouse")
    assert isinstance(found, Rejected)
    assert [(each.lsn, each.code) for each in found.records] == [(2, "27")]
    beyond = outcome(400, body.replace("2)", "9)"), headers=headers, preset="clickhouse")
    assert isinstance(beyond, Rejected)
    assert beyond.records == ()
