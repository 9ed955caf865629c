"""Dead letters sent again: exactly once, through a failure at every commit point."""

import itertools
import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import pytest

from tests.backlog import CLOCK, FS, Backlog, end, eventually
from tests.integration.test_drain import LEDGER, SINK, Fuse, sink_of, values
from wald import limits
from wald.config import BatchSettings, DeadLetterSettings
from wald.drainer.batch_desk import BatchDesk
from wald.drainer.letter_desk import LetterDesk
from wald.errors import InputError, LedgerFailed, RedriveRefused
from wald.model import LaneKey, Record, ReplayClass, Systemic, SystemicKind, Unknown
from wald.sinks.sqlite import make as make_sqlite
from wald.storage.deadlog import DeadLog
from wald.storage.lmdb_store import open_ledger
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

ROUTE = 1
DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")
DEAD = ("append",)


def desk_of(fleet):
    """Return the desk of a running fleet, as ``drain.sock`` has it."""
    ledger = fleet.shared.ledger

    def lanes(route_id):
        return {
            one.route.key: one for one in fleet.each_lane() if one.route.birth.route_id == route_id
        }

    shared = fleet.shared
    return LetterDesk(ledger, shared.dead_log, CLOCK, shared.chance, ledger.births, lanes)


@contextmanager
def running(backlog, shared):
    fleet = backlog.fleet(shared)
    try:
        yield fleet
    finally:
        end(fleet)
        shared.dead_log.close()


def books(fleet):
    figures = fleet.figures()["events"]
    return figures["delivered"], figures["dead_letters"], figures["purged"]


def with_bad(backlog, *bad, count=30, **options):
    """Append records of which some are refused, and let them become dead letters."""
    lsns = backlog.append(*values(count))
    refused = {lsns[index] for index in bad}
    target = RecordingTarget(refuses=lambda record: record.lsn in refused, **options)
    return lsns, sorted(refused), target


# --- once, and in the chain ---------------------------------------------------------------------


def test_a_dead_letter_is_delivered_once_after_the_target_was_mended(backlog):
    lsns, bad, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        before = shared.ledger.lane(LaneKey(backlog.log.log_id, ROUTE, 0, 0)).checkpoint
        target.refuses = lambda _: False
        answer = desk_of(fleet).ask("drain.dlq.redrive", route="events")
        assert (answer["letters"], answer["asked"]) == (2, 2)
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
        held = shared.ledger.lane(LaneKey(backlog.log.log_id, ROUTE, 0, 0))
    assert target.lsns == [lsn for lsn in lsns if lsn not in bad] + bad
    assert [record.value for record in target.records[-2:]] == [b"00003", b"00017"]
    after = held.checkpoint
    assert held.manifest is None
    assert (after.batch_no, after.lsn) == (before.batch_no + 1, before.lsn)
    row = target.rows[LaneKey(backlog.log.log_id, ROUTE, 0, 0)]
    assert row.rev_id == row.dead_rev == after.dead_rev == after.rev_id
    assert shared.ledger.history(LaneKey(backlog.log.log_id, ROUTE, 0, 0))[-1].redriven == tuple(
        bad
    )
    assert not shared.ledger.dead_letters(ROUTE)


@pytest.mark.parametrize("mended", [True, False])
def test_the_list_of_batches_says_which_records_a_redrive_sent_again(backlog, mended):
    lsns, bad, target = with_bad(backlog, 3, 7)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        target.refuses = (lambda _: False) if mended else target.refuses
        number = fleet.figures()["events"]["batch_no"]
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: fleet.figures()["events"]["batch_no"] > number, fleet.figures)
        eventually(lambda: not fleet.figures()["events"]["redrives"], fleet.figures)
    desk = BatchDesk(shared.ledger, shared.ledger.births)
    *ordinary, again = desk.ask("drain.batch.list", finished=10)["finished"]
    assert (again["redrive"], again["lo"], again["hi"]) == (True, bad[0], bad[1])
    assert (again["records"], again["dead_letters"]) == (2, 0 if mended else 2)
    assert not any(each["redrive"] for each in ordinary)
    assert ordinary[-1]["hi"] == lsns[-1]


def test_what_is_refused_again_stays_a_dead_letter_with_the_newest_words(backlog):
    _, bad, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        (first, second) = shared.ledger.dead_letters(ROUTE)
        target.refuses = lambda record: record.lsn == bad[1]
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        (letter,) = shared.ledger.dead_letters(ROUTE)
        assert letter.lsn == bad[1]
        assert letter.attempts > second.attempts
        assert (letter.batch_no, letter.time_ns) == (second.batch_no, second.time_ns)
        eventually(lambda: fleet.figures()["events"]["redrives"] == 0, fleet.figures)
    assert first.lsn == bad[0]


def test_all_refused_again_is_given_up_by_a_commit_without_records(backlog):
    _, bad, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        before = shared.ledger.lane(key).checkpoint
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(
            lambda: shared.ledger.lane(key).checkpoint.batch_no == before.batch_no + 1,
            fleet.figures,
        )
        after = shared.ledger.lane(key).checkpoint
    assert after.dead_rev == before.dead_rev == target.rows[key].dead_rev
    assert target.attempts[-1].records == []
    assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == bad
    assert shared.ledger.count_redrives(key) == 0
    assert (after.delivered, after.dead_letters) == (28, 2)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("still", [0, 1, 2])
def test_a_failure_at_any_call_of_a_redrive_harms_nothing(place, behind, named, still):
    backlog = Backlog(place, "events")
    lsns, bad, target = with_bad(backlog, 3, 17, count=20)
    stays = set(bad[:still])
    for at in itertools.count(2):  # the first call is the birth, which the caller makes
        target = RecordingTarget(refuses=lambda record: record.lsn in set(bad), names=named)
        ledger = MemoryLedger(backlog.log.log_id)
        shared = backlog.shared(sink_of(target), ledger=ledger)
        backlog.deliver_all(shared)
        shared.dead_log.close()
        target.refuses = lambda record: record.lsn in stays
        assert ledger.ask_redrive(ROUTE, bad, "", 1) == 2
        fuse = Fuse(at, behind=behind)
        shared = backlog.shared(
            lambda *_: fuse.guard(RecordingSink(target), SINK),  # noqa: B023 - used in this round
            ledger=fuse.guard(ledger, LEDGER),
            dead_log=fuse.guard(DeadLog(FS, backlog.data_dir), DEAD),
        )
        with running(backlog, shared) as fleet:
            key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
            eventually(lambda: not ledger.count_redrives(key), fleet.figures)  # noqa: B023
        late = [lsn for lsn in bad if lsn not in stays]
        assert target.lsns == [lsn for lsn in lsns if lsn not in bad] + late, at
        held = ledger.lane(key)
        assert held.manifest is None, at
        counts = (held.checkpoint.delivered, held.checkpoint.dead_letters)
        assert counts == (20 - len(stays), len(stays)), at
        assert {letter.lsn for letter in ledger.dead_letters(ROUTE)} == stays, at
        if not fuse.blown:
            break
    assert at > 5
    backlog.close()


def sqlite_sink(path, fuse, *_):
    sink = make_sqlite("events", "events", {"path": str(path)})
    return fuse.guard(sink, SINK) if fuse else sink


TABLE = """
CREATE TABLE events (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, key, time TEXT NOT NULL,
  headers TEXT, value CHECK (value NOT IN ({})), PRIMARY KEY (log_id, lsn))
"""


def mend(path):
    """Make the table anew without its constraint, as a person would."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "BEGIN; ALTER TABLE events RENAME TO old;"
            + TABLE.format("x'00'")
            + "; INSERT INTO events SELECT * FROM old; DROP TABLE old; COMMIT"
        )


@pytest.mark.parametrize("behind", [False, True])
def test_with_lmdb_and_sqlite_too_a_redrive_takes_effect_once(place, behind):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(20))
    for at in itertools.count(2):  # the first call is the birth, which the caller makes
        path, home = place / f"{at}.db", place / str(at)
        home.mkdir()
        with closing(sqlite3.connect(path)) as database:
            database.execute(TABLE.format("x'3030303035', x'3030303132'"))  # 00005, 00012
        ledger = open_ledger(FS, str(home), backlog.log.log_id)
        shared = backlog.shared(partial(sqlite_sink, path, None), ledger=ledger)
        fleet = backlog.deliver_all(shared)
        assert books(fleet) == (18, 2, 0)
        shared.dead_log.close()
        mend(path)
        ledger.ask_redrive(ROUTE, [lsns[5], lsns[12]], "", 1)
        fuse = Fuse(at, behind=behind)
        shared = backlog.shared(partial(sqlite_sink, path, fuse), ledger=fuse.guard(ledger, LEDGER))
        with running(backlog, shared) as fleet:
            eventually(lambda: books(fleet) == (20, 0, 0), fleet.figures)  # noqa: B023
        with closing(sqlite3.connect(path)) as database:
            found = [row[0] for row in database.execute("SELECT lsn FROM events ORDER BY lsn")]
        assert found == lsns, at
        ledger.close()
        if not fuse.blown:
            break
    assert at > 4
    backlog.close()


def test_a_lost_answer_of_a_redrive_is_found_at_the_row(backlog):
    lsns, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        target.refuses = lambda _: False
        target.lost_answers = 1
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert target.lsns.count(bad[0]) == 1
    assert len(target.lsns) == len(lsns)


def test_an_outage_in_a_redrive_is_waited_out(backlog):
    _, _, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        target.refuses = lambda _: False
        target.script.extend([DOWN, Unknown("no answer"), DOWN])
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)


def test_a_target_restored_to_before_the_redrive_has_the_letter_dead_again(backlog):
    """The redrive committed, and then the target went back to before it."""
    lsns, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        backup = (list(target.records), dict(target.rows))
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    target.records[:], target.rows = backup[0], backup[1]
    again = replace(shared, dead_log=DeadLog(FS, backlog.data_dir))
    with running(backlog, again) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        assert [letter.lsn for letter in shared.ledger.dead_letters(ROUTE)] == bad
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert sorted(target.lsns) == lsns
    assert shared.ledger.lane(key).checkpoint.dead_letters == 0


def test_a_target_restored_between_a_redrives_commit_and_t8_gets_it_again(backlog):
    lsns, bad, target = with_bad(backlog, 3)
    ledger = MemoryLedger(backlog.log.log_id)
    shared = backlog.shared(sink_of(target), ledger=ledger)
    backlog.deliver_all(shared)
    shared.dead_log.close()
    backup = (list(target.records), dict(target.rows))
    target.refuses = lambda _: False
    ledger.ask_redrive(ROUTE, bad, "", 1)
    failed = threading.Event()

    class Failing:
        """A ledger whose T8 fails once the target has the record; then that is gone too."""

        def __getattr__(self, name):
            return getattr(ledger, name)

        def finish(self, *_args):
            target.down = DOWN
            failed.set()
            msg = "no room"
            raise LedgerFailed(msg)

    with running(backlog, backlog.shared(sink_of(target), ledger=Failing())):
        assert failed.wait(60.0)
    assert target.lsns.count(bad[0]) == 1
    target.records[:], target.rows, target.down = backup[0], backup[1], None
    shared = backlog.shared(sink_of(target), ledger=ledger)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert sorted(target.lsns) == lsns


def test_appends_go_on_while_letters_are_sent_again(backlog, monkeypatch):
    monkeypatch.setattr(limits, "REDRIVE_BATCH_MAX_RECORDS", 2)
    lsns = backlog.append(*values(40))
    bad = set(lsns[:40:4])
    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (30, 10, 0), fleet.figures)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        for start in range(40, 100, 10):
            lsns += backlog.append(*values(10, start))
            shared.board.pin(backlog.log.frontier)
            shared.board.wake()
        fleet.flush(backlog.log.frontier.lsn)
        eventually(lambda: books(fleet) == (100, 0, 0), fleet.figures)
    assert sorted(target.lsns) == lsns
    in_order = [lsn for lsn in target.lsns if lsn not in bad]
    assert in_order == sorted(in_order)
    numbers = [item.row.batch_no for item in target.attempts]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("replay", [ReplayClass.KEYED, ReplayClass.WINDOW, ReplayClass.NONE])
def test_a_target_without_transactions_is_sent_the_same_record(backlog, replay):
    _, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target, replay=replay))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert target.lsns[-1] == bad[0]


def test_a_monotone_target_refuses_a_redrive_and_says_why(backlog):
    _, _, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target, replay=ReplayClass.MONOTONE))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        with pytest.raises(RedriveRefused, match="only records newer"):
            desk_of(fleet).ask("drain.dlq.redrive", route="events")
        key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
        shared.ledger.ask_redrive(
            ROUTE, [letter.lsn for letter in shared.ledger.dead_letters(1)], "", 1
        )
        fleet.each_lane()[0].look_again()  # asked for while no daemon ran
        eventually(lambda: not shared.ledger.count_redrives(key), fleet.figures)
    assert books(fleet) == (29, 1, 0)


# --- transforms ---------------------------------------------------------------------------------


def upper(records):
    return [record._replace(value=b"mended " + record.value) for record in records]


def reversing(records):
    return [record._replace(value=record.value[::-1]) for record in records]


def raising(records):
    if records[0].value == b"00003":
        msg = "not this one"
        raise ValueError(msg)
    return records


def doubling(records):
    return records + records


def dropping(_records):
    return []


def forging(records):
    return [record._replace(lsn=record.lsn + 1) for record in records]


def yielding(records):
    for record in records:
        yield record._replace(value=b"mended " + record.value)


def nothing(_records):
    return None


HERE = "tests.integration.test_dlq_redrive"


@pytest.mark.parametrize("function", ["upper", "yielding"])
def test_a_transform_mends_records_on_the_way(backlog, function):
    _, _, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        target.refuses = lambda record: not record.value.startswith(b"mended")
        desk_of(fleet).ask("drain.dlq.redrive", route="events", transform=f"{HERE}:{function}")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert [record.value for record in target.records[-2:]] == [b"mended 00003", b"mended 00017"]


def test_the_routes_own_transform_and_coalescing_apply_behind_the_one_of_the_redrive(backlog):
    changed = replace(backlog.settings.routes["events"], transform=f"{HERE}:upper", coalesce="last")
    backlog.settings = replace(backlog.settings, routes={"events": changed})
    _, _, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events", transform=f"{HERE}:reversing")
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert [record.value for record in target.records[-2:]] == [b"mended 30000", b"mended 71000"]


@pytest.mark.parametrize(
    ("function", "delivered", "words"),
    [
        ("raising", 29, "raised ValueError('not this one')"),
        ("doubling", 28, "made more of one record"),
        ("dropping", 28, "made none of one record"),
        ("forging", 28, "something else than the record with its LSN"),
        ("nothing", 28, "something else than the record with its LSN"),
    ],
)
def test_what_a_transform_cannot_mend_stays_dead_and_says_why(backlog, function, delivered, words):
    _, _, target = with_bad(backlog, 3, 17)
    shared = backlog.shared(sink_of(target))
    key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (28, 2, 0), fleet.figures)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events", transform=f"{HERE}:{function}")
        eventually(lambda: not shared.ledger.count_redrives(key), fleet.figures)
        letters = shared.ledger.dead_letters(ROUTE)
        held = shared.ledger.lane(key)
    assert held.manifest is None
    assert (held.checkpoint.delivered, len(letters)) == (delivered, 30 - delivered)
    assert {letter.code for letter in letters} == {"transform"}
    assert words in letters[0].message


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ("nothing", "names no function"),
        (":x", "names no function"),
        ("x:", "names no function"),
        ("no_such_module_at_all:f", "cannot be loaded"),
        (f"{HERE}:absent", "cannot be loaded"),
        (f"{HERE}:ROUTE", "is not a function"),
        (7, "not a text"),
    ],
)
def test_a_transform_that_cannot_be_loaded_is_refused_before_anything_is_asked_for(
    backlog, transform, words
):
    _, _, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        with pytest.raises(InputError, match=words):
            desk_of(fleet).ask("drain.dlq.redrive", route="events", transform=transform)
    assert not shared.ledger.count_redrives(LaneKey(backlog.log.log_id, ROUTE, 0, 0))


def test_a_letter_whose_body_is_gone_stays_and_says_so(backlog):
    _, _, target = with_bad(backlog, 3)
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        for number in shared.dead_log.files():
            FS.unlink(f"{backlog.data_dir}/dead/dead-{number:010d}.log")
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        (letter,) = shared.ledger.dead_letters(ROUTE)
        eventually(lambda: shared.ledger.dead_letters(ROUTE)[0].code == "dead-letter.body")
    assert letter.lsn


def test_the_type_of_a_record_is_what_a_transform_gets():
    assert isinstance(upper([Record(1, 2, 0, b"x")])[0], Record)
    assert DeadLetterSettings().quota_records == limits.DEAD_LETTERS_MAX


def test_a_redrive_batch_holds_no_more_bytes_than_a_batch(backlog):
    lsns = backlog.append(*[b"%d" % number * 40_000 for number in range(9)], b"small")
    target = RecordingTarget(refuses=lambda record: record.lsn in lsns[:8])
    changed = replace(backlog.settings.routes["events"], batch=BatchSettings(10, 100_000, 0.05))
    backlog.settings = replace(backlog.settings, routes={"events": changed})
    shared = backlog.shared(sink_of(target))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (2, 8, 0), fleet.figures)
        seen = len(target.attempts)
        target.refuses = lambda _: False
        desk_of(fleet).ask("drain.dlq.redrive", route="events")
        eventually(lambda: books(fleet) == (10, 0, 0), fleet.figures)
    assert [len(each.records) for each in target.attempts[seen:]] == [2] * 4


def test_replay_without_a_daemon_sends_again_what_was_asked_for(backlog, monkeypatch):
    monkeypatch.setattr(limits, "REDRIVE_BATCH_MAX_RECORDS", 1)
    _, bad, target = with_bad(backlog, 3, 17, 20)
    backlog.replay(sink_of(target), patience_s=10.0)
    ledger = open_ledger(FS, backlog.data_dir, backlog.log.log_id)
    assert ledger.ask_redrive(ROUTE, bad, "", 1) == 3
    ledger.close()
    target.refuses = lambda _: False
    done = backlog.replay(sink_of(target), patience_s=10.0)["routes"]["events"]
    assert (done["delivered"], done["dead_letters"], done["redrives"]) == (30, 0, 0)
    assert (done["pending"], done["purged"]) == (0, 0)


# --- targets that keep what is written last -------------------------------------------------------


class Overwriting(RecordingSink):
    """A target of keys, of which the last written record of each stays."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.capabilities = replace(self.capabilities, overwrites=True)


@pytest.mark.parametrize("replay", [ReplayClass.KEYED, ReplayClass.TRANSACTIONAL])
def test_where_an_old_record_may_replace_a_newer_one_a_person_must_say_so(backlog, replay):
    _, bad, target = with_bad(backlog, 3)
    shared = backlog.shared(lambda *_: Overwriting(target, replay=replay))
    with running(backlog, shared) as fleet:
        eventually(lambda: books(fleet) == (29, 1, 0), fleet.figures)
        target.refuses = lambda _: False
        with pytest.raises(RedriveRefused, match="written last") as refused:
            desk_of(fleet).ask("drain.dlq.redrive", route="events")
        assert "--force" in refused.value.hint
        key = LaneKey(backlog.log.log_id, ROUTE, 0, 0)
        shared.ledger.ask_redrive(ROUTE, bad, "", 1)
        fleet.each_lane()[0].look_again()  # asked for while no daemon ran
        eventually(lambda: not shared.ledger.count_redrives(key), fleet.figures)
        assert books(fleet) == (29, 1, 0)
        assert bad[0] not in target.lsns
        desk_of(fleet).ask("drain.dlq.redrive", route="events", force=True)
        eventually(lambda: books(fleet) == (30, 0, 0), fleet.figures)
    assert target.lsns[-1] == bad[0]
