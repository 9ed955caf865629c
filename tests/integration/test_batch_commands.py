"""``wald batch``: what is on its way, and decisions, with a drainer and without."""

import json
from dataclasses import replace

import pytest

from tests.backlog import FS, Backlog, end, eventually
from wald.cli import run_command
from wald.drainer.answers import Answers
from wald.drainer.frontier import FrontierBoard
from wald.errors import InputError, NotUncertain
from wald.model import (
    Decision,
    LaneKey,
    Rejected,
    RejectedRecord,
    ReplayClass,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.storage.lmdb_store import open_ledger
from wald.testing.recording_sink import RecordingSink, RecordingTarget


class Held:
    """A fleet with a batch that is held, over a real ledger."""

    def __init__(self, place):
        self.backlog = Backlog(place, "events")
        self.lock = f"{self.backlog.data_dir}/ledger.lock"
        FS.create(self.lock).close()
        self.target = RecordingTarget()
        settings = self.backlog.settings
        routes = {"events": replace(settings.routes["events"], on_unknown="hold")}
        self.backlog.settings = replace(settings, routes=routes)
        self.lsns = self.backlog.append(*[b"%d" % number for number in range(6)])
        self.target.script.append(Rejected((RejectedRecord(self.lsns[1], "bad", "no"),), "no"))
        self.target.script.append(Unknown("the line was cut"))
        self.begin()
        eventually(lambda: self.figures["parked"] == "uncertain", lambda: self.figures)

    def begin(self):
        ledger = open_ledger(FS, self.backlog.data_dir, self.backlog.log.log_id)
        self.shared = self.backlog.shared(
            lambda *_: RecordingSink(self.target, replay=ReplayClass.NONE), ledger=ledger
        )
        self.fleet = self.backlog.fleet(self.shared)
        self.answers = Answers(self.fleet, FrontierBoard())

    def ask(self, op, **request):
        return self.answers.answer({"op": f"drain.batch.{op}", **request})

    @property
    def figures(self):
        return self.fleet.figures()["events"]

    @property
    def batch(self):
        key = LaneKey(self.backlog.log.log_id, 1, 0, 0)
        manifest = self.shared.ledger.lane(key).manifest
        assert manifest is not None
        return manifest.current.rev_id.hex()

    def through(self):
        last = self.backlog.log.frontier.lsn
        eventually(lambda: self.figures["through_lsn"] >= last, lambda: self.figures)

    def stop(self):
        end(self.fleet)
        self.shared.ledger.close()
        self.shared.dead_log.close()

    def close(self):
        self.stop()
        self.backlog.close()


@pytest.fixture
def held(place):
    made = Held(place)
    yield made
    made.close()


def test_an_uncertain_batch_is_listed_and_shown_with_all_that_is_known(held):
    said = held.ask("list")
    (line,) = said["batches"]
    assert said["more"] == 0
    assert (line["batch"], line["route"], line["state"]) == (held.batch, "events", "uncertain")
    assert (line["lo"], line["hi"], line["records"]) == (1, held.lsns[-1], 6)
    assert line["attempts"] == 2
    assert "the line was cut" in line["last_error"]
    shown = held.ask("show", batch=held.batch[:8], route="events")["batch"]
    assert shown["revisions"][-1]["excluded"] == [held.lsns[1]]
    assert shown["cleared"] == 1
    assert held.ask("show", batch=shown["revisions"][0]["revision"][:10])["batch"] == shown


def test_a_batch_that_waits_says_what_it_waits_for(held):
    held.target.down = Systemic(SystemicKind.UNREACHABLE, "it is down")
    held.ask("resolve", batch=held.batch, decision="not-delivered")
    eventually(lambda: "it is down" in held.figures["last_error"], lambda: held.figures)
    (line,) = held.ask("list")["batches"]
    assert "it is down" in line["last_error"]


@pytest.mark.parametrize("decision", list(Decision))
def test_a_decision_is_carried_out_at_once_by_a_running_drainer(held, decision):
    batch = held.batch
    said = held.ask("resolve", batch=batch[:12], decision=decision.value)
    assert said == {"batch": batch, "route": "events", "decision": decision.value}
    held.through()
    good = [lsn for lsn in held.lsns if lsn != held.lsns[1]]
    assert held.target.lsns == (good if decision is Decision.NOT_DELIVERED else [])
    letters = {letter.lsn: letter.code for letter in held.shared.ledger.dead_letters(1)}
    given_up = dict.fromkeys(good, "uncertain") if decision is Decision.DEAD_LETTER else {}
    assert letters == {held.lsns[1]: "bad"} | given_up
    assert held.figures["delivered"] + held.figures["dead_letters"] == 6
    assert held.figures["parked"] is None
    finished = held.ask("list", finished=5)["finished"]
    assert [line["number"] for line in finished] == [1]
    assert held.ask("show", batch=finished[0]["batch"][:8])["batch"] == finished[0]
    with pytest.raises(NotUncertain, match="of route 'events' is finished"):
        held.ask("resolve", batch=finished[0]["batch"], decision=decision.value)


def test_what_cannot_be_decided_is_refused_with_a_reason(held):
    wrong = [
        ({"batch": "zz", "decision": "delivered"}, "not the beginning"),
        ({"batch": "", "decision": "delivered"}, "not the beginning"),
        ({"decision": "delivered"}, "not the beginning"),
        ({"batch": held.batch, "decision": "perhaps"}, "no decision"),
        ({"batch": held.batch, "decision": ["delivered"]}, "no decision"),
        ({"batch": "f" * 32, "decision": "delivered"}, "there is no batch"),
        ({"batch": held.batch, "decision": "delivered", "route": "x"}, "no route 'x'"),
    ]
    for request, why in wrong:
        with pytest.raises(InputError, match=why):
            held.ask("resolve", **request)
    held.target.refuses = lambda _: False
    held.ask("resolve", batch=held.batch, decision="not-delivered")
    held.through()


def test_a_batch_that_is_on_its_way_takes_no_decision(place):
    held = Held(place)
    held.ask("resolve", batch=held.batch, decision="delivered")
    held.through()
    held.target.down = Systemic(SystemicKind.UNREACHABLE, "it is down")
    held.backlog.append(b"more")
    held.shared.board.pin(held.backlog.log.frontier)
    held.fleet.flush(held.backlog.log.frontier.lsn)
    eventually(lambda: held.ask("list")["batches"] != [])
    with pytest.raises(NotUncertain, match="does not wait for a decision"):
        held.ask("resolve", batch=held.batch, decision="delivered")
    (line,) = held.ask("list")["batches"]
    assert line["state"] in {"waiting", "delivering", "checking", "idle"}
    held.close()


def wald(capsys, *arguments):
    code = run_command(["batch", *arguments])
    return code, capsys.readouterr()


def test_without_a_drainer_the_commands_work_on_the_directory(held, capsys):
    held.stop()
    where = ("--data-dir", held.backlog.data_dir)
    code, said = wald(capsys, "list", *where, "--json")
    (line,) = json.loads(said.out)["batches"]
    assert (code, line["state"]) == (0, "uncertain")
    short = line["batch"][:8]
    code, said = wald(capsys, "list", *where)
    assert short in said.out
    assert "uncertain" in said.out
    assert "wald batch resolve" in said.err
    code, said = wald(capsys, "show", short, *where)
    assert "the line was cut" in said.out
    assert "revision:" in said.out
    code, said = wald(capsys, "show", short, *where, "--json")
    assert json.loads(said.out)["batch"] == line["batch"]
    code, said = wald(capsys, "resolve", short, *where)
    assert (code, "--not-delivered" in said.err) == (2, True)
    code, said = wald(capsys, "resolve", short, "--delivered", *where, "--json")
    assert json.loads(said.out)["decision"] == "delivered"
    code, said = wald(capsys, "resolve", short, "--delivered", *where)
    assert (code, "batch.not-uncertain" in said.err) == (1, True)
    code, said = wald(capsys, "list", *where)
    assert "delivered" in said.out
    held.begin()
    held.through()
    assert held.target.lsns == []
    assert held.figures["delivered"] == 5


def test_while_a_drainer_holds_the_ledger_the_directory_is_not_touched(held, capsys):
    lock = FS.open(held.lock, write=True)
    assert lock.lock()
    code, said = wald(capsys, "list", "--data-dir", held.backlog.data_dir)
    assert (code, "data.held" in said.err) == (69, True)
    lock.close()
