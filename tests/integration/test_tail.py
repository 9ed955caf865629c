"""wald tail: what is durable, in order, for people and for pipes; and nothing else."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.doorkeeper import short_directory
from wald import limits
from wald.cli.tail import as_line, as_object
from wald.core.access import Access, Caller, Listed, Verb, check_operation
from wald.drainer.tail_desk import record_as_json
from wald.errors import AccessDenied
from wald.model import Record

HOSTILE = {
    "an escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "a forged line": 'fine\n99999 2026-01-01T00:00:00.000Z admin "forged"',
    "a carriage return": "hidden\rshown",
    "text that runs backwards": "abc\u202edef",
    "a lone C1 control": "a\x9b31mb",
    "zero width": "ad\u200bmin",
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_directory() as place, Daemon(place, to=f"sqlite:{place}/x.db") as running:
        yield running


def lines(daemon: Daemon, *arguments: str) -> list[Any]:
    printed = daemon.command("tail", *arguments, "--json").splitlines()
    return [json.loads(line) for line in printed]


def test_records_come_in_order_with_everything_that_is_known(daemon: Daemon):
    with wald.connect(str(daemon.socket)) as producer:
        first = producer.append("s1", {"user": "ann"}, key="ann", headers={"h": "v"}, dedup_id="d")
        producer.append("other", b"not ours")
        raw = producer.append("s1", b"\xff\x00", key=b"\xfe")
        text = producer.append("s1", "x", key="bob")
    one, two, three = lines(daemon, "s1")
    assert one.pop("time").endswith("Z")
    assert one == {
        "lsn": first.lsn,
        "key": "ann",
        "headers": {"h": "v"},
        "dedup_id": "d",
        "value": {"user": "ann"},
    }
    assert (two["lsn"], two["key_base64"], two["value_base64"]) == (raw.lsn, "/g==", "/wA=")
    assert lines(daemon, "s1", "--key", "bob") == [three]
    assert lines(daemon, "s1", "--from", str(raw.lsn), "--limit", "1") == [two]
    assert lines(daemon, "s1", "--from", str(text.lsn + 1)) == []
    assert lines(daemon, "s1", "--from", "now") == []
    printed = daemon.command("tail", "s1").splitlines()
    assert printed[0].endswith(' ann {"user":"ann"}')
    assert printed[1].endswith(" base64:/g== base64:/wA=")


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_stored_cannot_steer_a_terminal_or_forge_a_line(daemon: Daemon, what: str):
    stream = f"hostile-{list(HOSTILE).index(what)}"
    text = HOSTILE[what]
    with wald.connect(str(daemon.socket)) as producer:
        producer.append(stream, {"text": text, text: [text]}, key=text)
        producer.append(stream, text.encode())
    for options in ((), ("--json",)):
        printed = daemon.command("tail", stream, *options)
        assert printed.endswith("\n")
        assert len(printed.splitlines()) == 2
        assert all(character == "\n" or character.isprintable() for character in printed)
    found = lines(daemon, stream)[0]
    assert (found["value"], found["key"]) == ({"text": text, text: [text]}, text)


def test_many_records_and_large_ones_come_page_by_page(daemon: Daemon):
    with wald.connect(str(daemon.socket)) as producer:
        receipts = producer.append_many("s2", [{"n": n} for n in range(1_200)]).accepted
        large = producer.append("s2", bytes(limits.RECORD_MAX_BYTES))
        last = producer.append("s2", "last", headers={"h": "v" * 15_000})
    found = lines(daemon, "s2")
    assert [each["lsn"] for each in found] == [each.lsn for each in receipts] + [
        large.lsn,
        last.lsn,
    ]
    assert [each["value"] for each in found[:1_200]] == [{"n": n} for n in range(1_200)]
    assert found[-2]["value_bytes"] == limits.RECORD_MAX_BYTES
    assert found[-1]["value"] == "last"
    assert "(1,048,576 bytes)" in daemon.command("tail", "s2", "--from", str(large.lsn))


def test_following_goes_on_through_a_restart_and_ends_with_its_limit(daemon: Daemon):
    with wald.connect(str(daemon.socket)) as producer:
        producer.append("s3", "before")
        following = subprocess.Popen(
            [sys.executable, "-m", "wald", "tail", "s3", "--follow", "--from", "oldest",
             "--limit", "4", "--json"],
            env={**os.environ, "WALD_SOCKET": str(daemon.socket)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["value"] == "before"
        producer.append("s3", "while it follows")
        assert json.loads(following.stdout.readline())["value"] == "while it follows"
        daemon.end()
        daemon.start()
        producer.append_many("s3", ["after a restart", "last"])
        printed, said = following.communicate(timeout=60)
    assert [json.loads(line)["value"] for line in printed.splitlines()] == [
        "after a restart",
        "last",
    ]
    assert following.returncode == 0
    assert said == "" or said.startswith("waiting: ")


def test_following_waits_for_a_stream_and_a_pipe_that_ends_ends_it(daemon: Daemon):
    following = subprocess.Popen(
        [sys.executable, "-m", "wald", "tail", "s4", "--follow"],
        env={**os.environ, "WALD_SOCKET": str(daemon.socket)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert following.stderr is not None
    assert "there is no stream 's4' yet" in following.stderr.readline()
    with wald.connect(str(daemon.socket)) as producer:
        number = 0

        def told() -> bool:
            """The question of where "now" is may come behind some records."""
            nonlocal number
            number += 1
            producer.append("s4", number)
            return bool(poll(following.stdout))

        wait_until(told, "a record was printed")
        assert int(following.stdout.readline().split()[-1]) >= 1
        following.stdout.close()

        def ended() -> bool:
            producer.append("s4", "nobody reads")
            return following.poll() is not None

        wait_until(ended, "the end of the pipe was noticed")
    following.stderr.close()


def poll(stream: Any) -> bool:
    """Tell whether something can be read; not by ``select``, which knows no large descriptors."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    return bool(waiting.poll(50))


def test_what_is_wrong_is_said(daemon: Daemon, tmp_path: Path):
    assert daemon.command("tail", "never", expect=1) == ""
    assert daemon.command("tail", "s1", "--from", "yesterday", expect=2) == ""
    assert daemon.command("tail", "s1", "--from", "0", expect=2) == ""
    assert daemon.command("tail", "s1", "--data-dir", str(tmp_path), "-f", expect=2) == ""
    held = daemon.command("tail", "s1", "--data-dir", str(daemon.data_dir), expect=69)
    assert held == ""


def test_without_a_daemon_the_directory_is_read_up_to_what_was_durable(tmp_path: Path):
    with short_directory() as place, Daemon(place, to=f"sqlite:{place}/x.db") as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            producer.append_many("s", [1, 2, 3], ack="delivered")
        daemon.end()
        found = lines(daemon, "s", "--data-dir", str(daemon.data_dir))
        assert [each["value"] for each in found] == [1, 2, 3]


def test_who_may_append_may_not_read_for_that():
    rules = {Verb.APPEND: Listed(uids=frozenset({7})), Verb.READ: Listed(uids=frozenset({8}))}
    access = Access(0, rules, {})
    request = {"op": "drain.tail", "stream": "s"}
    check_operation(access, Caller(8, frozenset()), request, {})
    with pytest.raises(AccessDenied):
        check_operation(access, Caller(7, frozenset()), request, {})
    check_operation(access, Caller(7, frozenset()), {**request, "op": "drain.delivered"}, {})


def test_a_line_says_a_value_that_is_no_json_as_base64():
    record = Record(5, 1_750_000_000 * limits.CLOCK_NS_PER_S, 1, b"\xc1", key="k")
    assert as_object(record_as_json(record))["value_base64"] == "wQ=="
    assert as_line(record_as_json(record)) == "5 2025-06-15T15:06:40.000Z k base64:wQ=="


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain words, grün".encode(), "plain words, grün"),
        (b"two\nlines", "base64:dHdvCmxpbmVz"),
        (b"\x1b[2J", "base64:G1sySg=="),
        (b"\xff", "base64:/w=="),
        (b"", "base64:"),
    ],
)
def test_a_line_says_bytes_that_are_text_as_they_are(value: bytes, shown: str):
    item = record_as_json(Record(5, 1_750_000_000 * limits.CLOCK_NS_PER_S, 0, value))
    assert as_line(item) == f"5 2025-06-15T15:06:40.000Z - {shown}"
    assert "value_base64" in as_object(item)
