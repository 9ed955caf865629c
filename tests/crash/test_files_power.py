"""The files sink on a real file system whose power is cut behind each of its calls in turn."""

import subprocess
from pathlib import Path

import pytest

from tests.crash.power import Machine, machine
from tests.crash.test_power_cuts import _missing
from tests.unit.test_files_sink import Failing, Killed, hidden, lines, published
from tests.unit.test_sqlite_sink import KEY, A, B, attempt, record
from wald.model import Delivered, ProgressRow
from wald.sinks.files import make

CALLS_MAX = 120
SENT = [
    attempt(record(1, {"user": "a"}), record(2, {"user": "b"})),
    attempt(record(3, {"user": "a"}), record(4, {"user": "c"}), number=2, rev_id=B, prev=A),
]


class Cutting(Failing):
    """Cuts the power behind the n-th call, and ends the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, disk: Machine) -> None:
        super().__init__(monkeypatch, at, Killed(), behind=True)
        self.disk = disk

    def fire(self) -> None:
        self.disk.cut()
        super().fire()


def deliver_until_the_cut(disk: Machine, root: Path, at: int) -> tuple[list[object], bool]:
    """Deliver both batches; returns what was answered, and whether the power was cut meanwhile."""
    answers: list[object] = []
    sink = make("route", "events", {"path": str(root), "partitions": ["field:user"]})
    with pytest.MonkeyPatch.context() as patch:
        cutting = Cutting(patch, at, disk)
        try:
            for each in SENT:
                answers.append(sink.deliver(each))  # noqa: PERF401 - the first counts alone too
        except Killed:
            return answers, True
    assert not cutting.fired
    disk.cut()  # behind the last answer
    return answers, False


@pytest.mark.skipif(bool(_missing()), reason=_missing())
def test_a_batch_that_was_answered_survives_and_no_other_is_there_in_part() -> None:
    try:
        with machine() as disk:
            for at in range(1, CALLS_MAX):
                root = disk.mount / f"out{at}"
                answers, was_cut = deliver_until_the_cut(disk, root, at)
                disk.down()
                disk.up()
                check(root, answers)
                if not was_cut:
                    return
            pytest.fail("there are more calls than were tried")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine does not mount images: {error}")


def check(root: Path, answers: list[object]) -> None:
    assert answers == [Delivered()] * len(answers)
    sink = make("route", "events", {"path": str(root), "partitions": ["field:user"]})
    row = sink.read_row(KEY)
    applied = row.batch_no if isinstance(row, ProgressRow) else 0
    assert applied in {len(answers), len(answers) + 1}, "what was answered is durable"
    assert sorted(line["lsn"] for line in lines(root)) == list(range(1, 2 * applied + 1))
    for each in SENT[applied:]:
        assert sink.deliver(each) == Delivered()
    assert sorted(line["lsn"] for line in lines(root)) == [1, 2, 3, 4]
    assert len(published(root)) == 4
    assert hidden(root) == [".lock", ".row"]
