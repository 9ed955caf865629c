"""A target that hangs, in whatever call, keeps nobody but its own route waiting."""

import threading
from dataclasses import replace

import pytest

from tests.backlog import Backlog, end, eventually
from wald.core.lanes import lane_of
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

    def read_row(self, key):
        self._hang_in("read_row")
        return super().read_row(key)

    def deliver(self, attempt):
        self._hang_in("deliver")
        return super().deliver(attempt)

    def probe(self, attempt, records):
        self._hang_in("probe")
        return super().probe(attempt, records)


@pytest.mark.parametrize("call", ["make", "read_row", "deliver", "probe"])
def test_a_target_that_hangs_delays_no_other_route(tmp_path, call):
    backlog = Backlog(tmp_path, "one", "two")
    stuck, good, free, hangs = RecordingTarget(), RecordingTarget(), threading.Event(), []
    stuck.refuses = lambda record: record.value == b"bad"

    def make(route, _):
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


def test_a_record_at_which_a_route_halts_parks_the_lane_of_its_key_only(tmp_path):
    backlog = Backlog(tmp_path, "one")
    route = replace(backlog.settings.routes["one"], lanes=3, on_reject="halt")
    backlog.settings = replace(backlog.settings, routes={"one": route})
    target = RecordingTarget()
    target.refuses = lambda record: record.value == b"bad"
    keys: list[str | bytes | None] = [f"k{n % 12}" for n in range(60)]
    values = [b"bad" if n == 30 else b"good" for n in range(60)]
    lsns = backlog.append(*values, keys=keys)
    parked = lane_of(keys[30], lsns[30], 3)
    others = [lsn for lsn, key in zip(lsns, keys, strict=True) if lane_of(key, lsn, 3) != parked]
    fleet = backlog.fleet(backlog.shared(lambda *_: RecordingSink(target)))

    def stands() -> bool:
        fleet.poll()
        figures = fleet.figures()["one"]
        return set(others) <= set(target.lsns) and figures["parked"] is not None

    try:
        eventually(stands, fleet.figures)
        figures = fleet.figures()["one"]
        assert (figures["parked"], str(keys[30]) in figures["last_error"]) == ("halted", True)
        assert figures["halted"] == [lsns[30]]
        assert figures["dead_letters"] == 0
        more = backlog.append(*[b"good"] * 24, keys=keys[:24])
        fleet.flush(backlog.log.frontier.lsn)
        fleet.routes[1].template.shared.board.pin(backlog.log.frontier)
        wanted = [
            lsn for lsn, key in zip(more, keys[:24], strict=True) if lane_of(key, lsn, 3) != parked
        ]
        eventually(lambda: set(wanted) <= set(target.lsns), fleet.figures)
        assert not [lsn for lsn in target.lsns if lsn in set(lsns[30:] + more) - {*others, *wanted}]
    finally:
        end(fleet)
        backlog.close()
