"""What an answer says of a batch: bytes in, an outcome out. Pure, but for the clock of a date.

Success is what the server says in a form that can be believed: a page of HTML, a body that is cut
short, another number of items than records were sent, or an item without a status is no success
and no refusal, it is ``Unknown``.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple, cast

from wald import limits
from wald.model import (
    Delivered,
    Outcome,
    Partial,
    Record,
    Rejected,
    RejectedRecord,
    Systemic,
    TooLarge,
    Unknown,
)
from wald.sinks.http.items import Answered, find_items
from wald.sinks.http.options import Options
from wald.sinks.http.statuses import HINTS, KINDS, Meaning, status_row

_TITLE = re.compile(rb"<title>(.{1,200}?)</title>", re.IGNORECASE | re.DOTALL)
_HTML = (b"<!doctype html", b"<html")
_MESSAGE_FIELDS = ("message", "error", "detail", "title", "reason", "description", "msg")
_PARTIAL_STATUS = 207
_PAGE = "it is a page of HTML: a portal or a proxy answered, not the server"
_PER_RECORD = "it speaks of each record, and results.path is not set"
_ALREADY_THERE = "already-there"  # a note: records that the target had


class Answer(NamedTuple):
    """An answer, its body as far as it was read; ``is_whole`` if that is all of it."""

    status: int
    headers: Mapping[str, str]  # whatever the case of a name
    body: bytes
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Judge:
    """Reads answers.

    Attributes:
        options: the route's.
        hide: takes secrets out of a text.
        now_s: the wall clock, for a date in ``Retry-After`` where the answer has none of its own.
    """

    options: Options
    hide: Callable[[str], str]
    now_s: Callable[[], float]

    def outcome(self, answer: Answer, log_id: bytes, records: Sequence[Record]) -> Outcome:
        """Return what an answer to a request that sent ``records`` means."""
        meaning, label = self._meaning(answer)
        if meaning is Meaning.TAKEN:
            return self._taken(answer, log_id, records)
        said = self.said(answer)
        if meaning is Meaning.TOO_LARGE:
            return TooLarge(said)
        if meaning is Meaning.REFUSED:
            return self._refused(answer, said, log_id, records)
        retry_after_s = retry_after(answer, self.now_s())
        if meaning is Meaning.UNKNOWN:
            return Unknown(said, retry_after_s)
        return Systemic(KINDS[meaning], said, HINTS.get(label, ""), retry_after_s)

    def said(self, answer: Answer) -> str:
        """Return the answer as one bounded line: status and the server's own words."""
        reason = f"answered {answer.status}"
        location = answer.headers.get("Location", "") if 300 <= answer.status < 400 else ""
        words = f"to {location.split('?')[0]}" if location else _words(answer)
        text = f"{self.options.shown_url} {reason}" + (f": {words}" if words else "")
        return self.hide(text)[: limits.ERROR_TEXT_MAX_CHARS]

    def _meaning(self, answer: Answer) -> tuple[Meaning, str]:
        """Return what the server's own number says; else the status."""
        preset = self.options.known
        number = answer.headers.get(preset.code_header, "") if preset.code_header else ""
        row = status_row(answer.status, self.options.conflict)
        if number.isdecimal() and int(number) in preset.codes:
            return preset.codes[int(number)], ""
        if number and row.meaning is Meaning.TAKEN:
            return Meaning.UNKNOWN, ""  # it says success, and an error
        return row.meaning, row.label

    # --- success --------------------------------------------------------------------------------

    def _taken(self, answer: Answer, log_id: bytes, records: Sequence[Record]) -> Outcome:
        trouble = self._doubt(answer)
        if trouble:
            return Unknown(f"{self.said(answer)} ({trouble})")
        if answer.status >= 300:  # a conflict that is none
            return Delivered({_ALREADY_THERE: len(records)})
        if self.options.results.path is None:
            return Delivered()
        return self._by_item(answer, log_id, records)

    def _doubt(self, answer: Answer) -> str:
        """Return why a success cannot be believed; empty if it can."""
        options, body = self.options, answer.body.strip()
        kind = answer.headers.get("Content-Type", "").lower()
        per_record = options.results.path is not None
        wants_json = options.answer == "json" or per_record
        speaks_json = wants_json or (bool(body) and "json" in kind)
        doubts = (
            (not answer.is_whole, f"it is cut short at {len(body):,} bytes"),
            ("html" in kind or body[:16].lower().startswith(_HTML), _PAGE),
            (options.answer == "empty" and bool(body), "it should be empty"),
            (answer.status == _PARTIAL_STATUS and not per_record, _PER_RECORD),
            (speaks_json and _json(body) is _NOT_JSON, "it is not JSON"),
        )
        return next((words for holds, words in doubts if holds), "")

    # --- per record -----------------------------------------------------------------------------

    def _by_item(self, answer: Answer, log_id: bytes, records: Sequence[Record]) -> Outcome:
        found = find_items(self.options, _json(answer.body), log_id, records)
        if isinstance(found, str):
            return Unknown(f"{self.said(answer)} ({found})")
        named = [each for each in found if each.meaning is not Meaning.TAKEN]
        if not named:
            there = sum(each.status_text == "409" for each in found)
            return Delivered({_ALREADY_THERE: there} if there else {})
        retry_after_s = retry_after(answer, self.now_s())
        systemic = [each for each in named if each.meaning in KINDS]
        if len(systemic) == len(records):  # nothing of it took effect, for no record's fault
            first = systemic[0]
            text = f"{self.options.shown_url} answered for every record: {self._shown(first)}"
            return Systemic(KINDS[first.meaning], text, "", retry_after_s)
        return self._partial(named, retry_after_s)

    def _partial(self, named: Sequence[Answered], retry_after_s: float | None) -> Outcome:
        """Return what became of each; of several items of one record the worst counts."""
        refused: dict[int, RejectedRecord] = {}
        again: dict[int, RejectedRecord] = {}
        for each in named:
            is_final = each.meaning in {Meaning.REFUSED, Meaning.TOO_LARGE}
            group = refused if is_final else again
            code = each.status_text or "rejected"
            group.setdefault(each.lsn, RejectedRecord(each.lsn, code, self._shown(each)))
        left = tuple(item for lsn, item in again.items() if lsn not in refused)
        text = f"{self.options.shown_url} took a part: {self._shown(named[0])}"
        return Partial(tuple(refused.values()), left, text, retry_after_s)

    def _shown(self, item: Answered) -> str:
        text = f"{item.status_text}: {item.message}" if item.status_text else item.message
        return self.hide(_one_line(text))[: limits.ERROR_TEXT_MAX_CHARS]

    # --- refusals -------------------------------------------------------------------------------

    def _refused(
        self, answer: Answer, said: str, log_id: bytes, records: Sequence[Record]
    ) -> Outcome:
        """Return a refusal, with the record that the answer names if it does."""
        code = answer.headers.get(self.options.known.code_header or "-", str(answer.status))
        named = self.options.known.named_row
        found = named.search(answer.body.decode(errors="replace")) if named else None
        if found and 1 <= int(found[1]) <= len(records):
            lsn = records[int(found[1]) - 1].lsn
            return Rejected((RejectedRecord(lsn, code, said),), said, code)
        results = self.options.results
        if results.path is not None and results.lists == "failed":
            items = find_items(self.options, _json(answer.body), log_id, records)
            if not isinstance(items, str):
                culprits = [each for each in items if each.meaning is Meaning.REFUSED]
                by_lsn = {
                    each.lsn: RejectedRecord(each.lsn, code, self._shown(each)) for each in culprits
                }
                return Rejected(tuple(by_lsn.values()), said, code)
        return Rejected((), said, code)


def retry_after(answer: Answer, now_s: float) -> float | None:
    """Return the pause that an answer asks for, in seconds: RFC 9110, 10.2.3; None if it is none.

    A date is taken by the server's own clock where the answer has one.
    """
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    until_s = _date_s(text)
    if until_s is None:
        return None
    server_s = _date_s(answer.headers.get("Date", ""))
    return max(0.0, until_s - (now_s if server_s is None else server_s))


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# --- words --------------------------------------------------------------------------------------

_NOT_JSON = object()


def _json(body: bytes) -> object:
    try:
        return cast("object", json.loads(body.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return _NOT_JSON


def _words(answer: Answer) -> str:
    """Return an answer's own words: the message in its JSON, a page's title, or its beginning."""
    found = _json(answer.body)
    while isinstance(found, dict):
        inner = next((found[name] for name in _MESSAGE_FIELDS if found.get(name)), None)
        if inner is None:
            break
        found = inner
    if isinstance(found, str):
        return _one_line(found)
    title = _TITLE.search(answer.body[: limits.HTTP_READ_BYTES])
    if title:
        return _one_line(title[1].decode(errors="replace"))
    return _one_line(answer.body[: limits.ERROR_TEXT_MAX_CHARS].decode(errors="replace"))


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).strip()
