"""What status says of the disk."""

import pytest

from wald import limits
from wald.cli import disk

SAID = {
    "log_bytes": 3 * limits.MIB,
    "packed_bytes": 2_000,
    "archive_bytes": 0,
    "packed_files": 2,
    "pinned": {"small": 10, "large": 512 * limits.MIB},
    "trouble": "",
}
LARGE = "large: its pending records keep 512.0 MiB on the disk"


@pytest.mark.parametrize(
    ("said", "verbose", "lines"),
    [
        pytest.param({}, True, [], id="nothing was said yet"),
        pytest.param(SAID, False, [LARGE], id="who keeps much is always named"),
        pytest.param(
            SAID,
            True,
            [
                "disk: log 3.0 MiB, packed 2.0 KiB, archive 0 bytes in 2 files",
                LARGE,
                "small: its pending records keep 10 bytes on the disk",
            ],
            id="all sizes if asked",
        ),
        pytest.param(
            SAID | {"pinned": {}, "trouble": "only 5 bytes are free", "packed_files": 0},
            False,
            ["packing: only 5 bytes are free; it is tried again, and the log keeps all meanwhile"],
            id="trouble is always said",
        ),
    ],
)
def test_what_is_said_of_the_disk(said, verbose, lines):
    assert list(disk.lines(said, verbose=verbose)) == lines


def test_a_route_that_is_through_keeps_nothing():
    routes = {"small": {"pending": 0}, "large": {"pending": 1}}
    assert list(disk.lines(SAID, verbose=True, routes=routes))[1:] == [LARGE]
