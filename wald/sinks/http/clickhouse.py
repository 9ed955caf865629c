"""What a ClickHouse table remembers of tokens, against what the settings state of it. Pure.

A table remembers the tokens of its last blocks: a replicated one 10,000 of them for an hour
(``replicated_deduplication_window`` and ``..._seconds``), a plain MergeTree none unless it is told
(``non_replicated_deduplication_window``), for no time in particular. Our requests are one block for
each partition that they touch; the engine sends again within half of what is stated.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from wald.model import Finding, Severity
from wald.sinks.http.options import Idempotency

TABLE_QUESTION = (
    "SELECT engine, engine_full FROM system.tables WHERE database = {database} AND name = {table}"
    " FORMAT JSONCompact"
)
SETTINGS_QUESTION = (
    "SELECT name, value FROM system.merge_tree_settings WHERE name LIKE '%deduplication_window%' "
    "UNION ALL SELECT name, value FROM system.settings WHERE name = 'deduplicate_insert'"
    " FORMAT JSONCompact"
)
_REPLICATED = ("Replicated", "Shared")


class Remembers(NamedTuple):
    """What a table remembers: so many blocks, for so many seconds; None for no bound of time."""

    blocks: int
    seconds: float | None


def remembers(engine: str, engine_full: str, defaults: Mapping[str, str]) -> Remembers:
    """Return what a table remembers, by its engine, its own settings and the server's."""
    if not engine.endswith("MergeTree") or defaults.get("deduplicate_insert") == "disable":
        return Remembers(0, None)
    name = "replicated_deduplication_window"
    if not engine.startswith(_REPLICATED):
        return Remembers(_number(f"non_{name}", engine_full, defaults), None)
    seconds = _number(f"{name}_seconds", engine_full, defaults)
    return Remembers(_number(name, engine_full, defaults), float(seconds))


def judge(stated: Idempotency, table: Remembers, shown: str) -> Finding:
    """Return what is to be said of a table whose tokens are to make sending again harmless."""
    blocks, seconds = table
    says = f"{shown} remembers the last {blocks:,} blocks"
    says += "" if seconds is None else f" for {seconds:g} s"
    state = f"idempotency = {{ window_batches = {blocks}"
    state += " }" if seconds is None else f', window = "{seconds:g}s" }}'
    if stated.window_s is None and stated.window_batches is None:
        if not blocks:
            return _finding(Severity.OK, f"{shown} remembers no tokens", "")
        return _finding(Severity.WARNING, f"{says}, and no window is stated", state)
    if not blocks:
        message = f"a window is stated, and {shown} remembers no tokens: what is repeated doubles"
        hint = "ALTER TABLE ... MODIFY SETTING non_replicated_deduplication_window = 10000"
        return _finding(Severity.ERROR, message, hint)
    for longer, what in (
        (stated.window_batches is None or stated.window_batches > blocks, "window_batches"),
        (seconds is not None and (stated.window_s or seconds + 1) > seconds, "window"),
    ):
        if longer:
            message = f"{says}, and what is stated as idempotency.{what} is longer, or nothing"
            return _finding(Severity.ERROR, message, state)
    return _finding(Severity.OK, f"{says}; what is stated is within it", "")


def _finding(severity: Severity, message: str, hint: str) -> Finding:
    return Finding(severity, "clickhouse.window", message, hint)


def _number(name: str, engine_full: str, defaults: Mapping[str, str]) -> int:
    own = re.search(rf"\b{name} = (\d+)", engine_full)
    text = own[1] if own else defaults.get(name, "0")
    return int(text) if text.isdecimal() else 0
