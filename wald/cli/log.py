"""``wald log``: what is on the disk, whether it is whole, and what is done if it is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from wald import limits
from wald.cli.ask import Control
from wald.cli.options import Size, json_option, socket_option, socket_path
from wald.cli.output import Group, counted, print_json, print_table, printable, say
from wald.cli.salvage import acknowledge, cat, salvage
from wald.core.units import format_size
from wald.errors import EXIT_NO

if TYPE_CHECKING:
    from wald.ports import FileSystem
    from wald.storage.inspect import Damage, LogReport
    from wald.storage.scrub import FileDamage, RestReport

_HEAD = ("SEGMENT", "KIND", "BYTES", "FIRST LSN", "LAST LSN", "RECORDS", "GROUPS", "ENDS WITH")


@click.group(cls=Group)
def log() -> None:
    """Look into a log, also beside a running daemon; nothing is changed but by salvage --do."""


@log.command()
@click.argument("data_dir")
@json_option
def inspect(data_dir: str, *, as_json: bool) -> int:
    """Show segments, streams and routes of the log in DATA_DIR.

    Exit code 0 if it is whole, 1 if something is damaged.
    """
    found = _read(data_dir)
    report = found.log
    if as_json:
        print_json(found.as_dict())
        return found.exit_code
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
    _print_packed(found)
    for route in report.routes:
        stream = report.streams.get(route.stream_id, f"#{route.stream_id}")
        birth = f"born at LSN {route.birth_lsn:,}"
        click.echo(printable(f"route {route.name}: {stream} -> {route.sink}, {birth}"))
    _print_damages(found)
    return found.exit_code


@log.command()
@click.argument("data_dir")
@json_option
def verify(data_dir: str, *, as_json: bool) -> int:
    """Read every block of the log in DATA_DIR and check it; nothing is changed.

    Exit code 0 if it is whole, 1 if something is damaged: each damage with its LSNs.
    """
    found = _read(data_dir)
    return _print_verdict(found, as_json=as_json)


@log.command()
@click.argument("data_dir", required=False)
@socket_option
@click.option(
    "--max-rate",
    "bytes_per_s",
    type=Size(),
    default=format_size(limits.SCRUB_BYTES_PER_S),
    show_default=True,
    help="Read no more than this a second.",
)
@json_option
def scrub(data_dir: str | None, socket: str | None, bytes_per_s: int, *, as_json: bool) -> int:
    """Read everything at rest in DATA_DIR and check it, beside a running daemon too.

    Segments, packed files, the archive and the dead log, at a pace that leaves the disk to others.
    Without DATA_DIR it is that of the running daemon. Nothing is changed. Exit code 0 if all is
    whole, 1 if something is damaged: each damage with its LSNs.
    """
    from wald.cli.paced import Pace, PacedFileSystem
    from wald.system import SystemClock

    if data_dir is None:
        with Control(socket_path(socket)) as control:
            data_dir = str(control.status()["data_dir"])
    with _bar(data_dir) as on_read:
        pace = Pace(SystemClock(), bytes_per_s, on_read)
        found = _read(data_dir, PacedFileSystem(pace))
    return _print_verdict(found, as_json=as_json)


for command in (salvage, acknowledge, cat):
    log.add_command(command)


class _Found(NamedTuple):
    """The log, and what lies beside it."""

    log: "LogReport"
    rest: "RestReport"

    @property
    def exit_code(self) -> int:
        return EXIT_NO if self.log.damages or self.rest.damages else 0

    def as_dict(self) -> dict[str, object]:
        rest = asdict(self.rest)
        rest["file_damages"] = rest.pop("damages")
        return {"clean": self.exit_code == 0, **asdict(self.log), **rest}


def _read(data_dir: str, fs: "FileSystem | None" = None) -> _Found:
    from wald.storage.inspect import inspect_log
    from wald.storage.scrub import RestReport, inspect_rest
    from wald.system import PosixFileSystem

    fs = fs or PosixFileSystem()
    data_dir = data_dir.rstrip("/") or "/"
    log = inspect_log(fs, data_dir)
    if not log.log_id:  # nothing says whose it is
        return _Found(log, RestReport((), (), ()))
    return _Found(log, inspect_rest(fs, data_dir, bytes.fromhex(log.log_id)))


@contextmanager
def _bar(data_dir: str) -> Iterator[Callable[[int], None]]:
    """Show how much was read, where somebody looks; yield what is told of each read."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from wald.storage.scrub import RESTING_DIRECTORIES

    console = Console(stderr=True)
    total = None
    with suppress(OSError):  # a file may go meanwhile; what may not be read is told by who reads it
        total = sum(
            path.stat().st_size
            for name in RESTING_DIRECTORIES
            for path in Path(data_dir, name).glob("*.*")
        )
    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda length: bar.advance(task, length)


def _print_verdict(found: _Found, *, as_json: bool) -> int:
    if as_json:
        print_json(found.as_dict())
        return found.exit_code
    _print_damages(found)
    if found.exit_code == 0:
        records = sum(segment.records for segment in found.log.segments)
        packed, dead = found.rest.packed, found.rest.dead
        beside = f", {counted(len(packed), 'packed file')}" if packed else ""
        beside += f", {counted(len(dead), 'file')} of dead letters" if dead else ""
        click.echo(
            f"{counted(len(found.log.segments), 'segment')}, {counted(records, 'record')}{beside},"
            f" all whole, through LSN {found.log.end_lsn:,}"
        )
    return found.exit_code


def _print_packed(found: _Found) -> None:
    streams = found.log.streams
    for file in found.rest.packed:
        stream = streams.get(file.stream_id, f"#{file.stream_id}")
        click.echo(
            f"{file.file}: {stream}, LSN {file.lo + 1:,} .. {file.hi:,}, "
            f"{counted(file.count, 'record')}, {file.size_bytes:,} bytes"
        )


def _print_damages(found: _Found) -> None:
    _print_log_damages(found.log)
    for damage in found.rest.damages:
        click.echo(printable(_file_damage_line(damage)))
    if found.rest.damages:
        files = {damage.file for damage in found.rest.damages}
        say(f"{counted(len(files), 'file')} beside the log damaged; nothing was changed.")
        say("hint: what a route still needs of it becomes dead letters, each with its LSNs")


def _print_log_damages(report: "LogReport") -> None:
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
        say("hint: the next start sets the damage aside and reports each lost LSN:")
        say("      wald log salvage shows what would be done")


def _damage_line(damage: "Damage") -> str:
    line = f"{damage.file}  offset {damage.offset_bytes:,}  {damage.reason}"
    if damage.last_lsn >= damage.first_lsn:
        streams = f", stream {', '.join(damage.streams)}" if damage.streams else ""
        line += f"   LSN {damage.first_lsn:,} .. {damage.last_lsn:,}"
        line += f" ({counted(damage.records, 'record')}{streams})"
    return line


def _file_damage_line(damage: "FileDamage") -> str:
    line = f"{damage.file}  offset {damage.offset_bytes:,}  {damage.reason}"
    if damage.last_lsn >= damage.first_lsn:
        records = "" if damage.records is None else f" ({counted(damage.records, 'record')})"
        line += f"   LSN {damage.first_lsn:,} .. {damage.last_lsn:,}{records}"
    return line
