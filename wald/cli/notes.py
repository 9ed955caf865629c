"""What is worth a line of a route beside its figures: a fault, a pause, a change of lanes."""

from collections.abc import Mapping
from typing import Any

from wald.cli.output import counted, duration
from wald.limits import CLOCK_NS_PER_S


def notes(name: str, each: Mapping[str, Any]) -> list[str]:
    """Return what is worth a line: a fault, a pause, a change of lanes, an orphan."""
    said = [f"{name}: {fault.upper()}: wald route fault {name} --clear" for fault in each["faults"]]
    if each["guarded_batch"]:
        said.append(
            f"{name}: batch {each['guarded_batch']:,} ended the drainer twice, and is tried in a "
            "process of its own"
        )
    if each["fallback"]:
        sink, after_lsn = each["fallback"]["sink"], each["fallback"]["after_lsn"]
        said.append(
            f"{name}: FALLBACK: {each['sink']} is down; {sink} takes what is behind LSN "
            f"{after_lsn:,}"
        )
    if each["paused_ns"]:
        said.append(f"{name}: paused {since(each['paused_ns'])}: wald route resume {name}")
    change = each["change"]
    if change:
        waits = ", ".join(map(str, change["waits_for"])) or "none"
        why = ", ".join(map(str, change["blocked_by"]))
        blocked = f"; lane {why} is parked and blocks it" if why else ""
        said.append(
            f"{name}: {change['from']} lanes become {change['to']} behind LSN "
            f"{change['barrier']:,}; waits for lane: {waits}{blocked}"
        )
    if each["state"] == "orphan":
        keeps = f" ({each['pinned_bytes']:,} bytes)" if each.get("pinned_bytes") else ""
        said.append(
            f"{name}: the configuration does not name it; its {counted(each['pending'], 'record')} "
            f"stay in the log{keeps}: name it again, or give it up: wald route drop {name}"
        )
    if each["state"] == "dropped":
        said.append(f"{name}: given up; the log lets go of it in a moment")
    return said


def since(time_ns: int) -> str:
    """Return how long ago something was, as people say it."""
    from wald.system import SystemClock

    ago_s = max(0.0, (SystemClock().wall_ns() - time_ns) / CLOCK_NS_PER_S)
    return f"since {duration(ago_s)}"
