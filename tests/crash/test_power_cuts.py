"""A real file system that stops dead under a real daemon: what was acknowledged is there again.

``python -m tests.crash.power --cuts 100 --kind KIND`` is the long run.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.crash.power import cut_power, machine

CUTS = 2
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}


def _missing(kind: str = "ext4") -> str:
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    for each in {"ext4", kind}:  # an ext4 lies under the kinds that do not stop by themselves
        if shutil.which(f"mkfs.{each}") is None:
            return f"mkfs.{each} is missing: apt install {PACKAGES[each]}"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    return ""


@pytest.mark.parametrize("kind", PACKAGES)
def test_no_power_cut_of_a_real_file_system_loses_an_acknowledged_record(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := _missing(kind):
        pytest.skip(missing)
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    try:
        with machine(kind) as made:
            found = cut_power(made, CUTS, seed)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine does not mount images: {error}")
    with capsys.disabled():
        print(f"\n{found.cuts} power cuts of {kind}, {found.acked:,} acknowledged, seed {seed}")
    assert found.wrong == [], f"WALD_TEST_SEED={seed}"
    assert found.acked
