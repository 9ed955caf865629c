"""Coalescing, transforms and frozen batches through real lanes."""

import itertools
import random
from dataclasses import replace

import pytest

from tests import transforms
from tests.backlog import FS, Backlog, end, eventually
from tests.onelane import WINDOW_S, Bench, Dying, Killed, append_keyed, values
from wald.core.delivery import Step
from wald.drainer.batch_desk import BatchDesk
from wald.model import Decision, Mark, Partial, RejectedRecord, ReplayClass, Unknown
from wald.storage.batches import FrozenFiles
from wald.testing.recording_sink import RecordingSink, RecordingTarget

ROW, MONOTONE, KEYED, WINDOW, NONE = (
    ReplayClass.TRANSACTIONAL,
    ReplayClass.MONOTONE,
    ReplayClass.KEYED,
    ReplayClass.WINDOW,
    ReplayClass.NONE,
)
PAIRS = [("a", b"a1"), ("b", b"b1"), ("a", b"a2"), (None, b"n1"), ("b", b"b2"), ("a", b"a3")]


@pytest.fixture(autouse=True)
def _nothing_is_bad():
    transforms.BAD.clear()
    transforms.RAISED[:] = [ValueError]


def sent(bench):
    return [record.value for record in bench.target.records]


def frozen_files(bench):
    directory = f"{bench.backlog.data_dir}/batches"
    return FS.list_directory(directory) if FS.stat(directory) else []


# --- coalescing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_the_newest_of_each_key_is_sent_and_the_others_count_as_superseded(backlog, replay):
    append_keyed(backlog, PAIRS)
    bench = Bench(backlog, replay, coalesce="last")
    bench.through()
    assert sent(bench) == [b"n1", b"b2", b"a3"]
    checkpoint = bench.held.checkpoint
    assert (checkpoint.delivered, checkpoint.superseded) == (6, 3)
    (line,) = bench.ledger.history(bench.key)
    assert (line.records, line.superseded) == (6, 3)
    assert frozen_files(bench) == []


@pytest.mark.parametrize("replay", list(ReplayClass))
@pytest.mark.parametrize("named", [True, False])
def test_a_refused_newest_does_not_resurrect_the_older_ones(backlog, replay, named):
    lsns = append_keyed(backlog, PAIRS)
    bench = Bench(backlog, replay, coalesce="last")
    bench.target.names = named
    bench.target.refuses = lambda record: record.value == b"a3"
    bench.through()
    assert bench.dead == {lsns[5]: "refused" if named else "rejected"}
    if named or replay is ROW:  # else the batch was halved, and "a2" was the newest of its half
        assert sent(bench) == [b"n1", b"b2"]
        assert bench.held.checkpoint.superseded == 3
    assert b"a3" not in sent(bench)


# --- transforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", list(ReplayClass))
@pytest.mark.parametrize(
    ("transform", "made", "superseded"),
    [
        ("upper", [b"X", b"DROP", b"Y"], 0),
        ("without_drops", [b"x", b"y"], 1),
        ("backwards", [b"y", b"drop", b"x"], 0),
        ("count", [b"2", b"1"], 1),
    ],
)
def test_what_a_transform_makes_is_sent(backlog, replay, transform, made, superseded):
    append_keyed(backlog, [("k", b"x"), ("k", b"drop"), ("l", b"y")])
    bench = Bench(backlog, replay, transform=f"tests.transforms:{transform}")
    bench.through()
    in_order = replay in {MONOTONE, KEYED} and transform == "backwards"
    assert sent(bench) == (made[::-1] if in_order else made)
    assert bench.held.checkpoint.delivered == 3
    assert bench.held.checkpoint.superseded == superseded


@pytest.mark.parametrize("replay", [ROW, WINDOW, NONE])
def test_several_records_may_be_made_of_one(backlog, replay):
    backlog.append(b"x", b"y")
    bench = Bench(backlog, replay, transform="tests.transforms:twice")
    bench.through()
    assert sent(bench) == [b"x", b"x!", b"y", b"y!"]


@pytest.mark.parametrize("replay", [MONOTONE, KEYED])
def test_a_target_that_would_lose_all_but_one_of_them_is_sent_none(backlog, replay):
    backlog.append(b"x", b"y")
    bench = Bench(backlog, replay, transform="tests.transforms:twice")
    bench.run(lambda: bench.step is Step.WAITING)
    assert "all others would be lost" in bench.lane.figures.last_error
    assert (bench.target.attempts, bench.dead) == ([], {})


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_more_records_than_a_target_takes_at_a_time_are_cut(backlog, replay):
    if replay in {MONOTONE, KEYED}:
        return  # which take one of each
    backlog.append(*values(8))
    bench = Bench(backlog, replay, transform="tests.transforms:twice")
    bench.options["max_records"] = 8
    bench.start()
    bench.through()
    assert len(sent(bench)) == 16
    assert max(len(each.records) for each in bench.target.attempts) <= 8


@pytest.mark.parametrize("raised", [ValueError, transforms.PanicException, SystemExit])
@pytest.mark.parametrize("replay", list(ReplayClass))
def test_a_record_at_which_a_transform_raises_is_set_aside(backlog, replay, raised):
    lsns = backlog.append(b"x", b"bad", b"y", b"worse", b"z")
    transforms.BAD.update({b"bad", b"worse"})
    transforms.RAISED[:] = [raised]
    bench = Bench(backlog, replay, transform="tests.transforms:upper")
    bench.through()
    assert sent(bench) == [b"X", b"Y", b"Z"]
    assert bench.dead == dict.fromkeys([lsns[1], lsns[3]], "transform-failed")
    letters = bench.ledger.dead_letters(1)
    assert ["cannot take b'bad'" in letters[0].message, letters[0].lsn] == [True, lsns[1]]
    assert len(bench.target.attempts) == 1


def test_a_transform_that_does_not_return_is_told_and_harms_no_other_route(two):
    two.append(b"x")
    others = two.append(b"y", stream=2)
    transforms.GATE.clear()
    slow = replace(
        two.settings.routes["one"], transform="tests.transforms:waits", attempt_timeout_s=0.1
    )
    two.settings = replace(two.settings, routes={**two.settings.routes, "one": slow})
    target = RecordingTarget()
    fleet = two.fleet(two.shared(lambda *_: RecordingSink(target)))

    def is_told():
        fleet.poll()
        said = fleet.figures()["one"]
        return said["state"] == "failed" and "has not returned" in said["last_error"]

    try:
        eventually(is_told, fleet.figures)
        assert target.wait_for(lambda: target.lsns == others)
        transforms.GATE.set()
        assert target.wait_for(lambda: len(target.records) == 2)
        eventually(lambda: not is_told(), fleet.figures)
    finally:
        transforms.GATE.set()
        end(fleet)


def test_the_transform_of_a_redrive_that_does_not_return_is_told_too(backlog):
    (lsn,) = backlog.append(b"x")
    slow = replace(backlog.settings.routes["events"], attempt_timeout_s=0.1)
    backlog.settings = replace(backlog.settings, routes={"events": slow})
    target = RecordingTarget(refuses=lambda _: True)
    shared = backlog.shared(lambda *_: RecordingSink(target))
    fleet = backlog.fleet(shared)

    def is_told():
        fleet.poll()
        said = fleet.figures()["events"]
        return said["state"] == "failed" and "has not returned" in said["last_error"]

    try:
        eventually(lambda: fleet.figures()["events"]["dead_letters"] == 1, fleet.figures)
        target.refuses = lambda _: False
        transforms.GATE.clear()
        shared.ledger.ask_redrive(1, [lsn], "tests.transforms:waits", 1)
        fleet.each_lane()[0].look_again()
        eventually(is_told, fleet.figures)
        transforms.GATE.set()
        assert target.wait_for(lambda: target.lsns == [lsn])
        eventually(lambda: not is_told(), fleet.figures)
    finally:
        transforms.GATE.set()
        end(fleet)


@pytest.mark.parametrize("transform", ["wrong", "upper", "nowhere", "NOT_A_FUNCTION"])
@pytest.mark.parametrize("replay", [ROW, NONE])
def test_a_transform_that_never_works_is_a_mistake_of_configuration(backlog, replay, transform):
    backlog.append(b"x", b"y")
    transforms.BAD.update({b"x", b"y"})
    hold = {"on_unknown": "hold"} if replay is NONE else {}
    bench = Bench(backlog, replay, transform=f"tests.transforms:{transform}", **hold)
    for _ in range(3):
        bench.run(lambda: bench.step is Step.WAITING)
        assert bench.lane.figures.last_error.startswith("configuration: ")
        bench.run(lambda: bench.step is not Step.WAITING)
    assert (bench.target.attempts, bench.dead) == ([], {})
    transforms.BAD.clear()
    bench.settings["transform"] = "tests.transforms:upper"  # mended
    bench.start()
    bench.through()
    assert sent(bench) == [b"X", b"Y"]
    assert bench.dead == {}


def test_a_refused_aggregate_is_a_dead_letter_of_each_record_behind_it(backlog):
    lsns = append_keyed(backlog, [("k", b"x"), ("l", b"y"), ("k", b"z")])
    bench = Bench(backlog, KEYED, transform="tests.transforms:count")
    bench.target.refuses = lambda record: record.value == b"2"
    bench.through()
    assert bench.dead == dict.fromkeys([lsns[0], lsns[2]], "refused")
    assert (bench.held.checkpoint.delivered, bench.held.checkpoint.superseded) == (1, 0)


def test_a_shaped_batch_that_was_taken_in_part_sends_only_what_is_left(backlog):
    lsns = append_keyed(backlog, PAIRS)
    bench = Bench(backlog, NONE, coalesce="last", transform="tests.transforms:twice")
    bench.target.script.append(
        Partial((RejectedRecord(lsns[3], "bad", "no"),), (RejectedRecord(lsns[5], "busy", "no"),))
    )
    bench.through()
    assert [each.value for each in bench.target.attempts[1].records] == [b"a3", b"a3!"]
    assert bench.dead == {lsns[3]: "bad"}
    assert (bench.held.checkpoint.delivered, bench.held.checkpoint.superseded) == (5, 3)


# --- what is frozen -----------------------------------------------------------------------------


def upgraded(bench, encoder="plain/2"):
    """A new release of the sink, with a batch in flight."""
    bench.options["encoder"] = encoder
    bench.start()


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_an_upgrade_of_the_encoder_with_a_batch_in_flight_resends_as_the_class_asks(
    backlog, replay
):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, replay)
    bench.target.lost_answers = 1
    bench.run(lambda: len(bench.target.attempts) == 1)
    upgraded(bench)
    more = backlog.append(*values(2))
    bench.start()
    bench.through()
    bodies = [body.partition(b"\n")[0] for body in bench.target.bodies]
    if replay is ROW:  # the row said that it had taken effect
        assert bodies == [b"plain/1", b"plain/2"]
    elif replay is WINDOW:  # byte for byte, or the target takes it for another one
        assert bodies == [b"plain/1", b"plain/1", b"plain/2"]
        assert bench.target.bodies[0] == bench.target.bodies[1]
    else:
        assert bodies == [b"plain/1", b"plain/2", b"plain/2"]
    doubled = lsns if replay is NONE else []
    assert bench.target.lsns == lsns + doubled + more


@pytest.mark.parametrize("replay", [KEYED, WINDOW, NONE])
def test_a_changed_transform_does_not_change_a_batch_in_flight(backlog, replay):
    backlog.append(b"x", b"y")
    bench = Bench(backlog, replay, transform="tests.transforms:upper")
    bench.target.script.append(Unknown("cut"))
    bench.run(lambda: len(bench.target.attempts) == 1)
    bench.settings["transform"] = "tests.transforms:without_drops"
    bench.start()
    bench.through()
    assert sent(bench) == [b"X", b"Y"]


def lose(bench, how):
    files = FrozenFiles(FS, bench.backlog.data_dir)
    revision = bench.held.manifest.current
    if how == "damaged":
        files.remove(bench.key, revision.rev_id)
        files.write(bench.key, revision.rev_id, b"something else")
    else:
        files.remove(bench.key, revision.rev_id)


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("attempted", [False, True])
def test_a_lost_frozen_batch_is_made_anew_unless_it_may_have_taken_effect(backlog, how, attempted):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, WINDOW)
    if attempted:
        bench.target.lost_answers = 1
        bench.run(lambda: len(bench.target.attempts) == 1)
    else:
        bench.target.script.append(Partial(retry=(RejectedRecord(lsns[0], "busy", "later"),)))
        bench.run(lambda: len(bench.target.attempts) == 1)
        bench.run(lambda: bench.step is Step.WAITING)
    before = bench.held.manifest.current.rev_id
    lose(bench, how)
    bench.start()
    if attempted:
        bench.parked()
        assert "frozen-body-lost" in bench.lane.figures.last_error
        assert len(bench.target.attempts) == 1
        assert bench.ledger.mark(bench.key, before, Mark(decision=Decision.DELIVERED))
    bench.through()
    if not attempted:
        assert bench.target.attempts[1].row.rev_id != before
        assert [record.lsn for record in bench.target.attempts[1].records] == [lsns[0]]


def die_making(bench, number, boot_id=None):
    """Leave what a process leaves that ends while this batch is made; begin the next."""
    files = FrozenFiles(FS, bench.backlog.data_dir)
    making = files.making(bench.key, number, boot_id or bench.clock.boot_id())
    making.__enter__()
    bench.backlog.at_close(making.__exit__, None, None, None)  # a process that died never comes
    bench.start()


@pytest.mark.parametrize("replay", list(ReplayClass))
def test_deaths_in_the_making_of_a_batch_are_counted_and_leave_no_doubt(backlog, replay):
    backlog.append(*values(5))
    hold = {"on_unknown": "hold"} if replay is NONE else {}
    bench = Bench(backlog, replay, transform="tests.transforms:upper", **hold)
    die_making(bench, 1)
    bench.run(lambda: bench.held.manifest is not None)
    manifest = bench.held.manifest
    assert (manifest.crashes, manifest.attempts, manifest.current.digest) == (1, 1, b"")
    die_making(bench, 1)
    bench.run(lambda: bench.held.manifest.attempts == 2)
    assert bench.held.manifest.crashes == 2  # from now on it is made in a process of its own
    assert not bench.held.manifest.held
    assert not bench.target.attempts


@pytest.mark.parametrize("what", [(2, None), (1, "another boot")])
@pytest.mark.parametrize("replay", list(ReplayClass))
def test_what_was_made_otherwise_says_nothing_of_a_batch(backlog, replay, what):
    backlog.append(*values(5))
    bench = Bench(backlog, replay, transform="tests.transforms:upper")
    die_making(bench, *what)
    bench.run(lambda: bench.held.manifest is not None)
    assert (bench.held.manifest.crashes, bench.held.manifest.attempts) == (0, 1)
    bench.through()
    assert len(bench.target.attempts) == 1
    assert frozen_files(bench) == []


def test_no_word_is_left_of_a_making_behind_an_attempt_that_took_effect_in_part(
    backlog, monkeypatch
):
    """Who is killed in that making must not be taken for one that had sent nothing."""
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, WINDOW)
    encode, seen = RecordingSink.encode, []

    def looking(sink, attempt):
        seen.append(any(name.endswith("making") for name in frozen_files(bench)))
        return encode(sink, attempt)

    monkeypatch.setattr(RecordingSink, "encode", looking)
    bench.target.script.append(Partial(retry=(RejectedRecord(lsns[0], "busy", "later"),)))
    bench.through()
    assert seen == [True, False]


def test_files_that_no_manifest_names_are_removed_at_a_start(backlog):
    backlog.append(*values(5))
    bench = Bench(backlog, WINDOW)
    files = FrozenFiles(FS, backlog.data_dir)
    files.write(bench.key, b"x" * 16, b"left behind")
    bench.run(lambda: bench.step is Step.SENDING)
    assert len(frozen_files(bench)) == 1
    bench.through()
    assert frozen_files(bench) == []


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("replay", [ROW, KEYED, WINDOW])
def test_a_crash_anywhere_with_coalescing_and_a_transform(place, replay, behind):
    backlog = Backlog(place, "events")
    chance = random.Random(11)
    pairs = [(chance.choice("abcdefgh"), b"%05d" % number) for number in range(25)]
    lsns = append_keyed(backlog, pairs)
    transforms.BAD.add(b"00012")
    for at in itertools.count(1):
        bench = Bench(backlog, replay, coalesce="last", transform="tests.transforms:upper")
        dying, target = Dying(at, behind=behind), bench.target
        target.per_record = replay is not ROW
        target.refuses = lambda record: record.lsn == lsns[19]
        for name in ("seal", "revise", "attempt", "finish", "mark"):
            setattr(bench.ledger, name, dying.around(getattr(bench.ledger, name)))

        class Mortal(RecordingSink):
            def deliver(self, attempt):
                return dying.around(super().deliver)(attempt)  # noqa: B023

        bench.kind = Mortal
        bench.options["window_s"] = WINDOW_S
        bench.start()
        try:
            bench.through()
        except Killed:
            bench.start()
            bench.through()
        newest: dict[str, int] = {}
        for start in range(0, 25, 10):  # batches of ten
            batch = list(zip(lsns, pairs, strict=True))[start : start + 10]
            newest.update({f"{start}{key}": lsn for lsn, (key, _) in batch})
        bad = {lsns[19]} | ({lsns[12]} & set(newest.values()))
        assert bench.dead.keys() == bad & set(newest.values()), at
        assert target.lsns == sorted(set(newest.values()) - bad), at
        bench.lane.step()
        assert frozen_files(bench) == []
        bench.dead_log.close()
        if not dying.died:
            break
    assert at > 8
    backlog.close()


# --- redrive ------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [KEYED, WINDOW, NONE])
@pytest.mark.parametrize("transform", [None, "tests.transforms:upper"])
def test_a_redrive_that_is_taken_in_part_goes_on_with_the_rest(backlog, replay, transform):
    lsns = backlog.append(*values(9))
    bench = Bench(backlog, replay, transform=transform)
    bench.target.per_record = True
    bench.target.refuses = lambda record: record.lsn <= lsns[3]
    bench.through()
    assert bench.dead.keys() == set(lsns[:4])
    asked: dict[int, int] = {}

    def later(record):
        asked[record.lsn] = asked.get(record.lsn, 0) + 1
        return record.lsn == lsns[1] and asked[record.lsn] < 3

    bench.target.refuses = lambda record: record.lsn == lsns[2]
    bench.target.wants_later = later
    assert bench.ledger.ask_redrive(1, lsns[:4], "", 0) == 4
    bench.lane.look_again()
    bench.run(lambda: bench.dead.keys() == {lsns[2]} and bench.held.manifest is None)
    assert sorted(bench.target.lsns) == [lsn for lsn in lsns if lsn != lsns[2]]
    bench.check_books()


@pytest.mark.parametrize("replay", [ROW, KEYED, NONE])
def test_a_redrive_that_is_too_large_is_sent_in_halves(backlog, replay):
    lsns = backlog.append(*values(9))
    bench = Bench(backlog, replay)
    bench.target.refuses = lambda record: record.lsn <= lsns[4]
    bench.through()
    bench.target.refuses = lambda _: False
    bench.target.largest = 2
    assert bench.ledger.ask_redrive(1, lsns[:5], "", 0) == 5
    bench.lane.look_again()
    bench.run(lambda: bench.held.manifest is not None and bench.held.manifest.records == 2)
    desk = BatchDesk(bench.ledger, bench.ledger.births)
    (line,) = desk.ask("drain.batch.list")["batches"]
    assert [line[name] for name in ("lo", "hi", "records")] == [*lsns[:2], 2]
    bench.run(lambda: not bench.dead and bench.held.manifest is None)
    assert sorted(bench.target.lsns) == lsns
    finished = desk.ask("drain.batch.list", finished=10)["finished"]
    again = [(line["lo"], line["hi"], line["records"]) for line in finished if line["redrive"]]
    assert again == [(*lsns[:2], 2), (*lsns[2:4], 2), (lsns[4], lsns[4], 1)]
    bench.check_books()


# --- encoders -----------------------------------------------------------------------------------


class Picky(RecordingSink):
    def encode(self, attempt):
        for record in attempt.records:
            if record.value in transforms.BAD:
                msg = f"cannot encode {record.value!r}"
                raise ValueError(msg)
        return super().encode(attempt)


def test_a_record_that_cannot_be_encoded_is_set_aside(backlog):
    lsns = backlog.append(b"x", b"bad", b"y")
    transforms.BAD.add(b"bad")
    bench = Bench(backlog, WINDOW)
    bench.kind = Picky
    bench.start()
    bench.through()
    assert bench.dead == {lsns[1]: "encode-failed"}
    assert sent(bench) == [b"x", b"y"]


class Textual(RecordingSink):
    def encode(self, attempt):
        return super().encode(attempt).decode()


def test_an_encoder_that_never_works_is_a_mistake_and_nobody_s_fault(backlog):
    backlog.append(b"x", b"y")
    bench = Bench(backlog, WINDOW)
    bench.kind = Textual
    bench.start()
    bench.run(lambda: bench.step is Step.WAITING)
    assert "which is not bytes" in bench.lane.figures.last_error
    assert (bench.dead, bench.target.attempts) == ({}, [])
    bench.kind = RecordingSink
    bench.start()
    bench.through()
    assert sent(bench) == [b"x", b"y"]


class NeedsOne(RecordingSink):
    def encode(self, attempt):
        assert attempt.records, "there is nothing to encode"
        return super().encode(attempt)


def test_a_batch_with_nothing_left_to_send_is_not_encoded(backlog):
    lsns = backlog.append(*values(4))
    bench = Bench(backlog, WINDOW)
    bench.kind = NeedsOne
    bench.target.refuses = lambda _: True
    bench.start()
    bench.through()
    assert bench.dead == dict.fromkeys(lsns, "refused")
    assert len(bench.target.attempts) == 1


def test_a_batch_of_which_everything_is_filtered_is_closed(backlog):
    for replay in ReplayClass:
        backlog.append(b"drop", b"drop")
        bench = Bench(backlog, replay, transform="tests.transforms:without_drops")
        bench.kind = RecordingSink if replay is ROW else NeedsOne  # the row moves in any case
        bench.start()
        bench.through()
        assert sent(bench) == []
        assert bench.held.checkpoint.superseded == bench.held.checkpoint.delivered


@pytest.mark.parametrize("how", ["missing", "damaged", None])
def test_a_batch_that_is_given_up_needs_nothing_of_what_was_frozen(backlog, how):
    lsns = append_keyed(backlog, PAIRS)
    bench = Bench(backlog, NONE, coalesce="last", on_unknown="hold")
    bench.target.script.append(Unknown("cut"))
    bench.parked()
    rev_id = bench.held.manifest.current.rev_id
    if how is not None:
        lose(bench, how)
    bench.start()
    assert bench.ledger.mark(bench.key, rev_id, Mark(decision=Decision.DEAD_LETTER))
    bench.through()
    assert sent(bench) == []
    newest = {lsns[3], lsns[4], lsns[5]}
    assert bench.dead.keys() == (newest if how is None else set(lsns))


def test_a_rest_that_a_smaller_target_cannot_take_and_that_cannot_be_cut_is_not_forgotten(backlog):
    lsns = backlog.append(*values(5))
    bench = Bench(backlog, NONE, transform="tests.transforms:twice")
    wanted = tuple(RejectedRecord(lsn, "busy", "later") for lsn in lsns[:4])
    bench.target.script.append(Partial(retry=wanted))  # the last took effect: no place to cut
    bench.run(lambda: len(bench.target.attempts) == 1)
    bench.run(lambda: bench.step is Step.WAITING)
    bench.options["max_records"] = 4
    bench.start()
    for _ in range(3):
        bench.run(lambda: bench.step is Step.WAITING)
        bench.run(lambda: bench.step is not Step.WAITING)
    assert bench.held.manifest is not None
    bench.options["max_records"] = 100
    bench.start()
    bench.through()
    assert [record.lsn for record in bench.target.records] == [
        lsn for lsn in lsns[:4] for _ in range(2)
    ]
