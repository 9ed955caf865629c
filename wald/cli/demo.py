"""``wald demo``: every record once and in order, through kill -9 of every process."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wald.cli.options import json_option
from wald.cli.output import print_json, say
from wald.errors import EXIT_NO, InputError

if TYPE_CHECKING:
    from wald.cli.rehearsal import Result

_ROLES = ("drain", "ingest", "supervisor")


@click.command()
@json_option
@click.option("--seed", type=int, help="Kill at the same points of the run as a run before.")
@click.option("--keep", metavar="DIR", help="Work in DIR, which must not exist, and leave it.")
def demo(seed: int | None, keep: str | None, *, as_json: bool) -> int:
    """Send 28,298 real records through kill -9 of every process, and count them in SQLite.

    Starts a daemon in a temporary directory, sends the airports of the world from four producers,
    kills drain, ingest and supervisor while requests and batches are in flight, starts them again,
    and compares the target with what was acknowledged. Exit code 1 if the books do not balance.
    """
    try:
        import airportsdata
    except ImportError as error:
        msg = "the demo's records are not installed"
        raise InputError(msg, hint="pip install 'wald[demo]'") from error
    from wald.cli.rehearsal import Rehearsal
    from wald.system import SystemClock

    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    records = list(airportsdata.load().values())
    say(f"wald demo: {len(records):,} airports, seed {seed}")
    with _directory(keep) as directory, _progress(len(records), show=not as_json) as progress:
        chance = random.Random(seed)  # noqa: S311 - decides when to kill
        result = Rehearsal(directory, records, SystemClock(), chance, progress).run()
    if as_json:
        print_json({"seed": seed, **result.as_dict()})
    else:
        _print(result)
    return 0 if result.balanced else EXIT_NO


@contextmanager
def _directory(keep: str | None) -> Iterator[Path]:
    if keep is None:
        path = Path(tempfile.mkdtemp(prefix="wald-demo-"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    path = Path(keep).absolute()
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        msg = f"{keep}: {error.strerror}"
        raise InputError(msg) from error
    yield path


@contextmanager
def _progress(total: int, *, show: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on a terminal, and the kills as they happen anywhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sending", total=total)

        def tell(done: int, what: str) -> None:
            bar.update(task, completed=done, description=what)
            if what.startswith("killed") and show:
                bar.console.print(f"  {done:>6,} records acknowledged: {what} with SIGKILL")

        yield tell


def _print(result: "Result") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    kills = Table(title="Killed with SIGKILL", title_justify="left")
    for head in ("process", "with in flight", "serving again after"):
        kills.add_column(head)
    for kill in result.kills:
        kills.add_row(kill.role, kill.interrupted or "nothing", f"{kill.back_after_s:.2f} s")
    console.print(kills)
    figures = Table(title="The books", title_justify="left", show_header=False)
    figures.add_column()
    figures.add_column(justify="right")
    route = result.route
    for name, value in (
        ("acknowledged", f"{result.records:,}"),
        ("accepted", f"{route['accepted']:,}"),
        ("= delivered", f"{route['delivered']:,}"),
        ("+ pending", f"{route['pending']:,}"),
        ("+ dead letters", f"{route['dead_letters']:,}"),
        ("rows in SQLite", f"{result.found:,}"),
        ("missing, doubled, changed", f"{result.missing}, {result.doubled}, {result.wrong}"),
        ("out of order", f"{result.out_of_order}"),
        ("acknowledged, before the first kill", f"{result.calm_rate:,.0f} records/s"),
        ("acknowledged, kills included", f"{result.records / result.append_s:,.0f} records/s"),
        ("delivered, kills included", f"{result.records / result.drained_s:,.0f} records/s"),
        ("all of it took", f"{result.drained_s:.1f} s"),
    ):
        figures.add_row(name, value)
    console.print(figures)
    text, style = _verdict(result)
    console.print(text, style=style)


def _verdict(result: "Result") -> tuple[str, str]:
    """Return what the run shows, and its style; a kill that did not come about is no loss."""
    from wald.cli.rehearsal import Kill

    if result.balanced:
        return "Every record is there once, as it was sent, in order.", "green"
    missed = sorted(set(_ROLES) - {kill.role for kill in result.kills})
    if missed and replace(result, kills=[Kill(role, 0, "") for role in _ROLES]).balanced:
        who = ", ".join(missed)
        text = f"Every record is there once, but {who} could not be killed in time: run it again."
        return text, "bold red"
    return "The books do not balance.", "bold red"
