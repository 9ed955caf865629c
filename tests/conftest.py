"""What holds for all tests: processes keep their byte code, servers are shared, nothing is left.

A server is started by the first test that needs it, and ended with the session.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.daemon import wait_until

# what a module may leave: servers that are shared, and what Python and libraries make once
LEFT_MAX = {"descriptors": 16, "threads": 4, "children": 4}

# where it is not to be written, each of the hundreds of processes compiles all it imports: a second
# of processor time for each daemon, and more than half of a command's
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# tests that are begun in the background ignore interrupts, and so would all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and those begun with nohup, hang-ups


def _held() -> dict[str, int]:
    here = psutil.Process()
    return {
        "descriptors": here.num_fds(),
        "threads": here.num_threads(),
        "children": len(here.children()),
    }


@pytest.fixture(autouse=True, scope="module")
def _gives_back_what_it_took():
    """A module of tests leaves no descriptors, threads and processes behind, but for a few."""
    before = _held()

    def is_given_back() -> bool:
        return all(held - before[what] <= LEFT_MAX[what] for what, held in _held().items())

    yield
    if not is_given_back():
        gc.collect()  # what is only referred to by itself says by its own warning that it was left
        wait_until(is_given_back, f"of {before} so much is left: {_held()}", 10.0)


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

    server = DynamoServer()
    try:
        yield server.start()
    finally:
        server.close()
