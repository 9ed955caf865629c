"""PostgreSQL passes the contract, in each of its modes."""

import pytest

from wald.testing import SinkContract, Workbench


class TestDocuments(SinkContract):
    @pytest.fixture
    def bench(self, postgres, database: str) -> Workbench:
        from tests.contract.postgres_bench import PostgresDocuments

        return PostgresDocuments(postgres, database)


class TestColumns(SinkContract):
    @pytest.fixture
    def bench(self, postgres, database: str) -> Workbench:
        from tests.contract.postgres_bench import PostgresColumns

        return PostgresColumns(postgres, database)


class TestUpsert(SinkContract):
    @pytest.fixture
    def bench(self, postgres, database: str) -> Workbench:
        from tests.contract.postgres_bench import PostgresUpsert

        return PostgresUpsert(postgres, database)
