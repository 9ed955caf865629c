"""``wald append``: records from a file or standard input."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import SystemRandom
from typing import BinaryIO

import click

from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import print_json, printable, say
from wald.cli.records import READERS
from wald.errors import EXIT_NO, InputError, WaldError

_SHOWN = 20
_BY_SUFFIX = {".csv": "csv", ".txt": "lines", ".log": "lines"}


@click.command()
@click.argument("stream")
@click.argument("file", required=False)
@socket_option
@click.option(
    "--format",
    "form",
    type=click.Choice(list(READERS)),
    help="One JSON value a line, CSV with a header, or plain lines. "
    "By default from the name of FILE; else ndjson.",
)
@click.option("--key", "key_field", metavar="FIELD", help="Take each record's key from this field.")
@click.option(
    "--once",
    metavar="NAME",
    help="Run it again after an interruption: it goes on and stores nothing twice. "
    "NAME belongs to this input for 7 days.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long one request may wait, for example while the daemon restarts.",
)
@json_option
def append(
    stream: str,
    file: str | None,
    socket: str | None,
    form: str | None,
    key_field: str | None,
    once: str | None,
    timeout_s: float,
    *,
    as_json: bool,
) -> int:
    """Append the records of FILE, or of standard input, to STREAM.

    Everything that is reported as accepted is on stable storage. A line that cannot be parsed is
    refused at its index and harms no other one. Exit code 0 only if nothing was refused.
    """
    from wald.cli.sending import Sender, as_rerun_hint, session_name
    from wald.client.link import Deadline
    from wald.client.session import Session
    from wald.system import SystemClock

    clock = SystemClock()
    read = READERS[form or _BY_SUFFIX.get(Path(file or "").suffix, "ndjson")]
    session = Session(
        socket_path(socket),
        session_name(once),
        patient=False,
        chance=SystemRandom(),
        single=once is not None,
    )
    try:
        with _source(file) as source, _progress(as_json) as progress:
            sender = Sender(session, stream, clock, timeout_s, progress)
            report = sender.send_all(read(source, key_field))
    except WaldError as error:
        raise as_rerun_hint(error, once) from error
    finally:
        session.close(Deadline(clock, timeout_s))
    if as_json:
        print_json(report.as_dict())
    else:
        for one in report.refused[:_SHOWN]:
            say(f"refused: record {one['index']}: {one['code']}: {one['message']}")
        if report.refused_count > _SHOWN:
            say(f"... and {report.refused_count - _SHOWN:,} more refused; --json lists them")
        lsns = f", LSN {report.first_lsn} .. {report.last_lsn}" if report.first_lsn else ""
        say(f"{report.accepted:,} of {report.records:,} records accepted{lsns}")
    return EXIT_NO if report.refused_count else 0


@contextmanager
def _source(file: str | None) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if file is None or file == "-":
            yield sys.stdin.buffer
            return
        try:
            source = stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            msg = f"{printable(file)}: {error.strerror}"
            raise InputError(msg) from error
        yield source


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; nothing elsewhere."""
    if as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} records"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("appending", total=None)
        yield lambda done: bar.update(task, completed=done)
