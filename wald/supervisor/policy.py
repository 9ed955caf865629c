"""What ``status`` says of a route's delivery policy: from what drain tells, as of now."""

from collections.abc import Mapping
from typing import Any

from wald import limits
from wald.core import pacing

_NS = limits.CLOCK_NS_PER_S


def policy_said(
    said: Mapping[str, Any], pending: int, oldest_s: float | None, now_ns: int
) -> dict[str, Any]:
    """Return the parts of a route's status that tell how it is delivered.

    Args:
        said: what ``drain.page`` holds of it; empty before the first attempt.
        pending: how many records wait.
        oldest_s: how long the oldest of them waits; None if none does.
        now_ns: the wall clock.
    """
    rate_per_s = _rate_per_s(said, now_ns)
    goal_age_s = said.get("goal_age_s")
    return {
        "rate_per_s": round(rate_per_s, 1),
        "eta_s": pacing.eta_s(pending, rate_per_s),
        "goal_age_s": goal_age_s,
        "is_late": goal_age_s is not None and oldest_s is not None and oldest_s > goal_age_s,
        "breaker": _breaker(said.get("breaker"), now_ns),
        "batch_size": said.get("batch_size"),
        "batch_reason": said.get("batch_reason", ""),
        "attempt_timeout_s": said.get("timeout_s"),
        "held": said.get("held"),
        "notes": said.get("notes") or {},
    }


def _rate_per_s(said: Mapping[str, Any], now_ns: int) -> float:
    """Return the rate as it has faded since it was told; what faded to next to nothing is 0."""
    per_s = float(said.get("rate_per_s", 0.0))
    now_per_s = pacing.faded(per_s, (now_ns - int(said.get("rate_ns", now_ns))) / _NS)
    return now_per_s if now_per_s >= limits.RATE_LEAST_PER_S else 0.0


def _breaker(said: Mapping[str, Any] | None, now_ns: int) -> dict[str, Any]:
    if said is None:
        return {"state": "closed"}
    return {
        "state": said["state"],
        "scope": said["scope"],
        "kind": said["kind"],
        "message": said["message"],
        "hint": said["hint"],
        "open_for_s": max(0.0, (now_ns - said["since_ns"]) / _NS),
        "probe_in_s": max(0.0, (said["due_ns"] - now_ns) / _NS),
    }
