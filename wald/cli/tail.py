"""``wald tail``: the records of a stream, as far as they are durable."""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from wald import limits
from wald.cli.ask import Control
from wald.cli.letters import decoded_value, iso
from wald.cli.options import json_option, socket_option, socket_path
from wald.cli.output import printable, say
from wald.errors import InputError, Unavailable, UnknownStream
from wald.model import Content, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[..., Mapping[str, Any]]

_POLL_S = 0.05
_POLL_CAP_S = 0.5
_GROWTH = 1.5


@click.command()
@click.argument("stream")
@click.option(
    "--from",
    "begins",
    metavar="LSN|oldest|now",
    help="Where to begin: an LSN, 'oldest' or 'now'; by default the oldest, with --follow now.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on: print what becomes durable, as it does.")
@click.option("--key", help="Only records with this key.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many records.")
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False),
    help="Read a data directory that no daemon uses.",
)
@socket_option
@json_option
def tail(
    stream: str,
    begins: str | None,
    key: str | None,
    limit: int | None,
    data_dir: str | None,
    socket: str | None,
    *,
    follow: bool,
    as_json: bool,
) -> int:
    """Print the records of STREAM that are durable, in order of their LSNs; no other ones.

    A line is LSN, time, key and value; what could steer a terminal is escaped. With --json each
    line is an object, for pipes. What the log no longer holds is said, and skipped.
    """
    position = _Position.of(begins, follow=follow)
    left = limit
    with _asking(socket, data_dir, follow=follow) as ask:
        pauses = _Pauses()
        while True:
            page = ask("drain.tail", **position.request(stream, key, left))
            if not page["exists"]:
                pauses.wait_for(stream, follow=follow)
            _print(page, as_json=as_json)
            position.go_on(page)
            left = None if left is None else left - len(page["records"])
            at_the_end = page["through"] >= page["frontier_lsn"] or not page["exists"]
            if left == 0 or (at_the_end and not follow):
                return 0
            pauses.rest(page, at_the_end=at_the_end)


class _Pauses:
    """How long to wait for more: the longer nothing comes, the longer."""

    def __init__(self) -> None:
        from wald.system import SystemClock

        self._clock = SystemClock()
        self._pause_s = _POLL_S
        self._told = False

    def wait_for(self, stream: str, *, follow: bool) -> None:
        """There is no such stream: say so, and wait for it or give up."""
        if not follow:
            msg = f"nothing was ever appended to the stream {stream!r}"
            raise UnknownStream(msg, hint="'wald status' lists the streams that have a route")
        if not self._told:
            say(f"there is no stream {printable(stream)!r} yet; waiting for it")
            self._told = True

    def rest(self, page: Mapping[str, Any], *, at_the_end: bool) -> None:
        """Wait, if there is nothing more to print now."""
        if page["records"]:
            self._pause_s = _POLL_S
        if at_the_end:
            self._clock.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * _GROWTH, _POLL_CAP_S)


class _Position:
    """Where the next question goes on."""

    def __init__(self, word: str | None, after: int) -> None:
        self._word = word
        self._after = after

    @classmethod
    def of(cls, begins: str | None, *, follow: bool) -> "_Position":
        said = begins or ("now" if follow else "oldest")
        if said in {"now", "oldest"}:
            return cls(said, 0)
        if not (said.isascii() and said.isdecimal() and 0 < int(said) <= limits.LSN_MAX):
            msg = f"--from is {said!r}, not an LSN, 'oldest' or 'now'"
            raise InputError(msg, hint="a receipt says the LSN of its record")
        return cls(None, int(said) - 1)

    def request(self, stream: str, key: str | None, left: int | None) -> dict[str, Any]:
        request: dict[str, Any] = {"stream": stream, "after": self._after}
        if self._word is not None:
            request["from"] = self._word
        if key is not None:
            request["key"] = key
        if left is not None:
            request["limit"] = left
        return request

    def go_on(self, page: Mapping[str, Any]) -> None:
        """Behind this page; before the stream exists the beginning stays."""
        if page["exists"]:
            self._word = None
            self._after = page["through"]


@contextmanager
def _asking(socket: str | None, data_dir: str | None, *, follow: bool) -> "Iterator[Ask]":
    if data_dir is not None:
        if follow:
            msg = "--follow needs a daemon: nothing becomes durable without one"
            raise click.UsageError(msg)
        from wald import offline

        with offline.tail_desk(data_dir) as desk:
            yield lambda _, **request: desk.tail(request)
        return
    with Control(socket_path(socket)) as control:
        yield _patient(control) if follow else control.ask


def _patient(control: Control) -> "Ask":
    """Return an ask that outlives restarts of the daemon, once it has been answered."""
    from wald.system import SystemClock

    clock = SystemClock()
    met = False

    def ask(op: str, **request: Any) -> Mapping[str, Any]:  # noqa: ANN401 - JSON
        nonlocal met
        told = False
        while True:
            try:
                said = control.ask(op, **request)
            except Unavailable as error:
                if not met:
                    raise
                if not told:
                    say(f"waiting: {error.message}")
                    told = True
                clock.sleep(_POLL_CAP_S)
                continue
            met = True
            return said

    return ask


# --- what is printed ----------------------------------------------------------------------------


def _print(page: Mapping[str, Any], *, as_json: bool) -> None:
    items = [*page["records"], *page["lost"]]
    for item in sorted(items, key=lambda each: each.get("lsn") or each["first_lsn"]):
        if "lsn" not in item:
            _print_lost(item, as_json=as_json)
        elif as_json:
            click.echo(json.dumps(as_object(item)))  # ASCII: a terminal is safe from it
        else:
            click.echo(as_line(item))


def _print_lost(lost: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"lost": lost}))
    else:
        say(printable(f"LSN {lost['first_lsn']:,} to {lost['last_lsn']:,}: gone, {lost['why']}"))


def as_object(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as ``--json`` prints it: its value as JSON, or base64 if it is none."""
    record = Record(item["lsn"], item["time_ns"], item["content"], b64decode(item["value_base64"]))
    cut = "value_bytes" in item
    beside = {
        name: item[name]
        for name in ("key", "key_base64", "headers", "dedup_id", "dedup_id_base64", "value_bytes")
        if name in item
    }
    value = {"value_base64": item["value_base64"]} if cut else decoded_value(record)
    return {"lsn": record.lsn, "time": iso(record.time_ns), **beside, **value}


def _text_of(item: Mapping[str, Any]) -> str:
    """Return bytes that are text, such as lines of a file; empty if they are none, or cut."""
    if item["content"] != Content.BYTES or "value_bytes" in item:
        return ""
    try:
        text = b64decode(item["value_base64"]).decode()
    except UnicodeDecodeError:
        return ""
    return text if printable(text) == text else ""


def as_line(item: Mapping[str, Any]) -> str:
    """Return a record as a line for people; nothing in it can steer a terminal or forge a line."""
    said = as_object(item)
    key = said.get("key") or (f"base64:{said['key_base64']}" if "key_base64" in said else "-")
    if "value" in said:
        value = json.dumps(said["value"], ensure_ascii=False, separators=(",", ":"))
    else:
        value = _text_of(item) or f"base64:{said['value_base64']}"
    size = f" ({said['value_bytes']:,} bytes)" if "value_bytes" in said else ""
    return f"{said['lsn']} {said['time']} {printable(str(key))} {printable(value)}{size}"
