"""Redis and Valkey as the contract's target: a server of its own, killed, hung, and put back."""

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgpack

from tests.backlog import eventually
from tests.servers.redis import RedisServer
from wald.model import Secret, SystemicKind
from wald.testing.sink_contract import DOCUMENT_INPUT, Held, Trouble, Workbench

PASSWORD = "canary-9d41"


class RedisStream(Workbench):
    """A stream at a server that wants a password."""

    factory = "wald.sinks.redis:make"
    one_owner = True
    secret = PASSWORD
    poison: object = {"host": "poison", "n": -1, "strange": msgpack.ExtType(99, b"")}

    def __init__(self, place: Path, kind: str) -> None:
        self.server = RedisServer(place, kind, requirepass=PASSWORD)
        self.server.start()
        self.settings = {"url": self.server.url, "password": Secret(PASSWORD)}

    @property
    def bad_input(self) -> Mapping[str, str]:
        return DOCUMENT_INPUT

    def call(self, *command: str | int) -> Any:
        client = self.server.client(password=PASSWORD)
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def held(self) -> Sequence[Held]:
        client = self.server.client(password=PASSWORD)
        try:
            found = client.xrange("events")
        finally:
            client.close()
        return [
            Held(
                bytes.fromhex(entry[b"log_id"].decode()),
                int(name.partition(b"-")[0]),
                entry[b"key"].decode(errors="replace"),
                json.loads(entry[b"value"]),
            )
            for name, entry in found
            if entry[b"value"].startswith(b"{")
        ]

    # --- the server -----------------------------------------------------------------------------

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def address(self) -> str:
        return str(self.server.socket)

    def settings_through(self, address: object) -> Mapping[str, object]:
        assert isinstance(address, tuple)
        host, port = address
        return {**self.settings, "url": f"redis://{host}:{port}"}

    def backup(self) -> Path:
        self.server.kill()
        backup = self.server.place.with_name("backup")
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(self.server.place, backup, ignore=shutil.ignore_patterns("*.sock"))
        self.server.start()
        return backup

    def restore(self, backup: object) -> None:
        assert isinstance(backup, Path)
        self.server.kill()
        shutil.rmtree(self.server.place)
        shutil.copytree(backup, self.server.place)
        self.server.start()

    def close(self) -> None:
        self.server.kill()

    # --- trouble --------------------------------------------------------------------------------

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            **super().troubles,
            SystemicKind.BUSY: self.with_a_script_at_work,
            SystemicKind.FULL: self.without_memory,
            SystemicKind.AUTHENTICATION: self.with_another_password,
            SystemicKind.CONFIGURATION: self.with_a_key_of_another_kind,
            SystemicKind.DAMAGED: self.with_a_row_that_nobody_can_read,
        }

    @contextmanager
    def set_to(self, name: str, value: str | int) -> Iterator[None]:
        _, before = self.call("CONFIG", "GET", name).popitem()
        self.call("CONFIG", "SET", name, value)
        yield
        self.call("CONFIG", "SET", name, before)

    @contextmanager
    def with_a_script_at_work(self) -> Iterator[None]:
        with self.set_to("lua-time-limit", 1):
            at_work = threading.Thread(target=self._work)
            at_work.start()
            eventually(self._is_busy)
            yield
            self.call("SCRIPT", "KILL")
            at_work.join()

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # it is killed
            self.call("EVAL", "while true do end", 0)

    def _is_busy(self) -> bool:
        try:
            self.call("GET", "x")
        except Exception as error:  # noqa: BLE001 - the driver's
            return "BUSY" in str(error)
        return False

    def without_memory(self) -> AbstractContextManager[None]:
        return self.set_to("maxmemory", 1)

    @contextmanager
    def with_another_password(self) -> Iterator[None]:
        client = self.server.client(password=PASSWORD)
        client.config_set("requirepass", "another")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")  # all others
        yield
        client.config_set("requirepass", PASSWORD)
        client.close()

    @contextmanager
    def with_a_key_of_another_kind(self) -> Iterator[None]:
        self.call("RENAME", "events", "away")
        self.call("SET", "events", "no stream")
        yield
        self.call("RENAME", "away", "events")

    @contextmanager
    def with_a_row_that_nobody_can_read(self) -> Iterator[None]:
        row = ("{events}:wald", "row:0.0")
        before = self.call("HGET", *row)
        self.call("HSET", *row, "1 what")
        yield
        self.call("HSET", *row, before)
