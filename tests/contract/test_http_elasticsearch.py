"""Elasticsearch's ``_bulk`` passes the contract, at a server that is not ours.

noida-db plays Elasticsearch 8.15 with most of its REST tests passed; what only the real one can
show (a full disk, a closed index) is played by our own server in ``test_http``.
"""

import json
import signal
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.servers.local_server import LocalServer
from tests.servers.need import need_module
from wald.model import Severity, SystemicKind
from wald.sinks.http import make
from wald.sinks.values import VALUE_REFUSED
from wald.testing import SinkContract, Workbench
from wald.testing.proxy import Address
from wald.testing.sink_contract import Held, Trouble
from wald.testing.sink_contract.odd import DOCUMENT_INPUT, NO_MAP

HITS_MAX = 10_000
REFUSED = (  # by the server, in words of its own
    "a field too many",
    "a text for a number",
    "a map for a number",
    "a number of 64 bits without a sign",
    "a number of 400 digits",
)
_names = count()


class Noida(LocalServer):
    """A server on a loopback port, with a directory of its own."""

    @property
    def command(self) -> list[str]:
        module = need_module("noida_db", "pip install noida-db==0.2.3 (12 MB)")
        assert module.__file__ is not None
        only = ["--only", "elasticsearch", "--elasticsearch-port", str(self.port)]
        binary = Path(module.__file__).parent / "noida-db"
        return [str(binary), "start", "--data-dir", str(self.place), *only]

    def ask(self, method: str, path: str, said: object = None) -> Any:
        body = None if said is None else json.dumps(said).encode()
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


class Index(Workbench):
    """An index of its own, with numbers and texts."""

    factory = "wald.sinks.http:make"
    poison: object = {"host": "poison", "n": "no number"}

    def __init__(self, server: Noida) -> None:
        self.server = server
        self.name = f"index-{next(_names)}"
        fields = {"n": {"type": "long"}, "host": {"type": "keyword"}}
        server.ask("PUT", f"/{self.name}", {"mappings": {"properties": fields}})
        self.settings = self._settings(server.port)

    def _settings(self, port: int) -> Mapping[str, object]:
        url = f"http://127.0.0.1:{port}"
        return {"url": url, "preset": "elasticsearch", "index": self.name}

    @property
    def absent(self) -> Mapping[str, str]:
        played = "played by our own server, in test_http"
        kinds = ("busy", "full", "authentication", "configuration", "damaged")
        return {
            "order": "a search returns documents by score",
            "secret": "it lets everybody in",
            "server": "noida-db keeps what it took in memory until it is stopped",
            "backup": "nothing asks such a server how far it is",
            **{f"trouble.{kind}": played for kind in kinds},
        }

    @property
    def bad_input(self) -> Mapping[str, str]:
        ours = dict.fromkeys({*NO_MAP, "half of a surrogate pair in JSON"}, VALUE_REFUSED)
        return {**DOCUMENT_INPUT, **ours, **dict.fromkeys(REFUSED, "400")}

    def held(self) -> Sequence[Held]:
        self.server.ask("POST", f"/{self.name}/_refresh")
        found = self.server.ask("GET", f"/{self.name}/_search?size={HITS_MAX}")["hits"]["hits"]
        return [_held(hit["_id"], hit["_source"]) for hit in found]

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {SystemicKind.UNREACHABLE: self._away}

    @contextmanager
    def _away(self) -> Iterator[None]:
        self.server.end(signal.SIGTERM)
        yield
        self.server.start()

    def address(self) -> Address:
        return "127.0.0.1", self.server.port

    def settings_through(self, address: Address) -> Mapping[str, object]:
        return self._settings(int(address[1]))


def _held(name: str, value: Mapping[str, Any]) -> Held:
    log_id, _, lsn = name.partition("-")
    return Held(bytes.fromhex(log_id), int(lsn), None, value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noida]:
    found = Noida(tmp_path_factory.mktemp("noida")).start()
    yield found
    found.end(signal.SIGTERM)


class TestElasticsearch(SinkContract):
    @pytest.fixture
    def bench(self, server: Noida) -> Workbench:
        return Index(server)


@pytest.mark.parametrize("name", ["there", "nowhere"])
def test_check_says_whether_the_index_is_there(server, name):
    index = Index(server)
    place = index.name if name == "there" else name
    with closing(make("r", "events", {**index.settings, "index": place})) as sink:
        (found,) = sink.check()
    assert found.code == "elasticsearch.index"
    assert found.severity is (Severity.OK if name == "there" else Severity.WARNING)
