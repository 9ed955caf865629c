"""Dead letters as pure decisions, row by row; the ledger's rows of them, on LMDB and in memory."""

from dataclasses import replace

import pytest

from tests.ledgers import KINDS, open_kind
from wald import limits
from wald.core import dead
from wald.core.dead import Halt, Selection
from wald.core.manifests import with_purges
from wald.model import (
    NO_REVISION,
    Anchor,
    AskedRedrive,
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Manifest,
    Purged,
    RejectedRecord,
    Revision,
    RouteBirth,
)

LOG_ID = bytes(range(16))
LANE = LaneKey(LOG_ID, 1, 0, 0)
OTHER = LaneKey(LOG_ID, 1, 0, 1)
A, B, C, D = (bytes([n]) * 16 for n in (1, 2, 3, 4))
STAMP = AttemptStamp("boot", 5, 6)


def letter(lsn, **changes):
    base = DeadLetter("r", lsn, "refused", "why", 1, A, 1, 100, 3, 16, 1, lsn)
    return replace(base, **changes)


RANGE = letter(50, code="damaged", dead_file=0, through_lsn=60, records=4)
KEYED = letter(70, key="a", time_ns=200)
BYTES = letter(80, key=b"\xff", time_ns=300)
TEXTS = letter(90, key=b"a", time_ns=400, code="other")
ALL = [RANGE, KEYED, BYTES, TEXTS]


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), ALL),
        (Selection(codes=frozenset({"damaged"})), [RANGE]),
        (Selection(codes=frozenset({"damaged", "other"})), [RANGE, TEXTS]),
        (Selection(since_ns=200), [KEYED, BYTES, TEXTS]),
        (Selection(until_ns=200), [RANGE]),
        (Selection(since_ns=200, until_ns=400), [KEYED, BYTES]),
        (Selection(keys=frozenset({"a"})), [KEYED, TEXTS]),
        (Selection(keys=frozenset({b"\xff"})), [BYTES]),
        (Selection(keys=frozenset({"z"})), []),
        (Selection(lsns=frozenset({70})), [KEYED]),
        (Selection(lsns=frozenset({55, 60})), [RANGE]),
        (Selection(lsns=frozenset({49, 61})), []),
        (Selection(codes=frozenset({"refused"}), keys=frozenset({"a"})), [KEYED]),
    ],
)
def test_a_selection_means_what_fits_all_that_it_says(selection, meant):
    assert [each for each in ALL if selection.has(each)] == meant


@pytest.mark.parametrize(
    ("redriven", "delivered", "left", "dead_rev"),
    [((41, 45, 48), 13, 0, B), ((45,), 11, 2, B), ((), 10, 3, A)],
)
def test_a_redrive_moves_what_it_sent_from_dead_to_delivered(redriven, delivered, left, dead_rev):
    before = Checkpoint(7, A, 60, Anchor(1, 2), A, 10, 3)
    first = Revision(C, 60, redriven=(41, 45, 48))
    revisions = (first, Revision(B, 60, redriven=redriven, superseded=1 if redriven else 0))
    manifest = Manifest(8, 60, A, 1, revisions, 3, 99)
    after = dead.redriven_checkpoint(before, manifest, B)
    assert (after.batch_no, after.rev_id, after.lsn, after.anchor) == (8, B, 60, Anchor(1, 2))
    assert (after.delivered, after.dead_letters, after.dead_rev) == (delivered, left, dead_rev)
    assert after.superseded == bool(redriven)


def test_a_letter_refused_again_has_the_newest_words_and_all_attempts():
    again = dead.refused_again(letter(5), RejectedRecord(5, "c" * 600, "m" * 600), 4)
    assert (len(again.code), len(again.message)) == (limits.ERROR_TEXT_MAX_CHARS,) * 2
    assert (again.attempts, again.time_ns, again.batch_no, again.rev_id) == (5, 100, 1, A)


def test_a_halt_says_lsn_key_words_and_how_many_more():
    record = RejectedRecord(5, "c", "no room")
    assert dead.text_of_halt(Halt(record, "k", 1)) == "halted at LSN 5, key 'k': no room"
    text = dead.text_of_halt(Halt(record, None, 3))
    assert text == "halted at LSN 5: no room (2 more in the batch)"
    others = (record, RejectedRecord(6, "c", "m"))
    assert dead.halting(others, {5}) == others[1:]


@pytest.mark.parametrize(
    ("total", "living", "worth"),
    [(100, 100, False), (110, 0, True), (109, 0, False), (240, 119, True), (240, 120, False)],
)
def test_the_dead_log_is_written_anew_when_most_of_it_is_waste(monkeypatch, total, living, worth):
    monkeypatch.setattr(limits, "DEAD_LOG_WASTE_BYTES", 109)
    assert dead.is_worth_rewriting(total, living) is worth


def test_a_purge_in_between_is_kept_by_the_checkpoint_that_follows():
    held = Checkpoint(1, A, 60, delivered=10, dead_letters=2, purged=5)
    after = Checkpoint(2, B, 70, delivered=20, dead_letters=7, purged=2)  # read before 3 went
    assert with_purges(held, after) == replace(after, dead_letters=4, purged=5)
    assert with_purges(held, replace(after, purged=5)) == replace(after, purged=5)


# --- the ledger ---------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def ledger(request, tmp_path):
    opened = open_kind(request.param, tmp_path, LOG_ID)
    opened.birth(RouteBirth(1, "r", 3, "s", "db", 40, 9))
    yield opened
    opened.close()


def bury(ledger, *letters, key=LANE):
    """Let letters become dead by a batch of their own."""
    before = ledger.lane(key).checkpoint
    rev_id = bytes([before.batch_no + 100]) * 16
    hi = max([before.lsn, *(each.lsn for each in letters)]) + 1
    manifest = Manifest(
        before.batch_no + 1, before.lsn + 1, before.rev_id, 1, (Revision(rev_id, hi),), 10, 99
    )
    assert ledger.seal(key, manifest)
    revision = Revision(bytes([before.batch_no + 200]) * 16, hi, tuple(x.lsn for x in letters))
    aside = [replace(each, layout=key.layout, lane=key.lane) for each in letters]
    assert ledger.revise(key, rev_id, revision, aside, STAMP)
    records = sum(each.records for each in letters)
    after = replace(
        before, batch_no=before.batch_no + 1, rev_id=revision.rev_id, lsn=hi,
        dead_rev=revision.rev_id, dead_letters=before.dead_letters + records,
    )  # fmt: skip
    line = FinishedBatch(after.batch_no, after.rev_id, manifest.lo, hi, 10, records, 1, 99, 101)
    assert ledger.finish(key, revision.rev_id, after, line)
    return after


def redrive(ledger, *lsns, key=LANE):
    before = ledger.lane(key).checkpoint
    revision = Revision(D, before.lsn, redriven=lsns)
    manifest = Manifest(
        before.batch_no + 1, before.lsn, before.rev_id, 1, (revision,), len(lsns), 99
    )
    assert ledger.seal(key, manifest)
    return manifest


def test_a_redrive_must_stand_at_the_checkpoint(ledger):
    bury(ledger, letter(45))
    at = ledger.lane(LANE).checkpoint
    for lo, hi in ((at.lsn + 1, at.lsn), (at.lsn, at.lsn + 1), (at.lsn - 1, at.lsn - 1)):
        revision = Revision(D, hi, redriven=(45,))
        assert not ledger.seal(LANE, Manifest(at.batch_no + 1, lo, at.rev_id, 1, (revision,), 1, 9))
    redrive(ledger, 45)


def test_what_is_asked_for_stays_until_the_batch_that_sends_it_is_closed(ledger):
    bury(ledger, letter(45), letter(47), RANGE)
    assert ledger.ask_redrive(1, [45, 46, 47, 50], "m:f", 5) == 2  # 46 is none, 50 has no body
    assert ledger.ask_redrive(1, [45], "", 6) == 0  # asked already
    assert [each.transform for each in ledger.asked_redrives(LANE, 9)] == ["m:f", "m:f"]
    assert [each.letter.lsn for each in ledger.asked_redrives(LANE, 1)] == [45]
    assert ledger.asked_redrives(OTHER, 9) == []
    assert ledger.asked_redrive(LANE, 50) == AskedRedrive(ledger.dead_letter(1, 50), "")
    assert ledger.asked_redrive(LANE, 46) is None
    manifest = redrive(ledger, 45, 47)
    before = ledger.lane(LANE).checkpoint
    again = dead.refused_again(ledger.dead_letter(1, 47), RejectedRecord(47, "new", "words"), 2)
    left = replace(manifest.current, rev_id=C, redriven=(45,))
    assert ledger.revise(LANE, D, left, [again], STAMP)
    assert ledger.count_redrives(LANE) == 2
    held = ledger.lane(LANE).manifest
    after = dead.redriven_checkpoint(before, held, C)
    line = FinishedBatch(after.batch_no, C, before.lsn, before.lsn, 2, 1, 2, 99, 101, 0, (45,))
    assert ledger.finish(LANE, C, after, line)
    assert ledger.count_redrives(LANE) == 0
    assert [each.lsn for each in ledger.dead_letters(1)] == [47, 50]
    assert ledger.dead_letter(1, 47) == again
    assert ledger.dead_letter(1, 45) is None
    assert ledger.history(LANE)[-1].redriven == (45,)


def test_given_up_requests_leave_the_letters(ledger):
    bury(ledger, letter(45))
    ledger.ask_redrive(1, [45], "", 5)
    ledger.give_up_redrives(LANE, [45, 99])
    assert ledger.count_redrives(LANE) == 0
    assert ledger.dead_letter(1, 45)


def test_a_purge_counts_in_the_lane_and_spares_what_is_being_sent(ledger):
    bury(ledger, letter(45), letter(47), letter(48), RANGE)
    ledger.ask_redrive(1, [47, 48], "", 5)
    redrive(ledger, 47)
    assert ledger.purge(1, [45, 46, 47, 48, 50], 7, spare_asked=True) == Purged(2, 5, 2)
    assert ledger.purge(1, [47, 48], 7) == Purged(1, 1, 1)
    at, manifest = ledger.lane(LANE)
    assert (at.dead_letters, at.purged, manifest is None) == (1, 6, False)
    assert ledger.purged(LANE) == {45: 1, 48: 1, 50: 4}
    assert ledger.count_redrives(LANE) == 1
    after = dead.redriven_checkpoint(replace(at, purged=0, dead_letters=7), manifest, D)
    line = FinishedBatch(after.batch_no, D, at.lsn, at.lsn, 1, 0, 1, 99, 101)
    assert ledger.finish(LANE, D, after, line)  # the lane had read it before the purge
    assert ledger.lane(LANE).checkpoint.purged == 6
    assert ledger.lane(LANE).checkpoint.dead_letters == 0


def test_an_idle_lane_moves_on_over_a_purge_that_it_has_not_seen(ledger):
    before = bury(ledger, letter(45))
    ledger.purge(1, [45], 7)
    assert ledger.advance(LANE, before, replace(before, lsn=before.lsn + 5))
    at = ledger.lane(LANE).checkpoint
    assert (at.lsn, at.purged, at.dead_letters) == (before.lsn + 5, 1, 0)


def test_adopting_brings_no_purged_letter_back_and_counts_what_still_is_one(ledger):
    bury(ledger, letter(45), letter(47), letter(90))
    ledger.ask_redrive(1, [47, 90], "", 5)
    ledger.purge(1, [45], 7)
    held = ledger.lane(LANE)
    row = Checkpoint(1, B, 60, Anchor(1, 1), B, 18, 2, 0, 3)
    assert ledger.adopt(LANE, held, row, [letter(45), letter(47)])
    at = ledger.lane(LANE).checkpoint
    assert (at.dead_letters, at.purged, at.delivered) == (1, 4, 18)
    assert [each.lsn for each in ledger.dead_letters(1)] == [47]
    assert [each.letter.lsn for each in ledger.asked_redrives(LANE, 9)] == [47]
    assert ledger.purged(LANE) == {45: 1}
    assert ledger.adopt(LANE, LaneProgress(at, None), replace(row, batch_no=0), [])
    assert ledger.purged(LANE) == {}  # pending again: it counts there


@pytest.mark.parametrize("purged_ns", [5, 100, 900])  # the letters' time is 100
def test_an_older_ledger_forgets_what_the_dead_log_says_was_purged_behind_it(ledger, purged_ns):
    aside = {44: (2, 4096), 45: (3, 0), 46: (3, 8192), 47: (4, 0)}
    letters = [letter(lsn, dead_file=at[0], dead_offset=at[1]) for lsn, at in aside.items()]
    bury(ledger, *letters)
    told = [(lsn, 1, 1) for lsn in (43, *aside)]
    for _ in range(2):
        ledger.recall_purges((1, 0, 0), purged_ns, told, told_at=(3, 4096))
        assert [each.lsn for each in ledger.dead_letters(1)] == [46, 47]  # set aside anew since
        at = ledger.lane(LANE).checkpoint
        assert (at.dead_letters, at.purged) == (2, 2)
        assert ledger.purged(LANE).keys() == {43, 44, 45}


@pytest.mark.parametrize(("purged_ns", "left"), [(99, [50]), (100, [])])
def test_of_a_purged_range_without_a_body_the_clock_says_whether_it_is_older(
    ledger, purged_ns, left
):
    bury(ledger, RANGE)
    ledger.recall_purges((1, 0, 0), purged_ns, [(50, 4, 0)], told_at=(3, 4096))
    assert [each.lsn for each in ledger.dead_letters(1)] == left


def test_letters_of_another_lane_are_left_alone(ledger):
    bury(ledger, letter(45))
    bury(ledger, letter(46), key=OTHER)
    ledger.purge(1, [45], 7)
    assert ledger.lane(OTHER).checkpoint.purged == 0
    assert {key.lane: held.checkpoint.dead_letters for key, held in ledger.lanes(1).items()} == {
        0: 0,
        1: 1,
    }
    ledger.adopt(LANE, ledger.lane(LANE), Checkpoint(1, B, 60), [])
    assert [each.lsn for each in ledger.dead_letters(1)] == [46]


def test_a_halting_lane_is_told_what_it_may_set_aside_until_it_did(ledger):
    ledger.allow_aside(LANE, [45, 46], 5)
    assert ledger.allowed_aside(LANE) == {45, 46}
    assert ledger.allowed_aside(OTHER) == frozenset()
    bury(ledger, letter(45))
    assert ledger.allowed_aside(LANE) == {46}


def test_letters_move_with_their_bodies_unless_they_died_anew_since(ledger):
    bury(ledger, letter(45), letter(46, dead_file=9), RANGE)
    ledger.move_letters(1, {45: (7, 160), 46: (7, 160), 47: (7, 0), 50: (7, 0)}, 7)
    places = {each.lsn: (each.dead_file, each.dead_offset) for each in ledger.dead_letters(1)}
    assert places == {45: (7, 160), 46: (9, 16), 50: (0, 16)}


def test_files_are_referred_to_by_letters_also_of_open_revisions(ledger):
    at = bury(ledger, letter(45, dead_file=4))
    manifest = Manifest(at.batch_no + 1, at.lsn + 1, at.rev_id, 1, (Revision(B, 200),), 5, 9)
    ledger.seal(LANE, manifest)
    ledger.revise(LANE, B, Revision(C, 200, (150,)), [letter(150, dead_file=6)], STAMP)
    assert set(ledger.dead_files()) == {4, 6}


def test_purged_rows_are_forgotten_with_their_files(ledger):
    bury(ledger, letter(45, dead_file=4), letter(46, dead_file=7), RANGE, replace(RANGE, lsn=99))
    ledger.purge(1, [45, 46, 50, 99], 5)
    assert ledger.forget_purged(7, {45}) == 0  # a chain names it in a newer file
    assert ledger.forget_purged(7, {46}) == 1
    assert ledger.purged(LANE).keys() == {46, 50, 99}


def test_a_note_is_kept_under_its_name(ledger):
    assert ledger.note("x") is None
    ledger.note("x", [1, [2, 3]])
    assert ledger.note("x") == (1, (2, 3))
    assert ledger.note("y") is None
    assert ledger.lane(OTHER).checkpoint.rev_id == NO_REVISION
