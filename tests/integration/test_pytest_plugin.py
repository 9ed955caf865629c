"""The pytest plugin: the fixture is there by itself, and the daemon is real."""

import os
from datetime import UTC, datetime

import pytest

import wald
from wald.testing import FakeProducer, LocalDaemon, assert_delivered

VALUES: list[object] = [{"n": 1, "at": datetime(2026, 11, 22, tzinfo=UTC)}, b"raw", [1, None], "x"]


def test_the_daemon_is_named_to_the_application_survives_a_kill_and_delivers(
    wald_daemon: LocalDaemon,
):
    assert os.environ["WALD_SOCKET"] == wald_daemon.socket
    assert_delivered(wald_daemon, "s", [])
    with wald.connect() as producer:
        for value in VALUES:
            producer.append("s", value)
        assert_delivered(wald_daemon, "s", VALUES)
        wald_daemon.kill()
        wald_daemon.start()
        producer.append("s", b"after")
    assert_delivered(wald_daemon, "s", [*VALUES, b"after"])
    assert_delivered(wald_daemon, "never", [])
    with pytest.raises(AssertionError, match=r"missing: \[2\].*too often: \[b'after'\]"):
        assert_delivered(wald_daemon, "s", [*VALUES, 2])
    with wald_daemon.connect(name="ann") as named:
        assert named.session.name == "ann"


def test_the_same_assertion_holds_of_the_fake():
    with FakeProducer() as producer:
        producer.append_many("s", VALUES)
        assert_delivered(producer, "s", VALUES)
        with pytest.raises(AssertionError, match="in another order, from index 0"):
            assert_delivered(producer, "s", VALUES[::-1])
        with pytest.raises(AssertionError, match="5 expected; missing"):
            assert_delivered(producer, "s", [*VALUES, 7])


def test_a_daemon_that_does_not_start_says_why():
    daemon = LocalDaemon()
    daemon.socket = f"{daemon.socket}-{200 * chr(120)}"  # no socket has such a long path
    with pytest.raises(wald.WaldError, match=r"(?s)did not start.*socket"), daemon:
        pass


def test_the_plugin_is_there_by_itself(pytestconfig: pytest.Config):
    assert pytestconfig.pluginmanager.has_plugin("wald")
