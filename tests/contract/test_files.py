"""Files pass the contract, in every format; the null sink passes what can be asked of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.contract import files_bench
from wald.model import SystemicKind
from wald.testing import SinkContract, Workbench
from wald.testing.sink_contract import DOCUMENT_INPUT, LANDS, Held, Host


class TestDocuments(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = files_bench.FilesBench(tmp_path)
        yield bench
        bench.close()


class TestValues(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = files_bench.Values(tmp_path)
        yield bench
        bench.close()

    def test_a_batch_of_too_many_partitions_is_halved(self, host: Host) -> None:
        host.bench.settings = {**host.bench.settings, "partitions": ["key"]}
        host.append(700, keys=700)
        host.through()
        assert not host.dead
        self.check_held(host)
        assert max(len(attempt.records) for attempt in host.attempts) > 256


class TestCsv(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = files_bench.CsvColumns(tmp_path)
        yield bench
        bench.close()


class TestParquet(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = files_bench.Parquet(tmp_path)
        yield bench
        bench.close()


class Null(Workbench):
    factory = "wald.sinks.null:make"

    def __init__(self) -> None:
        self.settings = {}

    @property
    def absent(self) -> Mapping[str, str]:
        why = "it takes everything and keeps nothing"
        kept = ("holds", "order", "poison", "secret", "server", "backup", "connection", "hang")
        troubles = [f"trouble.{kind.value}" for kind in SystemicKind]
        return dict.fromkeys((*kept, *troubles), why)

    @property
    def bad_input(self) -> Mapping[str, str]:
        return dict.fromkeys(DOCUMENT_INPUT, LANDS)

    def held(self) -> list[Held]:
        return []


class TestNull(SinkContract):
    @pytest.fixture
    def bench(self) -> Workbench:
        return Null()
