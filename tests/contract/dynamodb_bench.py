"""DynamoDB Local as the contract's target, behind a proxy that forges what it cannot do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.servers.dynamodb import SECRET, DynamoServer, all_items, make_table
from tests.servers.forging import ForgingProxy, error
from wald.model import Secret, SystemicKind
from wald.testing.sink_contract import DOCUMENT_INPUT, NO_MAP, Held, Trouble, Workbench

TABLE, PROGRESS = "events", "wald_progress"


class DynamoTable(Workbench):
    """A table whose key is ``host`` and ``n``, in one of the modes."""

    factory = "wald.sinks.dynamodb:make"
    secret = SECRET
    poison: object = {"host": "poison", "n": "no number"}

    def __init__(self, server: DynamoServer, mode: str) -> None:
        self.server = server
        self.mode = mode
        self.proxy = ForgingProxy(server.port)
        self.client = server.client()
        self.settings = {
            **server.settings, "endpoint_url": self.proxy.url, "mode": mode, "table": TABLE,
            "secret_access_key": Secret(SECRET), "partition_key": "host", "sort_key": "n",
        }  # fmt: skip
        for table in (TABLE, PROGRESS):
            self.make_table(table)

    @property
    def absent(self) -> Mapping[str, str]:
        absent = {
            "order": "a table has no order",
            "trouble.full": "a table has no bound that a test reaches",
        }
        if self.mode == "put-if-newer":
            absent["server"] = "a server of Java is slow to start: it is killed in the other modes"
        if self.mode != "transaction":
            absent["backup"] = "nothing asks a table of this class how far it is"
            absent["trouble.damaged"] = "nothing of ours is in the table but records"
        return absent

    @property
    def bad_input(self) -> Mapping[str, str]:
        named = "ValidationError" if self.mode == "transaction" else "ValidationException"
        of_the_key = ("a map for a number", "nil for a number", "NaN", "infinity")
        refused = ("a number of 400 digits", "half of a surrogate pair in JSON")
        return {
            **DOCUMENT_INPUT,
            **dict.fromkeys([*NO_MAP, *refused], "record.value"),
            **dict.fromkeys(of_the_key, "ValidationException"),
            "a text for a number": named,
            "a field is missing": "key.missing",
            "nearly a megabyte": "item.too-large",
        }

    def held(self) -> Sequence[Held]:
        return [
            Held(
                bytes.fromhex(item["wald_log"]["S"]) if "wald_log" in item else None,
                int(item["wald_lsn"]["N"]) if "wald_lsn" in item else None,
                None,
                {name: plain(value) for name, value in item.items() if name[:5] != "wald_"},
            )
            for item in all_items(self.client, TABLE)
        ]

    # --- the server -----------------------------------------------------------------------------

    def kill(self) -> None:
        self.port = self.proxy.port
        self.server.kill()
        self.proxy.close()

    def start(self) -> None:
        self.server.start()
        self.proxy = ForgingProxy(self.server.port, self.port)

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def settings_through(self, address: object) -> Mapping[str, object]:
        assert isinstance(address, tuple)
        return {**self.settings, "endpoint_url": f"http://{address[0]}:{address[1]}"}

    def backup(self) -> object:
        return [(table, all_items(self.client, table)) for table in (TABLE, PROGRESS)]

    def restore(self, backup: object) -> None:
        assert isinstance(backup, list)
        for table, items in backup:
            self.drop(table)
            self.make_table(table)
            self.fill(table, items)

    def make_table(self, table: str) -> None:
        if table == TABLE:
            make_table(self.client, TABLE, "host", "n", n="N")
        else:
            make_table(self.client, PROGRESS, "lane")

    def fill(self, table: str, items: Sequence[Mapping[str, Any]]) -> None:
        for item in items:
            self.client.put_item(TableName=table, Item=item)

    def drop(self, table: str) -> None:
        self.client.delete_table(TableName=table)

    def close(self) -> None:
        if self.server.process is None:
            self.server.start()
        for table in self.client.list_tables()["TableNames"]:
            self.drop(table)
        self.client.close()
        self.proxy.close()

    # --- trouble --------------------------------------------------------------------------------

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            SystemicKind.UNREACHABLE: self.out_of_reach,
            SystemicKind.BUSY: lambda: self.refusing("ThrottlingException"),
            SystemicKind.AUTHENTICATION: lambda: self.refusing("AccessDeniedException"),
            SystemicKind.CONFIGURATION: self.without_tables,
            SystemicKind.DAMAGED: self.with_a_row_that_nobody_can_read,
        }

    @contextmanager
    def out_of_reach(self) -> Iterator[None]:
        port = self.proxy.port
        self.proxy.close()
        yield
        self.proxy = ForgingProxy(self.server.port, port)

    def refusing(self, code: str) -> AbstractContextManager[None]:
        return self.proxy.forging(lambda *_: error(code))

    @contextmanager
    def without_tables(self) -> Iterator[None]:
        backup = self.backup()
        self.drop(TABLE)
        self.drop(PROGRESS)
        yield
        for table in (TABLE, PROGRESS):
            self.make_table(table)
        for table, items in backup:  # type: ignore[attr-defined]
            self.fill(table, items)

    @contextmanager
    def with_a_row_that_nobody_can_read(self) -> Iterator[None]:
        (row,) = all_items(self.client, PROGRESS)
        self.client.put_item(TableName=PROGRESS, Item={"lane": row["lane"], "batch_no": {"N": "1"}})
        yield
        self.client.put_item(TableName=PROGRESS, Item=row)


def plain(value: Mapping[str, Any]) -> object:
    ((kind, held),) = value.items()
    return (float(held) if "." in held else int(held)) if kind == "N" else held
