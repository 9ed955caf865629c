"""Servers that tests share: started by the first test that needs one, ended with the session."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server; who kills it starts it again."""
    from tests.servers.need import need_module

    need_module("psycopg", "pip install 'wald[postgres]'")
    from tests.servers.postgres import running

    place = Path(tempfile.mkdtemp(prefix="wpg"))
    try:
        with running(place) as server:
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def database(postgres):
    """The name of a database with an empty schema and nothing else."""
    if not postgres.is_running:
        postgres.start()
    return postgres.empty_database("app")
