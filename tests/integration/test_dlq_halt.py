"""Poison: halting, quota, and the price of finding five bad records in a hundred thousand."""

import math
from dataclasses import replace

import pytest

from tests.backlog import Backlog, eventually
from tests.integration.test_dlq_redrive import books, desk_of, running
from tests.integration.test_drain import sink_of, values
from wald import limits
from wald.config import BatchSettings, DeadLetterSettings
from wald.errors import InputError
from wald.model import LaneKey, Systemic, SystemicKind
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


def configured(backlog, **changes):
    routes = {name: replace(route, **changes) for name, route in backlog.settings.routes.items()}
    backlog.settings = replace(backlog.settings, routes=routes)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.02)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("named", [False, True])
def test_a_halted_lane_sets_nothing_aside_and_goes_on_when_the_target_was_mended(backlog, named):
    configured(backlog, on_reject="halt")
    lsns = backlog.append(*values(30))
    bad = {lsns[13], lsns[17]}
    target = RecordingTarget(refuses=lambda record: record.lsn in bad, names=named)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: fleet.figures()["events"]["parked"] == "halted", fleet.figures)
        figures = fleet.figures()["events"]
        assert figures["last_error"].startswith(f"halted at LSN {lsns[13]}: ")
        assert "(1 more in the batch)" in figures["last_error"]
        assert figures["halted"] == sorted(bad)
        assert target.lsns == lsns[:10]  # in order: what follows waits behind it
        assert not shared.ledger.dead_letters(1)
        target.refuses = lambda _: False
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
        assert fleet.figures()["events"]["parked"] is None
        assert fleet.figures()["events"]["halted"] == []
    assert target.lsns == lsns


def test_a_person_lets_a_halted_lane_set_one_record_aside_then_the_other(backlog):
    configured(backlog, on_reject="halt")
    lsns = backlog.append(*values(30))
    bad = [lsns[13], lsns[17]]
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: fleet.figures()["events"]["parked"] == "halted", fleet.figures)
        desk = desk_of(fleet)
        with pytest.raises(InputError, match="stops at refused records at LSN 999"):
            desk.ask("drain.dlq.set_aside", route="events", lsns=[999])
        answer = desk.ask("drain.dlq.set_aside", route="events", lsns=bad[:1])
        assert answer["lsns"] == bad[:1]
        eventually(lambda: fleet.figures()["events"]["halted"] == bad[1:], fleet.figures)
        assert not shared.ledger.dead_letters(1)
        assert desk.ask("drain.dlq.set_aside", route="events")["lsns"] == bad[1:]
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        with pytest.raises(InputError, match="route 'events' stops at refused records"):
            desk.ask("drain.dlq.set_aside", route="events")
    assert target.lsns == [lsn for lsn in lsns if lsn not in bad]
    assert not shared.ledger.allowed_aside(LaneKey(backlog.log.log_id, 1, 0, 0))


def test_what_a_person_allowed_outlives_the_drainer(backlog):
    configured(backlog, on_reject="halt")
    lsns = backlog.append(*values(30))
    target = RecordingTarget(refuses=lambda record: record.lsn == lsns[13])
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: fleet.figures()["events"]["parked"] == "halted", fleet.figures)
    shared.ledger.allow_aside(LaneKey(backlog.log.log_id, 1, 0, 0), [lsns[13]], 1)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)


@pytest.mark.parametrize("named", [False, True])
def test_a_person_says_that_most_records_are_bad_and_they_are_set_aside_those_only(backlog, named):
    lsns = backlog.append(*values(300))
    bad = set(lsns[20:280])
    target = RecordingTarget(refuses=lambda record: record.lsn in bad, names=named)
    shared = backlog.shared(sink_of(target))

    def waits():
        return fleet.figures()["events"]["last_error"].startswith("too-many-rejects")

    with running(backlog, shared) as fleet:
        eventually(waits, fleet.figures)
        before = books(fleet)[1]
        desk = desk_of(fleet)
        with pytest.raises(InputError, match="stops at refused records at LSN 999"):
            desk.ask("drain.dlq.set_aside", route="events", lsns=[999])  # not this one alone
        answer = desk.ask("drain.dlq.set_aside", route="events")
        assert answer == {"lsns": [], "through_lsn": lsns[-1]}
        eventually(lambda: books(fleet) == (40, 260, 0), fleet.figures)
        assert before <= limits.REJECT_GUARD_RECORDS
        assert target.lsns == [lsn for lsn in lsns if lsn not in bad]
        # what comes later is judged anew: few of these are an outage again, one alone is not
        bad |= {lsns[-1] + 1}
        later = backlog.append(*values(150))
        assert later[0] in bad
        shared.board.pin(backlog.log.frontier)
        eventually(lambda: books(fleet) == (189, 261, 0), fleet.figures)
        bad |= set(range(later[-1] + 1, later[-1] + 201))
        backlog.append(*values(200))
        shared.board.pin(backlog.log.frontier)
        eventually(waits, fleet.figures)
    assert len(shared.ledger.dead_letters(1)) < 261 + limits.REJECT_GUARD_RECORDS


@pytest.mark.usefixtures("soon")
def test_a_halted_route_harms_no_other(two):
    configured(two, on_reject="halt")
    ours = two.append(*values(20), stream=1)
    theirs = two.append(*values(20), stream=2)
    targets = {
        "one": RecordingTarget(refuses=lambda record: record.lsn == ours[3]),
        "two": RecordingTarget(),
    }
    shared = two.shared(lambda route, _: RecordingSink(targets[route.name]))
    with running(two, shared) as fleet:
        eventually(lambda: fleet.figures()["one"]["parked"] == "halted", fleet.figures)
        eventually(lambda: targets["two"].lsns == theirs, fleet.figures)
    assert targets["one"].lsns == []


def test_a_redrive_that_is_refused_again_does_not_halt_the_lane(backlog):
    lsns = backlog.append(*values(20))
    target = RecordingTarget(refuses=lambda record: record.lsn == lsns[3])
    shared = backlog.shared(sink_of(target))
    backlog.deliver_all(shared)
    configured(backlog, on_reject="halt")
    key = LaneKey(backlog.log.log_id, 1, 0, 0)
    shared.ledger.ask_redrive(1, [lsns[3]], "", 1)
    with running(backlog, shared) as fleet:
        eventually(lambda: not shared.ledger.count_redrives(key), fleet.figures)
        eventually(lambda: books(fleet) == (19, 1, 0), fleet.figures)
        assert fleet.figures()["events"]["parked"] is None


def test_a_purge_makes_room_under_a_full_quota_at_once(backlog):
    configured(backlog, dead_letters=DeadLetterSettings(quota_records=2, alarm_records=2))
    lsns = backlog.append(*values(40))
    bad = {lsns[1], lsns[12], lsns[22]}
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: fleet.figures()["events"]["parked"] == "dead-letter-quota")
        assert fleet.figures()["events"]["alarm"] == "dead-letters"
        assert books(fleet) == (18, 2, 0)
        desk_of(fleet).ask("drain.dlq.purge", route="events", lsns=[lsns[1]])
        eventually(lambda: books(fleet) == (37, 2, 1), fleet.figures)
        desk_of(fleet).ask("drain.dlq.purge", route="events", lsns=[lsns[12]])
        eventually(lambda: books(fleet) == (37, 1, 2), fleet.figures)
        assert "alarm" not in fleet.figures()["events"]


# --- five in a hundred thousand -----------------------------------------------------------------


def test_five_bad_records_in_100_000_are_found_within_the_bound_and_an_outage_makes_no_more(
    place,
):
    """A target that names none: 99,995 delivered, 5 dead letters, O(k log n) probes."""
    backlog = Backlog(place, "events", batch=2_000)
    configured(backlog, batch=BatchSettings(2_000, 1 << 20, 0.05, adaptive=False))
    lsns = [
        lsn for start in range(0, 100_000, 2_000) for lsn in backlog.append(*values(2_000, start))
    ]
    bad = {lsns[at] for at in (7, 1_999, 50_123, 50_124, 99_999)}
    target = RecordingTarget(refuses=lambda record: record.lsn in bad, names=False)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (99_995, 5, 0), fleet.figures, timeout_s=60.0)
        # each culprit: a bisection of its batch, one probe of what is left behind it
        per_culprit = math.ceil(math.log2(2_000)) + 2
        assert target.probes <= len(bad) * per_culprit + 3
        assert len(target.attempts) <= 50 + 3
        assert [letter.lsn for letter in shared.ledger.dead_letters(1)] == sorted(bad)
        assert target.lsns == [lsn for lsn in lsns if lsn not in bad]

        more = backlog.append(*values(2_000, 100_000))
        worse = {more[100], more[1_500]}
        probes = target.probes

        def falls(record):
            if target.probes > probes + 5:  # in the middle of the bisection
                target.down = DOWN
            return record.lsn in worse

        target.refuses = falls
        shared.board.pin(backlog.log.frontier)
        fleet.flush(backlog.log.frontier.lsn)
        eventually(lambda: target.down is not None, fleet.figures)
        seen = len(target.attempts)
        eventually(lambda: "it is down" in fleet.figures()["events"]["last_error"], fleet.figures)
        assert books(fleet) == (99_995, 5, 0)
        assert len(shared.ledger.dead_letters(1)) == 5
        assert len(target.attempts) <= seen + 1
        target.refuses, target.down = (lambda record: record.lsn in worse), None
        eventually(lambda: books(fleet) == (101_993, 7, 0), fleet.figures, timeout_s=60.0)
    backlog.close()
