"""What ``wald status`` says of the disk: how much the log takes, and who keeps it."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from wald import limits
from wald.cli.output import size

_ANY: Mapping[str, Any] = MappingProxyType({"pending": None})


def lines(
    disk: Mapping[str, Any], *, verbose: bool, routes: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[str]:
    """Yield what routes keep much, what packing is in trouble with, and all sizes if asked.

    Args:
        disk: what the drainer says of it; empty before its first statement.
        verbose: whether the sizes are said too.
        routes: their figures; one that is through keeps nothing for itself.
    """
    if not disk:
        return
    if verbose:
        files = f" in {disk['packed_files']:,} files" if disk["packed_files"] else ""
        yield (
            f"disk: log {size(disk['log_bytes'])}, packed {size(disk['packed_bytes'])}, "
            f"archive {size(disk['archive_bytes'])}{files}"
        )
    for name, size_bytes in sorted(disk["pinned"].items(), key=lambda item: -item[1]):
        if routes.get(name, _ANY)["pending"] == 0:
            continue  # the file that is written to has records of others
        if verbose or size_bytes > limits.RETAIN_AFTER_DELIVERY_BYTES:
            yield f"{name}: its pending records keep {size(size_bytes)} on the disk"
    if disk["trouble"]:
        yield f"packing: {disk['trouble']}; it is tried again, and the log keeps all meanwhile"
