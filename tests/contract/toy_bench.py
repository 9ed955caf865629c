"""The toy target on the contract's workbench: a process, of any class, in any trouble."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.contract import toy_target
from tests.contract.toy_target import TOKEN
from tests.daemon import wait_until
from wald.model import ReplayClass, Secret, SystemicKind
from wald.testing.proxy import Address
from wald.testing.sink_contract import DOCUMENT_INPUT, Held, Trouble, Workbench

_ORDERS = frozenset({SystemicKind.BUSY, SystemicKind.FULL, SystemicKind.AUTHENTICATION})
_ORDERS |= {SystemicKind.CONFIGURATION, SystemicKind.DAMAGED}


class ToyBench(Workbench):
    """A server of its own for each test."""

    factory = "tests.contract.toy_sink:make"
    poison: object = {"host": "poison", "n": -1}
    secret = TOKEN
    large_bytes = 50_000

    def __init__(self, place: Path, replay: ReplayClass, bug: str = "") -> None:
        self.place = place
        self.replay = replay
        self.one_owner = replay is ReplayClass.MONOTONE
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.settings = {"port": self.port, "token": Secret(TOKEN), "class": replay.value}
        if bug:
            self.settings |= {"bug": bug}

    @property
    def absent(self) -> Mapping[str, str]:
        return {}

    @property
    def bad_input(self) -> Mapping[str, str]:
        return DOCUMENT_INPUT

    def start(self) -> None:
        port_file = self.place / "port"
        port_file.unlink(missing_ok=True)
        database, port = str(self.place / "toy.db"), [str(self.port)] if self.port else []
        program = [sys.executable, "-S", toy_target.__file__, database, str(port_file), *port]
        self.process = subprocess.Popen(program)
        wait_until(port_file.exists, "the toy listens")
        self.port = int(port_file.read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()

    def address(self) -> Address:
        return "127.0.0.1", self.port

    def settings_through(self, address: Address) -> Mapping[str, object]:
        return {**self.settings, "port": address[1]}

    def ask(self, **asked: Any) -> Any:
        with socket.create_connection(("127.0.0.1", self.port)) as asking:
            asking.sendall(json.dumps(asked).encode() + b"\n")
            with asking.makefile("rb") as lines:
                return json.loads(lines.readline())

    def held(self) -> Sequence[Held]:
        rows = [(log, lsn, key, json.loads(value)) for log, lsn, key, value in self.ask(op="held")]
        return [
            Held(bytes.fromhex(log) or None, lsn, key, value)
            for log, lsn, key, value in rows
            if isinstance(value, dict) and {"host", "n"} <= value.keys()
        ]

    def backup(self) -> object:
        return self.ask(op="backup")

    def restore(self, backup: object) -> None:
        self.ask(op="restore", tables=backup)

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {**super().troubles, **{kind: partial(self.ordered, kind) for kind in _ORDERS}}

    @contextmanager
    def ordered(self, kind: SystemicKind) -> Iterator[None]:
        self.ask(op="trouble", kind=kind.value)
        yield
        self.ask(op="trouble", kind="")
