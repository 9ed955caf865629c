"""A ledger in memory that keeps the contract of the real one, less its durability."""

import threading
from collections.abc import Sequence

from wald import limits
from wald.core import manifests
from wald.model import (
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Revision,
    RevisionId,
    RouteBirth,
    RouteId,
)


class MemoryLedger:
    """See ``wald.ports.Ledger``. Survives its users, so that tests may restart them on it."""

    def __init__(self, log_id: bytes = bytes(16)) -> None:
        self._log_id = log_id
        self._lock = threading.Lock()
        self._births: dict[RouteId, RouteBirth] = {}
        self._lanes: dict[LaneKey, LaneProgress] = {}
        self._aside: dict[tuple[LaneKey, RevisionId], tuple[DeadLetter, ...]] = {}
        self._dead: dict[tuple[RouteId, Lsn], DeadLetter] = {}
        self._history: dict[tuple[LaneKey, int], FinishedBatch] = {}

    def birth(self, birth: RouteBirth) -> RouteBirth:
        """T1."""
        with self._lock:
            if birth.route_id not in self._births:
                self._births[birth.route_id] = birth
                lane = LaneKey(self._log_id, birth.route_id, 0, 0)
                self._lanes[lane] = LaneProgress(Checkpoint(lsn=birth.birth_lsn), None)
            return self._births[birth.route_id]

    def births(self) -> Sequence[RouteBirth]:
        """Return the routes by id."""
        return [self._births[route_id] for route_id in sorted(self._births)]

    def lane(self, key: LaneKey) -> LaneProgress:
        """Return what is held of a lane."""
        return self._lanes.get(key, LaneProgress(Checkpoint(), None))

    def seal(self, key: LaneKey, manifest: Manifest) -> bool:
        """T2."""
        with self._lock:
            return self._put(key, manifests.seal(self.lane(key), manifest))

    def revise(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        revision: Revision,
        set_aside: Sequence[DeadLetter],
        stamp: AttemptStamp,
    ) -> bool:
        """T3."""
        with self._lock:
            if not self._put(key, manifests.revise(self.lane(key), worked_on, revision, stamp)):
                return False
            self._aside[key, revision.rev_id] = tuple(set_aside)
            return True

    def set_aside(self, key: LaneKey, rev_id: RevisionId) -> Sequence[DeadLetter]:
        """Return the dead letters of an open revision."""
        return self._aside.get((key, rev_id), ())

    def attempt(self, key: LaneKey, worked_on: RevisionId, stamp: AttemptStamp) -> bool:
        """T4."""
        with self._lock:
            return self._put(key, manifests.attempt(self.lane(key), worked_on, stamp))

    def finish(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        lost: Sequence[DeadLetter] = (),
        following: Manifest | None = None,
    ) -> bool:
        """T5, with the T2 of the next."""
        with self._lock:
            held = self.lane(key)
            if not self._put(key, manifests.finish(held, worked_on, checkpoint, following)):
                return False
            assert held.manifest is not None
            for revision in held.manifest.revisions:
                letters = self._aside.pop((key, revision.rev_id), ())
                if revision.rev_id == worked_on:
                    self._bury(key.route_id, letters)
            self._bury(key.route_id, lost)
            self._history[key, finished.number] = finished
            self._history.pop((key, finished.number - limits.HISTORY_BATCHES_PER_LANE), None)
            return True

    def advance(
        self,
        key: LaneKey,
        worked_on: Checkpoint,
        checkpoint: Checkpoint,
        lost: Sequence[DeadLetter] = (),
    ) -> bool:
        """T6."""
        with self._lock:
            if not self._put(key, manifests.advance(self.lane(key), worked_on, checkpoint)):
                return False
            self._bury(key.route_id, lost)
            return True

    def dead_letters(
        self, route_id: RouteId, *, after: Lsn = 0, limit: int = 1000
    ) -> Sequence[DeadLetter]:
        """Return dead letters in order."""
        keys = sorted(key for key in self._dead if key[0] == route_id and key[1] > after)
        return [self._dead[key] for key in keys[:limit]]

    def history(self, key: LaneKey) -> Sequence[FinishedBatch]:
        """Return the last finished batches, oldest first."""
        return [self._history[at] for at in sorted(self._history) if at[0] == key]

    def close(self) -> None:
        """Do nothing: there is nothing to let go."""

    def _put(self, key: LaneKey, after: LaneProgress | None) -> bool:
        if after is None:
            return False
        self._lanes[key] = after
        return True

    def _bury(self, route_id: RouteId, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._dead[route_id, letter.lsn] = letter
