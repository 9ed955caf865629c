"""The pytest plugin: a real daemon as a fixture. It is there as soon as wald is installed.

``wald_daemon`` starts one for a test, in a directory of its own, and names it to the application
as ``WALD_SOCKET``. ``wald.testing.FakeProducer`` needs none, and ``wald.testing.assert_delivered``
looks at what came of either.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wald.testing.local_daemon import LocalDaemon


@pytest.fixture
def wald_daemon(monkeypatch: pytest.MonkeyPatch) -> "Iterator[LocalDaemon]":
    """A real daemon that delivers to SQLite; ``WALD_SOCKET`` names it."""
    from wald.testing.local_daemon import LocalDaemon  # noqa: PLC0415 - for tests that ask for it

    with LocalDaemon() as daemon:
        monkeypatch.setenv("WALD_SOCKET", daemon.socket)
        yield daemon
