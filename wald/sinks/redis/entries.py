"""Records as entries of a stream: a list of words, field and value in turn.

| field | value |
|---|---|
| `log_id` | the log id, 32 hex digits: with the id of the entry it names the record for ever |
| `time` | when the record became durable, ISO 8601 in UTC |
| `key` | its key, if it has one: text as UTF-8, bytes as they are |
| `headers` | its headers as JSON, if it has any |
| `value` | JSON text; a value that was appended as bytes stays as it is |
| `lsn` | its LSN, where the entry's id does not say it |
| `redrive_of` | of a dead letter that was sent again: its LSN; the entry's id is newer |
"""

from collections.abc import Sequence
from typing import TypeAlias

from wald.model import Content, Record, RejectedRecord
from wald.sinks.values import BAD_VALUE, json_text, refusal, time_text, to_json

Word: TypeAlias = str | bytes


def entries_of(
    log_id: bytes, records: Sequence[Record]
) -> tuple[list[Word], tuple[RejectedRecord, ...]]:
    """Return records as the arguments of the script, and those that have no form as an entry."""
    words: list[Word] = []
    refused: list[RejectedRecord] = []
    log_hex = log_id.hex()
    for record in records:
        try:
            entry = _entry(log_hex, record)
        except BAD_VALUE as error:
            refused.append(refusal(record, error))
            continue
        words += (str(record.lsn), str(len(entry)), *entry)
    return words, tuple(refused)


def _entry(log_hex: str, record: Record) -> list[Word]:
    entry: list[Word] = ["log_id", log_hex, "time", time_text(record.time_ns)]
    if record.key is not None:
        entry += ("key", _bytes(record.key))
    if record.headers:
        entry += ("headers", to_json(dict(record.headers)).encode())
    is_bytes = record.content == Content.BYTES
    entry += ("value", record.value if is_bytes else json_text(record).encode())
    return entry


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
