"""``wald replay``: deliver what is pending, with no daemon."""

from collections.abc import Mapping
from typing import Any

import click

from wald.cli.options import Duration, json_option, load_settings, placed, settings_options
from wald.cli.output import books, print_json, say
from wald.errors import EXIT_NO, WaldError


@click.command()
@settings_options
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
    target: str | None,
    data_dir: str | None,
    socket: str | None,
    patience_s: float,
    *,
    as_json: bool,
) -> int:
    """Finish in-flight batches and deliver the backlog, with no daemon running.

    The recovery command: it takes the locks of the data directory, recovers the log, delivers, and
    closes. It refuses while a daemon or a drainer holds a lock. Exit code 0 if nothing is pending.
    """
    from wald import app

    loaded = load_settings(config, target, data_dir, socket)
    app.configure_logging()
    try:
        result = app.replay(loaded.settings, patience_s)
    except WaldError as error:
        raise placed(error, loaded) from error
    if as_json:
        print_json(result)
    else:
        _print(result["routes"])
    return EXIT_NO if result["pending"] else 0


def _print(routes: Mapping[str, Any]) -> None:
    if not routes:
        say("no routes: nothing to deliver")
    for name, route in sorted(routes.items()):
        click.echo(books(name, route["sink"], route))
        if route["pending"]:
            say(f"{name}: {route['parked'] or route['state']}: {route['last_error'] or 'stopped'}")


# --- a past range -------------------------------------------------------------------------------


def _replay_range(settings: Any, wanted: _Range, patience_s: float, *, as_json: bool) -> int:  # noqa: ANN401 - settings
    from wald import app
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
        result = app.replay_range(settings, asked, patience_s, tell)
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
