"""What single steps of a record's life cost, with pytest-benchmark.

    .venv/bin/python -m pytest benchmarks

Figures for comparing two versions of the code on one machine; no test depends on them.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from wald.core import body, frame
from wald.core.commit import RunBuilder
from wald.core.events import Append
from wald.core.frame import Section
from wald.core.state import LogState, session_issued, stream_opened
from wald.storage.log import Log
from wald.system import PosixFileSystem, SystemClock

REQUESTS = 64
STREAM, SESSION = 1, 5
VALUE = b"v" * 128


def requests(records: int) -> bytes:
    packed = body.encode(body.Body(0, [VALUE] * records))
    return b"".join(Append(STREAM, n + 1, 1, packed).encode() for n in range(REQUESTS))


def section(records: int = 1) -> Section:
    run = RunBuilder(STREAM, 1)
    run.take(requests(records), 0)
    return run.section(SESSION)


@pytest.mark.parametrize("records", [1, 100])
def bench_a_read_of_64_requests_becomes_a_section(
    benchmark: BenchmarkFixture, records: int
) -> None:
    data = requests(records)

    def take() -> Section:
        run = RunBuilder(STREAM, 1)
        run.take(data, 0)
        return run.section(SESSION)

    assert benchmark(take).records == REQUESTS * records


def bench_a_durable_section_is_applied_to_the_state(benchmark: BenchmarkFixture) -> None:
    state = LogState()
    state.apply(stream_opened(STREAM, "bench"), 1, 1)
    state.apply(session_issued(SESSION, ""), 1, 1)
    durable = section()
    benchmark(state.apply, durable, 1, 1)
    assert state.streams[STREAM].records >= REQUESTS


def bench_a_payload_of_64_sections_is_decoded(benchmark: BenchmarkFixture) -> None:
    payload = frame.join_sections([section()] * REQUESTS)
    assert len(benchmark(lambda: list(frame.decode_sections(payload, REQUESTS)))) == REQUESTS


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log.open(PosixFileSystem(), str(tmp_path / "data"), SystemClock(), random.Random(1))
    log.append_group([stream_opened(STREAM, "bench"), session_issued(SESSION, "")])
    yield log
    log.close()


def bench_a_group_of_64_requests_is_made_durable(benchmark: BenchmarkFixture, log: Log) -> None:
    group = [section()]
    benchmark.pedantic(log.append_group, (group,), rounds=300, warmup_rounds=20)
    assert log.frontier.lsn >= REQUESTS
