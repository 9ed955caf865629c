"""What ``wald status`` says of the door: quotas, who is refused and why, connections."""

from collections.abc import Iterator, Mapping
from typing import Any

from wald.cli.output import counted, printable, took


def lines(answer: Mapping[str, Any], *, verbose: bool) -> Iterator[str]:
    """Yield the quotas that slow producers down; with ``verbose`` all, and all refusals.

    Args:
        answer: of ``status``.
        verbose: whether more is said than what concerns somebody now.
    """
    for stream, quota in sorted(answer["quotas"].items()):
        if verbose or quota["pause_s"]:
            yield printable(_quota(stream, quota))
    if not verbose:
        return
    refused = ", ".join(f"{code} {count:,}" for code, count in sorted(answer["refused"].items()))
    yield f"door: {counted(answer['connections'], 'connection')}; refused: {refused or 'nothing'}"


def _quota(stream: str, quota: Mapping[str, Any]) -> str:
    at = f" at {quota['slowest']}" if quota["slowest"] else ""
    said = f"{stream}: quota {quota['used']:.0%} used ({quota['says']} pending{at})"
    if quota["full"]:
        return f"{said}; FULL: producers are refused until that route delivers"
    if quota["pause_s"]:
        return f"{said}; producers are asked to pause {took(quota['pause_s'])}"
    return said
