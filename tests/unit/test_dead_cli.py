"""What ``wald dlq`` says: values as JSON, times, questions, and answers page by page."""

import io
import json
from base64 import b64encode
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from uuid import UUID

import click
import msgpack
import pytest

from tests.unit.test_dead import bury
from wald import limits, offline
from wald.cli import dlq, run_command
from wald.cli.letters import Choice, Letters, Moment, decoded_value, exported
from wald.cli.output import books
from wald.client.encoding import encode_value
from wald.drainer.letter_desk import LetterDesk, letter_as_json
from wald.errors import (
    DataDirectoryForeign,
    DataDirectoryUnusable,
    FormatDamaged,
    InputError,
    NoDeadLetter,
)
from wald.model import Content, DeadLetter, LaneKey, Record, RouteBirth
from wald.storage.deadlog import DeadEntry, DeadLog
from wald.system import PosixFileSystem
from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.simfs import SimFileSystem

LOG_ID = bytes(range(16))
NAN = float("nan")


def letter(lsn, route="a", **changes):
    base = DeadLetter(
        *(route, lsn, "refused", "why", 1, b"r" * 16, 1, 1_500_000_000),
        dead_file=1,
        through_lsn=lsn,
    )
    return replace(base, **changes)


def encoded(value):
    content, data = encode_value(value)
    return Record(1, 2, content, data)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, None, True, "x", 2.5]}, {"a": [1, None, True, "x", 2.5]}),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=5), str(UUID(int=5))),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_a_value_that_json_can_say_is_decoded(value, said):
    assert decoded_value(encoded(value)) == {"value": said}


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (Content.BYTES, b"plain"),
        (Content.JSON, b"{"),
        (Content.JSON, b"[NaN]"),
        (Content.JSON, b"\xff"),
        (Content.JSON, b"[" * 100_000),
        (Content.MSGPACK, b"\xc1"),
        (Content.MSGPACK, b""),
        (Content.MSGPACK, msgpack.packb({"a": b"bytes"})),
        (Content.MSGPACK, msgpack.packb({"a": NAN})),
        (Content.MSGPACK, msgpack.packb({1: 2})),
        (Content.MSGPACK, msgpack.packb({b"k": 2})),
        (Content.MSGPACK, msgpack.packb(msgpack.ExtType(99, b""))),
        (Content.MSGPACK, msgpack.packb(msgpack.ExtType(4, b"short"))),
    ],
)
def test_any_other_stands_as_it_came(content, data):
    said = decoded_value(Record(1, 2, content, data))
    assert said == {"value_base64": b64encode(data).decode()}


def test_what_is_exported_is_whole_with_a_body_and_without():
    kept = Record(5, 2_000_000_000, Content.JSON, b"[1]", b"\xff", {"h": "v", "b": b"\xfe"}, "id")
    said = exported(letter_as_json(letter(5, producer="p", trace="t")), kept)
    assert (said["value"], said["key_base64"], said["dedup_id"]) == ([1], "/w==", "id")
    assert said["headers"] == {"h": "v", "b": {"base64": "/g=="}}
    assert (said["set_aside_at"], said["record_time"]) == (
        "1970-01-01T00:00:01.500Z",
        "1970-01-01T00:00:02.000Z",
    )
    lost = letter(5, code="damaged", dead_file=0, through_lsn=9, records=3)
    said = exported(letter_as_json(lost), None)
    assert (said["records"], said["through_lsn"], said["has_body"]) == (3, 9, False)
    assert (said["value"], said["record_time"]) == (None, None)
    assert exported(letter_as_json(letter(5, record_time_ns=10**9)), None)["record_time"]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-02T00:00:00+00:00", 86_400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:05Z", 5),
    ],
)
def test_a_moment_is_iso_8601(text, at):
    assert Moment().convert(text, None, None) == at * limits.CLOCK_NS_PER_S


def test_a_moment_is_so_long_ago():
    now = Moment().convert("0s", None, None)
    assert now - Moment().convert("1h", None, None) == pytest.approx(3.6e12, abs=1e9)
    assert Moment().convert("999999d", None, None) == 0
    for wrong in ("", "1", "1 fortnight", "2026-99-01"):
        with pytest.raises(click.BadParameter, match="is no time"):
            Moment().convert(wrong, None, None)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("r", keys=["a"], lsns=[5]), "of route 'r' with key 'a', LSN 5"),
        (Choice(None, reasons=["x"], since=5), "dead letter with reason x, that time"),
        (Choice("r"), "there is no dead letter of route 'r'"),
    ],
)
def test_nothing_found_says_what_was_asked_for(choice, words):
    choice.require(1)
    with pytest.raises(NoDeadLetter) as caught:
        choice.require(0)
    assert words in caught.value.message


# --- a desk over a ledger -----------------------------------------------------------------------


@pytest.fixture
def desk():
    ledger = MemoryLedger(LOG_ID)
    ledger.birth(RouteBirth(1, "a", 1, "s", "db", 0, 9))
    ledger.birth(RouteBirth(2, "b", 1, "s", "db", 0, 9))
    bury(ledger, *[letter(lsn) for lsn in range(10, 40)], key=LaneKey(LOG_ID, 1, 0, 0))
    bury(ledger, *[letter(lsn, "b") for lsn in range(10, 15)], key=LaneKey(LOG_ID, 2, 0, 0))
    fs = SimFileSystem(Random(1), directories=["/data"])
    return LetterDesk(ledger, DeadLog(fs, "/data"), ManualClock(), Random(1), ledger.births)


def test_letters_come_page_by_page_within_the_bounds_of_an_answer(desk, monkeypatch):
    monkeypatch.setattr(limits, "DEAD_LETTERS_SCANNED_PER_ANSWER", 7)
    monkeypatch.setattr(limits, "DEAD_LETTERS_PER_ANSWER", 3)
    asked = Letters(desk, "", runs=False)
    assert [each["lsn"] for each in asked.each(Choice("a"))] == list(range(10, 40))
    assert len(list(asked.each(Choice(None)))) == 35
    assert [each["lsn"] for each in asked.each(Choice("a", lsns=[38]))] == [38]
    assert asked.count(Choice("a"), "a", after=20) == (19, 19)
    page = desk.ask("drain.dlq", route="a", lsns=[38])
    assert (page["entries"], page["next"]) == ([], 16)


def test_an_answer_fits_a_line(desk, monkeypatch):
    monkeypatch.setattr(limits, "CONTROL_LINE_MAX_BYTES", 1_500)
    page = desk.ask("drain.dlq", route="a")
    assert len(page["entries"]) < 3
    assert page["next"] == page["entries"][-1]["lsn"]
    assert len(list(Letters(desk, "", runs=False).each(Choice("a")))) == 30


@pytest.mark.parametrize(
    "request_",
    [
        {"route": None},
        {"route": "c"},
        {"route": ["a"]},
        {"route": "a", "lsns": 5},
        {"route": "a", "lsns": ["5"]},
        {"route": "a", "lsns": [-1]},
        {"route": "a", "lsns": [True]},
        {"route": "a", "lsns": list(range(1_001))},
        {"route": "a", "keys": [5]},
        {"route": "a", "reasons": "refused"},
        {"route": "a", "since_ns": "1h"},
        {"route": "a", "until_ns": -5},
        {"route": "a", "after": 2**63},
    ],
)
@pytest.mark.parametrize("op", ["drain.dlq.redrive", "drain.dlq.purge"])
def test_a_request_that_says_nonsense_is_refused_and_changes_nothing(desk, op, request_):
    with pytest.raises(InputError):
        desk.ask(op, **request_)
    assert desk.ask("drain.dlq.routes")["routes"]["a"] == {
        "dead_letters": 30,
        "purged": 0,
        "redrives": 0,
    }


def test_nobody_halts_where_nobody_delivers(desk):
    with pytest.raises(InputError, match="no lane of route 'a' stops at refused records"):
        desk.ask("drain.dlq.set_aside", route="a")


# --- commands over a desk -----------------------------------------------------------------------


@pytest.fixture
def command(desk, monkeypatch):
    """Run ``wald dlq`` over the desk, as on a data directory without a daemon."""

    @contextmanager
    def opened(_):
        yield desk

    monkeypatch.setattr(offline, "dead_letter_desk", opened)

    def call(*arguments, answer=None):
        out, err = io.StringIO(), io.StringIO()
        stdin = io.StringIO(answer or "")
        monkeypatch.setattr(stdin, "isatty", lambda: answer is not None, raising=False)
        monkeypatch.setattr("sys.stdin", stdin)
        with redirect_stdout(out), redirect_stderr(err):
            code = run_command(["dlq", *arguments, "--data-dir", "/d/"])
        return code, out.getvalue(), err.getvalue()

    return call


def test_purge_asks_on_a_terminal_and_does_what_is_answered(command):
    code, _, err = command("purge", "--route", "b", answer="n\n")
    assert code == 130
    assert "forget 5 dead letters of route b for good?" in err
    code, _, err = command("purge", "--route", "b", answer="y\n")
    assert (code, "5 dead letters of route b purged" in err) == (0, True)
    code, out, _ = command("purge", "--route", "a", "--lsn", "10", "--yes", "--json")
    assert json.loads(out) == {
        "route": "a", "dry_run": False, "letters": 1, "records": 1, "spared": 0,
    }  # fmt: skip
    assert command("purge", "--route", "a")[0] == 2


def test_list_says_how_many_more_over_all_routes(command):
    code, out, err = command("list", "--limit", "28")
    assert (code, len(out.splitlines())) == (0, 29)
    assert err.startswith("7 more: --limit 35")
    code, out, err = command("list", "--route", "b", "--key", "none")
    assert (code, out, err) == (0, "", "no dead letters\n")
    said = json.loads(command("list", "--limit", "5", "--json")[1])
    assert (len(said["dead_letters"]), said["more"]) == (5, 30)


def test_redrive_says_what_it_did_and_that_it_is_late(command, desk):
    code, out, _ = command("redrive", "--route", "b", "--json", "--dry-run")
    assert json.loads(out)["letters"] == 5
    code, _, err = command("redrive", "--route", "b", "--wait", "1s")
    assert (code, "will be sent again when a daemon runs; they come late" in err) == (0, True)
    assert desk.ask("drain.dlq.routes")["routes"]["b"]["redrives"] == 5
    monotone = letter(50, code="damaged", dead_file=0, through_lsn=60, records=4)
    bury(desk._ledger, monotone, key=LaneKey(LOG_ID, 2, 0, 0))
    err = command("redrive", "--route", "b", "--reason", "damaged")[2]
    assert "1 letter without a body: damage took the record" in err


def test_bodies_are_read_where_they_lie_now(command, desk, tmp_path):
    fs = PosixFileSystem()
    log = DeadLog(fs, str(tmp_path))
    record = Record(12, 5, Content.JSON, b'{"a":1}')
    first = log.append(DeadEntry(b"1" * 16, bytes(16), (record,)))
    log.roll()
    second = log.append(DeadEntry(b"2" * 16, bytes(16), (record,)))
    log.close()
    fs.unlink(f"{tmp_path}/dead/dead-{first.file:010d}.log")
    reader = Letters(desk, str(tmp_path), runs=False)
    listed = letter_as_json(letter(12, dead_file=first.file, dead_offset=first.offset))
    ledger = desk._ledger
    ledger.move_letters(1, {12: tuple(second)}, 9)
    assert reader.body(listed) == record  # moved since it was listed
    with pytest.raises(FormatDamaged):
        reader.body(letter_as_json(letter(13, dead_file=1)))
    assert reader.body(listed | {"dead_file": 0}) is None
    code, out, err = command("show", "13", "--route", "a")
    assert (code, "its body cannot be read" in err) == (0, True)
    assert "lsn:           13" in out


def test_a_redrive_that_is_waited_for_tells_how_many_were_refused_again(capsys):
    said = {"letters": 5, "asked": 5, "without_body": 0, "delivered": 3}
    dlq._say_redrive(said, Choice("r"), runs=True, dry_run=False)
    assert capsys.readouterr().err.startswith(
        "5 dead letters of route r sent again: 2 refused again; they come late"
    )


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        ((), DataDirectoryForeign, "is not a data directory"),
        (("identity",), DataDirectoryUnusable, "nothing was delivered"),
    ],
)
def test_a_directory_without_dead_letters_says_so(tmp_path, monkeypatch, made, error, words):
    if made:
        known = type("Known", (), {"log_id": LOG_ID})()
        monkeypatch.setattr("wald.storage.identity.read", lambda *_: known)
    with pytest.raises(error, match=words), offline.dead_letter_desk(str(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["identity", "ledger.lock"])
def test_a_directory_of_another_user_is_an_error_with_what_to_do(monkeypatch, tmp_path, name):
    (tmp_path / "ledger").mkdir()
    if name != "identity":
        known = type("Known", (), {"log_id": LOG_ID})()
        monkeypatch.setattr("wald.storage.identity.read", lambda *_: known)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "identity").touch()
    monkeypatch.setattr(PosixFileSystem, "open", refuse)
    with (
        pytest.raises(DataDirectoryUnusable, match="Permission denied") as said,
        offline.dead_letter_desk(str(tmp_path)),
    ):
        pass
    assert "sudo -u USER" in said.value.hint


def test_the_books_say_what_was_purged_so_that_they_balance():
    route = {"accepted": 1_000, "delivered": 990, "pending": 3, "dead_letters": 5, "purged": 2}
    assert books("r", "db", route) == (
        "r -> db: 1,000 accepted = 990 delivered + 3 pending + 5 dead letters + 2 purged"
    )
    assert books("r", "db", route | {"purged": 0}).endswith("5 dead letters")
