"""What holds for all tests: processes keep their byte code, and servers are shared.

A server is started by the first test that needs it, and ended with the session.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# where it is not to be written, each of the hundreds of processes compiles all it imports: a second
# of processor time for each daemon, and more than half of a command's
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


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


@pytest.fixture
def at(postgres, database):
    """That database, with sinks into it."""
    from tests.servers.postgres_place import Place

    place = Place(postgres, database)
    yield place
    place.close()


@pytest.fixture(scope="session")
def dynamodb():
    """DynamoDB Local; who kills it starts it again, who makes tables drops them."""
    from tests.servers.dynamodb import DynamoServer

    server = DynamoServer().start()
    yield server
    server.close()
