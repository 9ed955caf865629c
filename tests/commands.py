"""Commands, as a rule in the process of the test: a new interpreter takes longer than what it does.

What an interpreter has to itself (signals, logging, broken pipes, packages) is tested with one.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from wald.cli import run_command


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left behind; the names are those of ``subprocess.CompletedProcess``."""

    returncode: int
    stdout: str
    stderr: str


def run(
    *arguments: str, socket: Path | None = None, stdin: str | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    environment = {name: said for name, said in os.environ.items() if name != "WALD_CONFIG"}
    if socket is not None:
        environment["WALD_SOCKET"] = str(socket)
    return subprocess.run(
        [sys.executable, "-m", "wald", *arguments],
        env=environment,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def call(*arguments: str, socket: Path | None = None, stdin: str = "") -> Said:
    """Run ``wald`` with these arguments; ``socket`` is what WALD_SOCKET says."""
    kept = {name: said for name, said in os.environ.items() if not name.startswith("WALD_")}
    if socket is not None:
        kept["WALD_SOCKET"] = str(socket)
    with mock.patch.dict(os.environ, kept, clear=True), _streams(stdin) as (out, err):
        code = run_command(list(arguments))
    return Said(code, out.getvalue().decode(), err.getvalue().decode())


@contextmanager
def _streams(stdin: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Give standard streams of bytes below and text above, as a process has them."""
    out, err = io.BytesIO(), io.BytesIO()
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    printed, told = (io.TextIOWrapper(below, write_through=True) for below in (out, err))
    with mock.patch.multiple(sys, stdin=given, stdout=printed, stderr=told):
        yield out, err
    for text in (printed, told):
        text.detach()  # closing it would close what is read afterwards
