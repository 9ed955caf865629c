"""HTTP passes the contract, in each of its classes, against a server that is killed."""

from collections.abc import Iterator

import pytest

from tests.contract import http_bench
from tests.servers.web_server import WebServer
from wald.testing import SinkContract, Workbench
from wald.testing.sink_contract.bad_input import InputLines
from wald.testing.sink_contract.trouble import TroubleLines


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    found = WebServer(tmp_path_factory.mktemp("web")).start()
    yield found
    found.stop()


class TestWindow(SinkContract):
    @pytest.fixture
    def bench(self, server: WebServer) -> Workbench:
        return http_bench.window(server)


class TestKeyed(SinkContract):
    @pytest.fixture
    def bench(self, server: WebServer) -> Workbench:
        return http_bench.keyed(server)


class TestPlain(SinkContract):
    @pytest.fixture
    def bench(self, server: WebServer) -> Workbench:
        return http_bench.plain(server)


class TestPerRecord(TroubleLines, InputLines):
    """What differs from the one before: which record is refused, and how it is told."""

    @pytest.fixture
    def bench(self, server: WebServer) -> Workbench:
        return http_bench.per_record(server)
