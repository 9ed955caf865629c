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
        figures = (route[key] for key in ("accepted", "delivered", "pending", "dead_letters"))
        click.echo(books(name, route["sink"], *figures))
        if route["pending"]:
            say(f"{name}: {route['parked'] or route['state']}: {route['last_error'] or 'stopped'}")
