"""``wald replay``: deliver what is pending, or a past range once more, with no daemon."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import click

from wald.cli.bar import progress_bar
from wald.cli.letters import Moment
from wald.cli.options import (
    Duration,
    json_option,
    load_settings,
    placed,
    settings_options,
)
from wald.cli.output import books, counted, print_json, printable, say
from wald.errors import EXIT_NO, WaldError
from wald.limits import LSN_MAX

_Place: TypeAlias = tuple[int | None, int | None]  # an LSN, or nanoseconds since the epoch


class Place(click.ParamType[_Place]):
    """A place in the log: an LSN, or a time as ``Moment`` reads it."""

    name = "lsn or time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> _Place:
        """Return (LSN, None) or (None, nanoseconds since the epoch)."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if text.isascii() and text.isdecimal():
            if not 1 <= int(text) <= LSN_MAX:
                self.fail(f"{text} is no LSN: they count from 1", param, ctx)
            return int(text), None
        return None, Moment().convert(text, param, ctx)


@dataclass(frozen=True, slots=True)
class _Range:
    """The options of a past range."""

    route: str | None
    begin: _Place | None
    end: _Place | None
    sink: str | None
    key: str | None
    resume: str | None
    forget: str | None
    dry_run: bool

    def check(self) -> bool:
        """Tell whether a range is meant at all.

        Raises:
            UsageError: the options do not go together.
        """
        named = (self.route, self.resume, self.forget)
        said = (self.begin, self.end, self.sink, self.key)
        if sum(each is not None for each in named) > 1:
            msg = "--route, --resume and --forget exclude each other"
            raise click.UsageError(msg)
        if self.route is None and (self.dry_run or any(each is not None for each in said)):
            msg = "--from, --until, --sink, --where and --dry-run go with --route"
            raise click.UsageError(msg)
        if self.route is not None and self.begin is None:
            msg = "--route wants --from: an LSN, or a time"
            raise click.UsageError(msg)
        return any(each is not None for each in named)


@click.command()
@settings_options
@click.option("--route", metavar="NAME", help="Deliver a past range of this route's stream again.")
@click.option("--from", "begin", type=Place(), help='First LSN, or a time: ISO 8601, or "2h" ago.')
@click.option("--until", "end", type=Place(), help="Last LSN, or a time; else all there is.")
@click.option("--sink", metavar="NAME", help="To this sink instead of the route's.")
@click.option("--where", "key", metavar="KEY", help="Only records of this key.")
@click.option("--dry-run", is_flag=True, help="Only say what that would be.")
@click.option("--resume", metavar="UUID", help="Go on with a replay that was interrupted.")
@click.option("--forget", metavar="UUID", help="Give up a replay that was interrupted.")
@click.option(
    "--patience",
    "patience_s",
    type=Duration(),
    default="30s",
    show_default=True,
    help="Give a route up that makes no progress for this long.",
)
@json_option
def replay(
    config: str | None,
    data_dir: str | None,
    socket: str | None,
    target: str | None,
    patience_s: float,
    *,
    as_json: bool,
    **said: Any,  # noqa: ANN401 - the fields of _Range
) -> int:
    """Finish in-flight batches and deliver the backlog, with no daemon running.

    The recovery command: it takes the locks of the data directory, recovers the log, delivers, and
    closes. It refuses while a daemon or a drainer holds a lock. Exit code 0 if nothing is pending.

    With --route a past range is delivered again instead, from log, packed files and archive, under
    a progress row of its own: the route's own cursors stay. Refused records go to a report. An
    interrupted replay goes on with --resume; until then its range stays in the log.
    """
    from wald import app, offline

    wanted = _Range(**said)
    past = wanted.check()
    loaded = load_settings(config, target, data_dir, socket)
    app.configure_logging()
    try:
        if past:
            return _replay_range(loaded.settings, wanted, patience_s, as_json=as_json)
        result = offline.replay(loaded.settings, patience_s)
    except WaldError as error:
        raise placed(error, loaded) from error
    if as_json:
        print_json(result)
    else:
        _print(result["routes"], target)
    return EXIT_NO if result["pending"] else 0


def _print(routes: Mapping[str, Any], target: str | None) -> None:
    """Print the books; the sink that ``--to`` made is shown as the target that was named."""
    if not routes:
        say("no routes: nothing to deliver")
    for name, route in sorted(routes.items()):
        click.echo(books(name, target or route["sink"], route))
        if route["pending"]:
            say(f"{name}: {route['parked'] or route['state']}: {route['last_error'] or 'stopped'}")


# --- a past range -------------------------------------------------------------------------------


def _replay_range(settings: Any, wanted: _Range, patience_s: float, *, as_json: bool) -> int:  # noqa: ANN401 - settings
    from wald import offline
    from wald.drainer.range_replay import Asked, Point

    asked = Asked(
        wanted.route or "",
        Point(*(wanted.begin or (None, None))),
        Point(*(wanted.end or (None, None))),
        wanted.sink,
        wanted.key,
        wanted.dry_run,
        wanted.resume or "",
        wanted.forget or "",
    )
    with progress_bar() as tell:
        result = offline.replay_range(settings, asked, patience_s, tell)
    if as_json:
        print_json(result)
    elif result.get("forgotten"):
        say(f"replay {result['replay']} is given up")
    else:
        _print_range(result)
    return 0 if result.get("complete", True) and not result.get("refused") else EXIT_NO


def _print_range(said: Mapping[str, Any]) -> None:
    where = f"LSN {said['after'] + 1:,} to {said['until']:,} of {said['stream']} -> {said['sink']}"
    for note in said.get("notes", ()):
        say(f"note: {note}")
    if said.get("dry_run"):
        records = counted(said["records"], "record")
        click.echo(f"{where}: {records}, {said['bytes']:,} bytes, {said['class']}")
        return
    lost = f", {said['lost']:,} lost" if said["lost"] else ""
    click.echo(f"{where}: {said['delivered']:,} delivered, {said['refused']:,} refused{lost}")
    for refusal in said["refusals"]:
        click.echo(f"  LSN {refusal['lsn']:,}: {refusal['code']}: {printable(refusal['message'])}")
    if said["refused"]:
        say(f"all of them: {said['report']}")
    if not said["complete"]:
        why = said["parked"] or said["last_error"] or "stopped"
        say(f"not finished, up to LSN {said['through_lsn']:,}: {why}")
        say(f"go on with: wald replay --resume {said['replay']}")
        say("its range stays in the log until then, or until it is given up: --forget")
