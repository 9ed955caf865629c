"""The command line: errors in two lines with the exit code of their class, help, output."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from wald import cli, errors
from wald.cli import batch, output, status
from wald.cli.options import Duration
from wald.core.guarantees import ORDER
from wald.model import ReplayClass


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wald", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WALD_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "hint"),
    [
        (["nonsense"], 2, "usage", "see: wald --help"),
        (["status", "--nonsense"], 2, "usage", "see: wald status --help"),
        (["append"], 2, "usage", "see: wald append --help"),
        (["wait"], 2, "usage", "wald wait --help"),
        (["wait", "--all", "--timeout", "soon"], 2, "usage", ""),
        (["dlq", "list", "--data-dir", "x" * 300], 74, "data.unusable", ""),
        (["status", "--socket", "/nowhere/wald.sock"], 69, "unavailable", "wald serve"),
        (["status", "--socket", "/" + "x" * 200], 69, "unavailable", "name a shorter path"),
        (["serve", "--config", "/nowhere/wald.toml"], 78, "config", "--to sqlite:events.db"),
        (["serve", "--to", "sqlite"], 78, "config.wrong-value", "--to sqlite:events.db"),
        (["serve", "--to", "sqlite:/nowhere/x.db"], 74, "data.unusable", "correct the path"),
        (["check", "--to", "nosuch:x"], 78, "config.wrong-value", "known types: "),
        (["check", "--to", "sqlite:x", "--config", "x"], 78, "config", ""),
        (["log", "verify", "/nowhere"], 78, "data.foreign", ""),
        (["run", "--to", "sqlite:x.db", "--", "no-such-command"], 2, "input", ""),
    ],
)
def test_a_mistake_is_two_lines_and_an_exit_code(
    arguments: list[str],
    exit_code: int,
    code: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
    empty: Path,
) -> None:
    assert cli.run_command(arguments) == exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error[{code}]: " in said.err
    assert hint in said.err
    assert "Traceback" not in said.err
    assert list(empty.iterdir()) == []


def test_a_file_that_no_daemon_listens_at_is_not_said_to_be_absent(
    capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    (empty / "plain").touch()
    assert cli.run_command(["status", "--socket", "plain"]) == errors.EXIT_UNAVAILABLE
    assert capsys.readouterr().err == (
        "error[unavailable]: no daemon answers at plain: there is no plain.ctl\n"
        "hint: name the data socket of a running daemon; commands go to that path + .ctl\n"
    )


def test_nothing_says_where_records_go(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WALD_CONFIG", raising=False)
    monkeypatch.setattr("wald.cli.options.ROOT_CONFIG", "/nowhere/at/all")
    assert cli.run_command(["serve"]) == errors.EXIT_CONFIG
    assert "hint: name a target, --to sqlite:events.db" in capsys.readouterr().err


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; before = set(sys.modules);"
        "from wald.cli import run_command; code = run_command(['--help']);"
        "loaded = set(sys.modules) - before;"
        "heavy = {'asyncio', 'uvloop', 'rich', 'sqlite3', 'lmdb', 'psutil'} & loaded;"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    command = f"{sys.executable} -m wald --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout in ("0\n", "1\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["log"], ["dlq"], ["batch"], ["route"]])
def test_the_help_of_a_group_says_what_each_command_does_to_the_end(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run_command([*arguments, "--help"])
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    assert listed.startswith("  ")
    assert "..." not in listed


@pytest.mark.parametrize("arguments", [[], ["log"], ["dlq"]])
def test_a_group_without_a_command_shows_its_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(arguments) == errors.EXIT_USAGE
    said = capsys.readouterr()
    assert (
        said.err.splitlines()[0]
        == f"Usage: {' '.join(['wald', *arguments])} [OPTIONS] COMMAND [ARGS]..."
    )
    assert "Commands:\n" in said.err
    assert "error[" not in said.err


def test_the_examples_of_the_help_stand_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run_command(["--help"])
    said = capsys.readouterr().out
    assert "\\b" not in said
    assert "\b" not in said
    assert "wald append STREAM FILE                  records from a file" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize("buffering", ["", "-u"])
@pytest.mark.parametrize("arguments", ["version", "version --json", "--help"])
def test_a_full_standard_output_is_an_error_of_output(arguments: str, buffering: str) -> None:
    command = f"unset PYTHONUNBUFFERED; {sys.executable} {buffering} -m wald {arguments} >/dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == errors.EXIT_IO
    assert done.stderr == "error[output]: the output cannot be written: No space left on device\n"


def test_the_version_is_an_option_too() -> None:
    said, asked = run("--version"), run("version")
    assert said.stdout == asked.stdout
    assert (said.returncode, said.stderr) == (0, "")


def test_version_says_what_it_runs_on() -> None:
    done = run("version", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert {"wald", "disk_format", "wire_version", "python", "sqlite"} == facts.keys()
    assert run("version").stdout.startswith("wald ")


def test_check_says_what_a_route_promises(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(cli.wald, ["check", "--to", f"sqlite:{tmp_path}/x.db"])
    assert "transactional   exactly once" in done.output
    done = runner.invoke(cli.wald, ["check", "--to", f"sqlite:{tmp_path}/x.db", "--json"])
    (route,) = json.loads(done.stdout)["routes"]
    assert (route["class"], route["promise"]) == ("transactional", "exactly once")
    assert (route["order"], route["grants"]) == ("in order for each key", True)
    assert route["limits"]["max_records"] == 2_000
    assert route["limits"]["target_max_records"] == 100_000
    assert list(tmp_path.iterdir()) == []


CHECKED = """
[sinks.a]
type = "sqlite"
path = "{0}/x.db"
[sinks.b]
type = "null"
[routes.one]
stream = "one"
sink = "a"
[routes.two]
stream = "two"
sink = "b"
batch = {{ max_records = 65536 }}
"""


def test_check_prints_class_limits_order_grants_and_what_it_found(tmp_path: Path) -> None:
    config = tmp_path / "wald.toml"
    config.write_text(CHECKED.format(tmp_path))
    done = CliRunner().invoke(cli.wald, ["check", "--config", str(config)])
    lines = [line for line in done.output.splitlines() if "wal-reset" not in line]
    assert [line for line in lines if "newer SQLite" not in line] == [
        "route one   one -> a (sqlite)   transactional   exactly once",
        "  limits: 2,000 records or 1MiB a batch; the target takes 100,000 or 256MiB",
        "  order: in order for each key",
        "  grants: what wald needs there is printed by 'wald check --print-grants'",
        "  ok: the database will be made  [sqlite.found]",
        "route two   two -> b (null)   keyed   exactly once per key",
        "  limits: 65,536 records or 1MiB a batch; the target takes 65,536 or 64MiB",
        f"  order: {ORDER[ReplayClass.KEYED]}",
        "  ok: everything is taken, and nothing is kept  [null.found]",
    ]
    done = CliRunner().invoke(cli.wald, ["check", "--config", str(config), "--print-grants"])
    assert done.stdout == f"install -d -o wald {tmp_path}\n"
    assert "route one:" in done.stderr
    assert "route two: its target knows no grants" in done.stderr


def test_check_fails_where_the_target_cannot_be(tmp_path: Path) -> None:
    assert cli.run_command(["check", "--to", f"sqlite:{tmp_path}/no/x.db"]) == errors.EXIT_NO


@pytest.mark.parametrize(
    ("sink", "route", "line", "words"),
    [
        ("path = 'x.db'", "tabel = 'x'", 8, "unknown setting 'tabel' of a sqlite sink"),
        ("path = 5", "", 3, "path is 5"),
        ("path = 'x.db'\nmode = 'what'", "", 4, "mode is 'what'"),
        ("path = 'x.db'\nmode = 'what'", "mode = 'which'", 9, "mode is 'which'"),
        ("path = 'x.db'\nmode = 'upsert'", "", 4, "'conflict' names the columns"),
        ("path = 'x.db'", "columns = { a = 5 }", 8, "columns is {'a': 5}"),
        ("", "", 1, "a sqlite sink needs a 'path'"),
    ],
)
def test_a_wrong_setting_of_a_sink_is_named_with_its_place(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sink: str,
    route: str,
    line: int,
    words: str,
) -> None:
    config = tmp_path / "wald.toml"
    tables = f"[sinks.db]\ntype = 'sqlite'\n{sink}\n\n[routes.bookings]\n"
    config.write_text(f"{tables}stream = 'bookings'\nsink = 'db'\n{route}\n")
    assert cli.run_command(["check", "--config", str(config)]) == errors.EXIT_CONFIG
    said = capsys.readouterr().err
    assert said.partition(": ")[2].startswith(f"{config}:{line}: route 'bookings': {words}")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nosuch:x", "--to: there is no type 'nosuch'"),
        ("postgres:x", "--to: unknown setting 'path' of a postgres sink"),
        ("redis://me:pw@db/0", "--to: a password does not belong into a URL"),
    ],
)
def test_a_wrong_target_on_the_command_line_is_told_without_a_route(
    capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    assert cli.run_command(["check", "--to", target]) == errors.EXIT_CONFIG
    assert capsys.readouterr().err.partition("]: ")[2].startswith(words)


def test_check_of_a_target_speaks_of_each_stream(tmp_path: Path) -> None:
    target = f"sqlite:{tmp_path}/x.db"
    done = CliRunner().invoke(cli.wald, ["check", "--to", target])
    assert f"each stream (STREAM stands for its name)   -> {target}   transact" in done.output


# --- output -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 漢字", "plain äöü 漢字"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert output.printable(text) == shown


def test_what_is_too_long_is_cut() -> None:
    assert output.printable("x" * 5_000).endswith("... (5,000 characters)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.21, "0.2 s"), (38.2, "38 s"), (600, "10 min"), (9_000, "2 h"), (1e6, "12 d")],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "LONGER"), [("x\n", "1"), ("yyyyyy", "2")])
    assert capsys.readouterr().out == "A       LONGER\nx\\n     1\nyyyyyy  2\n"


def test_a_duration_option_takes_units() -> None:
    assert Duration().convert("250ms", None, None) == 0.25
    assert Duration().convert(2.5, None, None) == 2.5
    with pytest.raises(click.BadParameter, match="not a duration"):
        Duration().convert("x", None, None)


@pytest.mark.parametrize(
    ("wide", "left", "gone"),
    [
        pytest.param(14, ["A", "BB", "CCCC"], [], id="it fits"),
        pytest.param(7, ["A", "CCCC"], ["BB"], id="the first that may go is enough"),
        pytest.param(6, ["CCCC"], ["BB", "A"], id="both"),
        pytest.param(1, ["CCCC"], ["BB", "A"], id="what may not go stays, however narrow it is"),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(wide: int, left: list[str], gone: list[str]) -> None:
    lines = [["A", "BB", "CCCC"], ["1", "22222", "333"]]
    assert output.fit(lines, ("BB", "A"), wide) == gone
    assert lines[0] == left
    assert len(lines[1]) == len(left)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "Did you mean 'status'?"),
        (["route", "fault", "r", "--reject", "500%"], "'500%' is not a share from 0% to 100%"),
        (["route", "fault", "r", "--lose-answers", "x"], "'x' is not a share from 0% to 100%"),
        (["route", "fault", "r", "--slow", "1s", "--for", "2h"], "--for: at most 1h"),
        (["route", "fault", "r", "--down", "2h"], "--down: at most 1h"),
    ],
)
def test_a_usage_error_says_what_was_meant(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(arguments) == 2
    assert words in capsys.readouterr().err


def test_what_people_read_of_a_batch_has_units_and_no_words_of_python() -> None:
    assert [batch._label(name) for name in ("lo", "hi", "sealed_ns", "state")] == [
        "first_lsn", "last_lsn", "sealed_at", "state",
    ]  # fmt: skip
    shown = [
        ("lo", 14_813, "14,813"),
        ("redrive", False, "no"),
        ("redrive", True, "yes"),
        ("sealed_ns", 1_700_000_000_123_456_789, "2023-11-14T22:13:20.123Z"),
        ("finished_ns", 0, "-"),
        ("last_error", "", "-"),
        ("held", None, "-"),
    ]
    assert [batch._shown(name, value) for name, value, _ in shown] == [text for *_, text in shown]


def test_how_long_something_took_is_not_rounded_to_nothing() -> None:
    assert [output.took(each) for each in (0.0, 0.0124, 2.0)] == ["1 ms", "12 ms", "2.0 s"]


def test_a_failed_write_of_the_log_is_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    last = "seg-0000000001.wal: Input/output error; the log goes on in seg-0000000003.wal"
    answer = {"recovery": {}, "data_dir": "/d", "write_failures": {"count": 2, "last": last}}
    status.say_alarms(answer)
    said = capsys.readouterr().err
    assert f"ALARM: a write or flush of the log failed, 2 times: {last}" in said
    assert "look at the disk" in said
    calm = answer | {"write_failures": {"count": 0, "last": ""}}
    status.say_alarms(calm | {"dead_log": {"trouble": "a chain is broken", "hint": "put it back"}})
    said = capsys.readouterr().err
    assert "ALARM: the dead log cannot be tended: a chain is broken\nhint: put it back" in said
    status.say_alarms(calm | {"dead_log": {}})
    assert capsys.readouterr().err == ""
