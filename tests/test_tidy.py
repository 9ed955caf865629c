"""The source itself: sizes, vocabulary, help texts. What a reviewer would otherwise repeat."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.areas import AREAS, TESTS
from wald import cli, limits

ROOT = Path(__file__).parents[1]
MODULE_MAX_LINES = 500
FUNCTION_MAX_LINES = 70
SOURCES = sorted((ROOT / "wald").rglob("*.py"))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BANNED = re.compile(r"\b(TODO|FIXME|XXX|HACK|blacklist|whitelist|utilize|leverage|simply)\b")
# one word, one thing: the left is not ours, the right is
SYNONYMS = {
    r"\bhigh[- ]water[- ]?mark\b": "frontier or checkpoint",
    r"\bpublishers?\b": "producer",
    r"\bdead[- ]letter[- ]queue\b": "dead letters",
    r"\bconsumers?\b": "route, or sink",
    r"\bmessages? broker\b": "target",
    r"\boffset commits?\b": "checkpoint",
}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def commands(
    command: click.Command = cli.wald, path: tuple[str, ...] = ("wald",)
) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, (*path, name))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_so_are_its_functions(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_MAX_LINES
    for function in functions(ast.parse(text)):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= FUNCTION_MAX_LINES, f"{function.name} has {lines} lines"


@pytest.mark.parametrize(
    "path", [*SOURCES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_words(path: Path) -> None:
    text = path.read_text()
    assert BANNED.findall(text) == []
    for pattern, ours in SYNONYMS.items():
        assert re.findall(pattern, text, re.IGNORECASE) == [], f"say {ours}"


def test_every_module_says_what_it_is_for() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_a_limit_has_its_unit_in_its_name() -> None:
    units = re.compile(
        r"_(BYTES|S|MS|RECORDS|COUNT|SEGMENTS|REQUESTS|DEPTH|NAME|MAX|LSN|UNCLEAN|MOVED|NS_PER_S"
        r"|PER_[A-Z]+|JUMP|SHARE|CHARS|SECTIONS)\b"
    )
    for name, value in vars(limits).items():
        if name.isupper() and isinstance(value, int | float) and name not in ("KIB", "MIB"):
            assert units.search(name), name


def test_every_command_and_option_has_help() -> None:
    for path, command in commands():
        assert command.help, path
        assert command.get_short_help_str(200).endswith((".", "...")), path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.name}"


def test_an_option_means_one_thing_in_a_command() -> None:
    for path, command in commands():
        named = [name for parameter in command.params for name in parameter.opts]
        assert len(named) == len(set(named)), path


def test_commands_that_read_have_json() -> None:
    talk = {"wald", "wald run", "wald serve", "wald log", "wald dlq", "wald batch", "wald route"}
    talk |= {"wald dlq export", "wald log cat"}  # they write JSON lines, always
    for path, command in commands():
        if path not in talk:
            assert "as_json" in {parameter.name for parameter in command.params}, path


def test_each_test_file_is_in_exactly_one_area() -> None:
    files = {name: area.files() for name, area in AREAS.items()}
    for path in TESTS.rglob("test_*.py"):
        areas = [name for name, found in files.items() if path in found]
        assert len(areas) == 1, f"{path.relative_to(TESTS)} is in {areas}: see tests/areas.py"
    for name, area in AREAS.items():
        for glob in area.globs.split():
            assert any(TESTS.glob(glob)), f"{name}: no file is {glob}"
