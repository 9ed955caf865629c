"""What came of an application's records, as an assertion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wald.testing.on_demand import OnDemand

if TYPE_CHECKING:
    from wald.testing.local_daemon import LocalDaemon

_SHOWN = 5


def assert_delivered(
    where: "LocalDaemon | OnDemand",
    stream: str,
    values: Sequence[object],
    *,
    timeout: float = 30.0,
) -> None:
    """Assert that exactly these values were delivered to the stream, in this order.

    Args:
        where: a daemon, whose delivery is waited for; or a fake, which delivers what it stores.
        stream: its name.
        values: as they were appended.
        timeout: seconds to wait for delivery.

    Raises:
        AssertionError: they are others; with what is missing, and what is there besides.
        WaitTimeout: not all was delivered in time.
    """
    __tracebackhide__ = True
    if isinstance(where, OnDemand):
        expected, found = list(values), where.values(stream)
    else:
        from wald.testing.local_daemon import as_delivered  # noqa: PLC0415 - the daemon's machine

        expected, found = as_delivered(values), where.delivered(stream, timeout)
    if found == expected:
        return
    missing = [each for each in expected if expected.count(each) > found.count(each)]
    besides = [each for each in found if found.count(each) > expected.count(each)]
    said = [f"stream {stream!r}: {len(found)} values were delivered, {len(expected)} expected"]
    said += [f"missing: {missing[:_SHOWN]!r}"] if missing else []
    said += [f"not expected, or too often: {besides[:_SHOWN]!r}"] if besides else []
    if not missing and not besides:
        at = next(at for at, each in enumerate(found) if each != expected[at])
        said.append(f"in another order, from index {at}: {found[at : at + _SHOWN]!r}")
    raise AssertionError("; ".join(said))
