"""What a long run has done, line by line in a file: begun again, it goes on where it was stopped.

A line is what came of one unit of work: ``{"unit": name, ...}``. A unit in which something was
wrong is not done: it is met again.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """One piece of work: ``name`` tells it from the others in every run with the same options."""

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class Notebook:
    """The units that are done, of this run and of those before it.

    Args:
        path: where they stand; without it nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # cut by who stopped the run
                    said = json.loads(line)
                    self._done[said["unit"]] = said

    def kept(self, name: str) -> dict[str, Any] | None:
        """Return what came of a unit, right or wrong; None if it was never done."""
        return self._done.get(name)

    def note(self, name: str, said: dict[str, Any]) -> None:
        """Keep what came of a unit; ``said["wrong"]`` is a list."""
        self._done[name] = {"unit": name, **said}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as lines:
                lines.write("\n" + json.dumps(self._done[name]))  # behind what may be cut


def add_options(parser: argparse.ArgumentParser, workers: int) -> None:
    """Add what every long run can be told."""
    parser.add_argument("--workers", type=int, default=workers, help="processes at work at once")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin nothing behind them")
    parser.add_argument("--notes", type=Path, help="keep here what is done; leave it out next time")


def is_right(_: Unit, said: dict[str, Any]) -> bool:
    """Tell whether nothing was wrong."""
    return not said["wrong"]


def work_off(
    units: Iterable[Unit],
    chosen: argparse.Namespace,
    right: Callable[[Unit, dict[str, Any]], bool] = is_right,
) -> Iterator[tuple[Unit, dict[str, Any] | None]]:
    """Yield each unit with what came of it, in any order; None: there was no time for it.

    Args:
        units: what is to be done; begun in this order.
        chosen: see ``add_options``.
        right: whether what came of a unit stays; else it is met again.
    """
    notes, todo = Notebook(chosen.notes), list[Unit]()
    for unit in units:
        said = notes.kept(unit.name)
        if said is not None and right(unit, said):
            yield unit, said
        else:
            todo.append(unit)
    end_s = time.monotonic() + chosen.minutes * 60 if chosen.minutes else float("inf")
    with ProcessPoolExecutor(chosen.workers) as pool:
        at_work: dict[Future[dict[str, Any] | None], Unit] = {
            pool.submit(_in_time, unit, end_s): unit for unit in todo
        }
        try:
            for future in as_completed(at_work):
                unit, said = at_work[future], future.result()
                if said is not None:
                    notes.note(unit.name, said)
                yield unit, said
        finally:
            pool.shutdown(cancel_futures=True)


def _in_time(unit: Unit, end_s: float) -> dict[str, Any] | None:
    if time.monotonic() > end_s:
        return None
    try:
        return unit.work(*unit.arguments)
    except Exception as error:  # noqa: BLE001 - whatever it was, the unit is not done
        return {"wrong": [f"{type(error).__name__}: {error}"[:2000]]}
