"""What commands print, and how: errors, JSON, numbers, plain tables."""

import json
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

from wald import limits

_SHOWN_MAX = 2_000
_SENTENCE_CHARS = 400  # no first sentence of a help is as long
_UNITS = {"GiB": 1024 * limits.MIB, "MiB": limits.MIB, "KiB": limits.KIB}


def print_error(code: str, message: str, hint: str = "") -> None:
    """Print an error and what to do about it, to standard error."""
    click.echo(f"error[{code}]: {printable(message)}", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


def say(message: str) -> None:
    """Talk to the person: standard error."""
    click.echo(printable(message), err=True)


def print_json(value: object) -> None:
    """Print data for a script: one object, indented, to standard output."""
    click.echo(json_text(value, indent=2))


def json_text(value: object, **how: Any) -> str:  # noqa: ANN401 - as ``json.dumps`` takes it
    """Return JSON that people can read and no terminal is steered by; ``how`` is for ``dumps``."""
    text = json.dumps(value, ensure_ascii=False, default=str, **how)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" or character == "\n"
        else f"\\u{ord(character):04x}"
        if character <= "\uffff"
        else json.dumps(character)[1:-1]
        for character in text
    )


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], may_go: Sequence[str] = ()
) -> None:
    """Print aligned columns, two blanks apart.

    On a terminal that is too narrow, columns of ``may_go`` are left out, the first ones first, and
    that is said. What is piped is whole.
    """
    lines = [list(head), *[[printable(cell) for cell in row] for row in rows]]
    wide = terminal_columns()
    gone = [] if wide is None else fit(lines, may_go, wide)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
    if gone:
        say(f"left out, for {wide} columns: {', '.join(gone)}")


def fit(lines: list[list[str]], may_go: Sequence[str], wide: int) -> list[str]:
    """Take columns out of a table, its head first, until it fits; return which ones."""
    gone: list[str] = []
    for name in may_go:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= wide:
            break
        at = lines[0].index(name)
        for line in lines:
            del line[at]
        gone.append(name)
    return gone


def terminal_columns() -> int | None:
    """Return how wide the terminal is that is printed to; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def printable(text: str) -> str:
    """Escape what could steer a terminal or forge a line; cut what is too long.

    Names, errors of targets and file names come from outside.
    """
    cut = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}... ({len(text):,} characters)"
    return "".join(
        character
        if unicodedata.category(character)[0] != "C"
        else character.encode("unicode_escape").decode()
        for character in cut
    )


def duration(seconds: float | None) -> str:
    """Return a duration as people say it: ``0.2 s``, ``38 s``, ``5 min``, ``3 h``."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def took(seconds: float) -> str:
    """Return how long something took, in milliseconds where it was short: ``3 ms``, ``2.0 s``."""
    return duration(seconds) if seconds >= 1 else f"{max(1, round(seconds * 1_000))} ms"


def size(size_bytes: int) -> str:
    """Return bytes as people say them: ``12 bytes``, ``1.5 MiB``."""
    for unit, unit_bytes in _UNITS.items():
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"


class Group(click.Group):
    """A group of commands whose help shows the first sentence of each whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands; click alone would cut what is longer than its line."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None, name
            rows.append((name, command.get_short_help_str(_SENTENCE_CHARS).rstrip(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def counted(number: int, what: str) -> str:
    """Return a number with its noun: ``1 record``, ``2 records``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def books(name: str, sink: str, route: Mapping[str, Any]) -> str:
    """Return the books of a route as one line; what was purged is said where there is some."""
    purged = f" + {route['purged']:,} purged" if route.get("purged") else ""
    return (
        f"{name} -> {sink}: {route['accepted']:,} accepted = {route['delivered']:,} delivered"
        f" + {route['pending']:,} pending + {route['dead_letters']:,} dead letters{purged}"
    )
