"""``wald status`` and ``wald wait``: where the records are."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from wald.cli import disk, door, policy, where
from wald.cli.ask import Control
from wald.cli.notes import ago_s, notes, paused_everywhere, what_to_do
from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import counted, print_json, print_table, printable, say, took
from wald.core import healing
from wald.errors import InputError, Unavailable, Undeliverable, WaitTimeout
from wald.limits import CLOCK_NS_PER_S, LSN_MAX
from wald.ports import Clock

_POLL_S = 0.05
_ASK_S = 5.0
_MOMENT_S = 0.2
_SLOW_S = 2.0
_NEWS_S = 86_400.0
_SETTLES_S = 0.5  # until then figures may be of before what a person has just decided
_STANDING = {  # what no amount of waiting delivers, and what to do
    "orphan": "the configuration does not name the route: add it, and start the daemon again, or"
    " give it up: wald route drop {name}",
    "dropped": "the route was given up",
    "paused": "let it go on: wald route resume {name}",
}
_HEAD = (
    *("STREAM", "ROUTE", "CLASS", "STATE", "ACCEPTED", "DELIVERED", "PENDING", "DEAD", "OLDEST"),
    *policy.HEAD,
)
_MAY_GO = ("CLASS", "DELIVERED", "ACCEPTED", "STREAM", "RATE", "ETA", "OLDEST")


@click.command()
@socket_option
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show more: sizes of batches and why, quotas, refusals, disk.",
)
@click.option(
    "--lsn",
    metavar="LSN",
    type=click.IntRange(1, LSN_MAX),
    help="Show where this one record is instead.",
)
@click.option(
    "--data-dir", metavar="DIR", help="With --lsn: read this directory, while no daemon runs."
)
@json_option
def status(
    socket: str | None, lsn: int | None, data_dir: str | None, *, verbose: bool, as_json: bool
) -> int:
    """Show each route: what was accepted, delivered, is pending, was set aside.

    The books of a route balance: accepted = delivered + pending + dead letters + purged. With
    --lsn it says where that record is, at each route of its stream; exit code 1 if one will not
    have it as things are.
    """
    if lsn is not None:
        return where.show(lsn, socket, data_dir, as_json=as_json)
    if data_dir is not None:
        msg = "--data-dir goes with --lsn; routes without a daemon: wald route list --data-dir DIR"
        raise click.UsageError(msg)
    _show_all(socket, verbose=verbose, as_json=as_json)
    return 0


def _show_all(socket: str | None, *, verbose: bool, as_json: bool) -> None:
    with Control(socket_path(socket)) as control:
        answer = control.status()
    del answer["ok"]
    if as_json:
        print_json(answer)
        return
    rows = [_row(name, route) for name, route in sorted(answer["routes"].items())]
    print_table(_HEAD, rows, _MAY_GO)
    for line in _lines(answer["routes"], answer["paused_all_ns"], verbose=verbose):
        click.echo(line)
    for line in _ids(answer["dedup"], verbose=verbose):
        click.echo(line)
    for line in door.lines(answer, verbose=verbose):
        click.echo(line)
    for line in disk.lines(answer["disk"], verbose=verbose, routes=answer["routes"]):
        click.echo(printable(line))
    if not answer["routes"]:
        say("no routes yet: the configuration names them; with --to each stream gets its own")
    say_alarms(answer)
    _say_processes(answer)


def _ids(dedup: Mapping[str, Any], *, verbose: bool) -> Iterator[str]:
    """Say what is remembered of dedup ids; always where less is than was asked for."""
    for stream, ids in sorted(dedup.items()):
        if ids["crowded_out"]:
            yield (
                f"{stream}: {counted(ids['crowded_out'], 'dedup id')} forgotten before the window "
                f"had passed; raise max_ids in [streams.{stream}.dedup]"
            )
        elif verbose and ids["ids"]:
            since = f" since {_time_of_day(ids['oldest_ns'])}" if ids["oldest_ns"] else ""
            yield f"{stream}: {counted(ids['ids'], 'dedup id')} remembered{since}"


def _say_processes(answer: Mapping[str, Any]) -> None:
    for role, process in answer["processes"].items():
        if process.get("trouble"):
            say(f"{role}: {process['trouble']}")
        elif process["stale"]:
            reason = f" ({process['last_error']})" if process["last_error"] else ""
            hung = process["ready"] and process.get("answers") is False
            state = "does not answer" if hung else f"is {process['state']}{reason}"
            say(f"{role} {state}; its figures are the last it wrote")
            if process.get("hint"):
                say(f"hint: {process['hint']}")


def say_alarms(answer: Mapping[str, Any]) -> None:
    """Say what the last start of the log found lost."""
    recovery = answer["recovery"]
    for line in recovery.get("alarms", ()):
        say(f"at the last start: {line}")
    data_dir = answer["data_dir"]
    if answer.get("data_dir_gone"):
        say(f"ALARM: the data directory {data_dir} is gone: what is acknowledged lies in no file")
        say("hint: stop the producers; put it back if it was moved, then restart the daemon")
    if recovery.get("losses"):
        say(f"what is known of it: {data_dir}/reports, {data_dir}/quarantine")
    if failures := answer.get("write_failures", {}).get("count"):
        last = answer["write_failures"]["last"]
        say(f"ALARM: a write or flush of the log failed, {counted(failures, 'time')}: {last}")
        say("hint: look at the disk, and at dmesg; nothing that was acknowledged is lost by it")
    if dead_log := answer.get("dead_log"):
        say(f"ALARM: the dead log cannot be tended: {dead_log['trouble']}")
        say(f"hint: {dead_log['hint']}")
    _say_ledger(answer.get("ledger_went_back_ns"))
    for path in answer.get("unseen", ()):
        what = "records were lost" if "loss" in path else "a ledger was damaged and set aside"
        say(f"ALARM: {what}: {data_dir}/{path}")
    if answer.get("unseen"):
        say(f"hint: wald log salvage {data_dir} says what that means; wald log acknowledge, seen")


def _say_ledger(went_back_ns: int | None) -> None:
    """Say what a ledger that was lost does not know any more, for as long as that is news."""
    if went_back_ns and ago_s(went_back_ns) < _NEWS_S:
        say("the ledger was lost, or is older than what was delivered: lanes went on behind that")
        say(
            "hint: redrives that were only asked for, and replays that were not at their end, have "
            "to be asked for anew: wald dlq redrive, wald replay"
        )


def _row(name: str, route: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        route["stream"],
        name,
        route["class"] or "-",
        f"parked: {route['parked']}" if route["parked"] else route["state"],
        f"{route['accepted']:,}",
        f"{route['delivered']:,}",
        f"{route['pending']:,}",
        f"{route['dead_letters']:,}",
        policy.oldest(route),
        *policy.cells(route),
    )


def _lines(routes: Mapping[str, Any], paused_all_ns: int | None, *, verbose: bool) -> Iterator[str]:
    yield from paused_everywhere(paused_all_ns)
    for name, route in sorted(routes.items()):
        if route["last_error"] and not policy.tells(route):
            yield f"{name}: {_last_error(route)}"
        if route["healing"] and _is_news(route["healing"]):
            yield f"{name}: {healing.words(route['healing'], _time_of_day)}"
        yield from map(printable, notes(name, route, paused_all_ns))
    yield from policy.hints(routes)
    yield from _dead_letter_lines(routes)
    if verbose:
        yield from policy.details(routes)
        yield from policy.traffic(routes)


def _is_news(note: Mapping[str, Any]) -> bool:
    """Whether a note of healing still concerns somebody: it is under way, or of the last day."""
    is_over = note["done_ns"] or not note["records"]
    return not is_over or ago_s(note["done_ns"] or note["time_ns"]) < _NEWS_S


def _dead_letter_lines(routes: Mapping[str, Any]) -> Iterator[str]:
    """Say what of dead letters wants a person, or is not in the table."""
    for name, route in sorted(routes.items()):
        letters = counted(route["dead_letters"], "dead letter")
        if route["alarm"]:
            yield f"{name}: ALARM: {letters}: wald dlq list --route {name}"
        if route["redrives"]:
            yield f"{name}: {counted(route['redrives'], 'dead letter')} being sent again"
        if route["purged"]:
            yield f"{name}: {counted(route['purged'], 'dead letter')} purged, counted as accepted"


def _time_of_day(time_ns: int) -> str:
    """Return a time as a clock on the wall shows it; with its date if that is another one."""
    from wald.system import SystemClock

    now_ns = SystemClock().wall_ns()
    moment, now = (
        datetime.fromtimestamp(ns / CLOCK_NS_PER_S).astimezone() for ns in (time_ns, now_ns)
    )
    today = moment.date() == now.date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _last_error(route: Mapping[str, Any]) -> str:
    attempts = f", attempt {route['attempts']}" if route["attempts"] else ""
    return printable(f"{route['last_error']}{attempts}")


@click.command()
@click.argument("route", required=False)
@click.option("--all", "every", is_flag=True, help="Wait for every route.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default="60s",
    show_default=True,
    help="Give up after this long (exit 75).",
)
@socket_option
@json_option
def wait(
    route: str | None, timeout_s: float, socket: str | None, *, every: bool, as_json: bool
) -> None:
    """Wait until what was accepted so far is delivered, or set aside as dead letters.

    What is pending is sealed at once instead of waiting for a full batch. With --json the routes
    are told as 'wald status' tells them: all that were waited for, or those that are not done.
    """
    if (route is None) is not every:
        msg = "name one route, or give --all"
        raise click.UsageError(msg)
    from wald.system import SystemClock

    clock = SystemClock()
    began_ns = clock.monotonic_ns()
    try:
        with Control(socket_path(socket)) as control:
            routes = wait_for_routes(control, route, timeout_s, clock)
    except (WaitTimeout, Undeliverable) as error:
        if as_json:
            print_json({"routes": error.facts["routes"], "error": error.code})
        raise
    if as_json:
        print_json({"routes": routes})
        return
    lasted = took((clock.monotonic_ns() - began_ns) / CLOCK_NS_PER_S)
    for name, one in routes.items():
        drained = one["drained"]
        what = f"{counted(drained, 'record')} in {lasted}" if drained > 0 else "nothing was pending"
        say(f"{name} drained: {what}, {counted(one['dead_letters'], 'dead letter')}")


def wait_for_routes(
    control: Control,
    route: str | None,
    timeout_s: float,
    clock: Clock,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Wait until a route, or every one, has finished what is durable now; return the routes.

    Each with ``drained``: how many of its records were delivered meanwhile.

    Args:
        control: the daemon.
        route: its name; None for all that are delivered.
        timeout_s: how long.
        clock: real time.
        tell: told once, after a moment, what is waited for.

    Raises:
        WaitTimeout: not within the time; its fact ``routes`` are those that are not done.
        Undeliverable: what is left is delivered by no amount of waiting; as above.
        InputError: there is no such route.
    """
    deadline = _Deadline(clock, timeout_s)
    waiting: dict[str, Any] = {}
    try:
        first = control.status(deadline.bound_s(_ASK_S))
        goal_lsn = first["frontier_lsn"]
        flushed = False
        while True:
            flushed = flushed or _flush(control, deadline)
            now = control.status(deadline.bound_s(_ASK_S))
            # figures of before the call may not know a route that was born with the last records
            known = now["figures_lsn"] >= goal_lsn
            routes = _chosen(now["routes"], route) if known else {}
            waiting = {name: one for name, one in routes.items() if one["through_lsn"] < goal_lsn}
            if known and not waiting:
                return {
                    name: _with_drained(one, first["routes"].get(name))
                    for name, one in routes.items()
                }
            has_passed = deadline.has_passed()
            settled = has_passed or deadline.lasted_s() > _SETTLES_S
            if settled and not now["processes"]["drain"]["stale"]:
                _refuse_undeliverable(waiting)
            if has_passed:
                raise _too_late(waiting, timeout_s)
            if deadline.lasted_s() > _SLOW_S:
                tell(_left(waiting))
                tell = _say_nothing
            clock.sleep(_POLL_S)
    except Unavailable as error:
        if deadline.has_passed():
            raise _too_late(waiting, timeout_s, error.message) from error
        raise


def _with_drained(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a route with how many records were delivered meanwhile."""
    return {**now, "drained": now["delivered"] - (before["delivered"] if before else 0)}


class _Deadline:
    """A point in time, and what is left until then."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._began_ns = clock.monotonic_ns()
        self._timeout_s = timeout_s

    def lasted_s(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / CLOCK_NS_PER_S

    def bound_s(self, seconds: float) -> float:
        """Return what is left, and no more than so much; a first question gets a moment."""
        return max(min(seconds, self._timeout_s - self.lasted_s()), _MOMENT_S)

    def has_passed(self) -> bool:
        return self.lasted_s() > self._timeout_s


def _say_nothing(_: str) -> None:
    pass


def _flush(control: Control, deadline: _Deadline) -> bool:
    """Ask drain to seal what is pending; False while it does not answer."""
    try:
        control.ask("drain.flush", deadline.bound_s(_ASK_S))
    except Unavailable:
        return False
    return True


def _refuse_undeliverable(waiting: Mapping[str, Any]) -> None:
    """Raise if all that is left waits for a person."""
    stands = {
        name: f"parked: {route['parked']}" if route["parked"] else route["state"]
        for name, route in waiting.items()
        if route["parked"] or route["state"] in _STANDING
    }
    if not stands or len(stands) < len(waiting):
        return
    left = ", ".join(
        f"{name} is {_a(why)} ({waiting[name]['pending']:,} pending){_why(waiting[name])}"
        for name, why in stands.items()
    )
    first = next(iter(stands))
    hint = _STANDING.get(waiting[first]["state"], "see 'wald status'").format(name=first)
    raise Undeliverable(left, hint=what_to_do(first, waiting[first]) or hint, routes=waiting)


def _a(state: str) -> str:
    return "an orphan" if state == "orphan" else state


def _chosen(routes: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    if name is None:  # a route that the configuration does not name any more is not delivered
        return {name: route for name, route in routes.items() if route["state"] != "orphan"}
    if name not in routes:
        known = ", ".join(sorted(routes)) or "none yet"
        msg = f"there is no route {name!r}"
        raise InputError(msg, hint=f"routes: {known}")
    return {name: routes[name]}


def _left(waiting: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({route['pending']:,} pending{_why(route)})" for name, route in waiting.items()
    )


def _why(route: Mapping[str, Any]) -> str:
    return f": {_last_error(route)}" if route["last_error"] else ""


def _too_late(waiting: Mapping[str, Any], timeout_s: float, why: str = "") -> WaitTimeout:
    if not waiting:
        msg = why or f"ingest did not report within {timeout_s:g} s"
        return WaitTimeout(msg, hint="see 'wald status'", routes={})
    left = ", ".join(f"{name} ({route['pending']:,} pending)" for name, route in waiting.items())
    errors = [route["last_error"] for route in waiting.values() if route["last_error"]]
    msg = f"not drained within {timeout_s:g} s: {left}"
    hint = f"last error: {errors[0]}" if errors else why or "they are durable; see 'wald status'"
    return WaitTimeout(msg, hint=hint, routes=waiting)
