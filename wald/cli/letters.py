"""Dead letters for commands: who is asked, which are meant, and records as JSON."""

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click
import msgpack

from wald.cli.ask import Control
from wald.cli.options import socket_path
from wald.core.units import parse_duration_s
from wald.errors import FormatDamaged, NoDeadLetter
from wald.limits import CLOCK_NS_PER_S, DEAD_LETTERS_PER_ANSWER
from wald.model import Content, Record

if TYPE_CHECKING:
    from wald.drainer.letter_desk import LetterDesk

_Command = TypeVar("_Command", bound=Callable[..., Any])
_TEXT_EXTENSIONS = frozenset({1, 2, 3})  # datetime, date, Decimal
_UUID_EXTENSION = 4


class Moment(click.ParamType[int]):
    """A point in time: ISO 8601, in local time unless it says an offset, or a duration ago."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return nanoseconds since the epoch."""
        text = str(value)
        try:
            return round(datetime.fromisoformat(text).timestamp() * CLOCK_NS_PER_S)
        except (ValueError, OverflowError, OSError):
            pass
        try:
            ago_s = parse_duration_s(text)
        except ValueError:
            self.fail(f'{text!r} is no time, such as "2026-01-31T12:00Z", or "2h" ago', param, ctx)
        from wald.system import SystemClock

        return max(0, SystemClock().wall_ns() - round(ago_s * CLOCK_NS_PER_S))


def selecting(command: _Command) -> _Command:
    """Add the options that say which dead letters are meant, and where."""
    options = (
        click.option("--route", metavar="NAME", help="Only those of this route."),
        click.option("--reason", "reasons", metavar="CODE", multiple=True, help="Of this reason."),
        click.option("--since", type=Moment(), help='Set aside since: ISO 8601, or "2h" ago.'),
        click.option("--until", type=Moment(), help='Set aside before: ISO 8601, or "2h" ago.'),
        click.option("--key", "keys", metavar="KEY", multiple=True, help="Only of this key."),
        click.option(
            "--lsn", "lsns", metavar="LSN", multiple=True, type=click.IntRange(1, (1 << 63) - 1),
            help="Only this record.",
        ),
        click.option(
            "--data-dir", metavar="DIR", help="Work on this data directory, while no daemon runs."
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters a command means."""

    route: str | None
    reasons: Sequence[str] = ()
    since: int | None = None
    until: int | None = None
    keys: Sequence[str] = ()
    lsns: Sequence[int] = ()

    def request(self) -> dict[str, Any]:
        """Return it as the desk is asked, less the route."""
        return {
            "reasons": list(self.reasons),
            "since_ns": self.since,
            "until_ns": self.until,
            "keys": list(self.keys),
            "lsns": list(self.lsns),
        }

    def require(self, found: int) -> None:
        """Refuse to have found nothing where records were named.

        Raises:
            NoDeadLetter: nothing is what was asked for.
        """
        if found:
            return
        said = [f"key {key!r}" for key in self.keys] + [f"LSN {lsn}" for lsn in self.lsns]
        said += [f"reason {reason}" for reason in self.reasons]
        said += ["that time"] if self.since is not None or self.until is not None else []
        of = f" of route {self.route!r}" if self.route else ""
        what = f" with {', '.join(said)}" if said else ""
        msg = f"there is no dead letter{of}{what}"
        raise NoDeadLetter(msg)


class Letters:
    """The dead letters of a running daemon, or of a data directory without one."""

    def __init__(self, asked: "Control | LetterDesk", data_dir: str, *, runs: bool) -> None:
        self._asked = asked
        self._data_dir = data_dir
        self.runs = runs

    def ask(self, op: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Ask one thing."""
        return self._asked.ask(op, **request)

    def routes(self, route: str | None) -> list[str]:
        """Return the names of all routes, or the one that is named."""
        return [route] if route is not None else sorted(self.counts())

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return dead letters, purged ones, and those being sent again, by route."""
        counts: Mapping[str, Mapping[str, int]] = self.ask("drain.dlq.routes")["routes"]
        return counts

    def each(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the letters that are meant, route by route, asked page by page."""
        for name in self.routes(choice.route):
            for page in self.pages("drain.dlq", choice, route=name, limit=DEAD_LETTERS_PER_ANSWER):
                yield from page["entries"]

    def pages(
        self,
        op: str,
        choice: Choice,
        *,
        after: int = 0,
        **request: Any,  # noqa: ANN401
    ) -> Iterator[dict[str, Any]]:
        """Yield the answers to a question that goes on until it has seen every letter."""
        following: int | None = after
        while following is not None:
            page = self.ask(op, after=following, **choice.request(), **request)
            following = page["next"]
            yield page

    def count(self, choice: Choice, name: str, after: int = 0) -> tuple[int, int]:
        """Return how many letters of a route are meant behind an LSN, and their records."""
        pages = list(self.pages("drain.dlq.purge", choice, after=after, route=name, dry_run=True))
        return sum(page["letters"] for page in pages), sum(page["records"] for page in pages)

    def body(self, letter: Mapping[str, Any]) -> Record | None:
        """Return the record of a letter; None if it has none.

        Raises:
            FormatDamaged: it cannot be read.
        """
        from wald import offline

        for _ in range(2):  # it may have been moved to another file since it was listed
            if not letter["dead_file"]:
                return None
            place = (letter["dead_file"], letter["dead_offset"])
            try:
                return offline.dead_letter_body(self._data_dir, *place, letter["lsn"])
            except FormatDamaged:
                choice = Choice(letter["route"], lsns=[letter["lsn"]])
                found = [each for each in self.each(choice) if each["lsn"] == letter["lsn"]]
                if not found or (found[0]["dead_file"], found[0]["dead_offset"]) == place:
                    raise
                letter = found[0]
        return None


@contextmanager
def open_letters(socket: str | None, data_dir: str | None) -> Iterator[Letters]:
    """Reach the dead letters: of the daemon at a socket, or of a data directory without one.

    Raises:
        Unavailable: no daemon answers.
        DataDirectoryHeld: one runs on the directory that is named.
    """
    if data_dir is not None:
        from wald import offline

        place = data_dir.rstrip("/") or "/"
        with offline.dead_letter_desk(place) as desk:
            yield Letters(desk, place, runs=False)
        return
    with Control(socket_path(socket)) as control:
        yield Letters(control, str(control.status().get("data_dir", "")), runs=True)


# --- as JSON ------------------------------------------------------------------------------------


def exported(letter: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    """Return a letter with its record, everything that is known, as JSON has it."""
    said: dict[str, Any] = {
        "route": letter["route"],
        "lsn": letter["lsn"],
        "reason": letter["code"],
        "message": letter["message"],
        "attempts": letter["attempts"],
        "batch": letter["batch_no"],
        "revision": letter["rev_id"],
        "layout": letter["layout"],
        "lane": letter["lane"],
        "set_aside_at": iso(letter["time_ns"]),
        "producer": letter["producer"],
        "trace": letter["trace"],
    }
    if letter["records"] != 1 or letter["through_lsn"] > letter["lsn"]:
        said |= {"records": letter["records"], "through_lsn": letter["through_lsn"]}
    if record is None:
        said["record_time"] = iso(letter["record_time_ns"]) if letter["record_time_ns"] else None
        return said | {"key": letter["key"], "value": None, "has_body": False}
    said["record_time"] = iso(record.time_ns)
    return said | record_as_json(record)


def record_as_json(record: Record) -> dict[str, Any]:
    """Return key, headers, dedup id, content and value; bytes are base64, under another name."""
    headers = {name: _text_or_base64(value) for name, value in (record.headers or {}).items()}
    said = _named("key", record.key) | {"headers": headers} | _named("dedup_id", record.dedup_id)
    return said | {"content": Content(record.content).name.lower()} | decoded_value(record)


def decoded_value(record: Record) -> dict[str, Any]:
    """Return ``value`` where it is JSON or msgpack that JSON can say, else ``value_base64``."""
    try:
        if record.content == Content.JSON:
            return {"value": json.loads(record.value.decode("utf-8"), parse_constant=_no_constant)}
        if record.content == Content.MSGPACK:
            return {"value": _plain(msgpack.unpackb(record.value, ext_hook=_extension))}
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        pass
    return {"value_base64": b64encode(record.value).decode("ascii")}


def iso(time_ns: int) -> str:
    """Return a wall clock as ISO 8601 in UTC, to the millisecond."""
    seconds, rest = divmod(time_ns, CLOCK_NS_PER_S)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _named(name: str, value: str | bytes | None) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {f"{name}_base64": b64encode(value).decode("ascii")}
    return {name: value}


def _text_or_base64(value: str | bytes) -> object:
    return value if isinstance(value, str) else {"base64": b64encode(value).decode("ascii")}


def _extension(code: int, data: bytes) -> str:
    if code in _TEXT_EXTENSIONS:
        return data.decode("utf-8")
    if code == _UUID_EXTENSION:
        return str(UUID(bytes=data))
    msg = f"unknown msgpack extension {code}"
    raise ValueError(msg)


def _plain(value: object) -> object:
    """Return a value that JSON can say; what it has no form for raises."""
    if isinstance(value, dict):
        return {_name(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, msgpack.Timestamp):
        return value.to_datetime().isoformat()
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        msg = "JSON has no form for it"
        raise ValueError(msg)
    return value


def _name(key: object) -> str:
    if isinstance(key, str):
        return key
    msg = "a key of a map is no text"
    raise TypeError(msg)


def _no_constant(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)
