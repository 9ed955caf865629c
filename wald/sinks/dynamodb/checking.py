"""What ``wald check`` says of a table: looked at, nothing written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from wald.model import Finding, Severity, Systemic, Unknown
from wald.sinks.dynamodb.calls import MISSING, CallFailed
from wald.sinks.dynamodb.options import Options

if TYPE_CHECKING:
    from wald.sinks.dynamodb.link import Link

LANE_ATTRIBUTE: Final = "lane"  # the partition key of the progress table
_OK, _WARNING, _ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
_ACTIONS: Final[Mapping[str, Sequence[str]]] = {
    "put": ("BatchWriteItem", "PutItem"),
    "put-if-newer": ("PutItem",),
    "transaction": ("PutItem",),
}
_OF_PROGRESS: Final = ("GetItem", "PutItem", "ConditionCheckItem")


def grants(options: Options) -> str:
    """Return the least that the sink's identity needs, as a policy of the service."""

    def statement(table: str, *actions: str) -> Mapping[str, Any]:
        names = [f"dynamodb:{action}" for action in (*actions, "DescribeTable")]
        resource = f"arn:aws:dynamodb:*:*:table/{table}"
        return {"Effect": "Allow", "Action": names, "Resource": resource}

    statements = [statement(options.table, *_ACTIONS[options.mode])]
    if options.mode == "transaction":
        statements.append(statement(options.progress_table, *_OF_PROGRESS))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def creation(table: str) -> str:
    """Return the command that makes a progress table."""
    return (
        f"aws dynamodb create-table --table-name {table} --billing-mode PAY_PER_REQUEST "
        f"--attribute-definitions AttributeName={LANE_ATTRIBUTE},AttributeType=S "
        f"--key-schema AttributeName={LANE_ATTRIBUTE},KeyType=HASH"
    )


def check(options: Options, link: "Link") -> Sequence[Finding]:
    """Look at the table, and at that of the progress items."""
    return [*_looked(options, link)]


def _looked(options: Options, link: "Link") -> Iterator[Finding]:
    wanted = [options.partition_key]
    if options.sort_key is not None:
        wanted.append(options.sort_key)
    yield _table(link, options.table, wanted, "make it, or correct table, region and endpoint_url")
    if options.mode == "transaction":
        made = creation(options.progress_table)
        yield _table(link, options.progress_table, [LANE_ATTRIBUTE], made)
    if options.mode == "put" and options.key_from != "record-id":
        msg = "mode 'put' overwrites: a late batch may put an older value over a newer one"
        hint = "for keys that are written once; 'put-if-newer' is for all others"
        yield Finding(_WARNING, "dynamodb.overwrites", msg, hint)


def _table(link: "Link", name: str, wanted: Sequence[str], how: str) -> Finding:
    try:
        table = link.call("describe_table", TableName=name)["Table"]
    except CallFailed as failed:
        said = failed.outcome
        if isinstance(said, Systemic):
            hint = how if failed.code == MISSING else said.hint
            return Finding(_ERROR, f"dynamodb.{said.kind.value}", f"{name}: {said.message}", hint)
        message = said.message if isinstance(said, Unknown) else failed.message
        return Finding(_ERROR, "dynamodb.unreachable", f"{name}: {message}")
    key = {each["KeyType"]: each["AttributeName"] for each in table["KeySchema"]}
    found = [key[kind] for kind in ("HASH", "RANGE") if kind in key]
    if found != list(wanted):
        msg = f"table {name} has the key {found}, and the route says {list(wanted)}"
        return Finding(_ERROR, "dynamodb.configuration", msg, "correct partition_key and sort_key")
    status = table.get("TableStatus", "")
    if status not in {"ACTIVE", "UPDATING"}:
        return Finding(_WARNING, "dynamodb.status", f"table {name} is {status}", "wait for it")
    types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
    shown = ", ".join(f"{part} {types.get(part, '')}" for part in found)
    return Finding(_OK, "dynamodb.found", f"table {name} found, key {shown}")
