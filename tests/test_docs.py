"""The documents: names and paths exist, shown commands exist, links lead somewhere."""

import importlib
import importlib.util
import re
from pathlib import Path

import click
import pytest

from wald import app, cli, errors

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
README = (ROOT / "README.md").read_text()
INSIDE = (ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs" / "explanation").glob("*.md")))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def dotted_names(path: Path) -> list[str]:
    names = re.findall(r"\bwald(?:\.[A-Za-z_]\w*)+", " ".join(in_backticks(path.read_text())))
    files = (".toml", ".sock", ".db", ".service", ".socket")
    return [name for name in names if not name.endswith(files)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_dotted_name_of_a_document_exists(path: Path) -> None:
    names = [name for name in dotted_names(path) if name != "wald.sinks"]
    assert [name for name in names if not exists(name)] == []


def test_the_documents_of_the_inside_name_symbols() -> None:
    assert {path.name: len(dotted_names(path)) for path in INSIDE}["ARCHITECTURE.md"] > 10
    assert all(dotted_names(path) for path in INSIDE)


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.name)
def test_every_path_of_the_inside_exists(path: Path) -> None:
    paths = re.findall(r"\b(?:wald|docs|tests|config|benchmarks)/[\w./-]*", path.read_text())
    assert [each for each in paths if not (ROOT / each.rstrip(".")).exists()] == []


def test_every_document_is_listed_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = re.findall(r"\]\(([^)#]+)", index.read_text())
    listed_paths = {(index.parent / target).resolve() for target in listed}
    missing = {path for path in DOCUMENTS if path.parent != ROOT} - listed_paths - {index}
    assert missing == set()


def test_the_code_map_names_every_package() -> None:
    named = section(ARCHITECTURE, "Code map")
    for path in sorted((ROOT / "wald").iterdir()):
        if path.name.startswith("_") or path.suffix not in ("", ".py"):
            continue
        assert f"`wald.{path.stem}`" in named, path.name


@pytest.mark.parametrize("package", ["core", "storage", "drainer", "sinks"])
def test_the_list_of_modules_names_each_once(package: str) -> None:
    listed = section((ROOT / "docs/explanation/modules.md").read_text(), f"wald.{package}")
    rows = "\n".join(line for line in listed.splitlines() if line.startswith("|"))
    there = [path.stem for path in (ROOT / "wald" / package).glob("[!_]*.py")]
    assert sorted(in_backticks(rows)) == sorted(there)


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.name)
def test_every_class_of_the_inside_exists(path: Path) -> None:
    source = "\n".join(each.read_text() for each in (ROOT / "wald").rglob("*.py"))
    known = set(re.findall(r"\w+", source))
    named = re.findall(r"`([A-Z][A-Za-z]+)(?:\.([a-z_]+))?`", path.read_text())
    assert [name for names in named for name in names if name and name not in known] == []


def test_every_command_that_a_document_shows_exists() -> None:
    for path in DOCUMENTS:
        for line in re.findall(r"(?:\$ |`)wald ([a-z]+(?: [a-z][a-z-]*)?)", path.read_text()):
            words = line.split()
            command: click.Command | None = cli.wald
            while words and isinstance(command, click.Group):
                command = command.get_command(click.Context(command), words.pop(0))
                assert command is not None, f"{path.name}: wald {line}"


def test_every_option_that_a_document_shows_exists() -> None:
    known = {"--json", "--help", "--version"}
    for name in cli.COMMANDS:
        command = cli.wald.get_command(click.Context(cli.wald), name)
        groups = command.commands.values() if isinstance(command, click.Group) else [command]
        for one in groups:
            assert one is not None
            known |= {option for parameter in one.params for option in parameter.opts}
    for path in DOCUMENTS:
        for line in re.findall(r"(?:\$ |`)wald [^`\n]*", path.read_text()):
            shown = line.split(" -- ")[0]
            assert set(re.findall(r"--[a-z-]+", shown)) <= known, f"{path.name}: {line}"


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"it", "them"}
    assert {"demo", "test"} <= shown
    assert shown <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_error_code_is_one_of_a_kind() -> None:
    def walk(kind: type[errors.WaldError]) -> list[type[errors.WaldError]]:
        return [kind, *[below for sub in kind.__subclasses__() for below in walk(sub)]]

    kinds = [kind for kind in walk(errors.WaldError) if kind.__module__ == errors.__name__]
    codes = [kind.code for kind in kinds if "code" in vars(kind)]
    assert len(codes) == len(set(codes))
    for kind in kinds:
        assert kind.exit_code in (1, 2, 69, 74, 75, 78), kind
        assert kind.__doc__, kind


def test_every_test_that_a_document_names_exists() -> None:
    named = in_backticks((ROOT / "docs" / "reliability.md").read_text())
    places = [each.removeprefix("tests/").partition("::") for each in named if ".py" in each]
    assert len(places) > 40
    wrong = []
    for file, _, name in places:
        found = list((ROOT / "tests").rglob(Path(file).name))
        text = "".join(path.read_text() for path in found)
        if not text or (name and not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE)):
            wrong.append(f"{file}::{name}")
    assert wrong == []


SETTINGS_OF_SINKS = {
    "sqlite": "wald.sinks.sqlite.options:KEYS",
    "postgres": "wald.sinks.postgres.options:KEYS",
    "redis": "wald.sinks.redis.options:KEYS",
    "dynamodb": "wald.sinks.dynamodb.options:KEYS",
    "files": "wald.sinks.files.options:KEYS",
    "http": "wald.sinks.http.settings:SETTINGS",
    "null": "wald.sinks.null:KEYS",
}


@pytest.mark.parametrize("kind", app.SINKS)
def test_each_setting_of_a_sink_stands_in_its_page_which_the_readme_names(kind: str) -> None:
    module, _, name = SETTINGS_OF_SINKS[kind].partition(":")
    page = (ROOT / "docs" / "reference" / f"{kind}.md").read_text()
    table = {word.partition(".")[0] for word in in_backticks(page)}
    assert not set(getattr(importlib.import_module(module), name)) - table
    index = README + (ROOT / "docs" / "README.md").read_text()
    assert f"reference/{kind}.md" in index
