"""SQLite passes the contract, in each of its modes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sqlite_bench import SqliteColumns, SqliteDocuments
from wald.testing import SinkContract, Workbench


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
