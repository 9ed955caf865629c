"""``wald append``: records from a file or standard input."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

import click

from wald.cli.options import Duration, json_option, socket_option, socket_path
from wald.cli.output import counted, print_json, printable, say
from wald.cli.records import READERS, Fields
from wald.errors import EXIT_NO, InputError, WaldError

if TYPE_CHECKING:
    from wald.cli.sending import Report

_SHOWN = 20
_SIGNAL_EXIT = 128  # and the signal's number, as shells say it
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
    "--dedup",
    "dedup_field",
    metavar="FIELD",
    help="Take each record's dedup id from this field: "
    "a stream that compares ids stores each once.",
)
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
    dedup_field: str | None,
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
    read = READERS[form or _BY_SUFFIX.get(Path(file or "").suffix.lower(), "ndjson")]
    session = Session(
        socket_path(socket),
        session_name(once),
        patient=False,
        chance=SystemRandom(),
        single=once is not None,
        throttle=False,  # a request that finds no room keeps its sequence, and so its lines
    )
    sender: Sender | None = None
    with _signals() as caught:
        try:
            with _source(file) as source, _progress(as_json) as progress:
                sender = Sender(session, stream, clock, timeout_s, progress)
                report = sender.send_all(read(source, Fields(key_field, dedup_field)))
        except WaldError as error:
            told = as_rerun_hint(error, once)
            if sender is not None:
                _print_partial(sender.stop(), once, told, as_json=as_json)
            raise told from error
        except KeyboardInterrupt:
            if sender is not None:
                _print_partial(sender.stop(), once, None, as_json=as_json)
            return _SIGNAL_EXIT + (caught[0] if caught else signal.SIGINT)
        finally:
            session.close(Deadline(clock, timeout_s))
    if as_json:
        print_json(report.as_dict())
    else:
        _say_refused(report)
        earlier = f", {report.earlier:,} of them by an earlier run" if report.earlier else ""
        said = f"{report.accepted:,} of {counted(report.records, 'record')} accepted{earlier}"
        again = f", {report.duplicates:,} stored before" if report.duplicates else ""
        say(f"{said}{_lsns(report)}{again}")
    return EXIT_NO if report.refused_count else 0


def _print_partial(
    report: "Report", once: str | None, error: WaldError | None, *, as_json: bool
) -> None:
    """Say what is stored of an input that was not sent to its end."""
    if as_json:
        print_json(report.as_dict() | {"error": error.as_dict() if error else None})
        return
    if not report.accepted and not report.unknown:
        return
    _say_refused(report)
    unknown = f"; {counted(report.unknown, 'record')} sent and not answered" * bool(report.unknown)
    say(f"not all was sent: {counted(report.accepted, 'record')} accepted{_lsns(report)}{unknown}")
    if once is not None:
        say("run the same command again: it goes on, and stores nothing twice")
    else:
        say("a rerun stores them twice; with --once NAME from the start it would go on instead")


def _lsns(report: "Report") -> str:
    if not report.first_lsn:
        return ""
    last = f" .. {report.last_lsn}" if report.last_lsn != report.first_lsn else ""
    return f", LSN {report.first_lsn}{last}"


def _say_refused(report: "Report") -> None:
    for one in report.refused[:_SHOWN]:
        say(f"refused: record {one['index']}: {one['code']}: {one['message']}")
    if report.refused_count > _SHOWN:
        say(f"... and {report.refused_count - _SHOWN:,} more refused; --json lists them")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let Ctrl-C and TERM end the sending in order; yield the signals that came."""
    caught: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield caught
    finally:
        for number in ours:
            signal.signal(number, before[number])


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
