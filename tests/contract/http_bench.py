"""A server behind HTTP as the contract's target: killed, cut off, and told what to answer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.servers.web_server import WebServer
from wald.model import Secret, SystemicKind
from wald.sinks.values import VALUE_REFUSED
from wald.testing.proxy import Address
from wald.testing.sink_contract import Held, Trouble, Workbench
from wald.testing.sink_contract.odd import DOCUMENT_INPUT, NO_MAP

TOKEN = "canary-7f3a"
HALF = "half of a surrogate pair in JSON"  # it is passed through, and would be refused as a whole


class HttpBench(Workbench):
    """A place at a running server, which is told to forget what was there.

    Args:
        server: the server, which serves other tests too.
        path: where at it: see ``web_server``.
        options: settings of the sink.
    """

    factory = "wald.sinks.http:make"
    poison: object = {"host": "poison", "n": -1}
    secret = TOKEN

    def __init__(self, server: WebServer, path: str, **options: object) -> None:
        self.server = server
        self.poison_is_named = path != "/in"
        self._path, self._options = path, options
        server.clear()
        server.rule(token=TOKEN, poison='"host":"poison"')
        self.settings = self._settings(server.port)

    def _settings(self, port: int) -> Mapping[str, object]:
        url = f"http://127.0.0.1:{port}{self._path}"
        return {"url": url, "token": Secret(TOKEN), **self._options}

    @property
    def absent(self) -> Mapping[str, str]:
        return {
            "trouble.damaged": "no status says so",
            "backup": "nothing asks such a server how far it is",
        }

    @property
    def bad_input(self) -> Mapping[str, str]:
        maps = dict.fromkeys(NO_MAP if "index" in self._options else (), VALUE_REFUSED)
        return {**DOCUMENT_INPUT, HALF: VALUE_REFUSED, **maps}

    def held(self) -> Sequence[Held]:
        return [
            _held(name, key, value)
            for name, key, value in self.server.rows
            if isinstance(value, dict) and "n" in value
        ]

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def address(self) -> Address:
        return "127.0.0.1", self.server.port

    def settings_through(self, address: Address) -> Mapping[str, object]:
        return self._settings(int(address[1]))

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            **super().troubles,
            SystemicKind.BUSY: lambda: self._says(status=429),
            SystemicKind.FULL: lambda: self._says(status=507),
            SystemicKind.AUTHENTICATION: lambda: self._says(token="another"),
            SystemicKind.CONFIGURATION: lambda: self._says(status=404),
        }

    @contextmanager
    def _says(self, **rule: object) -> Iterator[None]:
        self.server.rule(**rule)
        yield
        self.server.rule(**{**dict.fromkeys(rule), "token": TOKEN})


def _held(name: str | None, key: str | None, value: Mapping[str, object]) -> Held:
    if name is None:
        return Held(None, None, key, value)
    log_id, _, lsn = name.partition("-")
    return Held(bytes.fromhex(log_id), int(lsn), key, value)


def window(server: WebServer) -> HttpBench:
    """Batches under an id, which the server remembers; envelopes that tell log and LSN."""
    idempotency = {"window": "1d"}
    return HttpBench(server, "/in", preset="webhook", idempotency=idempotency, compression="zstd")


def keyed(server: WebServer) -> HttpBench:
    """Elasticsearch's ``_bulk``, as our own server plays it."""
    return HttpBench(server, "", preset="elasticsearch", index="in")


def plain(server: WebServer) -> HttpBench:
    """A server that knows nothing again: at least once."""
    header = {"header": "none"}
    return HttpBench(server, "/in", format="ndjson", compression="gzip", idempotency=header)


def per_record(server: WebServer) -> HttpBench:
    """A server that knows nothing again, and answers for each record."""
    results = {"path": "items", "message": "error.reason"}
    return HttpBench(server, "/items", idempotency={"header": "none"}, results=results)
