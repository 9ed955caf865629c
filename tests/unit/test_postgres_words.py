"""What PostgreSQL's client library says becomes one line."""

import pytest

psycopg = pytest.importorskip("psycopg")

from wald.sinks.postgres.errors import describe  # noqa: E402 - not without psycopg


@pytest.mark.parametrize(
    ("said", "line"),
    [
        pytest.param(
            'connection failed: connection to server at "127.0.0.1", port 5432 failed: Connection '
            "refused\n\tIs the server running on that host and accepting TCP/IP connections?",
            "Connection refused",
            id="nobody listens: the library's question is left out",
        ),
        pytest.param(
            "server closed the connection unexpectedly\n\tThis probably means the server",
            "server closed the connection unexpectedly This probably means the server",
            id="other lines are joined",
        ),
    ],
)
def test_an_error_without_a_code_is_one_line(said: str, line: str) -> None:
    assert describe(psycopg.OperationalError(said)) == line
