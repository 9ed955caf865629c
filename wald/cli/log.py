"""``wald log inspect`` and ``wald log verify``: what is on the disk."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from wald.cli.options import json_option
from wald.cli.output import counted, print_json, print_table, printable, say

if TYPE_CHECKING:
    from wald.storage.inspect import Damage, LogReport

_HEAD = ("SEGMENT", "KIND", "BYTES", "FIRST LSN", "LAST LSN", "RECORDS", "GROUPS", "ENDS WITH")


@click.group()
def log() -> None:
    """Look into a log without changing it, also beside a running daemon."""


@log.command()
@click.argument("data_dir")
@json_option
def inspect(data_dir: str, *, as_json: bool) -> int:
    """Show segments, streams and routes of the log in DATA_DIR.

    Exit code 0 if it is whole, 1 if something is damaged.
    """
    report = _read(data_dir)
    if as_json:
        print_json(_as_dict(report))
        return report.exit_code
    click.echo(f"log {report.log_id}, through LSN {report.end_lsn:,}")
    rows = [
        (
            segment.file,
            segment.kind,
            f"{segment.end_bytes:,}",
            f"{segment.first_lsn:,}" if segment.first_lsn else "-",
            f"{segment.last_lsn:,}" if segment.last_lsn else "-",
            f"{segment.records:,}",
            f"{segment.groups:,}",
            segment.ends_with or "-",
        )
        for segment in report.segments
    ]
    print_table(_HEAD, rows)
    click.echo(f"{counted(report.unused, 'prepared or retired segment')}")
    for route in report.routes:
        stream = report.streams.get(route.stream_id, f"#{route.stream_id}")
        birth = f"born at LSN {route.birth_lsn:,}"
        click.echo(printable(f"route {route.name}: {stream} -> {route.sink}, {birth}"))
    _print_damages(report)
    return report.exit_code


@log.command()
@click.argument("data_dir")
@json_option
def verify(data_dir: str, *, as_json: bool) -> int:
    """Read every block of the log in DATA_DIR and check it; nothing is changed.

    Exit code 0 if it is whole, 1 if something is damaged: each damage with its LSNs.
    """
    report = _read(data_dir)
    if as_json:
        print_json(_as_dict(report))
        return report.exit_code
    _print_damages(report)
    if not report.damages:
        records = sum(segment.records for segment in report.segments)
        click.echo(
            f"{counted(len(report.segments), 'segment')}, {counted(records, 'record')}, all whole,"
            f" through LSN {report.end_lsn:,}"
        )
    return report.exit_code


def _read(data_dir: str) -> "LogReport":
    from wald.storage.inspect import inspect_log
    from wald.system import PosixFileSystem

    return inspect_log(PosixFileSystem(), data_dir.rstrip("/") or "/")


def _as_dict(report: "LogReport") -> dict[str, object]:
    return {"clean": not report.damages, **asdict(report)}


def _print_damages(report: "LogReport") -> None:
    for damage in report.damages:
        click.echo(printable(_damage_line(damage)))
    if not report.damages:
        return
    damaged = {each.segment for each in report.damages if each.segment and not each.missing}
    missing = {each.segment for each in report.damages if each.missing}
    present = damaged | {segment.number for segment in report.segments}
    said = [f"{len(damaged)} of {counted(len(present), 'segment')} damaged"] if damaged else []
    said += [f"{counted(len(missing), 'segment')} missing"] if missing else []
    said += ["the identity file damaged"] if any(not one.segment for one in report.damages) else []
    say(f"{', '.join(said)}. What is not named here is whole; nothing was changed.")
    if all(each.set_aside for each in report.damages):
        say("hint: a start has set it aside; its loss report stands in reports/")
    else:
        say("hint: the next start sets the damage aside and reports each lost LSN")


def _damage_line(damage: "Damage") -> str:
    line = f"{damage.file}  offset {damage.offset_bytes:,}  {damage.reason}"
    if damage.last_lsn >= damage.first_lsn:
        streams = f", stream {', '.join(damage.streams)}" if damage.streams else ""
        line += f"   LSN {damage.first_lsn:,} .. {damage.last_lsn:,}"
        line += f" ({counted(damage.records, 'record')}{streams})"
    return line
