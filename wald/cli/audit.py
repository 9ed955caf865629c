"""``wald audit``: the books of the routes proven, every difference named."""

from collections.abc import Mapping
from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.bar import progress_bar
from wald.cli.options import json_option, socket_option, socket_path
from wald.cli.output import print_json, printable, say
from wald.errors import EXIT_NO
from wald.system import SystemClock

_POLL_S = 0.05


@click.command()
@click.option("--route", metavar="NAME", help="Only this route; else every one.")
@socket_option
@json_option
def audit(route: str | None, socket: str | None, *, as_json: bool) -> int:
    """Prove the books: every accepted record is accounted for, at the target too.

    For all time by what was counted at the door and behind each batch, and record by record for
    what is still in log and packed files; a target that can tell is compared with them. Works
    while records come and go. Exit code 0: balanced; 1: a difference, each named.
    """
    with Control(socket_path(socket)) as control:
        said = _ask(control, route)
    routes = said["routes"]
    if as_json:
        print_json({"routes": routes, "balanced": all(each["balanced"] for each in routes)})
    else:
        for each in routes:
            _print(each)
        if not routes:
            say("no routes yet: nothing to audit")
    return 0 if all(each["balanced"] for each in routes) else EXIT_NO


def _ask(control: Control, route: str | None) -> dict[str, Any]:
    clock = SystemClock()
    with progress_bar() as tell:
        said = control.ask("drain.audit", route=route)
        while not said["finished"]:
            tell("auditing", said["done"], said["total"])
            clock.sleep(_POLL_S)
            said = control.ask("drain.audit", number=said["number"])
    return said


def _print(found: Mapping[str, Any]) -> None:
    superseded = f" (of these {found['superseded']:,} superseded)" if found["superseded"] else ""
    verdict = "balanced" if found["balanced"] else "DOES NOT BALANCE"
    click.echo(
        f"{found['route']}: {found['accepted']:,} accepted = {found['delivered']:,} delivered"
        f"{superseded} + {found['pending']:,} pending + {found['dead_letters']:,} dead letters"
        f" + {found['purged']:,} purged + {found['lost']:,} lost: {verdict}"
    )
    compared = f"{found['compared']:,} of them compared with the target"
    if found.get("gone"):
        compared += f", {found['gone']:,} were trimmed there, or deleted"
    if found["cannot_tell"]:
        compared = f"none compared with the target: {found['cannot_tell']}"
    there = "record is" if found["examined"] == 1 else "records are"
    click.echo(f"  {found['examined']:,} {there} still there; {printable(compared)}")
    for problem in found["problems"]:
        click.echo(f"  {printable(problem)}")
    for difference in found["named"]:
        click.echo(
            f"  {difference['kind']}: LSN {difference['lsn']:,}: {printable(difference['why'])}"
        )
    left = found["missing"] + found["extra"] + found["doubled"] - len(found["named"])
    if left:
        click.echo(f"  and {left:,} more")
