"""Fixtures of the drain tests: a short directory, and logs with one stream or two."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.backlog import Backlog


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def backlog(place):
    opened = Backlog(place, "events")
    yield opened
    opened.close()


@pytest.fixture
def two(place):
    opened = Backlog(place, "one", "two")
    yield opened
    opened.close()
