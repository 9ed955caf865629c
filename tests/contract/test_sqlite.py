"""SQLite passes the contract, in each of its modes."""

from pathlib import Path

import pytest

from tests.contract.sqlite_bench import SqliteColumns, SqliteDocuments
from wald.testing import SinkContract, Workbench


class TestDocuments(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Workbench:
        return SqliteDocuments(tmp_path)


class TestColumns(SinkContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Workbench:
        return SqliteColumns(tmp_path)
