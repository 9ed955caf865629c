"""Writes the golden files of disk format 1: `python -m tests.golden.generate_disk_1`.

They were made once and must not change: a release that cannot read them, or would write other
bytes for the same content, has changed the format.
"""

from pathlib import Path
from random import Random

from tests.logtools import SESSION, append, first_group
from wald.core import frame, state
from wald.core.frame import RefusedRecord
from wald.storage.log import Log, LogOptions
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem

DIRECTORY = Path(__file__).parent / "disk-1"
OPTIONS = LogOptions(
    segment_bytes=32 * 1024,
    retain_after_delivery_s=1e9,
    retain_after_delivery_bytes=1 << 30,
    reserve_bytes=0,
)


def log_of(fs: SimFileSystem, data_dir: str) -> Log:
    return Log.open(fs, data_dir, ManualClock(1_700_000_000_000_000_000), Random(1), OPTIONS)


def build_clean(fs: SimFileSystem, data_dir: str) -> None:
    """One segment: control, records of two requests, a refusal, a group of both, idle-close."""
    log = log_of(fs, data_dir)
    log.append_group(first_group())
    log.append_group([append(1, b"one", b"two"), append(2, b"three")])
    refused = append(3, b"kept")
    entry = frame.RequestEntry(2, 1, len(refused.bodies), 0x01020304)
    log.append_group(
        [
            refused._replace(
                requests=frame._REQUEST.pack(*entry),
                refusals=(RefusedRecord(0, 1, "record.too-large"),),
            )
        ]
    )
    log.append_group(
        [state.session_issued(2**64 - 1, ""), append(4, "déjà vu".encode(), answered=2)]
    )
    log.close()


def build_rolled(fs: SimFileSystem, data_dir: str) -> None:
    """Fresh, rolled and prepared segments; a seal, two snapshots, a group in doubt at the end."""
    log = log_of(fs, data_dir)
    log.append_group(first_group())
    for sequence in range(1, 6):
        while log.preallocator.step():
            pass
        log.append_group([append(sequence, b"%d:" % sequence + b"x" * 6000)])
    log.append_group([state.route_death(1)])
    while log.preallocator.step():
        pass
    fs.kill()


def build_ended(fs: SimFileSystem, data_dir: str) -> None:
    """Sessions that end, beside other statements and beside records; one stays."""
    log = log_of(fs, data_dir)
    log.append_group([*first_group(), state.session_issued(8, ""), state.session_issued(9, "ann")])
    log.append_group([append(1, b"one", session=8), append(1, b"two", session=9)])
    log.append_group([state.session_ended(8)])
    log.append_group([state.session_ended(9), append(1, b"three")])
    log.close()


def build_taken(fs: SimFileSystem, data_dir: str) -> None:
    """A session that was taken over by its name, twice, and a record without its duplicate.

    The takeovers stand in statements, and in the snapshot of the second segment.
    """
    log = log_of(fs, data_dir)
    log.append_group(first_group())
    log.append_group([append(1, b"one")])
    log.append_group([state.session_taken(log.state.sessions[SESSION])])
    first = append(2, b"two", b"of the newer")
    entry = frame.RequestEntry(3, 2, len(first.bodies), 0x05060708)
    log.append_group([first._replace(requests=frame._REQUEST.pack(*entry))])
    log.close()
    log = log_of(fs, data_dir)
    log.append_group([state.session_taken(log.state.sessions[SESSION]), append(3, b"three")])
    log.close()


CASES = {
    "clean": build_clean,
    "ended": build_ended,
    "rolled": build_rolled,
    "taken": build_taken,
}


def build(name: str) -> dict[str, bytes]:
    """Return the files of a case by their paths below the data directory."""
    fs = SimFileSystem(Random(1), directories=("/golden",))
    data_dir = f"/golden/{name}"
    CASES[name](fs, data_dir)
    fs.kill()
    files: dict[str, bytes] = {}
    for path in ("identity", "ingest.page", *_log_paths(fs, data_dir)):
        file = fs.open(f"{data_dir}/{path}")
        files[path] = file.pread(file.size(), 0)
    return files


def _log_paths(fs: SimFileSystem, data_dir: str) -> list[str]:
    return [f"log/{name}" for name in fs.list_directory(f"{data_dir}/log") if name != "pool"]


def main() -> None:
    """Write the files of every case that has none; never over others."""
    for name in CASES:
        if (DIRECTORY / name).exists():
            continue
        for path, data in build(name).items():
            target = DIRECTORY / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(data)


if __name__ == "__main__":
    main()
