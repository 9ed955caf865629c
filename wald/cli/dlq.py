"""``wald dlq list``: the dead letters."""

from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.options import json_option, socket_option, socket_path
from wald.cli.output import print_json, print_table, say

_PAGE = 500
_MESSAGE_SHOWN = 100
_HEAD = ("ROUTE", "LSN", "CODE", "REASON")


@click.group()
def dlq() -> None:
    """Look at dead letters: records that a target refused for good, set aside with the reason."""


@dlq.command("list")
@click.option("--route", metavar="NAME", help="Only those of this route.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
@click.option(
    "--data-dir", metavar="DIR", help="Read this data directory; for when no daemon runs."
)
@socket_option
@json_option
def list_letters(
    route: str | None, limit: int, data_dir: str | None, socket: str | None, *, as_json: bool
) -> None:
    """List dead letters: route, LSN, and the target's own words."""
    if data_dir is not None:
        from wald import app

        entries, total = app.dead_letters(data_dir.rstrip("/") or "/", route, limit)
    else:
        with Control(socket_path(socket)) as control:
            entries = _read(control, route, limit)
            routes = control.status()["routes"]
            total = sum(
                each["dead_letters"] for name, each in routes.items() if route in (None, name)
            )
    more = max(0, total - sum(entry["records"] for entry in entries))
    if as_json:
        print_json({"dead_letters": entries, "more": more})
        return
    if not entries:
        say("no dead letters")
        return
    print_table(
        _HEAD,
        [
            (
                str(entry["route"]),
                f"{entry['lsn']:,}",
                str(entry["code"]),
                _shortened(str(entry["message"])),
            )
            for entry in entries
        ],
    )

    if more:
        say(f"{more:,} more: --limit {limit + more} shows all, --json each with its whole reason")


def _shortened(message: str) -> str:
    cut = len(message) > _MESSAGE_SHOWN
    return f"{message[: _MESSAGE_SHOWN - 3]}..." if cut else message


def _read(control: Control, route: str | None, limit: int) -> list[dict[str, Any]]:
    """Ask page by page, route by route: an answer has a bound."""
    names = [route] if route is not None else sorted(control.status()["routes"])
    entries: list[dict[str, Any]] = []
    for name in names:
        after = 0
        while len(entries) < limit:
            asked = min(_PAGE, limit - len(entries))
            page = control.ask("drain.dlq", route=name, after=after, limit=asked)["entries"]
            entries += page
            if not page:
                break
            after = page[-1]["lsn"]
    return entries
