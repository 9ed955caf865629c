"""``wald status --lsn``: where one record is, at each route of its stream."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.options import socket_path
from wald.cli.output import print_json, printable
from wald.core.where import REFUSED, Fate
from wald.errors import EXIT_NO
from wald.limits import CLOCK_NS_PER_S
from wald.system import SystemClock

_ID_SHOWN = 8
_REFUSED = frozenset(each.value for each in REFUSED)


def show(lsn: int, socket: str | None, data_dir: str | None, *, as_json: bool) -> int:
    """Print where a record is; returns 1 if a route will never have it as things are.

    Args:
        lsn: the record.
        socket: that of the daemon, if it is not the default.
        data_dir: a data directory that no daemon uses, to be read instead.
        as_json: whether the answer is printed as it came.

    Raises:
        NoRecord: no record has the LSN.
    """
    said = _ask(lsn, socket, data_dir)
    said.pop("ok", None)
    if as_json:
        print_json(said)
    else:
        for line in lines_of(said):
            click.echo(printable(line))
    fates = {route["fate"] for route in said["routes"].values()}
    return EXIT_NO if fates & _REFUSED else 0


def _ask(lsn: int, socket: str | None, data_dir: str | None) -> dict[str, Any]:
    if data_dir is not None:
        from wald import offline

        with offline.where_desk(data_dir) as where:
            return where.where({"lsn": lsn})
    with Control(socket_path(socket)) as control:
        return control.ask("drain.where", lsn=lsn)


def lines_of(said: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for people: the record, then each route."""
    yield _head(said)
    names = said["routes"]
    width = max(map(len, names), default=0)
    for name, route in sorted(names.items()):
        of = f" (if it was of {route['stream']})" if said["stream"] is None else ""
        yield f"  {name:<{width}}  {text_of(route)}{of}"
    if not names:
        yield "  no route takes its stream"
    if said["trace"]:
        yield f"  trace {said['trace']}"


def _head(said: Mapping[str, Any]) -> str:
    parts = [f"{said['lsn']}", said["stream"] or "of an unknown stream"]
    key = said["key"] if said["key"] is not None else said.get("key_base64")
    if key is not None:
        parts.append(f"key={key}")
    stored = said["durable_ns"]
    parts.append(f" durable {clock(stored, millis=True)}" if stored else f" {said['why']}")
    return " ".join(parts)


def text_of(route: Mapping[str, Any]) -> str:
    """Return what became of a record at a route, in words."""
    words = _WORDS[Fate(route["fate"])]
    at = f", at the fallback {route['sink']}" if route["is_fallback"] else ""
    text = f"{words(route)}{at}"
    return f"{text}; {route['blocked']}" if route["blocked"] else text


def _delivered(route: Mapping[str, Any]) -> str:
    if "batch" not in route:
        return "delivered, longer ago than the history tells"
    return f"delivered {_in_batch(route)}"


def _in_batch(route: Mapping[str, Any]) -> str:
    return f"{clock(route['time_ns'])} in {_batch(route)}"


def _batch(route: Mapping[str, Any]) -> str:
    name = f"batch {route['batch']} ({route['rev_id'][:_ID_SHOWN]})"
    return f"{name}, attempt {route['attempts']}"


def _sealed(route: Mapping[str, Any]) -> str:
    error = f", last error: {route['last_error']}" if route["last_error"] else ""
    return f"sealed in {_batch(route)}{error}"


def _letter(route: Mapping[str, Any], what: str) -> str:
    letter = route["letter"]
    return f"{what} {clock(letter['time_ns'])}: {letter['code']}: {letter['message']}"


def _uncertain(route: Mapping[str, Any]) -> str:
    return f"uncertain in {_batch(route)}: {route['held']}; 'wald batch resolve' decides"


def _lost(route: Mapping[str, Any]) -> str:
    letter = route["letter"]
    return f"{_letter(route, 'lost')} (a damaged range up to LSN {letter['through_lsn']:,})"


_WORDS: Mapping[Fate, Callable[[Mapping[str, Any]], str]] = {
    Fate.DURABLE: lambda _: "durable, waits to be sealed",
    Fate.SEALED: _sealed,
    Fate.TAKEN: lambda route: f"the target has it; {_batch(route)} is not finished",
    Fate.UNCERTAIN: _uncertain,
    Fate.DELIVERED: _delivered,
    Fate.SUPERSEDED: lambda route: f"superseded by a newer one of its key {_in_batch(route)}",
    Fate.DEAD_LETTER: lambda route: _letter(route, "dead letter"),
    Fate.REDRIVING: lambda route: _letter(route, "to be sent again; dead letter"),
    Fate.REDRIVEN: lambda route: f"sent again, delivered {_in_batch(route)}",
    Fate.PURGED: lambda _: "purged: a dead letter that was given up",
    Fate.LOST: _lost,
    Fate.GIVEN_UP: lambda _: "given up with its route",
    Fate.NOT_OURS: lambda _: "not this route's: it was born later",
}


def clock(time_ns: int, *, millis: bool = False) -> str:
    """Return a time of day, local, with the date unless it is today's."""
    when = datetime.fromtimestamp(time_ns / CLOCK_NS_PER_S).astimezone()
    today = datetime.fromtimestamp(SystemClock().wall_ns() / CLOCK_NS_PER_S).astimezone().date()
    text = when.strftime("%H:%M:%S") + (f".{when.microsecond // 1000:03d}" if millis else "")
    return text if when.date() == today else f"{when:%Y-%m-%d} {text}"
