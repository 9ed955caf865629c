"""The 336,776 flights that left New York City in 2013, as typed maps of 19 fields."""

import csv
import lzma
import os
from pathlib import Path

NUMBERS = frozenset(
    [
        "year",
        "month",
        "day",
        "dep_time",
        "sched_dep_time",
        "dep_delay",
        "arr_time",
        "sched_arr_time",
        "arr_delay",
        "flight",
        "air_time",
        "distance",
        "hour",
        "minute",
    ]
)
COLUMNS = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
]
TABLE = (
    "create table flights ("
    + ", ".join(f"{name} {'integer' if name in NUMBERS else 'text'}" for name in COLUMNS)
    + ")"
)


def find() -> Path:
    """The data set: WALD_TEST_DATA, or beside the checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    places = [os.environ.get("WALD_TEST_DATA", ""), str(Path(__file__).parents[2] / "shared/data")]
    for place in places:
        if place and (path := Path(place) / "flights.csv.xz").exists():
            return path
    message = "flights.csv.xz is not there: name its directory in WALD_TEST_DATA"
    raise FileNotFoundError(message)


def read() -> list[dict[str, int | str | None]]:
    """Read all flights; NA is None, numbers are int."""
    with lzma.open(find(), "rt", newline="") as lines:
        return [
            {
                name: None if text == "NA" else int(text) if name in NUMBERS else text
                for name, text in row.items()
            }
            for row in csv.DictReader(lines)
        ]
