"""Secrets in files: read again where they are used, and never worse than at the start."""

from pathlib import Path

import pytest

from wald import limits
from wald.model import Secret
from wald.sinks.secrets import renewed


@pytest.mark.parametrize(
    ("written", "now"),
    [
        (b"mended\n", "mended"),
        (b"mended", "mended"),
        (b" with blanks \r\n", " with blanks "),
        (b"", "as at the start"),
        (b"\xff\xfe", "as at the start"),
        (b"x" * (limits.SECRET_MAX_BYTES + 1), "x" * limits.SECRET_MAX_BYTES),
    ],
)
def test_a_secret_is_what_its_file_holds_now(tmp_path: Path, written: bytes, now: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(written)
    assert renewed(Secret("as at the start", str(file))) == now


def test_a_secret_without_a_file_stays_as_it_was(tmp_path: Path) -> None:
    assert renewed(Secret("it")) == "it"
    assert renewed(Secret("it", str(tmp_path / "gone"))) == "it"
    assert renewed(Secret("it", str(tmp_path))) == "it"


def test_postgres_and_redis_connect_with_the_password_of_now(tmp_path: Path) -> None:
    logins = pytest.importorskip("wald.sinks.postgres.logins")
    link = pytest.importorskip("wald.sinks.redis.link")
    from wald.sinks.postgres.options import read_options as of_postgres
    from wald.sinks.redis.options import read_options as of_redis

    file = tmp_path / "secret"
    password = {"password": Secret("wrong", str(file))}
    postgres = of_postgres("r", "s", {"url": "postgresql://wald@db/app", **password})
    redis = of_redis("r", "s", {"url": "redis://db:1/0", **password})
    assert "password=wrong" in logins.conninfo_of(postgres, 5.0)
    file.write_text("mended\n")
    assert "password=mended" in logins.conninfo_of(postgres, 5.0)
    assert link._connection(redis, ("db", 1)).password == "mended"
