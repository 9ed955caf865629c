"""The long run: its steps can be done, and what was done before is left out."""

import argparse
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

from tests.crash.notebook import Unit, work_off
from tests.crash.torture import steps

ROOT = Path(__file__).parents[2]


def test_each_step_has_a_name_of_its_own_and_a_command_that_exists(tmp_path: Path) -> None:
    every = list(steps(tmp_path, 1, 1.0))
    assert max(Counter(step.name for step in every).values()) == 1
    for step in every:
        assert importlib.util.find_spec(step.command[0]), step
        for argument in step.command:
            assert not argument.startswith("tests/") or (ROOT / argument).exists(), step


def test_fewer_of_everything_is_no_step_less_than_one_of_each(tmp_path: Path) -> None:
    full, least = ({step.what for step in steps(tmp_path, 1, share)} for share in (1.0, 0.001))
    assert least == full


def work(name: str, place: Path) -> dict[str, Any]:
    """Leave a line behind; wrong where there is a file that says so."""
    with (place / name).open("a") as lines:
        lines.write("done\n")
    return {"wrong": ["as it was told"] if (place / f"{name} is wrong").exists() else []}


def test_what_was_right_is_left_out_the_next_time_and_what_was_wrong_is_not(tmp_path: Path) -> None:
    units = [Unit(name, work, (name, tmp_path)) for name in ("one", "two", "three")]
    chosen = argparse.Namespace(workers=2, minutes=0.0, notes=tmp_path / "notes.jsonl")
    (tmp_path / "two is wrong").touch()
    first = {unit.name: said for unit, said in work_off(units, chosen)}
    assert [name for name, said in first.items() if said and said["wrong"]] == ["two"]
    with chosen.notes.open("a") as lines:
        lines.write('\n{"unit": "three", "wro')  # the run was killed in the middle of a line
    (tmp_path / "two is wrong").unlink()
    second = {unit.name: said for unit, said in work_off(units, chosen)}
    assert all(said is not None and not said["wrong"] for said in second.values())
    assert all(said is not None for _, said in work_off(units, chosen))
    times = {name: len((tmp_path / name).read_text().splitlines()) for name in first}
    assert times == {"one": 1, "two": 2, "three": 1}


def test_an_error_of_a_unit_is_what_is_wrong_with_it(tmp_path: Path) -> None:
    chosen = argparse.Namespace(workers=1, minutes=0.0, notes=None)
    unit = Unit("nowhere", work, ("a name", tmp_path / "that is not there"))
    (said,) = (said for _, said in work_off([unit], chosen))
    assert said is not None
    assert "FileNotFoundError" in said["wrong"][0]
