"""A target or a ledger that went back in time is healed: real SQLite files, copied and put back."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backlog import FS, OWNER, end, eventually
from tests.healing import Site
from tests.logtools import SMALL
from wald import limits
from wald.core.healing import from_numbers
from wald.core.state import stream_opened
from wald.drainer import takeover
from wald.drainer.answers import Answers
from wald.errors import InputError
from wald.model import Delivered, RowMoved
from wald.storage.lmdb_store import open_ledger
from wald.storage.owner import load_owner


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(limits, "REREAD_S", 0.02)
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.02)
    monkeypatch.setattr(limits, "REWIND_PAUSE_S", 0.02)


@pytest.fixture
def site(place):
    made = Site(place)
    yield made
    made.close()


def delivered(site, count):
    site.append(count)
    site.wait_whole()


def take_over(site, code="diverged"):
    site.wait_parked(code)
    said = Answers(site.fleet, site.shared.board).answer(
        {"op": "drain.takeover", "route": "events"}
    )
    assert said == {"route": "events", "parked": [code]}


# --- the target -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_restored_target_gets_again_what_it_forgot(site, loaded, times):
    with site.delivering():
        delivered(site, 10)
        copy = site.copy_target()
        delivered(site, 15)
        with site.under_load() if loaded else nullcontext():
            for _ in range(times):
                site.restore_target(copy)
                eventually(lambda: len(site.held()) > 20, site.figures)
        site.wait_whole()
        note = from_numbers(site.figures()["policy"]["healing"])
        assert note is not None
        assert note.went_back
        assert note.done_ns


def test_a_target_that_is_restored_while_it_is_healed_is_healed(site):
    with site.delivering():
        copies = []
        for number in range(4):
            delivered(site, 8)
            copies.append(site.copy_target(f"backup{number}"))
        delivered(site, 8)
        for copy in (copies[2], copies[0], copies[1], copies[3], copies[0]):
            behind = len(site.lsns)
            site.restore_target(copy)
            eventually(lambda: 0 < len(site.held()) <= behind)  # noqa: B023 - used in this round
            site.append(1)
        site.wait_whole()


def test_a_target_that_lost_everything_is_filled_from_the_birth_of_the_route(site):
    with site.delivering():
        delivered(site, 12)
        nothing = site.place / "nothing"
        nothing.mkdir()
        site.restore_target(nothing)
        site.wait_whole()


@pytest.mark.parametrize("landing", ["before", "behind", "twice"])
def test_a_commit_that_lands_behind_a_restore_is_adopted_or_takes_no_effect(site, landing):
    with site.delivering() as fleet:
        delivered(site, 10)
        copy = site.copy_target()
        site.delayed = 1
        site.append(4)
        eventually(lambda: bool(site.late))
        late = list(site.late)
        if landing == "before":  # it lands on the restored target, before the lane looks at it
            end(fleet)
            site.restore_target(copy)
            assert [type(each) for each in site.land()] == [Delivered]
    if landing == "before":
        with site.delivering():
            site.wait_whole()
        return
    with site.delivering():
        site.wait_whole()
        site.restore_target(copy)
        site.wait_whole()
        site.late = late
        assert [type(each) for each in site.land()] == [RowMoved]
        if landing == "twice":
            site.restore_target(copy)
            site.late = late
            site.land()
        site.wait_whole()


@pytest.mark.parametrize("what", ["target", "ledger", "both"])
def test_each_lane_of_a_route_is_healed_by_itself(place, what):
    site = Site(place, lanes=3)
    with site.delivering():
        delivered(site, 20)
    ledger, target = site.copy_ledger(), site.copy_target()
    with site.delivering():
        delivered(site, 20)
    if what != "target":
        site.restore_ledger(ledger)
    if what != "ledger":
        site.restore_target(target)
    with site.delivering():
        with site.under_load():
            eventually(lambda: len(site.held()) > 45, site.figures)
        site.wait_whole()
    site.close()


def test_a_target_that_goes_back_behind_a_change_of_lanes_is_healed(place):
    site = Site(place, lanes=2)
    with site.delivering():
        delivered(site, 10)
        copy = site.copy_target()
        delivered(site, 10)
    routes = site.backlog.settings.routes
    more = {"events": replace(routes["events"], lanes=3)}
    site.backlog.settings = replace(site.backlog.settings, routes=more)
    with site.delivering() as fleet:

        def changed():
            fleet.poll()  # as the main thread does, round by round
            return fleet.routes[1].layout.number == 1

        def filled():
            fleet.poll()
            return len(site.held()) == 30

        site.append(10)
        eventually(changed, site.figures)
        site.wait_whole()
        site.restore_target(copy)
        eventually(filled, site.figures)
        site.wait_whole()
    site.close()


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True])
def test_a_ledger_that_is_older_than_the_target_sends_nothing_again(site, loaded):
    with site.delivering():
        delivered(site, 10)
    copy = site.copy_ledger()
    with site.delivering():
        delivered(site, 15)
    site.restore_ledger(copy)
    with site.delivering():
        with site.under_load() if loaded else nullcontext():
            eventually(lambda: site.figures()["delivered"] >= 25, site.figures)
        site.wait_whole()


def test_a_ledger_that_is_gone_is_made_anew_from_the_target_and_the_log(site):
    with site.delivering():
        delivered(site, 25)
    shutil.rmtree(Path(site.backlog.data_dir) / "ledger")
    with site.delivering():
        site.wait_whole()


@pytest.mark.parametrize("newer", ["target", "ledger"])
@pytest.mark.parametrize("loaded", [False, True])
def test_target_and_ledger_may_both_be_restored(site, newer, loaded):
    with site.delivering():
        delivered(site, 6)
    ledger, target = site.copy_ledger(), site.copy_target()
    with site.delivering():
        delivered(site, 7)
    if newer == "target":
        target = site.copy_target()
    else:
        shutil.rmtree(ledger)
        ledger = site.copy_ledger()
    with site.delivering():
        delivered(site, 9)
    site.restore_ledger(ledger)
    site.restore_target(target)
    with site.delivering():
        with site.under_load() if loaded else nullcontext():
            eventually(lambda: len(site.held()) >= 22, site.figures)
        site.wait_whole()


def test_a_commit_that_lands_behind_a_restore_of_the_ledger_is_adopted(site):
    with site.delivering():
        delivered(site, 10)
    copy = site.copy_ledger()
    with site.delivering():
        site.delayed = 1_000_000
        site.append(3)
        eventually(lambda: bool(site.late))
    site.delayed = 0
    first = site.late[0]
    site.restore_ledger(copy)
    with site.delivering():
        site.late = [first]
        site.land()
        site.wait_whole()


# --- the log no longer holds it -------------------------------------------------------------------


@pytest.fixture
def retiring(place):
    made = Site(place, options=SMALL)
    yield made
    made.close()


def retire(site, count):
    """Take the oldest segments away, as retirement does."""
    segments = sorted((Path(site.backlog.data_dir) / "log").glob("seg-*.wal"))
    for path in segments[:count]:
        path.unlink()
    site.released = site.lsns[-1]


def test_what_the_log_no_longer_holds_parks_the_lane_until_the_target_fits(retiring):
    site = retiring
    with site.delivering():
        delivered(site, 8)
        old = site.copy_target("old")
        delivered(site, 45)
        newer = site.copy_target("newer")
        delivered(site, 8)
        retire(site, 2)
        site.restore_target(old)
        site.wait_parked("target-behind")
        error = site.figures()["last_error"]
        assert f"through LSN {site.lsns[7]}" in error
        assert f"through LSN {site.lsns[-1]}" in error
        site.append(3)  # they wait
        site.restore_target(newer)
        site.wait_whole()
        assert site.figures()["parked"] is None


def test_what_the_log_no_longer_holds_is_given_up_by_a_person_as_dead_letters(retiring):
    site = retiring
    with site.delivering():
        delivered(site, 8)
        old = site.copy_target("old")
        delivered(site, 50)
        retire(site, 2)
        site.restore_target(old)
        take_over(site, "target-behind")
        eventually(lambda: bool(site.letters()), site.figures)
        (letter,) = site.letters()
        lost = [lsn for lsn in site.lsns if letter.lsn <= lsn <= letter.through_lsn]
        assert letter.code == "damaged"
        assert letter.lsn == site.lsns[8]
        assert 10 < len(lost) < 50
        site.wait_whole(*lost)


def test_an_older_ledger_is_counted_by_the_log_also_where_it_let_go_of_what_lies_between(retiring):
    site = retiring
    with site.delivering():
        delivered(site, 5)
    copy = site.copy_ledger()
    with site.delivering():
        delivered(site, 50)
    retire(site, 2)
    site.restore_ledger(copy)
    with site.delivering():
        site.wait_whole()
        delivered(site, 2)


# --- dead letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mended", [False, True])
def test_a_restore_that_forgets_an_exclusion_takes_its_dead_letter_back(site, mended):
    with site.delivering():
        delivered(site, 6)
        bad = site.lsns[-1] + 2
        site.refuse(*(() if mended else (bad,)))
        copy = site.copy_target()
        site.refuse(bad)
        site.append(6)
        site.wait_whole(bad)
        site.restore_target(copy)
        site.wait_whole(*(() if mended else (bad,)))
        assert [letter.lsn for letter in site.letters()] == ([] if mended else [bad])


@pytest.mark.parametrize("ledger", ["kept", "older", "gone"])
def test_a_restore_that_forgets_a_redrive_brings_the_dead_letters_back(site, ledger):
    with site.delivering():
        delivered(site, 6)
        bad = [site.lsns[-1] + 2, site.lsns[-1] + 5]
        site.refuse(*bad)
        site.append(6)
        site.wait_whole(*bad)
        said = site.letters()
        before_redrive = site.copy_target("before")
    older = site.copy_ledger()
    with site.delivering():
        site.refuse()
        site.redrive(*bad)
        site.wait_whole()
        delivered(site, 4)
    if ledger == "older":
        site.restore_ledger(older)
    if ledger == "gone":
        shutil.rmtree(Path(site.backlog.data_dir) / "ledger")
    site.restore_target(before_redrive)
    with site.delivering():
        site.wait_whole(*bad)
        assert site.letters() == said  # reason, words, attempts, body: all of it
        site.refuse()
        site.redrive(*bad)
        site.wait_whole()
        assert site.letters() == []


def test_a_purged_letter_does_not_come_back(site):
    with site.delivering():
        delivered(site, 3)
        bad = [site.lsns[-1] + 1, site.lsns[-1] + 2]
        site.refuse(*bad)
        site.append(5)
        site.wait_whole(*bad)
        copy = site.copy_target()
        site.purge(bad[0])
        site.append(5)
        site.wait_whole(*bad)
        site.restore_target(copy)
        site.wait_whole(*bad)
        assert [letter.lsn for letter in site.letters()] == bad[1:]
        assert (site.figures()["dead_letters"], site.figures()["purged"]) == (1, 1)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("restored", ["target", "ledger", "both"])
@pytest.mark.parametrize("where", ["below the row", "above the row"])
def test_what_damage_took_is_counted_once_whatever_goes_back(site, restored, where):
    with site.delivering():
        delivered(site, 6)
    ledger, target = site.copy_ledger(), site.copy_target()
    site.append(3)
    lost = damage(site, 7)
    with site.delivering():
        site.append(4)
        site.wait_whole(*lost)
    if where == "below the row":
        shutil.rmtree(ledger)
        ledger, target = site.copy_ledger(), site.copy_target()
        with site.delivering():
            site.append(4)
            site.wait_whole(*lost)
    if restored in {"ledger", "both"}:
        site.restore_ledger(ledger)
    if restored in {"target", "both"}:
        site.restore_target(target)
    with site.delivering():
        site.wait_whole(*lost)
        (letter,) = site.letters()
        assert (letter.code, letter.records) == ("damaged", 1)


def test_a_record_that_was_set_aside_and_then_lost_stays_in_the_chain_with_its_body(site):
    with site.delivering():
        delivered(site, 6)
        first, second = site.lsns[-1] + 1, site.lsns[-1] + 2
        site.refuse(first)
        site.delays = lambda attempt: all(record.lsn != first for record in attempt.records)
        site.append(4)
        eventually(lambda: bool(site.late))
    damage(site, 6)
    site.refuse(first, second)
    site.delays = lambda _: False
    site.delayed = 0
    with site.delivering():
        site.wait_whole(first, second)
        said = site.letters()
        assert [letter.code for letter in said] == [said[0].code] * 2
    shutil.rmtree(Path(site.backlog.data_dir) / "ledger")
    with site.delivering():
        site.wait_whole(first, second)
        assert site.letters() == said


def damage(site, index):
    """Spoil a record where it stands in the log."""
    value = b"%05d" % index
    (path,) = [
        path
        for path in (Path(site.backlog.data_dir) / "log").glob("seg-*.wal")
        if value in path.read_bytes()
    ]
    path.write_bytes(path.read_bytes().replace(value, b"\xff" * len(value)))
    return [site.lsns[index]]


# --- a person is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["resume", "takeover"])
def test_with_on_rewind_park_a_person_is_asked_before_anything_is_sent_again(place, command):
    site = Site(place, on_rewind="park")
    with site.delivering() as fleet:
        delivered(site, 10)
        copy = site.copy_target()
        delivered(site, 10)
        site.restore_target(copy)
        site.wait_parked("target-went-back")
        site.append(2)
        assert len(site.held()) == 10
        if command == "resume":
            assert fleet.resume(1)
        else:
            answers = Answers(fleet, site.shared.board)
            said = answers.answer({"op": "drain.takeover", "route": "events"})
            assert said == {"route": "events", "parked": ["target-went-back"]}
        site.wait_whole()
        site.restore_target(copy)  # one decision is for once
        site.wait_parked("target-went-back")
    site.close()


def test_takeover_is_for_a_route_that_waits_for_it(site):
    with site.delivering() as fleet:
        delivered(site, 3)
        answers = Answers(fleet, site.shared.board)
        for name in ("events", "no", None):
            with pytest.raises(InputError):
                answers.answer({"op": "drain.takeover", "route": name})


# --- owners ---------------------------------------------------------------------------------------


def test_a_new_owner_touches_nothing_until_a_person_takes_the_route_over(site):
    with site.delivering():
        delivered(site, 10)
    site.owner += 1  # the directory was moved, or its file 'owner' is gone
    with site.delivering():
        site.append(5)
        site.wait_parked("diverged")
        assert len(site.held()) == 10
        take_over(site)
        site.wait_whole()
    with site.delivering():  # durably
        delivered(site, 5)
    site.owner -= 1  # and who was the owner before is parked at the next attempt
    with site.delivering():
        site.append(1)
        site.wait_parked("diverged")


def test_an_idle_route_is_taken_over_where_it_stands_though_the_log_let_go_of_its_last_record(
    retiring, monkeypatch
):
    monkeypatch.setattr(limits, "ADVANCE_EVERY_S", 0.02)
    site = retiring
    with site.delivering():
        delivered(site, 8)
        site.backlog.log.append_group([stream_opened(2, "foreign")])
        foreign = [site.backlog.append(b"%05d" % 0, stream=2)[0] for _ in range(60)]
        site.shared.board.pin(site.backlog.log.frontier)
        eventually(
            lambda: site.shared.ledger.lane(site.key).checkpoint.lsn >= foreign[-1], site.figures
        )
    retire(site, 2)
    site.released = foreign[-1]
    site.owner += 1
    with site.delivering():
        take_over(site)
        site.append(3)
        site.wait_whole()
        assert not site.letters()


@pytest.mark.parametrize("first", ["pause", "takeover"])
def test_a_takeover_and_a_pause_at_once_are_both_kept(site, first):
    """Nothing moves the row while the route is held back; behind that it is taken over."""
    with site.delivering():
        delivered(site, 10)
    site.owner += 1
    with site.delivering() as fleet:
        site.append(5)
        site.wait_parked("diverged")
        if first == "pause":
            fleet.pause(site.key.route_id)
            take_over(site)
            take_over(site)  # twice is once
            assert len(site.held()) == 10
        else:
            take_over(site)
            fleet.pause(site.key.route_id)
        assert fleet.resume(site.key.route_id)
        site.wait_whole()


def test_a_decision_made_with_no_drainer_at_work_is_carried_out_at_the_next_start(site):
    with site.delivering():
        delivered(site, 10)
    site.owner += 1
    ledger = open_ledger(FS, site.backlog.data_dir, site.backlog.log.log_id)
    assert takeover.decide_by_name(ledger, "events", site.owner, 5).route_id == 1
    with pytest.raises(InputError):
        takeover.decide_by_name(ledger, "no", site.owner, 5)
    ledger.close()
    with site.delivering():
        delivered(site, 3)


def test_a_copied_directory_is_parked_until_a_person_decides_which_of_two_goes_on(site):
    ours = site
    ours.owner = load_owner(FS, ours.backlog.data_dir, ours.backlog.chance).value
    with ours.delivering():
        delivered(ours, 10)
    theirs = ours.copied()
    assert theirs.owner != ours.owner
    with ours.delivering():
        delivered(ours, 5)
    with theirs.delivering():
        theirs.append(3)
        theirs.wait_parked("diverged")
        assert len(ours.held()) == 15  # no row was touched
        take_over(theirs)
        everything = [(lsn,) for lsn in [*ours.lsns, *theirs.lsns[10:]]]
        eventually(lambda: ours.held() == everything, theirs.figures)
        eventually(lambda: theirs.figures()["delivered"] == 13, theirs.figures)
    with ours.delivering():
        ours.append(2)
        ours.wait_parked("diverged")  # by the new owner at the target
        take_over(ours)
        eventually(lambda: ours.figures()["dead_letters"] == 2, ours.figures)
        assert [letter.code for letter in ours.letters()] == ["diverged"] * 2
        assert ours.held() == everything  # nobody can tell whether they were there: they are kept
        ours.redrive(*ours.lsns[-2:])
        ours.append(1)
        everything += [(lsn,) for lsn in ours.lsns[-3:]]
        eventually(lambda: sorted(ours.held()) == sorted(everything), ours.figures)
        eventually(lambda: ours.figures()["delivered"] == 18, ours.figures)
    with theirs.delivering():
        theirs.append(1)
        theirs.wait_parked("diverged")
    theirs.close()


def test_between_two_that_took_over_from_each_other_nothing_is_sent_twice(site):
    ours = site
    ours.owner = load_owner(FS, ours.backlog.data_dir, ours.backlog.chance).value
    with ours.delivering():
        delivered(ours, 10)
    theirs = ours.copied()
    with ours.delivering():
        delivered(ours, 5)
    with theirs.delivering():
        take_over(theirs)  # and delivers nothing: the row is where the copy was made
        eventually(lambda: theirs.figures()["parked"] is None)
    with ours.delivering():
        take_over(ours)
        eventually(lambda: ours.figures()["dead_letters"] == 5, ours.figures)
        ours.append(2)
        eventually(lambda: len(ours.held()) == 17, ours.figures)
        assert {letter.code for letter in ours.letters()} == {"diverged"}
    theirs.close()


def test_what_a_restored_target_lost_before_the_other_host_wrote_there_is_set_aside(site):
    ours = site
    ours.owner = load_owner(FS, ours.backlog.data_dir, ours.backlog.chance).value
    with ours.delivering():
        delivered(ours, 4)
    theirs, backup = ours.copied(), ours.copy_target()
    with ours.delivering():
        for _ in range(5):  # so many batches
            delivered(ours, 1)
    lost = ours.lsns[4:]
    ours.restore_target(backup)
    with theirs.delivering():
        take_over(theirs)
        theirs.append(1)
        eventually(lambda: len(ours.held()) == 5, theirs.figures)
    with ours.delivering():
        take_over(ours)
        eventually(lambda: ours.figures()["dead_letters"] == 9, ours.figures)
        assert [letter.lsn for letter in ours.letters()] == ours.lsns  # also what is there
        assert {letter.code for letter in ours.letters()} == {"diverged"}
        ours.redrive(*lost)
        ours.append(1)
        eventually(lambda: {(lsn,) for lsn in [*lost, ours.lsns[-1]]} <= {*ours.held()})
        eventually(lambda: ours.figures()["dead_letters"] == 4, ours.figures)
    theirs.close()


def test_a_directory_that_was_moved_heals_a_target_that_went_back_meanwhile(site):
    with site.delivering():
        delivered(site, 10)
        backup = site.copy_target()
        delivered(site, 5)
    site.restore_target(backup)
    site.owner += 1
    with site.delivering():
        take_over(site)
        site.wait_whole()


def test_too_much_that_nobody_can_tell_is_not_set_aside(site, monkeypatch):
    monkeypatch.setattr(limits, "TAKE_OVER_MAX_RECORDS", 3)
    with site.delivering():
        delivered(site, 10)
    theirs = site.copied()
    with theirs.delivering():
        theirs.append(2)
        take_over(theirs)
        eventually(lambda: theirs.figures()["delivered"] == 12, theirs.figures)
    with site.delivering():
        site.append(4)
        take_over(site)
        eventually(lambda: "nothing is taken over" in site.figures()["last_error"], site.figures)
        assert len(site.held()) == 12
    theirs.close()


def test_the_owner_file_says_whether_the_directory_is_where_it_was(site, tmp_path):
    data = Path(site.backlog.data_dir)
    first = load_owner(FS, str(data), site.backlog.chance)
    assert not first.moved
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    assert load_owner(FS, str(copy), site.backlog.chance).moved
    assert first.value != OWNER
