"""``wald dlq``: the dead letters, looked at, sent again, forgotten."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.letters import Choice, Letters, exported, open_letters, selecting
from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import Group, counted, json_text, print_json, print_table, printable, say
from wald.errors import EXIT_NO, FormatDamaged, WaitTimeout
from wald.limits import CLOCK_NS_PER_S

_MESSAGE_SHOWN = 100
_KEY_SHOWN = 30
_HEAD = ("ROUTE", "LSN", "KEY", "REASON", "MESSAGE")
_POLL_S = 0.25
_LISTED = 10
_LATE = "they come late: behind newer records, of their key too"


@click.group(cls=Group)
def dlq() -> None:
    """Dead letters: records that a target refused for good, set aside with the reason."""


@dlq.command("list")
@selecting
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
@socket_option
@json_option
def list_letters(
    limit: int,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401 - what 'selecting' adds
) -> None:
    """List dead letters: route, LSN, key, and the target's own words."""
    choice = Choice(**chosen)
    with open_letters(socket, data_dir) as letters:
        entries = list(islice(letters.each(choice), limit))
        more = _count_more(letters, choice, entries) if len(entries) == limit else 0
    if as_json:
        listed = [{**entry, "reason": entry["code"]} for entry in entries]  # as show and export say
        print_json({"dead_letters": listed, "more": more})
        return
    if not entries:
        say("no dead letters")
        return
    print_table(_HEAD, [_row(entry) for entry in entries])
    if more:
        say(f"{more:,} more: --limit {limit + more} shows all, --json each with its whole message")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    key = entry["key"] if entry["key"] is not None else entry.get("key_base64", "-")
    return (
        str(entry["route"]),
        f"{entry['lsn']:,}",
        _shortened(str(key), _KEY_SHOWN),
        str(entry["code"]),
        _shortened(str(entry["message"]), _MESSAGE_SHOWN),
    )


def _count_more(letters: Letters, choice: Choice, shown: Sequence[dict[str, Any]]) -> int:
    """Return how many letters are meant behind the last that is shown."""
    last = shown[-1]
    names = [name for name in letters.routes(choice.route) if name >= last["route"]]
    return sum(
        letters.count(choice, name, last["lsn"] if name == last["route"] else 0)[0]
        for name in names
    )


def _shortened(text: str, shown: int) -> str:
    return f"{text[: shown - 3]}..." if len(text) > shown else text


@dlq.command()
@click.argument("lsn", type=click.IntRange(1, (1 << 63) - 1))
@click.option("--route", metavar="NAME", help="Of this route; else of every one that has it.")
@click.option("--data-dir", metavar="DIR", help="Read this data directory, while no daemon runs.")
@socket_option
@json_option
def show(
    lsn: int, route: str | None, data_dir: str | None, socket: str | None, *, as_json: bool
) -> None:
    """Show all that is known of the dead letter at LSN, its record too."""
    choice = Choice(route, lsns=[lsn])
    with open_letters(socket, data_dir) as letters:
        found = [exported(letter, _body(letters, letter)) for letter in letters.each(choice)]
    choice.require(len(found))
    if as_json:
        print_json({"dead_letters": found})
        return
    for number, said in enumerate(found):
        if number:
            click.echo()
        for name, value in said.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            click.echo(f"{name + ':':<14} {printable(text)}")


def _body(letters: Letters, letter: dict[str, Any]) -> Any:  # noqa: ANN401 - a record or None
    try:
        return letters.body(letter)
    except FormatDamaged as error:
        say(f"LSN {letter['lsn']:,}: its body cannot be read: {error.message}")
        return None


@dlq.command()
@selecting
@socket_option
def export(
    data_dir: str | None,
    socket: str | None,
    **chosen: Any,  # noqa: ANN401 - what 'selecting' adds
) -> None:
    """Write dead letters with their records to standard output, one JSON object a line.

    A value that is JSON or msgpack is decoded as "value", another stands as "value_base64".
    """
    choice, count = Choice(**chosen), 0
    with open_letters(socket, data_dir) as letters:
        for letter in letters.each(choice):
            said = exported(letter, _body(letters, letter))
            click.echo(json_text(said, separators=(",", ":")))
            count += 1
    say(f"{counted(count, 'dead letter')} exported")


@dlq.command()
@selecting
@click.option(
    "--transform", metavar="MODULE:FUNCTION", default="", help="Passes each record, as [record]."
)
@click.option("--dry-run", is_flag=True, help="Only say how many that would be.")
@click.option(
    "--force", is_flag=True, help="Also where the target lets an old record replace a newer one."
)
@click.option("--wait", "wait_s", type=Duration(), help="Wait so long for what comes of it.")
@socket_option
@json_option
def redrive(
    transform: str,
    wait_s: float | None,
    data_dir: str | None,
    socket: str | None,
    *,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401 - what 'selecting' adds
) -> int:
    """Send dead letters of a route to its target again.

    They come late: behind newer records. What is refused again stays a dead letter; with --wait
    the exit code is 1 then. The request is durable, and outlives a crash.
    """
    choice = _of_one_route(chosen)
    with open_letters(socket, data_dir) as letters:
        known = _known(letters, choice)
        pages = letters.pages(
            "drain.dlq.redrive",
            choice,
            route=choice.route,
            transform=transform,
            dry_run=dry_run,
            force=force,
        )
        said = _summed(list(pages), "letters", "asked", "without_body")
        choice.require(said["letters"] + said["without_body"])
        if wait_s is not None and letters.runs and not dry_run:
            _wait(letters, str(choice.route), wait_s)
            said["delivered"] = known - _known(letters, choice)
        runs = letters.runs
    if as_json:
        print_json({"route": choice.route, "dry_run": dry_run, **said})
    else:
        _say_redrive(said, choice, runs=runs, dry_run=dry_run)
    return EXIT_NO if said.get("delivered", said["letters"]) < said["letters"] else 0


def _say_redrive(said: dict[str, int], choice: Choice, *, runs: bool, dry_run: bool) -> None:
    letters = counted(said["letters"], "dead letter")
    if dry_run:
        say(f"{letters} of route {choice.route} would be sent again")
    elif "delivered" in said:
        again = said["letters"] - said["delivered"]
        say(f"{letters} of route {choice.route} sent again: {again:,} refused again; {_LATE}")
    else:
        when = "now" if runs else "when a daemon runs"
        say(f"{letters} of route {choice.route} will be sent again {when}; {_LATE}")
    if said["without_body"]:
        say(f"{counted(said['without_body'], 'letter')} without a body: damage took the record")


def _known(letters: Letters, choice: Choice) -> int:
    """Return how many letters there are, whatever the reason: that changes with each refusal."""
    return letters.count(replace(choice, reasons=()), str(choice.route))[0]


def _wait(letters: Letters, route: str, wait_s: float) -> None:
    """Wait until nothing of a route is being sent again."""
    from wald.system import SystemClock

    clock = SystemClock()
    end_ns = clock.monotonic_ns() + round(wait_s * CLOCK_NS_PER_S)
    while left := letters.counts()[route]["redrives"]:
        if clock.monotonic_ns() > end_ns:
            msg = f"{counted(left, 'dead letter')} of route {route} not sent within {wait_s:g} s"
            raise WaitTimeout(msg, hint="they will be; 'wald status' says what holds the route")
        clock.sleep(_POLL_S)


@dlq.command()
@selecting
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say how many that would be.")
@socket_option
@json_option
def purge(
    data_dir: str | None,
    socket: str | None,
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401 - what 'selecting' adds
) -> None:
    """Forget dead letters of a route for good; they stay counted as purged.

    On a terminal it asks; elsewhere --yes must say so. Export first what may still be needed.
    """
    choice = _of_one_route(chosen)
    route = str(choice.route)
    if not dry_run and not yes and not sys.stdin.isatty():
        msg = "purging cannot be taken back: give --yes, or --dry-run to see how many"
        raise click.UsageError(msg)
    with open_letters(socket, data_dir) as letters:
        count, records = letters.count(choice, route)
        choice.require(count)
        said = {"letters": count, "records": records, "spared": 0}
        if not dry_run:
            what = f"{counted(count, 'dead letter')} of route {printable(route)}"
            if not yes:
                click.confirm(f"forget {what} for good?", abort=True, err=True)
            pages = list(letters.pages("drain.dlq.purge", choice, route=route))
            said = _summed(pages, "letters", "records", "spared")
    if as_json:
        print_json({"route": route, "dry_run": dry_run, **said})
        return
    verb = "would be purged" if dry_run else "purged"
    say(f"{counted(said['letters'], 'dead letter')} of route {route} {verb}")
    if said["spared"]:
        say(f"{counted(said['spared'], 'letter')} spared: being sent again now")


@dlq.command("set-aside")
@click.argument("route")
@click.option(
    "--lsn", "lsns", metavar="LSN", multiple=True, type=click.IntRange(1, (1 << 63) - 1),
    help="Only this record; else all at which it stands.",
)  # fmt: skip
@socket_option
@json_option
def set_aside(route: str, lsns: Sequence[int], socket: str | None, *, as_json: bool) -> None:
    """Let a route set aside the refused records that it stops at, and go on.

    It stops at one with on_reject = "halt", and at all where most of the last records are refused
    (too-many-rejects): said then, what is refused of the records there are is set aside.
    """
    with Control(socket_path(socket)) as control:
        answer = control.ask("drain.dlq.set_aside", route=route, lsns=list(lsns))
    if as_json:
        said = {key: answer[key] for key in ("lsns", "through_lsn")}
        print_json({"route": route, **said})
        return
    if answer["through_lsn"]:
        say(f"route {route} sets aside what is refused up to LSN {answer['through_lsn']:,}")
    if not answer["lsns"]:
        return
    listed = ", ".join(f"{lsn:,}" for lsn in answer["lsns"][:_LISTED])
    rest = len(answer["lsns"]) - _LISTED
    more = f" and {rest:,} more" if rest > 0 else ""
    say(f"route {route} sets aside LSN {listed}{more}, and goes on")


def _of_one_route(chosen: dict[str, Any]) -> Choice:
    choice = Choice(**chosen)
    if choice.route is None:
        msg = "name the route: --route NAME"
        raise click.UsageError(msg)
    return choice


def _summed(pages: Sequence[dict[str, Any]], *names: str) -> dict[str, int]:
    return {name: sum(page[name] for page in pages) for name in names}
