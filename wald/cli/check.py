"""``wald check``: is the configuration right, and what do the targets say?"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import click

from wald.cli.options import json_option, load_settings, placed, settings_options
from wald.cli.output import print_json, printable, say
from wald.config import EACH_STREAM, Loaded, RouteSettings
from wald.core.guarantees import BY_CLASS, ORDER
from wald.core.units import format_size
from wald.errors import EXIT_NO, ConfigError
from wald.model import Capabilities, Finding, Severity
from wald.ports import GrantingSink, Sink


@click.command()
@settings_options
@json_option
@click.option(
    "--print-grants",
    is_flag=True,
    help="Print what the owner of a database runs, so that wald may do what it must there.",
)
def check(
    config: str | None,
    target: str | None,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
    print_grants: bool,
) -> int:
    """Check the configuration and ask each route's target, without writing any data.

    Says for each route what its class promises, how much goes at a time, in which order, and what
    was found at the target. Exit code 0 if nothing is wrong, 1 if a target
    is not as it must be, 78 if the configuration is wrong.
    """
    loaded = load_settings(config, target, data_dir, socket)
    _check_people(loaded)
    if print_grants:
        return _print_grants(loaded)
    routes = loaded.settings.routes_to_check()
    if not routes:
        say("no routes: no stream is accepted")
    reports = [_report(loaded, route) for route in routes]
    failed = any(finding["severity"] == "error" for one in reports for finding in one["findings"])
    if as_json:
        settings = [
            {"name": name, "value": value, "from": origin}
            for name, value, origin in loaded.describe()
        ]
        print_json({"ok": not failed, "routes": reports, "settings": settings})
    else:
        for one in reports:
            _print(one, target)
    return EXIT_NO if failed else 0


def _check_people(loaded: Loaded) -> None:
    """Let the system say whether it knows the users and groups of the settings."""
    from wald.config.people import access_of, socket_manner
    from wald.system import own_uid

    access_of(loaded.settings, own_uid())
    socket_manner(loaded.settings)


def _print_grants(loaded: Loaded) -> int:
    """Print what the sinks need at their targets: it can be run, or put in place, as it is."""
    for route in loaded.settings.routes_to_check():
        with closing(_sink(loaded, route)) as sink:
            statements = _grants(sink)
        if not statements:
            say(f"{_called(route.name)}: its target knows no grants")
            continue
        say(f"{_called(route.name)}:")
        for statement in statements:
            click.echo(statement)
    return 0


def _called(route: str) -> str:
    each = f"each stream ({EACH_STREAM} stands for its name)"
    return each if route == EACH_STREAM else f"route {route}"


def _grants(sink: Sink) -> Sequence[str]:
    return cast("GrantingSink", sink).grants() if hasattr(sink, "grants") else ()


def _sink(loaded: Loaded, route: RouteSettings) -> Sink:
    from wald import app

    try:
        return app.make_sink(route, loaded.settings.sinks[route.sink])
    except ConfigError as error:
        raise placed(error, loaded) from error


def _report(loaded: Loaded, route: RouteSettings) -> dict[str, Any]:
    from wald import app

    sink_settings = loaded.settings.sinks[route.sink]
    with closing(_sink(loaded, route)) as sink:
        able, grants = sink.capabilities, bool(_grants(sink))
        replay = able.replay
        findings = [
            {
                "severity": found.severity.value,
                "code": found.code,
                "message": found.message,
                "hint": found.hint,
            }
            for found in (*app.promised(route, sink), *_of_transform(route), *sink.check())
        ]
    return {
        "route": route.name,
        "stream": route.stream,
        "sink": route.sink,
        "type": sink_settings.type,
        "class": replay.value,
        "promise": BY_CLASS[replay].promise,
        "limits": _limits(route, able),
        "order": ORDER[replay],
        "grants": grants,
        "findings": findings,
    }


def _limits(route: RouteSettings, able: Capabilities) -> dict[str, Any]:
    """Return what bounds a batch: of the route, and of the target."""
    return {
        "max_records": min(route.batch.max_records, able.max_records),
        "max_bytes": min(route.batch.max_bytes, able.max_bytes),
        "target_max_records": able.max_records,
        "target_max_bytes": able.max_bytes,
        "max_requests_per_s": able.max_requests_per_s,
        "max_records_per_s": able.max_records_per_s,
        "window_s": able.window_s,
        "window_batches": able.window_batches,
    }


def _of_transform(route: RouteSettings) -> list[Finding]:
    if route.transform is None:
        return []
    from wald.drainer.shaping import load_transform

    try:
        load_transform(route.transform)
    except ConfigError as error:
        return [Finding(Severity.ERROR, "transform", error.message, error.hint)]
    return [Finding(Severity.OK, "transform", f"transform {route.transform} can be loaded")]


def _print(report: dict[str, Any], target: str | None) -> None:
    way = f"{report['stream']} -> {report['sink']} ({report['type']})"
    if report["route"] == EACH_STREAM:
        way = f"-> {target}"
    head = f"{_called(report['route'])}   {way}   {report['class']}   {report['promise']}"
    click.echo(printable(head))
    click.echo(f"  limits: {_limits_text(report['limits'])}")
    click.echo(f"  order: {report['order']}")
    if report["grants"]:
        click.echo("  grants: what wald needs there is printed by 'wald check --print-grants'")
    for found in report["findings"]:
        click.echo(f"  {found['severity']}: {printable(found['message'])}  [{found['code']}]")
        if found["hint"]:
            click.echo(f"    hint: {printable(found['hint'])}")


def _limits_text(limits: dict[str, Any]) -> str:
    parts = [f"{limits['max_records']:,} records or {format_size(limits['max_bytes'])} a batch"]
    theirs = limits["target_max_records"], limits["target_max_bytes"]
    if theirs != (limits["max_records"], limits["max_bytes"]):
        parts.append(f"the target takes {theirs[0]:,} or {format_size(theirs[1])}")
    for name, what in (("max_requests_per_s", "requests"), ("max_records_per_s", "records")):
        if limits[name] is not None:
            parts.append(f"{limits[name]:,.6g} {what}/s")
    if limits["window_s"] is not None:
        parts.append(f"it knows a batch again for {limits['window_s']:,.6g} s")
    if limits["window_batches"] is not None:
        parts.append(f"and among the last {limits['window_batches']:,}")
    return "; ".join(parts)
