"""A producer process of the kill test: appends its share of the records, notes every receipt.

usage: producer.py SOCKET RECORDS_FILE PRODUCER PRODUCERS REQUEST_RECORDS STATE_FILE RECEIPTS_FILE

RECORDS_FILE holds one msgpack map a record. STATE_FILE (24 bytes, mapped) says at each instant how
many requests were sent and how many answered, so that the killer knows what a kill interrupts; and
how many may be sent, so that records are left for all kills however long a process is away.
RECEIPTS_FILE gets one line "index lsn" for every acknowledged record.
"""

import mmap
import struct
import sys
import time
from pathlib import Path

import msgpack

import wald
from wald.model import Receipt


def main() -> int:
    socket, records_file, producer, producers, per_request, state_file, receipts_file = sys.argv[1:]
    number, count, size = int(producer), int(producers), int(per_request)
    with Path(records_file).open("rb") as packed:
        records = list(msgpack.Unpacker(packed))[number::count]
    with (
        Path(state_file).open("r+b") as state_backing,
        Path(receipts_file).open("w") as receipts,
        wald.connect(
            socket, name=f"producer-{number}", timeout=120.0, wait_for_daemon=True
        ) as daemon,
    ):
        state = mmap.mmap(state_backing.fileno(), 24)
        for request, start in enumerate(range(0, len(records), size)):
            values = [
                {**record, "producer": number, "index": start + offset}
                for offset, record in enumerate(records[start : start + size])
            ]
            while struct.unpack_from("<Q", state, 16)[0] <= request:
                time.sleep(0.001)
            struct.pack_into("<Q", state, 0, request + 1)
            results = daemon.append_many("flights", values, key=f"producer-{number}")
            struct.pack_into("<Q", state, 8, request + 1)
            for offset, receipt in enumerate(results):
                assert isinstance(receipt, Receipt), receipt
                receipts.write(f"{start + offset} {receipt.lsn}\n")
        state.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
