"""Records as items of DynamoDB, without a server."""

import msgpack
import pytest

from wald.model import Content, Record
from wald.sinks.dynamodb.items import puts_of
from wald.sinks.dynamodb.options import read_options
from wald.sinks.dynamodb.transaction import newest
from wald.sinks.values import VALUE_REFUSED


def test_what_a_transform_made_of_one_record_does_not_hide_behind_one_key():
    options = read_options(
        "things",
        "things",
        {
            "mode": "transaction",
            "table": "things",
            "progress_table": "progress",
            "partition_key": "id",
            "key_from": "record-id",
        },
    )
    sent = [
        Record(lsn, 0, int(Content.MSGPACK), msgpack.packb({"n": number}))
        for number, lsn in enumerate((6, 6, 7))
    ]
    puts, refused, _ = puts_of(options, bytes(16), sent)
    assert [put.lsn for put in puts] == [6, 7]
    assert [(each.lsn, each.code) for each in refused] == [(6, "key.not-alone")]


def by_field():
    return read_options(
        "things",
        "things",
        {
            "mode": "transaction",
            "table": "things",
            "progress_table": "progress",
            "partition_key": "id",
            "key_from": "field",
        },
    )


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        (["1" * 37 + "1", "1" * 37 + "2"], [1, 2]),
        (["0", "-0.0", "0e7"], [3]),
        (["100", "1e2", "1.0E+2"], [3]),
        (["1e-130", "-1e-130"], [1, 2]),
    ],
)
def test_keys_are_one_where_the_service_takes_the_numbers_for_one(numbers, written):
    sent = [
        Record(lsn, 0, int(Content.JSON), b'{"id":%s}' % number.encode())
        for lsn, number in enumerate(numbers, 1)
    ]
    puts, refused, _ = puts_of(by_field(), bytes(16), sent)
    assert not refused
    assert [put.lsn for put in newest(puts)] == written


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (Content.JSON, b'{"id":1e99999999999999999999}'),
        (Content.MSGPACK, msgpack.packb({"id": msgpack.ExtType(3, b"1e99999999999999999999")})),
        (Content.MSGPACK, msgpack.packb({"id": msgpack.ExtType(3, b"many")})),
    ],
)
def test_a_number_beyond_all_bounds_is_refused(content, value):
    puts, refused, _ = puts_of(by_field(), bytes(16), [Record(1, 0, int(content), value)])
    assert not puts
    assert [each.code for each in refused] == [VALUE_REFUSED]
