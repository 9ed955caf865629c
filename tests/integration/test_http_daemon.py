"""A daemon that delivers over HTTP: a token that is rotated, an outage, and no secret anywhere."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.servers.web_server import WebServer, serving

CANARY = "canary-5e1f"
CONFIG = """
[sinks.web]
type = "http"
url = {{ file = "{directory}/url" }}
token = {{ file = "{directory}/token" }}
idempotency = {{ window = "1h" }}
[routes.web]
stream = "orders"
sink = "web"
guarantee = "exactly-once"
fields = ["n"]
lanes = 4
batch = {{ max_records = 10, max_age = "10ms" }}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wh"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(directory: Path) -> Iterator[WebServer]:
    with serving(directory / "web") as found:
        yield found


def figures(daemon: Daemon) -> dict[str, object]:
    return dict(json.loads(daemon.command("status", "--json"))["routes"]["web"])


def test_a_daemon_delivers_through_a_rotated_token_and_an_outage(
    directory: Path, server: WebServer
) -> None:
    (directory / "url").write_text(f"{server.url}?key={CANARY}-url\n")
    (directory / "token").write_text(f"{CANARY}-old\n")
    server.rule(token=f"{CANARY}-old")
    said, sent = [], 0

    def append(producer: wald.Producer, count: int) -> None:
        nonlocal sent
        values = [{"n": sent + n, "more": CANARY} for n in range(count)]
        sent += len(producer.append_many("orders", values, key="k").accepted)

    with Daemon(directory, config=CONFIG.format(directory=directory)) as daemon:
        with wald.connect(str(daemon.socket), timeout=60.0) as producer:
            append(producer, 100)
            daemon.command("wait", "--all", "--timeout", "60s")
            server.rule(token=f"{CANARY}-new")  # the server wants it, nobody has it yet
            append(producer, 100)
            refused = "the refusal is told"
            wait_until(lambda: "401" in json.dumps(figures(daemon)), refused)
            said.append(daemon.command("status", "-v"))
            (directory / "token").write_text(f"{CANARY}-new\n")
            daemon.command("wait", "--all", "--timeout", "60s")
            server.kill()
            append(producer, 100)
            wait_until(lambda: "refused" in json.dumps(figures(daemon)), "the outage is told")
            said.append(daemon.command("status", "-v"))
            server.start()
            daemon.command("wait", "--all", "--timeout", "60s")
        books = figures(daemon)
        said.append(json.dumps(books))
        said.append(daemon.command("check", "--config", str(directory / "wald.toml")))
        said.append(daemon.command("batch", "list"))
    assert [each["n"] for each in server.values] == list(range(300)) == list(range(sent))
    assert (books["delivered"], books["dead_letters"]) == (300, 0)
    said.append(daemon.log.read_text())
    assert not [text for text in said if CANARY in text]
    shown = server.url.removesuffix("/in")
    assert any(shown in text for text in said)
