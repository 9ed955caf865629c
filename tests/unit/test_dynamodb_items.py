"""Records as items of DynamoDB, without a server."""

import msgpack

from wald.model import Content, Record
from wald.sinks.dynamodb.items import puts_of
from wald.sinks.dynamodb.options import read_options


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
