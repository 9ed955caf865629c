"""SQLite passes the contract, in each of its modes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sqlite_bench import SqliteColumns, SqliteDocuments, SqliteUpsert
from wald.testing import SinkContract, Workbench
from wald.testing.sink_contract import Host


class TestDocuments(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = SqliteDocuments(tmp_path)
        yield bench
        bench.close()


class TestColumns(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = SqliteColumns(tmp_path)
        yield bench
        bench.close()


class TestUpsert(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        bench = SqliteUpsert(tmp_path)
        yield bench
        bench.close()

    def test_only_the_newest_state_of_a_key_stays(self, bench: Workbench, tmp_path: Path) -> None:
        """Batches that were coalesced, answers that were lost, an older attempt that comes late."""
        host = Host(tmp_path / "coalescing", bench, route={"coalesce": "last"})
        values = [{"host": "a", "n": n % 4, "text": str(n)} for n in range(40)]
        for start in range(0, 40, 10):
            part = values[start : start + 10]
            host.append_values(part, [str(value["n"]) for value in part])
            host.lost_answers, host.late_attempts = start % 20 == 0, start % 20 != 0
            host.through()
        host.land()
        held = {each.value["n"]: each.value["text"] for each in bench.held()}
        assert held == {0: "36", 1: "37", 2: "38", 3: "39"}
        host.close()
