"""Redis and Valkey pass the contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.redis_bench import RedisStream
from tests.servers.redis import KINDS
from wald.testing import SinkContract


class TestRedis(SinkContract):
    @pytest.fixture(params=KINDS)
    def bench(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RedisStream]:
        made = RedisStream(tmp_path / "server", request.param)
        yield made
        made.close()
