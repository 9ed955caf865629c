"""Sending dead letters again: batches of the lane's own chain, in turn with its ordinary ones.

A request is durable in the ledger and stays until T8, so that a crash anywhere goes on with it.
The batch is sealed (T7) behind a synced entry of the dead log that names what it redrives; its
number is the next, its LSN the checkpoint's. What is refused again is left out by a revision (T3);
if nothing is left the batch is closed all the same, by a commit without records, and ``dead_rev``
stays. Then the rules of the progress row hold as for any batch: a late attempt lands only on the
chain that declared its dead letters.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from typing import Any

from wald import limits
from wald.core import dead
from wald.core.batching import Bounds, fitting
from wald.drainer import freezing
from wald.drainer.reader import Batch
from wald.drainer.recalling import WHY_UNSURE, settle_unsure
from wald.drainer.route import LaneMemory, Route, must
from wald.drainer.shaping import Elsewhere
from wald.errors import FormatDamaged, InputError
from wald.model import (
    NO_REVISION,
    AskedRedrive,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneProgress,
    Lsn,
    Manifest,
    Record,
    RejectedRecord,
    Revision,
    RevisionId,
)
from wald.storage.deadlog import DeadEntry, DeadLog, DeadPlace

_log = logging.getLogger("wald.drain")
_MADE_MAX = 2  # of one record; more than one is refused


class Redrives:
    """What one lane is asked to send again. ``look`` is called by any thread."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._lock = threading.Lock()
        self._news = False
        self._recalled = False
        # the ledger may hold requests of a life before
        self.left = route.shared.ledger.count_redrives(route.key)

    def look(self) -> None:
        """Say that there may be more."""
        with self._lock:
            self._news = True

    def count(self, memory: LaneMemory) -> int:
        """Return how many are left; a lane that is brought to where it was told asks for more."""
        if memory.recalled is not self._recalled:
            self._recalled = memory.recalled
            self.left = self._route.shared.ledger.count_redrives(self._route.key)
        return self.left

    def are_asked(self) -> bool:
        """Tell whether there is something to send again."""
        with self._lock:
            news, self._news = self._news, False
        if news:
            self.left = self._route.shared.ledger.count_redrives(self._route.key)
        return self.left > 0

    def seal(self, memory: LaneMemory, bounds: Bounds) -> bool:
        """T7: seal a batch of what is asked for; False if there is nothing.

        What may have been sent before the ledger was lost comes first, and waits for a person.
        """
        shared, key = self._route.shared, self._route.key
        unsure = self._unsure(memory)
        asked = unsure or self._allowed(
            memory, shared.ledger.asked_redrives(key, limits.REDRIVE_BATCH_MAX_RECORDS)
        )
        if not asked:
            self.left = 0
            return False
        chosen = self._fitting(asked, bounds)
        lsns = [each.letter.lsn for each in chosen]
        manifest = _new_manifest(self._route, memory, lsns, WHY_UNSURE if unsure else "")
        previous = memory.held.checkpoint.dead_rev
        revision = manifest.current
        shared.dead_log.append(
            DeadEntry(revision.rev_id, previous, (), revision.redriven)
        )  # COMMIT POINT: the dead log
        if not shared.ledger.seal(key, manifest):  # COMMIT POINT: T7
            # somebody purged one of them meanwhile: the entry is named by nothing
            memory.held = shared.ledger.lane(key)
            self.look()
            return False
        memory.held = LaneProgress(memory.held.checkpoint, manifest)
        memory.batch = None
        memory.counted = NO_REVISION if unsure else revision.rev_id
        if unsure:
            settle_unsure(self._route, memory, lsns)
        return True

    def _unsure(self, memory: LaneMemory) -> Sequence[AskedRedrive]:
        """Return what may have been sent before the ledger was lost, if it is a dead letter."""
        ledger, key = self._route.shared.ledger, self._route.key
        found = [ledger.asked_redrive(key, lsn) for lsn in memory.unsure_redrives]
        return [each for each in found if each is not None]

    def _allowed(self, memory: LaneMemory, asked: Sequence[AskedRedrive]) -> Sequence[AskedRedrive]:
        """Return what may be sent again; what may not was asked for while nobody could tell."""
        assert memory.sink is not None
        able, why = memory.sink.capabilities, ""
        allowed, given_up = list[AskedRedrive](), list[Lsn]()
        for each in asked:
            not_this = dead.why_no_redrive(
                able.replay.value, overwrites=able.overwrites, forced=each.forced
            )
            why = why or not_this
            if not_this:
                given_up.append(each.letter.lsn)
            else:
                allowed.append(each)
        if given_up:
            self._route.shared.ledger.give_up_redrives(self._route.key, given_up)
            _log.error("route %s: no redrive: %s", self._route.birth.name, why)
        return allowed

    def _fitting(self, asked: Sequence[AskedRedrive], bounds: Bounds) -> Sequence[AskedRedrive]:
        """Return as many as a batch takes; no more bodies are read than that."""
        sizes: list[int] = []
        letters = (each.letter for each in asked[: bounds.max_records])
        for _, body in _read_bodies(self._route.shared.dead_log, letters):
            sizes.append(0 if body is None else len(body.value))
            if sum(sizes) > bounds.max_bytes:
                break
        return asked[: fitting(sizes, bounds)]

    def load(self, memory: LaneMemory) -> Batch:
        """Return the open batch's records, out of the dead log, through what transforms them.

        What cannot be sent is left out, and refused by ``refuse_unsendable``.
        """
        shared, key = self._route.shared, self._route.key
        wanted = memory.manifest.revisions[0].redriven
        asked = [found for lsn in wanted if (found := shared.ledger.asked_redrive(key, lsn))]
        letters = (each.letter for each in asked)
        bodies = _read_bodies(shared.dead_log, letters)
        records: list[Record] = []
        unsendable: list[RejectedRecord] = []
        with freezing.making(self._route, memory.manifest.number):
            for each, (_, body) in zip(asked, bodies, strict=True):
                made = self._made(memory, each, body)
                if isinstance(made, Record):
                    records.append(made)
                else:
                    unsendable.append(made)
        memory.unsendable = tuple(unsendable)
        checkpoint = memory.held.checkpoint
        return Batch(records, checkpoint.lsn, checkpoint.anchor, ())

    def _made(
        self, memory: LaneMemory, asked: AskedRedrive, body: Record | None
    ) -> Record | RejectedRecord:
        """Return what is sent for a letter: its record, or what the transform makes of it."""
        lsn, route = asked.letter.lsn, self._route
        if body is None:
            why = "its body in the dead log cannot be read"
            return RejectedRecord(lsn, "dead-letter.body", why)
        if not asked.transform:
            return body
        route.shaping.since_ns = route.shared.clock.monotonic_ns()
        try:
            bound_s = min(route.settings.attempt_timeout_s, limits.GUARDED_PROBE_TIMEOUT_S)
            return _one_of(asked, body, freezing.elsewhere(memory), bound_s)
        finally:
            route.shaping.since_ns = 0

    def refuse_unsendable(self, memory: LaneMemory) -> None:
        """T3: leave out of the open batch what cannot be sent, if that was not done before."""
        still = set(memory.manifest.current.redriven)
        new = tuple(item for item in memory.unsendable if item.lsn in still)
        if new:
            exclude_again(self._route, memory, new)

    def ended(self, records: int) -> None:
        """Take in that a batch of so many was closed."""
        self.left = max(0, self.left - records)
        if not self.left:
            self.look()


def close_redrive(
    route: Route, memory: LaneMemory, took_effect: RevisionId
) -> tuple[Checkpoint, FinishedBatch]:
    """T8: return the checkpoint behind the open batch, and its line of history."""
    manifest = memory.manifest
    revision = manifest.revision(took_effect)
    asked = manifest.revisions[0].redriven
    if manifest.records < len(asked):  # it was cut: the rest is asked for yet
        asked = asked[: manifest.records]
    after = dead.redriven_checkpoint(memory.held.checkpoint, manifest, took_effect)
    finished = FinishedBatch(
        manifest.number,
        took_effect,
        manifest.lo,
        after.lsn,
        manifest.records,
        manifest.records - len(revision.redriven),
        manifest.attempts,
        manifest.sealed_time_ns,
        route.shared.clock.wall_ns(),
        superseded=revision.superseded,
        redriven=revision.redriven,
        last_error=manifest.last_error,
        asked=asked,
    )
    return after, finished


def _new_manifest(route: Route, memory: LaneMemory, lsns: Sequence[Lsn], held: str) -> Manifest:
    checkpoint, stamp = memory.held.checkpoint, route.stamp()
    revision = Revision(
        route.new_revision(),
        checkpoint.lsn,
        redriven=tuple(lsns),
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        time_ns=stamp.time_ns,
    )
    return Manifest(
        checkpoint.batch_no + 1,
        checkpoint.lsn,
        checkpoint.rev_id,
        1,
        (revision,),
        len(lsns),
        stamp.time_ns,
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        attempt_time_ns=stamp.time_ns,
        held=held,
    )


def exclude_again(route: Route, memory: LaneMemory, found: Sequence[RejectedRecord]) -> None:
    """T3: leave out of the open redrive what is refused again; it stays a dead letter.

    What is left is named by an entry of the dead log before; if nothing is, the chain's
    ``dead_rev`` stays, and no entry is needed.
    """
    shared, manifest = route.shared, memory.manifest
    before, checkpoint = manifest.current, memory.held.checkpoint
    gone = {item.lsn: item for item in found}
    left = tuple(lsn for lsn in before.redriven if lsn not in gone)
    rev_id = route.new_revision()
    if left:
        entry = DeadEntry(rev_id, checkpoint.dead_rev, (), left)
        shared.dead_log.append(entry)  # COMMIT POINT: the dead log
    letters = [*shared.ledger.set_aside(route.key, before.rev_id)]
    for lsn, item in sorted(gone.items()):
        letter = shared.ledger.dead_letter(route.birth.route_id, lsn)
        if letter is not None:
            letters.append(dead.refused_again(letter, item, manifest.attempts))
    stamp = route.stamp(memory.last_error)
    revision = replace(
        before,
        rev_id=rev_id,
        redriven=left,
        encoder="",
        digest=b"",
        boot_id=stamp.boot_id,
        boot_clock_ns=stamp.boot_clock_ns,
        time_ns=stamp.time_ns,
    )
    must(done=shared.ledger.revise(route.key, before.rev_id, revision, letters, stamp))
    # COMMIT POINT: T3
    memory.held = shared.ledger.lane(route.key)
    memory.counted = rev_id


# --- bodies, and what transforms them -----------------------------------------------------------


def _read_bodies(
    dead_log: DeadLog, letters: Iterable[DeadLetter]
) -> Iterator[tuple[DeadLetter, Record | None]]:
    """Yield letters with their bodies, None where one cannot be read; neighbours share an entry."""
    place: DeadPlace | None = None
    held: dict[Lsn, Record] = {}
    for letter in letters:
        if place != (letter.dead_file, letter.dead_offset):
            place, held = DeadPlace(letter.dead_file, letter.dead_offset), {}
            try:
                held = _held_at(dead_log, place)
            except (FormatDamaged, OSError) as error:
                _log.error("dead letters from LSN %d on cannot be read: %s", letter.lsn, error)
        if letter.lsn not in held:  # a ledger that was brought back may be older than the files
            elsewhere = dead_log.find([letter.lsn])
            held = held | (_held_at(dead_log, elsewhere[letter.lsn]) if elsewhere else {})
        yield letter, held.get(letter.lsn)


def _held_at(dead_log: DeadLog, place: DeadPlace) -> dict[Lsn, Record]:
    return {record.lsn: record for record in dead_log.read(place).excluded}


def load_transform(name: str) -> Any:  # noqa: ANN401 - anybody's function
    """Return the function that "module:function" names; None for an empty name.

    Raises:
        InputError: it is not there, or is no function.
    """
    if not name:
        return None
    module, colon, function = name.partition(":")
    hint = 'say "module:function"; the module must be importable by the drain process'
    if not colon or not module or not function:
        msg = f"{name!r} names no function"
        raise InputError(msg, hint=hint)
    try:
        found = getattr(import_module(module), function)
    except BaseException as error:
        msg = f"{name!r} cannot be loaded: {error!r}"
        raise InputError(msg[: limits.ERROR_TEXT_MAX_CHARS], hint=hint) from error
    if not callable(found):
        msg = f"{name!r} is not a function"
        raise InputError(msg, hint=hint)
    return found


def _one_of(
    asked: AskedRedrive, body: Record, elsewhere: Elsewhere | None, timeout_s: float
) -> Record | RejectedRecord:
    """Call the transform for one record; it must return one with the same LSN."""
    lsn = asked.letter.lsn
    try:
        if elsewhere is None:
            made = load_transform(asked.transform)([body])
        else:
            made = elsewhere.transform(asked.transform, [body], timeout_s)
        if isinstance(made, Iterable) and not isinstance(made, Record):
            made = list(islice(made, _MADE_MAX))
    except BaseException as error:  # noqa: BLE001 - anybody's function
        return RejectedRecord(lsn, "transform", f"{asked.transform} raised {error!r}")
    records = made if isinstance(made, list) else [made]
    record = records[0] if len(records) == 1 else None
    if isinstance(record, Record) and record.lsn == lsn:
        return record
    why = f"{asked.transform} made {'more' if records else 'none'} of one record"
    if len(records) == 1:
        why = f"{asked.transform} returned something else than the record with its LSN"
    return RejectedRecord(lsn, "transform", why)
