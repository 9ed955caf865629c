"""A real file system that stops dead under a real daemon: what was acknowledged is there again.

``python -m tests.crash.power --cuts 100`` is the long run.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.crash.power import cut_power, machine

CUTS = 2


def _missing() -> str:
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is missing: apt install e2fsprogs"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    return ""


@pytest.mark.skipif(bool(_missing()), reason=_missing())
def test_no_power_cut_of_a_real_file_system_loses_an_acknowledged_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    try:
        with machine() as made:
            found = cut_power(made, CUTS, seed)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine does not mount images: {error}")
    with capsys.disabled():
        print(f"\n{found.cuts} power cuts, {found.acked:,} acknowledged, WALD_TEST_SEED={seed}")
    assert found.wrong == [], f"WALD_TEST_SEED={seed}"
    assert found.acked
