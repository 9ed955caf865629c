"""What is worth a line of a route beside its figures: a fault, a pause, a change of lanes."""

from collections.abc import Mapping
from typing import Any

from wald.cli.output import counted, duration
from wald.core.delivery import TOO_MANY, Parked
from wald.limits import CLOCK_NS_PER_S, FALLBACK_BACK_S

_TO_DO = {  # the errors of the others say it
    Parked.TARGET_BEHIND.value: "put a newer copy of the target in place, or give up what the log"
    " no longer holds: wald route takeover {name}",
    Parked.WENT_BACK.value: "what the target forgot is sent again by: wald route resume {name}",
    Parked.DIVERGED.value: "if nobody else writes this route any more: wald route takeover {name}",
    Parked.UNCERTAIN.value: "see 'wald batch list', look whether the target holds the records, and"
    " say it: wald batch resolve",
}
_OWN_TARGET = {
    "down": "is down",
    "parked": "waits for a person, see 'wald route list'",
    "well": f"is well again, and takes over once it has been for {FALLBACK_BACK_S:g} s",
}
_TOO_MANY_TO_DO = (
    "more than half of the last records would be refused, so none is set aside: mend the target or"
    " the settings; or if they are all bad: wald dlq set-aside {name}"
)


def notes(name: str, each: Mapping[str, Any], paused_all_ns: int | None = None) -> list[str]:
    """Return what is worth a line: a fault, a pause, a change of lanes, an orphan.

    Args:
        name: the route.
        each: its figures.
        paused_all_ns: since when all routes are paused: by its name none of them goes on.
    """
    said = [
        f"{name}: {_loud(fault)}; to end it: wald route fault {name} --clear"
        for fault in each["faults"]
    ]
    if each["guarded_batch"]:
        said.append(
            f"{name}: batch {each['guarded_batch']:,} ended the drainer twice, and is tried in a "
            "process of its own"
        )
    if each["fallback"]:
        sink, after_lsn = each["fallback"]["sink"], each["fallback"]["after_lsn"]
        how = _OWN_TARGET[each["fallback"].get("own", "down")]
        said.append(
            f"{name}: FALLBACK: {each['sink']} {how}; {sink} takes what is behind LSN {after_lsn:,}"
        )
    if each["paused_ns"] and each["paused_ns"] != paused_all_ns:
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
    to_do = what_to_do(name, each)
    return [*said, f"{name}: {to_do}"] if to_do else said


def what_to_do(name: str, each: Mapping[str, Any]) -> str:
    """Return what a person does about a route that waits for one; empty if that is said already."""
    if each["last_error"].startswith(TOO_MANY):
        return _TOO_MANY_TO_DO.format(name=name)
    return _TO_DO.get(each["parked"], "").format(name=name)


def _loud(fault: str) -> str:
    """Return a fault so that nobody takes it for a real one."""
    return fault.replace("game day", "GAME DAY", 1)


def paused_everywhere(paused_all_ns: int | None) -> list[str]:
    """Return the line of the switch that holds all routes back, if it does."""
    if not paused_all_ns:
        return []
    return [f"all routes are paused {since(paused_all_ns)}: wald route resume --all"]


def since(time_ns: int) -> str:
    """Return how long something has lasted, as people say it."""
    return f"for {duration(ago_s(time_ns))}"


def ago_s(time_ns: int) -> float:
    """Return how long ago a time of the wall clock is; never less than nothing."""
    from wald.system import SystemClock

    return max(0.0, (SystemClock().wall_ns() - time_ns) / CLOCK_NS_PER_S)
