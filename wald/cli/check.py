"""``wald check``: is the configuration right, and what do the targets say?"""

from typing import Any

import click

from wald.cli.options import json_option, load_settings, placed, settings_options
from wald.cli.output import print_json, printable, say
from wald.config import Loaded, RouteSettings
from wald.core.guarantees import BY_CLASS
from wald.errors import EXIT_NO, ConfigError
from wald.model import Finding, Severity


@click.command()
@settings_options
@json_option
def check(
    config: str | None,
    target: str | None,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
) -> int:
    """Check the configuration and ask each route's target, without writing any data.

    Says for each route what its class promises. Exit code 0 if nothing is wrong, 1 if a target
    is not as it must be, 78 if the configuration is wrong.
    """
    loaded = load_settings(config, target, data_dir, socket)
    reports = [_report(loaded, route) for route in _routes(loaded)]
    failed = any(finding["severity"] == "error" for one in reports for finding in one["findings"])
    if as_json:
        settings = [
            {"name": name, "value": value, "from": origin}
            for name, value, origin in loaded.describe()
        ]
        print_json({"ok": not failed, "routes": reports, "settings": settings})
    else:
        for one in reports:
            _print(one)
    return EXIT_NO if failed else 0


def _routes(loaded: Loaded) -> list[RouteSettings]:
    """Return the routes; with ``--to`` one for a stream whose name stands for all of them."""
    settings = loaded.settings
    if settings.auto_sink is not None:
        return [RouteSettings("check", "check", settings.auto_sink)]
    if not settings.routes:
        say("no routes: no stream is accepted")
    return list(settings.routes.values())


def _report(loaded: Loaded, route: RouteSettings) -> dict[str, Any]:
    from wald import app

    sink_settings = loaded.settings.sinks[route.sink]
    try:
        sink = app.make_sink(route, sink_settings)
    except ConfigError as error:
        raise placed(error, loaded) from error
    try:
        replay = sink.capabilities.replay
        findings = [
            {
                "severity": found.severity.value,
                "code": found.code,
                "message": found.message,
                "hint": found.hint,
            }
            for found in (*app.promised(route, sink), *_of_transform(route), *sink.check())
        ]
    finally:
        sink.close()
    return {
        "route": route.name,
        "stream": route.stream,
        "sink": route.sink,
        "type": sink_settings.type,
        "class": replay.value,
        "promise": BY_CLASS[replay].promise,
        "findings": findings,
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


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"route {report['route']}   {report['stream']} -> {report['sink']} ({report['type']})"
        f"   {report['class']}   {report['promise']}"
    )
    for found in report["findings"]:
        click.echo(f"  {found['severity']}: {printable(found['message'])}  [{found['code']}]")
        if found["hint"]:
            click.echo(f"    hint: {printable(found['hint'])}")
