"""A target that hangs, in whatever call, keeps nobody but its own route waiting."""

import threading
from pathlib import Path

import pytest

from tests.backlog import Backlog, end, eventually
from wald.testing.recording_sink import RecordingSink, RecordingTarget


class Hanging(RecordingSink):
    """Hangs in one call until it is set free; before that, and behind it, a recording sink."""

    def __init__(self, target: RecordingTarget, call: str, free: threading.Event) -> None:
        super().__init__(target)
        self.hangs = threading.Event()
        self._call = call
        self._free = free

    def _hang_in(self, call: str) -> None:
        if call == self._call:
            self.hangs.set()
            self._free.wait(8.0)

    def read_row(self, key):  # type: ignore[no-untyped-def]
        self._hang_in("read_row")
        return super().read_row(key)

    def deliver(self, attempt):  # type: ignore[no-untyped-def]
        self._hang_in("deliver")
        return super().deliver(attempt)

    def probe(self, attempt, records):  # type: ignore[no-untyped-def]
        self._hang_in("probe")
        return super().probe(attempt, records)


@pytest.mark.parametrize("call", ["make", "read_row", "deliver", "probe"])
def test_a_target_that_hangs_delays_no_other_route(tmp_path: Path, call: str) -> None:
    backlog = Backlog(tmp_path, "one", "two")
    stuck, good, free, hangs = RecordingTarget(), RecordingTarget(), threading.Event(), []
    stuck.refuses = lambda record: record.value == b"bad"

    def make(route, _):  # type: ignore[no-untyped-def]
        if route.name == "two":
            return RecordingSink(good)
        sink = Hanging(stuck, call, free)
        hangs.append(sink.hangs)
        if call == "make":
            sink.hangs.set()
            free.wait(8.0)
        return sink

    bad = backlog.append(b"bad", *[b"good"] * 4, stream=1)
    shared = backlog.shared(make)
    fleet = backlog.fleet(shared)
    try:
        eventually(lambda: any(each.is_set() for each in hangs), fleet.figures)
        sent = []
        for _ in range(5):  # what comes while it hangs
            sent += backlog.append(*[b"v"] * 20, stream=2)
            shared.board.pin(backlog.log.frontier)
            fleet.flush(backlog.log.frontier.lsn)
            fleet.poll()
        eventually(lambda: good.lsns == sent, fleet.figures)
        assert fleet.figures()["one"]["delivered"] == 0
        free.set()
        eventually(lambda: stuck.lsns == bad[1:], fleet.figures)
        assert fleet.figures()["two"]["delivered"] == len(sent)
    finally:
        free.set()
        end(fleet)
        backlog.close()
