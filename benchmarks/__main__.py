"""All comparisons, one after the other: ``python -m benchmarks [ALTERNATIONS]``."""

import sys

from benchmarks.compare import (
    client,
    cost,
    door,
    drain,
    files,
    flush,
    http,
    idle,
    ingest,
    lanes,
    ledger,
    pack,
    policy,
    postgres,
    scale,
    size,
)

if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    parts = (
        ingest,
        door,
        client,
        flush,
        drain,
        files,
        cost,
        lanes,
        size,
        pack,
        policy,
        postgres,
        http,
    )
    codes = [part.main(times) for part in parts]
    sys.exit(
        max(*codes, scale.main(scale.RECORDS), ledger.main(ledger.BATCHES), idle.main(idle.SECONDS))
    )
