"""All comparisons, one after the other: ``python -m benchmarks [ALTERNATIONS]``."""

import sys

from benchmarks.compare import client, drain, ingest, lanes, pack, policy, size

if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    parts = (ingest, client, drain, lanes, size, pack, policy)
    sys.exit(max([part.main(times) for part in parts]))
