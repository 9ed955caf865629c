"""DynamoDB passes the contract, in each of its modes."""

from collections.abc import Iterator

import pytest

from tests.contract.dynamodb_bench import DynamoTable
from tests.servers.dynamodb import DynamoServer
from wald.testing import SinkContract
from wald.testing.sink_contract import Host


class Keyed(SinkContract):
    @pytest.mark.parametrize("place", [421])  # a request a record is slow; all places: transaction
    def test_one_bad_record_among_a_thousand_is_found_and_the_others_land(
        self, host: Host, place: int
    ) -> None:
        super().test_one_bad_record_among_a_thousand_is_found_and_the_others_land(host, place)


class TestPut(Keyed):
    @pytest.fixture
    def bench(self, dynamodb: DynamoServer) -> Iterator[DynamoTable]:
        made = DynamoTable(dynamodb, "put")
        yield made
        made.close()


class TestPutIfNewer(Keyed):
    @pytest.fixture
    def bench(self, dynamodb: DynamoServer) -> Iterator[DynamoTable]:
        made = DynamoTable(dynamodb, "put-if-newer")
        yield made
        made.close()


class TestTransaction(SinkContract):
    @pytest.fixture
    def bench(self, dynamodb: DynamoServer) -> Iterator[DynamoTable]:
        made = DynamoTable(dynamodb, "transaction")
        yield made
        made.close()
