"""ClickHouse's own engine passes the contract, behind its HTTP interface."""

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.servers.local_server import LocalServer
from tests.servers.need import cached
from wald.model import Severity, SystemicKind
from wald.sinks.http import make
from wald.sinks.values import VALUE_REFUSED
from wald.testing import SinkContract, Workbench
from wald.testing.proxy import Address
from wald.testing.sink_contract import Held, Trouble
from wald.testing.sink_contract.odd import DOCUMENT_INPUT, NO_MAP

PROGRAM = Path(__file__).parents[1] / "servers" / "clickhouse_server.py"
HOW = "run tests/servers/get-clickhouse (181 MB)"
REFUSED = {  # by the server, with its own number
    "a text for a number": "27",
    "a map for a number": "27",
    "a fraction for a whole number": "27",
    "a key twice in JSON": "117",
}
_names = count()


class ClickHouse(LocalServer):
    """The server, on a loopback port."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(PROGRAM), str(self.port), str(self.place)]

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(cached("chdb-core-*", "ClickHouse's engine", HOW))}

    def answers(self) -> bool:
        return bool(self.ask("SELECT 1"))

    def ask(self, question: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/?{urlencode({'query': question})}"
        with urlopen(url, timeout=60) as answer:
            text = answer.read()
        return json.loads(text)["data"] if question.endswith("JSONCompact") else text


class Table(Workbench):
    """A table of its own, which remembers the tokens of its last 1,000 blocks."""

    factory = "wald.sinks.http:make"
    poison: object = {"host": "poison", "n": "no number"}

    def __init__(self, server: ClickHouse) -> None:
        self.server = server
        self.name = f"table {next(_names)} `"
        self._make()
        self.settings = self._settings(server.port)

    @property
    def quoted(self) -> str:
        return "`" + self.name.replace("`", "\\`") + "`"

    def _make(self, window: int = 1_000) -> None:
        columns = "host String, n Int64, text String, at DateTime64(9) DEFAULT now64(9)"
        settings = f"non_replicated_deduplication_window = {window}"
        statement = f"CREATE TABLE {self.quoted} ({columns}) ENGINE = MergeTree ORDER BY (host, n)"
        self.server.ask(f"{statement} SETTINGS {settings}")

    def _settings(self, port: int) -> Mapping[str, object]:
        return {
            "preset": "clickhouse",
            "url": f"http://127.0.0.1:{port}",
            "table": self.name,
            "compression": "gzip",
            "idempotency": {"window_batches": 1_000},
        }

    @property
    def absent(self) -> Mapping[str, str]:
        played = "played by our own server, in test_http"
        kinds = ("busy", "full", "authentication", "damaged")
        return {
            "order": "a table is sorted by its key",
            "secret": "it lets everybody in",
            "backup": "nothing asks such a server how far it is",
            **{f"trouble.{kind}": played for kind in kinds},
        }

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {**super().troubles, SystemicKind.CONFIGURATION: self._renamed}

    @contextmanager
    def _renamed(self) -> Iterator[None]:
        self.server.ask(f"RENAME TABLE {self.quoted} TO away")
        yield
        self.server.ask(f"RENAME TABLE away TO {self.quoted}")

    @property
    def bad_input(self) -> Mapping[str, str]:
        ours = dict.fromkeys({*NO_MAP, "half of a surrogate pair in JSON"}, VALUE_REFUSED)
        return {**DOCUMENT_INPUT, **ours, **REFUSED}

    def held(self) -> Sequence[Held]:
        question = f"SELECT host, toInt32(n), text FROM {self.quoted} FORMAT JSONCompact"
        return [_held(*row) for row in self.server.ask(question)]

    def kill(self) -> None:
        self.server.end(signal.SIGKILL)

    def start(self) -> None:
        self.server.start()

    def address(self) -> Address:
        return "127.0.0.1", self.server.port

    def settings_through(self, address: Address) -> Mapping[str, object]:
        return self._settings(int(address[1]))


def _held(host: str, n: int, text: str) -> Held:
    value: dict[str, object] = {"host": host, "n": n}
    return Held(None, None, None, value | ({"text": text} if text else {}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    found = ClickHouse(tmp_path_factory.mktemp("clickhouse")).start()
    yield found
    found.end(signal.SIGTERM)


class TestClickHouse(SinkContract):
    @pytest.fixture
    def bench(self, server: ClickHouse) -> Workbench:
        return Table(server)


@pytest.mark.parametrize(
    ("stated", "severity"),
    [(1_000, Severity.OK), (1_001, Severity.ERROR), (None, Severity.WARNING)],
)
def test_check_compares_the_window_with_the_tables_own(server, stated, severity):
    table = Table(server)
    idempotency = {} if stated is None else {"window_batches": stated}
    with closing(make("r", "events", {**table.settings, "idempotency": idempotency})) as sink:
        there, window = sink.check()
    assert there.severity is Severity.OK
    assert window.severity is severity, window


def test_check_says_that_a_table_is_not_there(server):
    settings = {**Table(server).settings, "table": "nowhere"}
    with closing(make("r", "events", settings)) as sink:
        (found,) = sink.check()
    assert (found.severity, found.code) == (Severity.ERROR, "clickhouse.table")
