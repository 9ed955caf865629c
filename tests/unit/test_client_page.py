"""docs/reference/client.md names what there is, and its bounds are those of the code."""

import re
from pathlib import Path

import wald
from wald import limits

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "client.md").read_text()


def test_each_method_of_a_producer_has_a_row():
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+)(?:\(|`)", rows))
    methods = {name for name in dir(wald.Producer) if not name.startswith("_")}
    assert methods - named == {"append_request", "is_closed"}  # for append --once; tells itself


def test_the_bounds_are_those_of_the_code():
    together_kib = limits.SUBMIT_TOGETHER_BYTES >> 10
    said = {
        f"{limits.APPEND_TIMEOUT_S:g} s": "timeout",
        f"no more than {limits.SUBMIT_AT_ONCE_REQUESTS} requests": "at once",
        f"up to {limits.SUBMIT_TOGETHER_RECORDS}, or {together_kib} KiB": "together",
        f"{limits.WINDOW_REQUESTS} requests, {limits.GROUP_MAX_BYTES >> 20} MiB": "window",
        f"{limits.CLOSE_TIMEOUT_S:g} s at most": "close",
        f"{limits.EXIT_TIMEOUT_S:g} s for all": "exit",
        f"{limits.LOGGING_BUDGET_S * 1000:g} ms at most": "logging",
    }
    assert [why for text, why in said.items() if text not in PAGE] == []
