"""``wald torture``: the promise tried on a disk of the user's own, with a report and a picture."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wald.cli.options import Duration, json_option
from wald.cli.output import print_json, say
from wald.errors import EXIT_NO, InputError

if TYPE_CHECKING:
    from wald.cli.torturing import Report

_SOCKET_ROOM_CHARS = 90  # of a directory whose socket must have a name that fits


@click.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "--for",
    "seconds",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long there is load.",
)
@click.option(
    "--every",
    "every_s",
    type=Duration(),
    default="2s",
    show_default=True,
    help="Mean time between two blows.",
)
@click.option(
    "--stop-max",
    "stop_max_s",
    type=Duration(),
    default="15s",
    show_default=True,
    help="The longest that a process is stopped; beyond every timeout of a lane.",
)
@click.option(
    "--producers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many producers append.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 1_000_000),
    default=4_000,
    show_default=True,
    help="Records a second that they make together at most.",
)
@click.option(
    "--damage",
    type=click.IntRange(0, 1_000),
    default=0,
    show_default=True,
    help="So many bit flips and truncations of files at rest.",
)
@click.option("--seed", type=int, help="Let the same befall the same processes as in a run before.")
@json_option
def torture(
    directory: str,
    seconds: float,
    every_s: float,
    stop_max_s: float,
    producers: int,
    rate: int,
    damage: int,
    seed: int | None,
    *,
    as_json: bool,
) -> int:
    """Kill, stop and starve a daemon in DIR under load, and count every record afterwards.

    DIR must not exist: put it on the disk that you want to trust. Its processes are killed
    (SIGKILL), stopped (SIGSTOP), and run out of memory where this user may limit it; with --damage
    files at rest get flipped bits and are cut. At the end everything is delivered to SQLite,
    audited, and compared record by record. DIR keeps report.json, report.svg, data and target.
    Exit code 1 if an acknowledged record is missing, doubled, changed or out of order.

    A kill shows safety against crashes of processes only: the page cache survives it.
    """
    from wald.cli.torture_picture import draw
    from wald.cli.torturing import Plan, Torture
    from wald.system import SystemClock

    path = _made(directory)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    say(f"wald torture: {path}, {seconds:g} s, seed {seed}")
    plan = Plan(seconds, every_s, stop_max_s, producers, rate, damage)
    with _progress(seconds) as tell:
        chance = random.Random(seed)  # noqa: S311 - decides what befalls whom
        report = Torture(path, plan, SystemClock(), chance, tell).run()
    said = {"seed": seed, **report.as_dict()}
    (path / "report.json").write_text(json.dumps(said, indent=1) + "\n")
    (path / "report.svg").write_text(draw(report))
    if as_json:
        print_json({**said, "directory": str(path)})
    else:
        _print(report, path)
    return 0 if report.passed else EXIT_NO


def _made(directory: str) -> Path:
    path = Path(directory).absolute()
    if len(str(path)) > _SOCKET_ROOM_CHARS:
        msg = f"{path} is too long a name for a directory with a socket in it"
        raise InputError(msg, hint="name a shorter one")
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        msg = f"{directory}: {error.strerror}"
        raise InputError(msg, hint="name a directory that does not exist yet") from error
    return path


@contextmanager
def _progress(seconds: float) -> Iterator[Callable[[str, float], None]]:
    """Show a bar on a terminal, and the blows as they fall anywhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("under load", total=seconds)

        def tell(what: str, at_s: float) -> None:
            bar.update(task, completed=min(at_s, seconds))
            if what:
                bar.console.print(f"  {at_s:6.1f} s  {what}", highlight=False)

        yield tell


def _print(report: "Report", path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = [blow.kind for blow in report.blows]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "none"
    slowest = max((blow.back_after_s for blow in report.blows if blow.kind == "kill"), default=0.0)
    table = Table(title="Torture", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("under load", f"{report.seconds:.1f} s"),
        ("blows", counts),
        ("slowest to serve again after a kill", f"{slowest:.2f} s"),
        ("acknowledged", f"{report.acked:,}"),
        ("sent and not answered", f"{report.unanswered:,}"),
        ("rows in SQLite", f"{report.found:,}"),
        ("missing", f"{report.missing:,}"),
        ("lost to damage, each named in a report", f"{report.lost:,}"),
        ("doubled, never sent", f"{report.doubled:,}, {report.unsent:,}"),
        ("wrong LSN, out of order", f"{report.wrong_lsn:,}, {report.out_of_order:,}"),
    ):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    verdict = (
        ("Every acknowledged record is accounted for, once and in order.", "green")
        if report.passed
        else ("The books do not balance.", "bold red")
    )
    console.print(verdict[0], style=verdict[1])
    say(f"report: {path / 'report.svg'}")
