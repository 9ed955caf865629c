"""The logging handler: structured, within its budget, counting what it drops, never in a circle."""

import logging
import logging.config
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import wald
import wald.logging
from tests.doorkeeper import DEADLINE_S, Door, short_directory
from tests.impostor import Impostor, answered_by
from wald import limits
from wald.client.encoding import decode_value
from wald.core.events import Ack, Append, OpenStream, StreamOpened
from wald.testing import FakeProducer

BUDGET_S = 0.05


@pytest.fixture
def door() -> Iterator[Door]:
    with short_directory() as directory, Door(directory) as opened:
        yield opened


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("app.part")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def fake(logger: logging.Logger, **options: object) -> tuple[FakeProducer, wald.logging.Handler]:
    producer = FakeProducer()
    handler = wald.logging.Handler(producer=producer, clock=producer.clock, **options)  # type: ignore[arg-type]
    logger.addHandler(handler)
    return producer, handler


def test_a_record_is_a_map_of_its_fields(logger: logging.Logger):
    producer, handler = fake(logger, fields={"service": "shop"})
    logger.warning("%s bought %d", "ann", 3, extra={"order": {"id": 7}, "odd": {1, 2}})
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("it broke")
    handler.flush()
    first, second = producer.values("logs")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert isinstance(first["time"], datetime)
    assert first["time"].tzinfo == UTC
    assert (first["level"], first["logger"]) == ("WARNING", "app.part")
    assert (first["message"], first["service"]) == ("ann bought 3", "shop")
    assert first["extra"] == {"order": {"id": 7}, "odd": "{1, 2}"}
    assert (first["file"], first["function"]) == (
        Path(__file__).name,
        "test_a_record_is_a_map_of_its_fields",
    )
    assert first["process"] == os.getpid()
    assert "exception" not in first
    assert "ZeroDivisionError: division by zero" in second["exception"]
    assert handler.dropped == 0


def test_it_is_configured_as_any_other(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WALD_SOCKET", door.path)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"short": {"format": "%(levelname)s %(message)s"}},
            "handlers": {
                "wald": {"class": "wald.logging.Handler", "stream": "web", "formatter": "short"}
            },
            "loggers": {
                "app.configured": {"level": "INFO", "handlers": ["wald"], "propagate": False}
            },
        }
    )
    configured = logging.getLogger("app.configured")
    configured.info("hello")
    (handler,) = configured.handlers
    configured.removeHandler(handler)
    handler.close()
    (body,) = door.stored_bodies()
    value = decode_value(1, body.values[0])
    assert isinstance(value, dict)
    assert value["message"] == "INFO hello"


def test_what_is_dropped_is_counted_and_told_with_the_next(logger: logging.Logger):
    producer, handler = fake(logger, budget=BUDGET_S)
    producer.stop_daemon()
    for _ in range(5):
        logger.info("lost")
    assert handler.dropped == 5
    producer.start_daemon()
    logger.info("too early: it rests for a second")
    producer.clock.advance(limits.LOGGING_PAUSE_S)
    logger.info("back")
    logger.info("again")
    handler.flush()
    values = producer.values("logs")
    assert [(v["message"], v.get("dropped")) for v in values] == [("back", 6), ("again", None)]  # type: ignore[attr-defined, index]


def test_what_the_daemon_refuses_is_counted_too(logger: logging.Logger):
    producer, handler = fake(logger)
    producer.refuse("record.fields", times=2)
    for number in range(4):
        logger.info("%d", number)
    handler.flush()
    assert handler.dropped == 2
    producer.throttle(retry_after=3.0)
    logger.info("no room")
    handler.flush()
    logger.info("next")
    handler.flush()
    assert handler.dropped == 3
    told = [each.get("dropped", 0) for each in producer.values("logs")]  # type: ignore[attr-defined]
    assert sum(told) == 3


def test_it_never_logs_in_a_circle(logger: logging.Logger):
    producer, handler = fake(logger)

    class Talks:
        def __str__(self) -> str:
            if getattr(handler._inside, "now", False):  # pytest's own handler asks for it too
                logger.info("inner")
            return "outer"

    logger.info("%s", Talks())
    ours = logging.getLogger("wald.client")
    ours.addHandler(handler)
    try:
        ours.warning("of wald itself")
    finally:
        ours.removeHandler(handler)
    handler.flush()
    assert [each["message"] for each in producer.values("logs")] == ["outer"]  # type: ignore[index]
    assert handler.dropped == 1


def test_a_record_that_cannot_be_made_harms_nobody(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    producer, handler = fake(logger)

    def handle(message: str, *arguments: object) -> None:
        """Not by way of a logger: pytest keeps what it logs, and cannot say half a pair."""
        fields = {"name": "app", "msg": message, "args": arguments}
        handler.handle(logging.makeLogRecord(fields))

    handle("%d", "not a number")
    assert "not a number" in capsys.readouterr().err  # as logging says it of any handler
    handle("half \ud800 of a pair, and %s", "x" * 2 * limits.LOGGING_TEXT_MAX_CHARS)
    handler.flush()
    (stored,) = producer.values("logs")
    assert str(stored["message"]).startswith("half \\ud800 of a pair, and xxx")  # type: ignore[index]
    assert handler.dropped == 1


def hang(impostor: Impostor) -> None:
    """Take connections, and never say a word."""
    connection, _ = impostor.listening.accept()
    with connection:
        while connection.recv(1 << 16):
            pass


def test_a_daemon_that_hangs_holds_nobody_up_beyond_the_budget(logger: logging.Logger):
    with short_directory() as directory:
        impostor = Impostor(directory)
        thread = answered_by(lambda: hang(impostor))
        handler = wald.logging.Handler(path=impostor.path, budget=BUDGET_S)
        logger.addHandler(handler)
        took: list[float] = []

        def log() -> None:
            began = time.monotonic()
            logger.info("x")
            took.append(time.monotonic() - began)

        threads = [threading.Thread(target=log) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(DEADLINE_S)
        assert handler.dropped == 20
        assert (
            max(took) < 20 * BUDGET_S * 5
        )  # a client's own patience is 30 s; this machine is busy
        logger.removeHandler(handler)
        handler.close()
        thread.join(DEADLINE_S)
        impostor.listening.close()


def test_a_flush_that_hangs_holds_nobody_up_beyond_the_budget(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "EXIT_TIMEOUT_S", DEADLINE_S)
    ended, greets = threading.Event(), threading.Event()

    def script(impostor: Impostor) -> None:
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, OpenStream):
                    connection.sendall(StreamOpened(event.request, 1).encode())
                if isinstance(event, Append):
                    break
        with impostor.listening.accept()[0] as again:
            impostor.read(again)
            greets.set()  # and waits for an answer
            ended.wait(DEADLINE_S)
        with impostor.accept() as connection:
            for event in impostor.reader(connection):
                if isinstance(event, Append):
                    connection.sendall(Ack(event.sequence, event.sequence, 1, 1).encode())

    with short_directory() as directory:
        impostor = Impostor(directory)
        thread = answered_by(lambda: script(impostor))
        handler = wald.logging.Handler(path=impostor.path, budget=BUDGET_S)
        handler._producer._timeout_s = DEADLINE_S
        handler._budget_s = DEADLINE_S  # for the first
        logger.addHandler(handler)
        logger.info("x")
        handler._budget_s = BUDGET_S
        flushing = threading.Thread(target=handler.flush)
        flushing.start()
        assert greets.wait(DEADLINE_S)
        logger.info("y")
        assert flushing.is_alive()
        assert handler.dropped == 1
        ended.set()
        flushing.join(DEADLINE_S)
        logger.removeHandler(handler)
        handler.close()
        thread.join(DEADLINE_S)
        impostor.listening.close()


def test_one_that_is_refused_does_not_silence_the_next(logger: logging.Logger):
    producer, handler = fake(logger)
    large = {f"part{n}": "x" * limits.LOGGING_TEXT_MAX_CHARS for n in range(20)}
    logger.info("too large", extra=large)
    logger.info("fits")
    handler.flush()
    assert [each["message"] for each in producer.values("logs")] == ["fits"]  # type: ignore[index]
    assert handler.dropped == 1


def test_after_close_it_drops_and_a_childs_records_are_its_own(door: Door, logger: logging.Logger):
    handler = wald.logging.Handler(path=door.path, budget=DEADLINE_S)
    logger.addHandler(handler)
    logger.info("parent")
    child = os.fork()
    if child == 0:
        logger.info("child")
        handler.close()
        os._exit(handler.dropped)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    logger.info("parent again")
    handler.close()
    logger.info("late")
    assert handler.dropped == 1
    messages = [decode_value(1, value) for value in door.stored_values()]
    assert sorted(each["message"] for each in messages) == ["child", "parent", "parent again"]  # type: ignore[index]
