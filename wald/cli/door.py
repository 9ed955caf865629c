"""What ``wald status`` says of the door: quotas, who is refused and why, connections."""

from collections.abc import Iterator, Mapping
from typing import Any

from wald.cli.notes import ago_s
from wald.cli.output import counted, duration, printable, took

_NEWS_S = 60.0


def lines(answer: Mapping[str, Any], *, verbose: bool) -> Iterator[str]:
    """Yield what keeps new records out: a full disk, quotas; with ``verbose`` all, and refusals.

    Args:
        answer: of ``status``.
        verbose: whether more is said than what concerns somebody now.
    """
    if answer["no_room"]:
        yield printable(_no_room(answer["no_room"]))
    for stream, quota in sorted(answer["quotas"].items()):
        if verbose or quota["pause_s"]:
            yield printable(_quota(stream, quota))
    if not verbose:
        return
    refused = ", ".join(f"{code} {count:,}" for code, count in sorted(answer["refused"].items()))
    yield f"door: {counted(answer['connections'], 'connection')}; refused: {refused or 'nothing'}"


def _no_room(said: Mapping[str, Any]) -> str:
    last_s = ago_s(said["last_ns"])
    if last_s > _NEWS_S:  # nobody has tried since: there may be room again
        return f"new records were refused, the last {duration(last_s)} ago: {said['message']}"
    return (
        f"ALARM: the disk is full, new records are refused: {said['message']}; free space there:"
        " they are accepted again without a restart; what is stored is delivered meanwhile"
    )


def _quota(stream: str, quota: Mapping[str, Any]) -> str:
    at = f" at {quota['slowest']}" if quota["slowest"] else ""
    said = f"{stream}: quota {quota['used']:.0%} used ({quota['says']} pending{at})"
    if quota["full"]:
        return f"{said}; FULL: producers are refused until that route delivers"
    if quota["pause_s"]:
        return f"{said}; producers are asked to pause {took(quota['pause_s'])}"
    return said
