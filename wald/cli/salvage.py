"""``wald log salvage``, ``acknowledge`` and ``cat``: when something is damaged."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from wald.cli.letters import iso, record_as_json
from wald.cli.options import json_option
from wald.cli.output import print_json, printable, say
from wald.errors import EXIT_NO

if TYPE_CHECKING:
    from wald.storage.salvage import Found, Gap
    from wald.storage.salvage_plan import SalvagePlan


@click.command()
@click.argument("data_dir")
@click.option("--do", "act", is_flag=True, help="Carry the plan out; no daemon may run.")
@json_option
def salvage(data_dir: str, *, act: bool, as_json: bool) -> int:
    """Say what is damaged in DATA_DIR, what is lost by it, and what is done about it.

    Only a plan, which changes nothing, unless --do is given: then damaged segments are set aside
    and each lost LSN is reported, and a damaged ledger is set aside and made anew, as the next
    start would do it, but nothing is accepted or delivered. Exit code 0 if nothing is damaged or
    all of it was set aside, 1 if something is to be done.
    """
    from wald import offline
    from wald.storage.salvage_plan import plan_salvage
    from wald.system import PosixFileSystem

    data_dir = data_dir.rstrip("/") or "/"
    plan = plan_salvage(PosixFileSystem(), data_dir)
    notes = offline.salvage(data_dir) if act else ()
    if as_json:
        print_json({**asdict(plan), "clean": plan.is_clean, "done": act, "notes": list(notes)})
    else:
        _print(plan)
        for note in notes:
            click.echo(printable(f"done: {note}"))
        if not plan.is_clean and not act:
            say(f"hint: wald log salvage {data_dir} --do carries it out; so does the next start")
    return 0 if plan.is_clean or act else EXIT_NO


@click.command()
@click.argument("data_dir")
@json_option
def acknowledge(data_dir: str, *, as_json: bool) -> int:
    """Say that a person has seen the loss reports of DATA_DIR: 'wald status' is silent about them.

    Reports, quarantined segments and damaged ledgers stay where they are.
    """
    from wald.storage.notices import acknowledge as mark
    from wald.system import PosixFileSystem

    seen = mark(PosixFileSystem(), data_dir.rstrip("/") or "/")
    if as_json:
        print_json({"acknowledged": list(seen)})
    else:
        for path in seen:
            click.echo(f"acknowledged: {path}")
        if not seen:
            say("nothing to acknowledge")
    return 0


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--stream", metavar="NAME", help="Only records of this stream.")
def cat(files: tuple[str, ...], stream: str | None) -> int:
    """Print each record that can still be read of FILE, as NDJSON; say what cannot.

    FILE is a segment of the log, a packed file, or a file of the dead log: in its place, in
    quarantine/, or copied elsewhere. Nothing is changed. Exit code 1 if something cannot be read.
    """
    from wald.storage.salvage import Found, read_file
    from wald.system import PosixFileSystem

    gaps = 0
    for path in files:
        for item in read_file(PosixFileSystem(), path):
            if isinstance(item, Found):
                if stream is None or item.stream == stream:
                    click.echo(json.dumps(_as_json(item)))  # ASCII: nothing steers a terminal
            else:
                gaps += 1
                say(printable(f"{path}: {_gap(item)}"))
    return EXIT_NO if gaps else 0


def _as_json(found: "Found") -> dict[str, Any]:
    stream = found.stream or (f"#{found.stream_id}" if found.stream_id else None)
    head = {"lsn": found.record.lsn, "stream": stream, "time": iso(found.record.time_ns)}
    return head | record_as_json(found.record)


def _gap(gap: "Gap") -> str:
    lsns = f"   LSN {gap.first_lsn:,} .. {gap.last_lsn:,}" if gap.last_lsn >= gap.first_lsn else ""
    return f"offset {gap.offset_bytes:,}  {gap.reason}{lsns}"


def _print(plan: "SalvagePlan") -> None:
    for step in plan.steps:
        click.echo(printable(f"{step.what}: {step.reason}"))
        for name, value in _facts(step.facts):
            click.echo(printable(f"    {name}: {value}"))
        click.echo(printable(f"    -> {step.action}"))
    if plan.is_clean:
        click.echo("nothing is damaged that is not set aside already")
    for path in plan.unseen:
        say(f"not acknowledged yet: {path}")


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if value not in (None, "", 0, [], ()):
            yield (
                name,
                ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value),
            )
