"""Records from NDJSON, CSV and lines: what is a record, and what is refused at its index."""

import io

import msgpack
import pytest

from wald import limits
from wald.cli import records
from wald.cli.records import (
    NO_FIELDS,
    Entry,
    Fields,
    Parsed,
    Unparsed,
    read_csv,
    read_lines,
    read_ndjson,
)
from wald.errors import InputError
from wald.model import Content


def ndjson(text: bytes, key: str | None = None, dedup_id: str | None = None) -> list[Entry]:
    return list(read_ndjson(io.BytesIO(text), Fields(key, dedup_id)))


def csv(text: bytes, key: str | None = None, dedup_id: str | None = None) -> list[Entry]:
    return list(read_csv(io.BytesIO(text), Fields(key, dedup_id)))


def refused(entries: list[Entry]) -> list[tuple[int, str]]:
    return [(i, entry.code) for i, entry in enumerate(entries) if isinstance(entry, Unparsed)]


def test_the_text_of_a_json_value_is_kept_as_it_stands() -> None:
    text = b'{"n": 12345678901234567890123, "f": 1.10}'
    assert ndjson(text + b"\n\n  \n[1]\r\n") == [
        Parsed(Content.JSON, text),
        Parsed(Content.JSON, b"[1]"),
    ]


def test_a_bad_line_of_json_is_refused_at_its_index() -> None:
    text = b'{"a":1}\n{"a":\n{"a":NaN}\n\xff\n' + b"[" * 100_000 + b'\n{"a":2}\n'
    entries = ndjson(text)
    assert refused(entries) == [
        (1, "json.syntax"),
        (2, "json.syntax"),
        (3, "json.syntax"),
        (4, "json.syntax"),
    ]
    assert [entry.message for entry in entries if isinstance(entry, Unparsed)] == [
        "line 2, column 6: Expecting value",
        "line 3: NaN is not JSON",
        "line 4: not UTF-8 at byte 0",
        "line 5: nested too deeply",
    ]
    assert isinstance(entries[5], Parsed)


def test_a_number_of_too_many_digits_is_refused_in_our_words() -> None:
    (entry,) = ndjson(b"1" * 10_000)
    assert entry == Unparsed("json.syntax", "line 1: a number of too many digits")


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert ndjson(b'\xef\xbb\xbf{"a":1}\n[2]') == [
        Parsed(Content.JSON, b'{"a":1}'),
        Parsed(Content.JSON, b"[2]"),
    ]


def test_a_line_beyond_the_bound_is_refused_without_reading_it_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "_LINE_MAX_BYTES", 2 * limits.RECORD_MAX_BYTES)
    long = b'"' + b"x" * (5 * limits.RECORD_MAX_BYTES) + b'"'
    assert refused(ndjson(b"1\n" + long + b"\n2\n")) == [(1, "record.too-large")]
    entries = list(read_lines(io.BytesIO(b"1\n" + long + b"\n2"), NO_FIELDS))
    assert refused(entries) == [(1, "record.too-large")]
    assert entries[2] == Parsed(Content.BYTES, b"2")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"k":"ann"}', "ann"),
        (b'{"k":7}', "7"),
        (b'{"k":true}', "true"),
        (b'{"k":null}', None),
        (b'{"k":""}', None),
        (b'{"k":{}}', None),
        (b'{"j":1}', None),
        (b"[1]", None),
        (b'{"k":"\\ud800"}', None),
        (b'{"k":"' + b"x" * 1025 + b'"}', None),
    ],
)
def test_a_key_is_text_or_a_number(line: bytes, key: str | None) -> None:
    (entry,) = ndjson(line, "k")
    if key is None:
        assert isinstance(entry, Unparsed)
        assert entry.code == "record.key"
    else:
        assert entry == Parsed(Content.JSON, line, key)


def test_a_row_of_csv_is_a_map_of_texts() -> None:
    entries = csv('\ufeffid,name\r\n1,"a, b\nc"\r\n\r\n2,\n'.encode(), "id")
    assert [msgpack.unpackb(e.value) for e in entries if isinstance(e, Parsed)] == [
        {"id": "1", "name": "a, b\nc"},
        {"id": "2", "name": ""},
    ]
    assert [e.key for e in entries if isinstance(e, Parsed)] == ["1", "2"]


def test_a_ragged_row_is_refused_at_its_index_and_harms_no_other() -> None:
    entries = csv(b"a,b\n1,2\n3\n4,5,6\n7,8\n")
    assert refused(entries) == [(1, "csv.ragged"), (2, "csv.ragged")]
    assert entries[1] == Unparsed("csv.ragged", "line 3: 1 fields, the header has 2")
    assert isinstance(entries[3], Parsed)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b'"1"x,2', "csv.syntax"),
        (b"\xff,2", "csv.syntax"),
        (b"x" * (limits.RECORD_MAX_BYTES + 1) + b",2", "csv.syntax"),
    ],
)
def test_a_row_that_is_not_csv_is_refused_and_harms_no_other(row: bytes, code: str) -> None:
    entries = csv(b"a,b\n" + row + b"\n7,8\n")
    assert refused(entries) == [(0, code)]
    assert len(entries) == 2


def test_an_open_quote_at_the_end_is_refused() -> None:
    assert refused(csv(b'a,b\n1,2\n"3,4\n')) == [(1, "csv.syntax")]


def test_what_an_open_quote_swallows_is_named_by_its_lines() -> None:
    (_, entry) = csv(b'a,b\n1,2\n"3,4\n5,6\n7,8\n')
    assert isinstance(entry, Unparsed)
    assert entry.message == "lines 3 to 5 (3 lines): unexpected end of data"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (b"", None, "no header"),
        (b"\n", None, "no header"),
        (b"a,a\n", None, "twice"),
        (b"a,b\x1b\n", None, "not printable"),
        (b"a,\xff\n", None, "not printable"),
        (b"a,b\n", "c", "no field 'c'"),
        (b'"a"b\n', None, "not a CSV header"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(
    text: bytes, key: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        csv(text, key)


def test_a_line_is_bytes_without_its_end() -> None:
    assert list(read_lines(io.BytesIO(b"a\r\n\nb\xff\nc"), NO_FIELDS)) == [
        Parsed(Content.BYTES, value) for value in (b"a", b"", b"b\xff", b"c")
    ]


def test_a_line_has_no_key() -> None:
    with pytest.raises(InputError, match="--key needs fields"):
        list(read_lines(io.BytesIO(b"a\n"), Fields("k")))
