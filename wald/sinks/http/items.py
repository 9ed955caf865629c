"""An answer's items, one a record: found by the paths of ``results``, matched, read. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from wald.model import Record
from wald.sinks.http.encoding import record_id
from wald.sinks.http.options import Options, Results
from wald.sinks.http.statuses import Meaning, status_row
from wald.sinks.values import BAD_VALUE, decode

_MISSING = object()


class Answered(NamedTuple):
    """What an answer says of one record that was sent."""

    lsn: int
    meaning: Meaning
    status_text: str
    message: str


class _Unreadable(Exception):
    """What an answer says of records cannot be believed; its text says why."""


def find_items(
    options: Options, answer: object, log_id: bytes, records: Sequence[Record]
) -> list[Answered] | str:
    """Return what an answer says of each record, or of those it names; else why it cannot be read.

    With ``lists = "all"`` exactly one item for each record that was sent.
    """
    results = options.results
    items = _at(answer, results.path or ())
    if not isinstance(items, list):
        return f"there is no list at {_dotted(results.path or ())}"
    try:
        positions = _positions(results, items, log_id, records)
        return [
            _read(options, item, records[position].lsn)
            for item, position in zip(items, positions, strict=True)
        ]
    except _Unreadable as error:
        return str(error)


def _positions(
    results: Results, items: Sequence[object], log_id: bytes, records: Sequence[Record]
) -> list[int]:
    """Return which of the records each item is about, each once."""
    whole = results.lists == "all"
    if whole and len(items) != len(records):
        msg = f"it has {len(items):,} items for {len(records):,} records"
        raise _Unreadable(msg)
    if whole and results.match == "index":
        return list(range(len(items)))
    names: Mapping[object, int] = (
        {str(index): index for index in range(len(records))}
        if results.match == "index"
        else _by_id(results, log_id, records)
    )
    found = [names.get(_text(_at(item, results.field)), -1) for item in items]
    if -1 in found:
        msg = f"item {found.index(-1)} names no record that was sent"
        raise _Unreadable(msg)
    if len(set(found)) < len(found):
        msg = "it names a record twice"
        raise _Unreadable(msg)
    return found


def _by_id(results: Results, log_id: bytes, records: Sequence[Record]) -> Mapping[object, int]:
    name = results.record_field
    if name:
        ids = [_text(_own_field(record, name)) for record in records]
    else:
        ids = [record_id(log_id, record.lsn) for record in records]
    found = {each: index for index, each in enumerate(ids)}
    if len(found) < len(ids):
        msg = f"several records have the same {name or 'id'}"
        raise _Unreadable(msg)
    return cast("Mapping[object, int]", found)


def _own_field(record: Record, name: str) -> object:
    try:
        return _at(decode(record), (name,))
    except BAD_VALUE:
        return _MISSING


def _read(options: Options, item: object, lsn: int) -> Answered:
    results = options.results
    status = _at(item, results.status) if results.status else _MISSING
    text = "" if status is _MISSING else _text(status)
    if results.lists == "failed":
        meaning = _of_failed(options, status)
    elif status is _MISSING or status is None:
        msg = f"an item has no {_dotted(results.status)}"
        raise _Unreadable(msg)
    else:
        meaning = _meaning(options, status)
    message = _at(item, results.message)
    return Answered(lsn, meaning, text, _text(item if message in (_MISSING, None) else message))


def _of_failed(options: Options, status: object) -> Meaning:
    meaning = Meaning.REFUSED if status is _MISSING else _meaning(options, status)
    if meaning is Meaning.TAKEN:
        msg = "it names a record among those that failed, with a status of success"
        raise _Unreadable(msg)
    return meaning


def _meaning(options: Options, status: object) -> Meaning:
    """Return what an item's status says: a number like a status of HTTP, a word, true or false."""
    if isinstance(status, bool):
        return Meaning.TAKEN if status else Meaning.REFUSED
    if isinstance(status, str) and status.lower() in options.results.taken:
        return Meaning.TAKEN
    text = _text(status)
    if text.isdecimal() and len(text) == 3:
        return status_row(int(text), options.conflict).meaning
    return Meaning.REFUSED if isinstance(status, str) else Meaning.UNKNOWN


def _at(value: object, path: Sequence[str]) -> object:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path) or "the top"
