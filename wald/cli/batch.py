"""``wald batch``: batches on their way, and those of which only a person knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from wald.cli.ask import Control
from wald.cli.options import json_option, socket_option, socket_path
from wald.cli.output import Group, print_json, print_table, printable, say
from wald.limits import CLOCK_NS_PER_S

if TYPE_CHECKING:
    from wald.drainer.batch_desk import BatchDesk

_HEAD = ("BATCH", "ROUTE", "LANE", "STATE", "RECORDS", "LSN", "ATTEMPTS", "LAST ERROR")
_ID_SHOWN = 8
_LABELS = {"lo": "first_lsn", "hi": "last_lsn"}
_ERROR_SHOWN = 100
_data_dir_option = click.option(
    "--data-dir", metavar="DIR", help="Work on this data directory, while no daemon runs."
)
_route_option = click.option("--route", metavar="NAME", help="Only those of this route.")


@click.group(cls=Group)
def batch() -> None:
    """Batches: what is on its way to a target, and what nobody knows the fate of."""


@batch.command("list")
@_route_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
@click.option(
    "--finished", type=click.IntRange(min=0), default=0, metavar="N",
    help="Also the last N that each lane has finished.",
)  # fmt: skip
@_data_dir_option
@socket_option
@json_option
def list_batches(
    route: str | None,
    limit: int,
    finished: int,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
) -> None:
    """List open batches: state, attempts, the last error, the LSNs they go from and to."""
    with _desk(socket, data_dir) as desk:
        said = desk.ask("drain.batch.list", route=route, limit=limit, finished=finished)
    lines = [*said["batches"], *said.get("finished", ())]
    if as_json:
        print_json({"batches": lines, "more": said["more"]})
        return
    if not lines:
        say("no open batches")
        return
    print_table(_HEAD, [_row(line) for line in lines])
    if said["more"]:
        say(f"{said['more']:,} more: --limit {limit + said['more']} shows all")
    if any(line["state"] == "uncertain" for line in lines):
        say("of uncertain ones nobody knows whether they took effect: wald batch resolve BATCH ...")


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    error = printable(str(line["last_error"]))
    return (
        line["batch"][:_ID_SHOWN],
        str(line["route"]),
        f"{line['layout']}.{line['lane']}",
        str(line["state"]),
        f"{line['records']:,}",
        f"{line['lo']:,}..{line['hi']:,}{' again' if line['redrive'] else ''}",
        str(line["attempts"]),
        f"{error[: _ERROR_SHOWN - 3]}..." if len(error) > _ERROR_SHOWN else error,
    )


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@_route_option
@_data_dir_option
@socket_option
@json_option
def show(
    batch_id: str,
    route: str | None,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
) -> None:
    """Show all that is known of BATCH, named by the beginning of its id."""
    with _desk(socket, data_dir) as desk:
        said = desk.ask("drain.batch.show", batch=batch_id, route=route)["batch"]
    if as_json:
        print_json(said)
        return
    for name, value in said.items():
        if name == "revisions":
            for revision in value:
                click.echo("revision:")
                for field, content in revision.items():
                    click.echo(f"  {_label(field) + ':':<18} {_shown(field, content)}")
        else:
            click.echo(f"{_label(name) + ':':<20} {_shown(name, value)}")


def _label(name: str) -> str:
    """Return the name of a field as it stands before what people read."""
    return _LABELS.get(name, name.removesuffix("_ns") + "_at" * name.endswith("_ns"))


def _shown(name: str, value: object) -> str:
    """Return a value as people read it."""
    if name.endswith("_ns"):
        return _moment(value) if isinstance(value, int) and value else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"{len(value)} records: {', '.join(map(str, value[:10]))}" if value else "-"
    if name in {"lo", "hi"}:
        return f"{value:,}"
    return "-" if value is None else printable(str(value)) or "-"


def _moment(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns / CLOCK_NS_PER_S, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--delivered", "decision", flag_value="delivered", help="It took effect: close it.")
@click.option(
    "--not-delivered", "decision", flag_value="not-delivered", help="It did not: send it again."
)
@click.option(
    "--dead-letter", "decision", flag_value="dead-letter",
    help="Give it up: its records become dead letters.",
)  # fmt: skip
@_route_option
@_data_dir_option
@socket_option
@json_option
def resolve(
    batch_id: str,
    decision: str | None,
    route: str | None,
    data_dir: str | None,
    socket: str | None,
    *,
    as_json: bool,
) -> None:
    """Say what became of BATCH, which is uncertain: its lane goes on accordingly.

    Durable when it is answered; carried out at once by a running daemon, else at its next start.
    """
    if decision is None:
        msg = "say one of --delivered, --not-delivered, --dead-letter"
        raise click.UsageError(msg)
    with _desk(socket, data_dir) as desk:
        said = desk.ask("drain.batch.resolve", batch=batch_id, decision=decision, route=route)
    if as_json:
        print_json({name: said[name] for name in ("batch", "route", "decision")})
    else:
        say(f"batch {said['batch'][:_ID_SHOWN]} of route {said['route']}: {said['decision']}")


@contextmanager
def _desk(socket: str | None, data_dir: str | None) -> "Iterator[Control | BatchDesk]":
    """Ask a running daemon, or the ledger of a directory that none uses."""
    if data_dir is None:
        with Control(socket_path(socket)) as control:
            yield control
        return
    from wald import offline

    with offline.batch_desk(data_dir.rstrip("/") or "/") as desk:
        yield desk
