"""Delivery to DynamoDB Local and to ministack: what is particular to tables and their API."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import msgpack
import pytest

from tests.servers.dynamodb import SECRET, DynamoServer, MiniServer, all_items, make_table
from tests.servers.forging import ForgingProxy, error
from wald.model import (
    Anchor,
    Attempt,
    Content,
    Delivered,
    LaneKey,
    Outcome,
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RowMoved,
    Secret,
    Severity,
    Systemic,
    SystemicKind,
    TooLarge,
)
from wald.ports import Sink
from wald.sinks.dynamodb import make

LOG, OTHER_LOG = b"L" * 16, b"M" * 16
KEY = LaneKey(LOG, 3, 0, 0)
MODES = ("put", "put-if-newer", "transaction")


class Tables:
    """Two empty tables at a server, behind a proxy that forges what a test says."""

    def __init__(self, server: DynamoServer, name: str = "events") -> None:
        self.server = server
        self.name, self.progress = name, f"{name}_progress"
        self.client = server.client()
        self.proxy = ForgingProxy(server.port)
        make_table(self.client, self.name, "id")
        make_table(self.client, self.progress, "lane")

    def close(self) -> None:
        for table in self.client.list_tables()["TableNames"]:
            if table.startswith(self.name):
                self.client.delete_table(TableName=table)
        self.client.close()
        self.proxy.close()

    @contextmanager
    def sink(self, mode: str, **settings: Any) -> Iterator[Sink]:
        place = {**self.server.settings, "endpoint_url": self.proxy.url, "partition_key": "id"}
        secret = {"secret_access_key": Secret(SECRET)}
        if mode == "transaction":
            place["progress_table"] = self.progress
        made = make("route", self.name, {**place, **secret, "mode": mode, **settings})
        try:
            yield made
        finally:
            made.close()

    @property
    def held(self) -> dict[str, Any]:
        """What the table holds: by id, the values of field ``v`` in the API's form."""
        return {item["id"]["S"]: item.get("v") for item in all_items(self.client, self.name)}


@pytest.fixture(scope="module")
def ministack() -> Iterator[MiniServer]:
    running = MiniServer().start()
    yield running
    running.close()


@pytest.fixture(scope="module", params=["dynamodb", "ministack"])
def server(request) -> DynamoServer:
    found: DynamoServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tables(server) -> Iterator[Tables]:
    made = Tables(server)
    yield made
    made.close()


def record(lsn: int, name: str, value: object = 1, **more: Any) -> Record:
    return Record(lsn, 1, Content.MSGPACK, msgpack.packb({"id": name, "v": value}), **more)


def attempt(number: int, sent: Sequence[Record], **more: Any) -> Attempt:
    """The batch of a number, on the one before; revision n is n sixteen times."""
    row = ProgressRow(
        number, bytes([number]) * 16, sent[-1].lsn, Anchor(5, 6), (1 << 64) - 1, bytes(16)
    )
    given = {"key": KEY, "stream": "events", "prev_rev": bytes([number - 1]) * 16, "row": row}
    return Attempt(**{**given, "records": sent, "timeout_s": 30.0, **more})


def number_of(number: int) -> dict[str, str]:
    return {"N": str(number)}


# --- keys that stand twice ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_of_one_key_the_last_stays_and_a_batch_may_have_it_often(tables, mode):
    sent = [record(1 + n, f"k{n % 3}", n) for n in range(60)]
    with tables.sink(mode) as sink:
        outcome = sink.deliver(attempt(1, sent))
        assert isinstance(outcome, Delivered)
        calls = {"put": 20, "put-if-newer": 60, "transaction": 1}[mode]
        assert outcome.notes["requests"] == calls
    assert tables.held == {"k0": number_of(57), "k1": number_of(58), "k2": number_of(59)}


def test_numbers_that_are_equal_are_one_key(tables):
    make_table(tables.client, "events_of_numbers", "id", id="N")
    values = [b'{"id":1,"v":1}', b'{"id":1.0,"v":2}', b'{"id":10e-1,"v":3}']
    sent = [Record(n, 1, Content.JSON, value) for n, value in enumerate(values, 1)]
    with tables.sink("put", table="events_of_numbers") as sink:
        assert isinstance(sink.deliver(attempt(1, sent)), Delivered)
    (item,) = all_items(tables.client, "events_of_numbers")
    assert item["v"] == number_of(3)


# --- newer wins -----------------------------------------------------------------------------------


def test_put_if_newer_lets_no_older_record_over_a_newer_one(tables):
    with tables.sink("put-if-newer") as sink:
        assert isinstance(sink.deliver(attempt(1, [record(7, "a", 7)])), Delivered)
        late = sink.deliver(attempt(1, [record(5, "a", 5), record(6, "b", 6)]))
        assert isinstance(late, Delivered)
        assert late.notes["not-newer"] == 1
        assert isinstance(sink.deliver(attempt(1, [record(7, "a", 0)])), Delivered)
        assert tables.held == {"a": number_of(7), "b": number_of(6)}
        wide = 2**53
        for lsn in (wide, wide + 1, 2**63 - 1):
            assert isinstance(sink.deliver(attempt(1, [record(lsn, "c", lsn)])), Delivered)
        assert tables.held["c"] == number_of(2**63 - 1)


def test_put_if_newer_takes_what_another_log_or_nobody_of_ours_wrote(tables):
    tables.client.put_item(TableName="events", Item={"id": {"S": "a"}, "v": number_of(0)})
    with tables.sink("put-if-newer") as sink:
        assert isinstance(sink.deliver(attempt(1, [record(9, "a", 1)])), Delivered)
        assert tables.held == {"a": number_of(1)}
        other = attempt(1, [record(2, "a", 2)], key=KEY._replace(log_id=OTHER_LOG))
        assert isinstance(sink.deliver(other), Delivered)
        assert tables.held == {"a": number_of(2)}


def test_put_overwrites_and_check_warns_of_it(tables):
    with tables.sink("put") as sink:
        for lsn in (7, 5):
            assert isinstance(sink.deliver(attempt(1, [record(lsn, "a", lsn)])), Delivered)
        assert tables.held == {"a": number_of(5)}
        warned = [each for each in sink.check() if each.severity is Severity.WARNING]
        assert [each.code for each in warned] == ["dynamodb.overwrites"]
    with tables.sink("put", key_from="record-id") as sink:
        assert [each.code for each in sink.check()] == ["dynamodb.found"]


@pytest.mark.parametrize(
    ("key_from", "expected"),
    [("record-id", f"{LOG.hex()}-5"), ("record-key", "the key")],
)
def test_a_key_may_be_the_records_own(tables, key_from, expected):
    with tables.sink("put", key_from=key_from) as sink:
        sent = [record(5, "a", 1, key="the key")]
        assert isinstance(sink.deliver(attempt(1, sent)), Delivered)
        assert tables.held == {expected: number_of(1)}
        if key_from == "record-key":
            outcome = sink.deliver(attempt(1, [record(6, "a")]))
            assert isinstance(outcome, Rejected)
            assert outcome.records[0].code == "key.missing"


# --- the service answers for parts ----------------------------------------------------------------


def test_what_was_not_processed_is_wanted_again_and_nothing_of_its_key_overtakes_it(tables):
    def forge(operation: str, request: Any) -> None:
        """Process nothing of key k1: the request goes on without it."""
        puts = request["RequestItems"]["events"]
        slow = [each for each in puts if each["PutRequest"]["Item"]["id"] == {"S": "k1"}]
        forged.append(slow)
        request["RequestItems"]["events"] = [each for each in puts if each not in slow]

    forged: list[Any] = []
    upstream = tables.proxy.answer

    def answer(headers: Any, body: bytes) -> Any:
        status, said = upstream(headers, body)
        if forged and forged[-1]:
            import json

            unprocessed = {**json.loads(said), "UnprocessedItems": {"events": forged[-1]}}
            said = json.dumps(unprocessed).encode()
        return status, said

    tables.proxy.answer = answer
    sent = [record(1 + n, f"k{n % 3}", n) for n in range(9)]
    with tables.sink("put") as sink:
        with tables.proxy.forging(forge):
            outcome = sink.deliver(attempt(1, sent))
        assert isinstance(outcome, Partial)
        assert [item.lsn for item in outcome.retry] == [2, 5, 8]
        assert {item.code for item in outcome.retry} == {"throttled"}
        assert outcome.rejected == ()
        assert tables.held == {"k0": number_of(6), "k2": number_of(8)}
        assert isinstance(sink.deliver(attempt(1, sent)), Delivered)
    assert tables.held == {"k0": number_of(6), "k1": number_of(7), "k2": number_of(8)}


@pytest.mark.parametrize("mode", ["put", "put-if-newer"])
def test_throttled_behind_a_part_is_a_part_and_from_the_start_is_busy(tables, mode):
    sent = [record(1 + n, f"k{n}", n) for n in range(100)]
    calls = iter(range(1_000))
    code = "ProvisionedThroughputExceededException"
    with tables.sink(mode) as sink:
        with tables.proxy.forging(lambda *_: error(code) if next(calls) >= 2 else None):
            outcome = sink.deliver(attempt(1, sent))
        assert isinstance(outcome, Partial)
        taken = 100 - len(outcome.retry)
        assert len(tables.held) == taken == (50 if mode == "put" else 2)
        assert code in outcome.message
        with tables.proxy.forging(lambda *_: error(code)):
            outcome = sink.deliver(attempt(1, sent))
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.BUSY


ERRORS = [
    ("ProvisionedThroughputExceededException", 400, SystemicKind.BUSY),
    ("ThrottlingException", 400, SystemicKind.BUSY),
    ("RequestLimitExceeded", 400, SystemicKind.BUSY),
    ("TransactionInProgressException", 400, SystemicKind.BUSY),
    ("InternalServerError", 500, SystemicKind.UNREACHABLE),
    ("SomethingNew", 503, SystemicKind.UNREACHABLE),
    ("SomethingNew", 400, SystemicKind.CONFIGURATION),
    ("AccessDeniedException", 400, SystemicKind.AUTHENTICATION),
    ("UnrecognizedClientException", 400, SystemicKind.AUTHENTICATION),
    ("ExpiredTokenException", 400, SystemicKind.AUTHENTICATION),
    ("ResourceNotFoundException", 400, SystemicKind.CONFIGURATION),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("code", "status", "kind"), ERRORS)
def test_an_error_of_the_service_is_no_record_s_fault(tables_once, mode, code, status, kind):
    with (
        tables_once.sink(mode) as sink,
        tables_once.proxy.forging(lambda *_: error(code, "", status)),
    ):
        outcome = sink.deliver(attempt(1, [record(1, "a")]))
    assert isinstance(outcome, Systemic), outcome
    assert outcome.kind is kind


@pytest.fixture(scope="module")
def tables_once(server) -> Iterator[Tables]:
    """Tables that nothing is written to."""
    made = Tables(server, "once")
    yield made
    made.close()


# --- transactions ---------------------------------------------------------------------------------


def test_a_transaction_holds_99_records_and_the_row_and_is_taken_once(tables):
    sent = [record(1 + n, f"k{n}", n) for n in range(99)]
    with tables.sink("transaction") as sink:
        assert sink.read_row(KEY) is None
        outcome = sink.deliver(attempt(1, sent))
        assert isinstance(outcome, Delivered)
        assert outcome.notes["write-units"] >= 2
        assert sink.read_row(KEY) == attempt(1, sent).row
        assert sink.deliver(attempt(1, sent)) == RowMoved(attempt(1, sent).row)
        assert sink.deliver(attempt(3, sent)) == RowMoved(attempt(1, sent).row)
        assert isinstance(sink.deliver(attempt(2, [record(200, "k0", 200)])), Delivered)
    assert len(tables.held) == 99
    assert tables.held["k0"] == number_of(200)


def test_a_record_that_the_service_refuses_is_named_by_its_reason(tables):
    sent = [record(1 + n, f"k{n}", n) for n in range(50)]
    sent[20] = Record(21, 1, Content.MSGPACK, msgpack.packb({"id": 5}))
    with tables.sink("transaction") as sink:
        outcome = sink.deliver(attempt(1, sent))
        if isinstance(outcome, Rejected) and not outcome.records:  # it says it of the whole
            named = [sink.probe(attempt(1, sent), [each]) for each in sent[19:22]]
            assert [bool(each) for each in named] == [False, True, False]
        else:
            assert isinstance(outcome, Rejected)
            assert [item.lsn for item in outcome.records] == [21]
            assert outcome.records[0].message
            assert [item.lsn for item in _named(sink.probe(attempt(1, sent), sent))] == [21]
        assert sink.probe(attempt(1, sent), sent[:20]) == ()
        assert tables.held == {}
        assert sink.read_row(KEY) is None


def _named(answer: Any) -> Any:
    assert not isinstance(answer, Outcome)
    return answer


def cancelled(*codes: str) -> tuple[int, dict[str, Any]]:
    status, said = error("TransactionCanceledException")
    return status, {**said, "CancellationReasons": [{"Code": code} for code in codes]}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("None", "TransactionConflict", "None"), SystemicKind.BUSY),
        (("None", "None", "ThrottlingError"), SystemicKind.BUSY),
        (("None", "ProvisionedThroughputExceeded", "None"), SystemicKind.BUSY),
        (("None", "TransactionConflict", "ValidationError"), Rejected),
        (("None", "ItemCollectionSizeLimitExceeded", "None"), Rejected),
        (("ConditionalCheckFailed", "ValidationError", "None"), RowMoved),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, tuple) else "",
)
def test_the_reasons_of_a_cancelled_transaction(tables_once, codes, expected):
    forging = tables_once.proxy.forging(lambda *_: cancelled(*codes))
    with tables_once.sink("transaction") as sink, forging:
        outcome = sink.deliver(attempt(1, [record(1, "a"), record(2, "b")]))
    if isinstance(expected, SystemicKind):
        assert isinstance(outcome, Systemic)
        assert outcome.kind is expected
    else:
        assert isinstance(outcome, expected)
    if isinstance(outcome, Rejected):
        refused = [n for n, code in enumerate(codes) if "Valid" in code or "Item" in code]
        assert [item.lsn for item in outcome.records] == refused


def test_a_transaction_that_is_too_large_is_told_as_such(tables, server):
    sent = [record(1 + n, f"k{n}", "x" * 380_000) for n in range(12)]
    with tables.sink("transaction") as sink:
        outcome = sink.deliver(attempt(1, sent))
        if isinstance(server, MiniServer):
            return  # ministack has no such bound
        assert isinstance(outcome, TooLarge)
        assert isinstance(sink.deliver(attempt(1, sent[:6])), Delivered)


# --- values ---------------------------------------------------------------------------------------


packed = msgpack.packb


def decimal(text: str) -> msgpack.ExtType:
    return msgpack.ExtType(3, text.encode())


NEST = {"L": [{"M": {"a": {"S": ""}}}]}


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (packed(None), {"NULL": True}),
        (packed(float("nan")), {"NULL": True}),
        (packed(float("inf")), {"NULL": True}),
        (b"\xc3", {"BOOL": True}),
        (packed(""), {"S": ""}),
        (packed("a\x00b"), {"S": "a\x00b"}),
        (packed(b"\x00\xff"), {"B": b"\x00\xff"}),
        (packed([{"a": ""}]), NEST),
        (packed(2**63), {"N": str(2**63)}),
        (packed(decimal("1." + "2" * 37)), {"N": "1." + "2" * 37}),
        (packed(decimal("1." + "2" * 38)), "record.value"),
        (packed(decimal("NaN")), {"NULL": True}),
        (packed(decimal("one")), "record.value"),
        (packed(1e125), {"N": "1E+125"}),
        (packed(1e126), "record.value"),
        (packed(1e-131), "record.value"),
        (packed({1: 2}), "record.value"),
        (packed("x" * 420_000), "item.too-large"),
        (packed(msgpack.ExtType(99, b"")), "record.value"),
        (packed("x")[:-1] + b"\xff", "record.value"),
    ],
    ids=[
        "nil is NULL", "NaN is NULL", "infinity is NULL", "true", "empty text", "NUL in text",
        "bytes", "nested", "64 bits", "38 digits", "39 digits", "Decimal NaN",
        "a Decimal that is none", "1e125", "1e126", "1e-131", "a key that is no text",
        "more than 400 KiB", "unknown extension", "not UTF-8",
    ],
)  # fmt: skip
def test_a_value_is_an_attribute_or_refused_with_words_and_its_neighbours_land(
    tables_once, value, held
):
    bad = Record(7, 1, Content.MSGPACK, b"\x82\xa2id\xa4odd!\xa1v" + value)
    with tables_once.sink("put") as sink:
        outcome = sink.deliver(attempt(1, [record(6, "before"), bad, record(8, "behind")]))
    found = tables_once.held
    tables_once.client.delete_item(TableName="once", Key={"id": {"S": "odd!"}})
    if isinstance(held, str):
        assert isinstance(outcome, Partial), outcome
        assert [(item.lsn, item.code) for item in outcome.rejected] == [(7, held)]
        assert outcome.rejected[0].message
        assert "odd!" not in found
    else:
        assert isinstance(outcome, Delivered), outcome
        wanted = {k: Decimal(v) if k == "N" else v for k, v in held.items()}
        assert {k: Decimal(v) if k == "N" else v for k, v in found["odd!"].items()} == wanted
    assert found.keys() >= {"before", "behind"}


@pytest.mark.parametrize(
    ("content", "value", "code"),
    [
        (Content.BYTES, b"raw", "record.value"),
        (Content.MSGPACK, packed(5), "record.value"),
        (Content.MSGPACK, packed({"v": 1}), "key.missing"),
        (Content.JSON, b'{"id":"a","v":NaN}', "record.value"),
        (Content.JSON, b'{"id":"\\ud800"}', "record.value"),
        (Content.JSON, b'{"id":"a"', "record.value"),
    ],
    ids=["bytes", "no map", "no key", "NaN in JSON", "half a surrogate pair", "not JSON"],
)
def test_what_is_no_item_is_refused_here(tables_once, content, value, code):
    with tables_once.sink("put-if-newer") as sink:
        outcome = sink.deliver(attempt(1, [Record(7, 1, content, value)]))
    assert isinstance(outcome, Rejected)
    assert [(item.lsn, item.code) for item in outcome.records] == [(7, code)]


@pytest.mark.parametrize(
    "value", [{"id": ""}, {"id": 5}, {"id": "x" * 3_000}, {"id": "a", "v": [[]] * 3}],
    ids=["an empty key", "a key of another type", "a key of 3,000 bytes", "it takes that"],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["put", "put-if-newer"])
def test_what_the_service_refuses_is_refused_with_its_words(tables, server, mode, value):
    sent = [record(1 + n, f"k{n}") for n in range(9)]
    sent.insert(4, Record(99, 1, Content.MSGPACK, packed(value)))
    with tables.sink(mode) as sink:
        outcome = sink.deliver(attempt(1, sent))
    if "v" in value:
        assert isinstance(outcome, Delivered)
        return
    if isinstance(outcome, Delivered) and isinstance(server, MiniServer):
        return  # ministack takes that key
    assert isinstance(outcome, Partial), outcome
    assert [item.lsn for item in outcome.rejected] == [99]
    assert outcome.rejected[0].code == "ValidationException"
    assert not outcome.retry
    assert len(tables.held) == 9


def test_columns_choose_and_name_attributes(tables):
    value = {"id": "a", "amount": 5, "note": "x"}
    settings = {"columns": {"id": "id", "v": "amount", "w": "absent"}}
    with tables.sink("put", **settings) as sink:
        outcome = sink.deliver(attempt(1, [Record(7, 1, Content.MSGPACK, packed(value))]))
        assert isinstance(outcome, Delivered)
        assert outcome.notes["extra-fields"] == 1
    (item,) = all_items(tables.client, "events")
    assert item == {"id": {"S": "a"}, "v": number_of(5), "w": {"NULL": True}}
    with tables.sink("put", **settings, on_missing_field="default") as sink:
        sink.deliver(attempt(1, [Record(7, 1, Content.MSGPACK, packed(value))]))
    (item,) = all_items(tables.client, "events")
    assert item == {"id": {"S": "a"}, "v": number_of(5)}


# --- check, credentials ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_is_missing_is_told_with_the_service_and_all_that_must_be_there(tables, mode):
    with tables.sink(mode, table="nowhere") as sink:
        outcome = sink.deliver(attempt(1, [record(1, "a")]))
    assert isinstance(outcome, Systemic)
    assert outcome.kind is SystemicKind.CONFIGURATION
    assert outcome.message.startswith(f"{tables.proxy.url}: ResourceNotFoundException")
    assert "make nowhere" in outcome.hint
    assert (tables.progress in outcome.hint) == (mode == "transaction")


def test_check_says_what_it_found_and_what_to_do(tables):
    def codes(mode: str, **settings: Any) -> list[tuple[str, str]]:
        with tables.sink(mode, **settings) as sink:
            return [(each.code, each.message + each.hint) for each in sink.check()]

    assert codes("put-if-newer") == [("dynamodb.found", "table events found, key id S")]
    ((code, said),) = codes("put-if-newer", table="absent")
    assert code == "dynamodb.configuration"
    assert "make it" in said
    ((code, said),) = codes("put-if-newer", partition_key="other")
    assert code == "dynamodb.configuration"
    assert "['id']" in said
    assert [code for code, _ in codes("transaction")] == ["dynamodb.found"] * 2
    tables.client.delete_table(TableName=tables.progress)
    _, (code, said) = codes("transaction")
    assert code == "dynamodb.configuration"
    assert "aws dynamodb create-table --table-name events_progress" in said


def test_without_credentials_and_without_a_region_that_is_said(tables_once, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    place = {"mode": "put", "partition_key": "id", "endpoint_url": tables_once.proxy.url}

    def told(**settings: Any) -> SystemicKind:
        sink = make("route", "events", {**place, **settings})
        try:
            outcome = sink.deliver(attempt(1, [record(1, "a")]))
        finally:
            sink.close()
        assert isinstance(outcome, Systemic)
        assert outcome.hint
        return outcome.kind

    assert told(region="eu-central-1") is SystemicKind.AUTHENTICATION
    assert told() is SystemicKind.CONFIGURATION
    assert told(region="eu-central-1", profile="nobody") is SystemicKind.AUTHENTICATION
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")  # the usual chain
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    sink = make("route", "once", {**place, "region": "eu-central-1"})
    assert isinstance(sink.deliver(attempt(1, [record(1, "chain")])), Delivered)
    sink.close()
