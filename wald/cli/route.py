"""``wald route``: list routes, hold one back, let it go on, ask its target, give it up."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import click

from wald.cli.ask import Control
from wald.cli.fault import fault
from wald.cli.notes import notes, since
from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import (
    Group,
    counted,
    duration,
    print_json,
    print_table,
    printable,
    say,
    took,
)
from wald.errors import EXIT_NO, InputError, WaitTimeout
from wald.limits import CLOCK_NS_PER_S
from wald.system import SystemClock

_HEAD = ("ROUTE", "STREAM", "SINK", "LANES", "STATE", "PENDING", "OLDEST")
_LANE_HEAD = ("ROUTE", "LANE", "STATE", "DELIVERED", "DEAD", "THROUGH", "ATTEMPTS", "LAST ERROR")
_POLL_S = 0.05
_TRY_S = 3.0  # for the lanes to try behind a probe


class Asked(Protocol):
    """A daemon, or its data directory while none runs."""

    def status(self) -> dict[str, Any]:
        """Return what ``status`` answers."""
        ...

    def ask(self, op: str, **request: object) -> dict[str, Any]:
        """Ask one thing."""
        ...


data_dir_option = click.option(
    "--data-dir", metavar="DIR", help="Use this data directory; for when no daemon runs."
)
all_option = click.option(
    "--all", "every", is_flag=True, help="All routes: one switch beside those of each."
)


@click.group(cls=Group)
def route() -> None:
    """List routes; hold them back, let them go on; ask a target now; give up an orphan."""


route.add_command(fault)


@route.command("list")
@click.option(
    "--lanes", "with_lanes", is_flag=True, help="Also a line for each lane, of routes with several."
)
@data_dir_option
@socket_option
@json_option
def list_routes(
    data_dir: str | None, socket: str | None, *, with_lanes: bool, as_json: bool
) -> None:
    """List the routes, what holds each back, and what an orphan keeps on the disk."""
    with _asked(data_dir, socket) as asked:
        answer = asked.status()
    routes, pinned = answer["routes"], answer["disk"].get("pinned", {})
    for name, each in routes.items():
        each["pinned_bytes"] = pinned.get(name, 0)
    if as_json:
        print_json({"routes": routes, "paused_all_ns": answer["paused_all_ns"]})
        return
    print_table(_HEAD, [_row(name, each) for name, each in sorted(routes.items())])
    lanes = [row for name in sorted(routes) for row in _lane_rows(name, routes)]
    if with_lanes and lanes:
        print_table(_LANE_HEAD, lanes)
    if answer["paused_all_ns"]:
        say(f"all routes are paused {since(answer['paused_all_ns'])}: wald route resume --all")
    for name, each in sorted(routes.items()):
        for line in notes(name, each):
            click.echo(printable(line))
    if not routes:
        say("no routes yet")


@route.command("pause")
@click.argument("name", metavar="[ROUTE]", required=False)
@all_option
@data_dir_option
@socket_option
@json_option
def pause(
    name: str | None, data_dir: str | None, socket: str | None, *, every: bool, as_json: bool
) -> None:
    """Hold a route back, also over restarts. An attempt under way ends as it does.

    Records are accepted as before, and wait in the log.
    """
    with _asked(data_dir, socket) as asked:
        answer = asked.ask("drain.pause", **_meant(name, every=every))
    if as_json:
        print_json({"route": name, "all": every, "paused_ns": answer["paused_ns"]})
        return
    say(f"{name or 'all routes'}: paused {since(answer['paused_ns'])}")


@route.command("resume")
@click.argument("name", metavar="[ROUTE]", required=False)
@all_option
@data_dir_option
@socket_option
@json_option
def resume(
    name: str | None, data_dir: str | None, socket: str | None, *, every: bool, as_json: bool
) -> None:
    """Let a route go on; what waits for its next try, or is parked, is tried at once.

    With --all the switch for all routes is taken back; a route that was paused by its own name
    stays so.
    """
    with _asked(data_dir, socket) as asked:
        answer = asked.ask("drain.resume", **_meant(name, every=every))
    said = {key: answer[key] for key in ("resumed", "paused_all_ns", "still_paused")}
    if as_json:
        print_json({"route": name, "all": every, **said})
        return
    was = "resumed" if said["resumed"] else "was not paused; what waits is tried at once"
    say(f"{name or 'all routes'}: {was}")
    if said["paused_all_ns"]:
        say(f"all routes are paused {since(said['paused_all_ns'])}: wald route resume --all")
    elif said["still_paused"]:
        say(f"still paused by name: {', '.join(said['still_paused'])}")


@route.command("drop")
@click.argument("name", metavar="ROUTE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_dir_option
@socket_option
@json_option
def drop(name: str, data_dir: str | None, socket: str | None, *, yes: bool, as_json: bool) -> None:
    """Give up a route that the configuration does not name, with its pending records.

    They are never delivered then, and keep nothing in the log. Its dead letters stay.
    """
    with _asked(data_dir, socket) as asked:
        pending = _pending_of_orphan(asked.status()["routes"], name)
        question = f"{name}: give up {counted(pending, 'pending record')} for ever?"
        if not yes and not (sys.stdin.isatty() and click.confirm(question, err=True)):
            msg = f"{name} has {counted(pending, 'pending record')}: nothing was given up"
            raise InputError(msg, hint=f"if they are to be given up: wald route drop {name} --yes")
        answer = asked.ask("drain.drop", route=name, records=pending)
    if as_json:
        said = {key: answer[key] for key in ("name", "time_ns", "records")}
        print_json({"route": name, **said})
        return
    say(f"{name}: given up, with {counted(answer['records'], 'pending record')}")


def _pending_of_orphan(routes: Mapping[str, Any], name: str) -> int:
    if name not in routes:
        msg = f"there is no route {name!r}"
        raise InputError(msg, hint=f"routes: {', '.join(sorted(routes)) or 'none yet'}")
    if routes[name]["state"] not in {"orphan", "dropped"}:
        msg = f"{name!r} is delivered: only a route that the configuration does not name is dropped"
        raise InputError(msg, hint="take it out of the configuration, and restart the daemon")
    return int(routes[name]["pending"])


@route.command("probe")
@click.argument("name", metavar="ROUTE")
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default="10s",
    show_default=True,
    help="Wait for the target's answer this long (exit 75).",
)
@socket_option
@json_option
def probe(name: str, timeout_s: float, socket: str | None, *, as_json: bool) -> int:
    """Ask a route's target now, and try what waits at once; says what came of it."""
    with Control(socket_path(socket)) as control:
        before = _of(control.status(), name)
        control.ask("drain.probe", route=name)
        found = _found(control, name, timeout_s)
        after = _after_try(control, name, before)
    if as_json:
        print_json({"route": name, **found, "after": after})
        return EXIT_NO if found["error"] else 0
    for each in found["findings"]:
        hint = f" ({each['hint']})" if each["hint"] else ""
        click.echo(printable(f"{name}: {each['severity']}: {each['message']}{hint}"))
    row = found["row"]
    if row:
        click.echo(
            f"{name}: the target remembers batch {row['batch_no']:,}, through LSN {row['hi_lsn']:,}"
        )
    answered = f"failed after {took(found['seconds'])}: {found['error']}"
    if not found["error"]:
        answered = f"answered in {took(found['seconds'])}"
    say(f"{name}: the target {answered}")
    # what is on its way now still has the error of the attempt before
    why = f": {after['last_error']}" if after["last_error"] and found["error"] else ""
    say(f"{name}: {after['state']}, {after['pending']:,} pending{why}")
    return EXIT_NO if found["error"] else 0


def _of(status: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in status["routes"]:
        msg = f"there is no route {name!r}"
        raise InputError(msg, hint=f"routes: {', '.join(sorted(status['routes'])) or 'none yet'}")
    return dict(status["routes"][name])


def _found(control: Control, name: str, timeout_s: float) -> dict[str, Any]:
    clock = SystemClock()
    end_ns = clock.monotonic_ns() + round(timeout_s * CLOCK_NS_PER_S)
    while True:
        found: dict[str, Any] | None = control.ask("drain.probed", route=name)["found"]
        if found is not None:
            return found
        if clock.monotonic_ns() >= end_ns:
            msg = f"the target of {name!r} did not answer within {timeout_s:g} s"
            raise WaitTimeout(msg, hint="it may hang: see 'wald status', and the target itself")
        clock.sleep(_POLL_S)


def _after_try(control: Control, name: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the route once its lanes have tried, or had the time to."""
    clock = SystemClock()
    end_ns = clock.monotonic_ns() + round(_TRY_S * CLOCK_NS_PER_S)
    told = ("batch_no", "attempts", "through_lsn", "delivered")
    while True:
        now = _of(control.status(), name)
        moved = any(now[each] != before[each] for each in told)
        if moved or not now["pending"] or clock.monotonic_ns() >= end_ns:
            return {key: now[key] for key in ("state", "pending", "last_error", *told)}
        clock.sleep(_POLL_S)


@route.command("takeover")
@click.argument("name", metavar="ROUTE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_dir_option
@socket_option
@json_option
def takeover(
    name: str, data_dir: str | None, socket: str | None, *, yes: bool, as_json: bool
) -> None:
    """Go on with a parked route from this directory, whoever else wrote to its target.

    For a directory that was moved or restored, or a second host that took the route. What nobody
    can tell to be at the target becomes dead letters. Another daemon that writes the same route is
    parked at its next attempt. With no daemon at work it is carried out at the next start.
    """
    with _asked(data_dir, socket) as control:
        _of(control.status(), name)
        question = f"{name}: is no other daemon to write this route from now on?"
        if not yes and not (sys.stdin.isatty() and click.confirm(question, err=True)):
            msg = f"{name}: nothing was taken over"
            raise InputError(
                msg, hint=f"if this directory is the right one: wald route takeover {name} --yes"
            )
        answer = control.ask("drain.takeover", route=name)
    if as_json:
        print_json({"route": answer["route"], "parked": answer["parked"]})
        return
    say(f"{name}: this directory goes on with it: wald status")


# --- parts --------------------------------------------------------------------------------------


def _asked(data_dir: str | None, socket: str | None) -> Any:  # noqa: ANN401 - a context of Asked
    if data_dir is None:
        return Control(socket_path(socket))
    from wald import offline

    return offline.route_desk(data_dir.rstrip("/") or "/")


def _meant(name: str | None, *, every: bool) -> dict[str, object]:
    if (name is None) is not every:
        msg = "name one route, or give --all"
        raise click.UsageError(msg)
    return {"all": True} if every else {"route": name}


def _row(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    running = [lane for lane in each["lanes"] if lane["state"] != "former"]
    at_work = f" ({each['workers']} at work)" if len(running) > each["workers"] else ""
    return (
        name,
        each["stream"],
        each["sink"],
        f"{each['lane_count']}{at_work}",
        f"parked: {each['parked']}" if each["parked"] else each["state"],
        f"{each['pending']:,}",
        duration(each["oldest_pending_s"]),
    )


def _lane_rows(name: str, routes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{lane['layout']}.{lane['lane']}",
            f"parked: {lane['parked']}" if lane["parked"] else lane["state"],
            f"{lane['delivered']:,}",
            f"{lane['dead_letters']:,}",
            f"{lane['through_lsn']:,}",
            f"{lane['attempts']:,}",
            lane["last_error"],
        )
        for lane in routes[name]["lanes"]
    ]
