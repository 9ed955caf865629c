"""What must hold of a disk after a power cut, once wald was started on it again."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import msgpack

from tests.crash.images import Disk
from tests.crash.workloads import Bench, Recorded, numbers
from tests.daemon import Daemon
from wald import offline
from wald.config import load_file
from wald.config.places import default_places
from wald.errors import WaldError
from wald.model import Lsn

PATIENCE_S = 20.0
_KEEP = ("/data",)


def judge(
    run: Recorded,
    disk: Disk,
    durable_lsn: Lsn,
    chance: Random,
    patience_s: float = PATIENCE_S,
    *,
    real: bool = False,
) -> list[str]:
    """Make an image, start on it, deliver everything, and return what is wrong with the result.

    Args:
        run: what was recorded; the image takes the place of its directory.
        disk: what it looks like at that instant.
        durable_lsn: what had been called durable by then.
        chance: decides what becomes of what was not synced.
        patience_s: how long a target may make no progress.
        real: whether real processes are started on it, and go on with it.
    """
    image = disk.image(chance)
    if "/data" not in image.directories:  # nothing of it was durable, so nothing may be acked
        return ["the data directory is lost"] if durable_lsn else []
    image.put(run.root, _KEEP)
    if real:
        return _go_on(run, durable_lsn)
    settings = load_file(str(run.config), default_places({}, 0), {}).settings
    try:
        books = offline.replay(settings, patience_s)
        if any(route["state"] == "paused" for route in books["routes"].values()):
            with offline.route_desk(settings.data_dir) as routes:
                routes.ask("drain.resume", route="db")
            books = offline.replay(settings, patience_s)
    except WaldError as error:
        return [f"it does not start: {error.code}: {error.message}"]
    return [*_of_books(books["routes"]), *_of_targets(run, durable_lsn)]


def _go_on(run: Recorded, durable_lsn: Lsn) -> list[str]:
    """Start a real daemon on the image, append to it, and let it deliver everything."""
    sent = dict(run.sent)
    daemon = Daemon(run.config.parent, config=run.config.read_text(), data_dir=run.root / "data")
    bench = Bench(daemon, Random(1), {}, sent)
    with daemon:
        with bench.connect() as producer:
            bench.append(producer, 5)
        daemon.command("route", "resume", "--all")
        for route, *_ in run.workload.targets:
            daemon.command("route", "resume", route)
        bench.drained()
        routes = json.loads(daemon.command("status", "--json"))["routes"]
        daemon.command("audit")
    wrong = [f"LSN {lsn} was used twice" for lsn in bench.acked if lsn <= durable_lsn]
    acked = {lsn: number for lsn, number in run.acked.items() if lsn <= durable_lsn} | bench.acked
    newer = replace(run, acked=acked, sent=sent)
    return [*wrong, *_of_books(routes), *_of_targets(newer, max(acked))]


def _of_books(routes: dict[str, Any]) -> Iterator[str]:
    for name, route in routes.items():
        settled = route["delivered"] + route["dead_letters"] + route["purged"]
        if route["pending"] or route.get("lost") or route["accepted"] != settled:
            yield f"the books of route {name}: {route}"


def _of_targets(run: Recorded, durable_lsn: Lsn) -> Iterator[str]:
    owed = {number for lsn, number in run.acked.items() if lsn <= durable_lsn}
    lsns = {number: lsn for lsn, number in run.acked.items()}
    with offline.dead_letter_desk(str(run.root / "data")) as desk:
        letters = desk.ask("drain.dlq", limit=1_000)["entries"]
    yield from _of_letters(run, letters)
    for route, table, column in run.workload.targets:
        sink = "events" if route == "db" else route
        try:
            held = numbers(run.root / f"{sink}.db", table, column)
        except sqlite3.DatabaseError as error:
            yield f"route {route}: its target is damaged: {error}"
            continue
        dead = {run.acked.get(each["lsn"]) for each in letters if each["route"] == route}
        counts = Counter(held)
        yield from _said("missing", route, owed - counts.keys() - dead)
        yield from _said("doubled", route, {n for n, count in counts.items() if count > 1})
        yield from _said("delivered and dead", route, counts.keys() & dead)
        yield from _said("never sent", route, counts.keys() - run.sent.keys())
        if "redriven" not in run.workload.work.__name__:
            yield from _said("out of order", route, _out_of_order(run, held, lsns))


def _of_letters(run: Recorded, letters: list[dict[str, Any]]) -> Iterator[str]:
    """A dead letter is worth its body: it is read, and must be what was sent."""
    for letter in letters:
        place = (letter["dead_file"], letter["dead_offset"], letter["lsn"])
        try:
            record = offline.dead_letter_body(str(run.root / "data"), *place)
        except WaldError as error:
            yield f"the body of dead letter {letter['lsn']}: {error.message}"
            continue
        number = msgpack.unpackb(record.value)["n"]
        if number != run.acked.get(letter["lsn"], number) or number not in run.sent:
            yield f"the body of dead letter {letter['lsn']} is that of record {number}"


def _out_of_order(run: Recorded, held: list[int], lsns: dict[int, Lsn]) -> set[int]:
    last: dict[str, Lsn] = {}
    wrong = set()
    for number in held:
        if number not in lsns:
            continue  # nobody was answered for it, so that nobody knows its place
        key, lsn = run.sent.get(number, ""), lsns[number]
        if lsn < last.get(key, 0):
            wrong.add(number)
        last[key] = lsn
    return wrong


def _said(what: str, route: str, found: set[int] | set[int | None]) -> Iterator[str]:
    if found:
        some = sorted(n for n in found if n is not None)[:5]
        yield f"route {route}: {len(found)} records {what}, such as {some}"
