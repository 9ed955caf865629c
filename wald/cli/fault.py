"""``wald route fault``: a game day on the user's own configuration."""

from collections.abc import Mapping
from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import print_json, say
from wald.limits import FAULT_MAX_S


@click.command("fault")
@click.argument("route")
@click.option("--down", metavar="TIME", type=Duration(), help="The target plays dead for so long.")
@click.option("--slow", metavar="TIME", type=Duration(), help="Each attempt takes so much longer.")
@click.option("--reject", metavar="SHARE", help="This share of the records is refused: 1%.")
@click.option(
    "--lose-answers", metavar="SHARE", help="This share of the answers is lost, behind the effect."
)
@click.option(
    "--for",
    "for_s",
    metavar="TIME",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long slow, reject and lose-answers last; at most 1h.",
)
@click.option("--clear", is_flag=True, help="End all faults of the route now.")
@socket_option
@json_option
def fault(
    route: str,
    down: float | None,
    slow: float | None,
    reject: str | None,
    lose_answers: str | None,
    for_s: float,
    socket: str | None,
    *,
    clear: bool,
    as_json: bool,
) -> None:
    """Let a route's target fail, to see what happens: retries, breaker, alarms are real.

    Records that are refused become dead letters, which can be sent again: wald dlq redrive. A
    fault ends by itself, at the latest when the drainer ends; until then status says it.
    """
    for name, length_s in (("--down", down), ("--slow", slow), ("--for", for_s)):
        if length_s is not None and length_s > FAULT_MAX_S:
            msg = f"{name}: at most {FAULT_MAX_S / 3_600:g}h: a game day ends by itself"
            raise click.UsageError(msg)
    shares = {"reject": reject, "lose-answers": lose_answers}
    asked = _asked(down, slow, shares, for_s)
    if clear:
        asked.insert(0, {"clear": True})
    if not asked:
        msg = "say which fault: --down 60s, --slow 500ms, --reject 1%, --lose-answers 5%"
        raise click.UsageError(msg)
    with Control(socket_path(socket)) as control:
        answers = [control.ask("drain.fault", route=route, **each) for each in asked]
    lasting = answers[-1]["faults"]
    if as_json:
        print_json({"route": route, "faults": lasting})
        return
    for text in lasting:
        say(f"{route}: {text}")
    if not lasting:
        say(f"{route}: no fault lasts")


def _asked(
    down: float | None, slow: float | None, shares: Mapping[str, str | None], for_s: float
) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    if down is not None:
        asked.append({"kind": "down", "for_s": down})
    if slow is not None:
        asked.append({"kind": "slow", "amount": slow, "for_s": for_s})
    for kind, share in shares.items():
        if share is not None:
            asked.append({"kind": kind, "amount": _share(share), "for_s": for_s})
    return asked


def _share(text: str) -> float:
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        msg = f"{text!r} is not a share from 0% to 100%, such as 1% or 0.01"
        raise click.UsageError(msg)
    return share
