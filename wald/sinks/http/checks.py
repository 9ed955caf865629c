"""What ``wald check`` verifies at a server, without writing anything."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

from wald.model import Finding, Severity, Systemic
from wald.sinks.http import clickhouse
from wald.sinks.http.answers import Answer
from wald.sinks.http.options import Options
from wald.sinks.http.presets import literal
from wald.sinks.http.requests import authorization
from wald.sinks.http.transport import Transport

_CHECK_TIMEOUT_S = 10.0
_LOCAL = ("http://127.", "http://localhost", "http://[::1]")
_NOT_LET_IN = (401, 403, 407)


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks a server questions that change nothing.

    Attributes:
        options: the route's.
        transport: its connection.
        token: what lets a request in; None for nothing.
        hide: takes secrets out of a text.
        said: an answer as one line.
    """

    options: Options
    transport: Transport
    token: str | None
    hide: Callable[[str], str]
    said: Callable[[Answer], str]

    def check(self) -> Sequence[Finding]:
        """Return what was found: whether the server answers, and what the preset can ask."""
        ask = {"clickhouse": self._clickhouse, "elasticsearch": self._elasticsearch}
        found = ask.get(self.options.preset, self._reaches)()
        return [*self._about_token(), *found]

    def _ask(self, method: str, url: str) -> Answer | Finding:
        """Return an answer, or what is said where there is none, or nobody is let in."""
        headers = {**self.options.headers, **authorization(self.options, self.token)}
        answer = self.transport.send(method, url, headers, b"", _CHECK_TIMEOUT_S)
        if not isinstance(answer, Answer):
            hint = answer.hint if isinstance(answer, Systemic) else ""
            return Finding(Severity.ERROR, "http.unreachable", self.hide(answer.message), hint)
        if answer.status in _NOT_LET_IN and method != "OPTIONS":
            return Finding(Severity.ERROR, "http.not-let-in", self.said(answer))
        return answer

    def _reaches(self) -> list[Finding]:
        answer = self._ask("OPTIONS", self.options.url)
        if isinstance(answer, Finding):
            return [answer]
        shown = self.options.shown_url
        message = f"{shown} answers; only a batch shows whether it takes one"
        return [Finding(Severity.OK, "http.answers", message)]

    def _about_token(self) -> list[Finding]:
        url, shown = self.options.url, self.options.shown_url
        if self.token is None or not url.startswith("http:") or url.startswith(_LOCAL):
            return []
        message = f"the token goes to {shown} unencrypted"
        return [Finding(Severity.WARNING, "http.plain-token", message, "use https")]

    # --- Elasticsearch --------------------------------------------------------------------------

    def _elasticsearch(self) -> list[Finding]:
        answer = self._ask("GET", self.options.url.removesuffix("/_bulk"))
        if isinstance(answer, Finding):
            return [answer]
        index = self.options.places["index"]
        if answer.status == 200:
            return [Finding(Severity.OK, "elasticsearch.index", f"index {index!r} is there")]
        if answer.status == 404:
            message = f"there is no index {index!r} yet"
            hint = "the first batch makes it, unless the server refuses that or has a template"
            return [Finding(Severity.WARNING, "elasticsearch.index", message, hint)]
        return [Finding(Severity.ERROR, "elasticsearch.index", self.said(answer))]

    # --- ClickHouse -----------------------------------------------------------------------------

    def _clickhouse(self) -> list[Finding]:
        places = self.options.places
        shown = ".".join(places.values())
        named = {name: literal(place) for name, place in places.items()}
        table = self._rows(clickhouse.TABLE_QUESTION.format_map(named))
        settings = self._rows(clickhouse.SETTINGS_QUESTION)
        for found in (table, settings):
            if isinstance(found, Finding):
                return [found]
        if not table:
            message = f"there is no table {shown}"
            return [Finding(Severity.ERROR, "clickhouse.table", message, "make it first")]
        engine, engine_full = cast("list[list[str]]", table)[0]
        defaults = dict(cast("Any", settings))
        memory = clickhouse.remembers(engine, engine_full, defaults)
        there = Finding(Severity.OK, "clickhouse.table", f"table {shown} is there: {engine}")
        return [there, clickhouse.judge(self.options.idempotency, memory, shown)]

    def _rows(self, question: str) -> "list[list[str]] | Finding":
        answer = self._ask("GET", f"{self.options.url}?{urlencode({'query': question})}")
        if isinstance(answer, Finding):
            return answer
        try:
            said = json.loads(answer.body)
        except ValueError:
            said = None
        if (
            answer.status == 200
            and isinstance(said, Mapping)
            and isinstance(said.get("data"), list)
        ):
            return cast("list[list[str]]", said["data"])
        return Finding(Severity.ERROR, "clickhouse.question", self.said(answer))
