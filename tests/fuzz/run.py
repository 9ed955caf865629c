"""The long run, guided by coverage: ``python -m tests.fuzz.run [--runs N] [TARGET ...]``.

Each target runs in a process of its own under atheris (pip install atheris), begins with the seeds
and what stands in ``corpus/``, and ends at the first input that is neither taken nor refused by
type, that takes 10 s, or for which memory grows beyond 512 MiB. Exit code 1 if there was one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS, seeds

_CORPUS = Path(__file__).with_name("corpus")
_DONE = re.compile(r"Done (\d+) runs")


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=1_000_000, help="of each target")
    parser.add_argument("--seconds", type=int, default=0, help="of each target; 0: no bound")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    failed, total = False, 0
    for name in chosen.targets or TARGETS:
        with tempfile.TemporaryDirectory(prefix="wald-fuzz-") as directory:
            for number, data in enumerate(seeds(name)):
                Path(directory, f"seed-{number}").write_bytes(data)
            bounds = [f"-runs={chosen.runs}", f"-seed={chosen.seed}", "-timeout=10"]
            bounds += [f"-max_total_time={chosen.seconds}"] if chosen.seconds else []
            bounds += ["-rss_limit_mb=512", "-print_final_stats=0", "-max_len=8192"]
            known = [str(_CORPUS / name)] if (_CORPUS / name).is_dir() else []
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.one", name, *bounds, directory, *known],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        found = _DONE.search(done.stderr)
        runs = int(found[1]) if found else 0
        total += runs
        failed = failed or done.returncode != 0
        if chosen.json:
            said = {"target": name, "runs": runs, "exit_code": done.returncode}
            print(json.dumps(said), flush=True)
        else:
            print(f"{name:18} {runs:>12,} runs, exit code {done.returncode}", flush=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
    print(f"{total:,} runs in all", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
