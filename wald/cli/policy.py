"""How ``wald status`` shows what holds a route back, how fast it goes, and when it is through."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from wald.cli.output import counted, duration, printable, size

HEAD = ("RATE", "ETA", "BREAKER")
_SHORT_CHARS = 24  # a longer message has a line of its own below the table


def cells(route: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of ``HEAD``."""
    eta_s = None if _stands(route) else route["eta_s"]
    return (f"{route['rate_per_s']:,.0f}/s", "-" if not eta_s else duration(eta_s), breaker(route))


def _stands(route: Mapping[str, Any]) -> bool:
    """Whether nothing is sent now: the rate of before says nothing of when it is through."""
    waits = route["parked"] or route["paused_ns"] or route["state"] in {"waiting", "failed"}
    return route["breaker"]["state"] != "closed" or bool(waits)


def oldest(route: Mapping[str, Any]) -> str:
    """Return how old the oldest record is, against the goal if it is above it."""
    age = duration(route["oldest_pending_s"])
    return f"{age} (goal {duration(route['goal_age_s'])})" if route["is_late"] else age


def breaker(route: Mapping[str, Any]) -> str:
    """Return how the breaker stands, why it is open and when the target is asked again."""
    said = route["breaker"]
    if said["state"] == "closed":
        return "closed"
    message = said["message"] if len(said["message"]) <= _SHORT_CHARS else ""
    probe_in_s = said["probe_in_s"]
    probe = f"probe in {duration(probe_in_s)}" if probe_in_s > 0 else "probe with the next batch"
    if said["state"] == "half-open":
        probe = "probing"
    return printable(f"{said['state']}: {message or said['kind']}, {probe}")


def hints(routes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what to do about breakers that are open, one line a route."""
    for name, route in routes.items():
        said = route["breaker"]
        if said["state"] != "closed":
            whose = "its target" if said["scope"] == "target" else "this route"
            tried = f", attempt {route['attempts']}" if route["attempts"] else ""
            yield printable(
                f"{name}: {said['kind']} ({whose}, for {duration(said['open_for_s'])}{tried}): "
                f"{said['message']}; {said['hint']}"
            )


def tells(route: Mapping[str, Any]) -> bool:
    """Whether ``hints`` has the last error of a route already."""
    said = route["breaker"]
    if said["state"] == "closed" or not said["message"]:
        return False
    return route["last_error"] in {said["message"], f"{said['kind']}: {said['message']}"}


def traffic(routes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what went to each target, what it may have cost, and what its sink noted."""
    for name, route in routes.items():
        if route["notes"]:
            counts = ", ".join(f"{why} {count:,}" for why, count in sorted(route["notes"].items()))
            yield printable(f"{name}: noted since the drainer began: {counts}")
        said = route["traffic"]
        if not said["requests"]:
            continue
        cost = "" if said["cost"] is None else f", at an estimated cost of {_plain(said['cost'])}"
        yield (
            f"{name}: {said['records_per_request']:,.6g} records a request: "
            f"{counted(said['records'], 'record')} in {counted(said['requests'], 'request')}, "
            f"{size(said['bytes'])}, since the drainer began{cost}"
        )


def _plain(amount: float) -> str:
    """Return an amount without an exponent, however small."""
    return f"{Decimal(f'{amount:.6g}'):,f}"


def details(routes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield how large batches are and why, one line a route."""
    for name, route in routes.items():
        if route["batch_size"] is None:
            continue
        timeout = duration(route["attempt_timeout_s"])
        goal = f", goal {duration(route['goal_age_s'])}" if route["goal_age_s"] is not None else ""
        held = f", held back by: {route['held']}" if route["held"] else ""
        yield (
            f"{name}: batches of up to {route['batch_size']:,} records ({route['batch_reason']}), "
            f"an attempt may take {timeout}{goal}{held}"
        )
