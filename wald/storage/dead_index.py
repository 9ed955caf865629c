"""The ledger's rows of dead letters: the index, who asked for what, what was purged.

    dead      route u32 lsn u64                        -> a dead letter that counts
    redrives  route u32 layout u32 lane u32 lsn u64    -> [transform, asked at]
    allowed   route u32 layout u32 lane u32 lsn u64    -> a lane that halts may set it aside
    purged    route u32 layout u32 lane u32 lsn u64    -> [records, file of the dead log, time]

A letter that was purged stays in the dead log's chain until the chain is written anew; its row
says so, so that the walk of an older chain does not bring it back.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from wald.model import (
    AskedRedrive,
    Checkpoint,
    DeadLetter,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Purged,
    RouteId,
)
from wald.ports import Store, Transaction
from wald.storage.ledger_rows import (
    LANE,
    ROUTE,
    bury,
    count_purged,
    dead_key,
    get_lane,
    lane_bytes,
    lane_lsn,
    letter_of,
    letters_of,
    lsn_of,
    pack,
    put_lane,
    unpack,
)


class DeadIndex:
    """The part of the ``Ledger`` that keeps dead letters."""

    store: Store
    _log_id: bytes

    # --- reading --------------------------------------------------------------------------------

    def dead_letters(
        self, route_id: RouteId, *, after: Lsn = 0, limit: int = 1000
    ) -> Sequence[DeadLetter]:
        """See ``Ledger.dead_letters``."""

        def work(txn: Transaction) -> list[DeadLetter]:
            found: list[DeadLetter] = []
            for _, value in txn.scan(
                "dead", ROUTE.pack(route_id), start=dead_key(route_id, after + 1)
            ):
                if len(found) >= limit:
                    break
                found.append(letter_of(value))
            return found

        return self.store.read(work)

    def dead_letter(self, route_id: RouteId, lsn: Lsn) -> DeadLetter | None:
        """See ``Ledger.dead_letter``."""
        found = self.store.read(lambda txn: txn.get("dead", dead_key(route_id, lsn)))
        return None if found is None else letter_of(found)

    def lanes(self, route_id: RouteId) -> Mapping[LaneKey, LaneProgress]:
        """See ``Ledger.lanes``."""

        def work(txn: Transaction) -> dict[LaneKey, LaneProgress]:
            found = {}
            for at, _ in txn.scan("lanes", ROUTE.pack(route_id)):
                key = LaneKey(self._log_id, *LANE.unpack(at))
                found[key] = get_lane(txn, key)
            return found

        return self.store.read(work)

    # --- redrive --------------------------------------------------------------------------------

    def ask_redrive(
        self,
        route_id: RouteId,
        lsns: Sequence[Lsn],
        transform: str,
        now_ns: int,
        *,
        forced: bool = False,
    ) -> int:
        """See ``Ledger.ask_redrive``."""

        def work(txn: Transaction) -> int:
            count = 0
            for lsn in lsns:
                letter = _letter(txn, route_id, lsn)
                if letter is None or not letter.dead_file:
                    continue
                at = lane_lsn(self._lane_of(route_id, letter), lsn)
                if txn.get("redrives", at) is None:
                    txn.put("redrives", at, pack([transform, now_ns, forced]))
                    count += 1
            return count

        return self.store.write(work)

    def asked_redrives(self, key: LaneKey, limit: int) -> Sequence[AskedRedrive]:
        """See ``Ledger.asked_redrives``."""

        def work(txn: Transaction) -> list[AskedRedrive]:
            found: list[AskedRedrive] = []
            for at, value in txn.scan("redrives", lane_bytes(key)):
                if len(found) >= limit:
                    break
                letter = _letter(txn, key.route_id, lsn_of(at))
                if letter is not None:
                    found.append(_asked(letter, value))
            return found

        return self.store.read(work)

    def asked_redrive(self, key: LaneKey, lsn: Lsn) -> AskedRedrive | None:
        """See ``Ledger.asked_redrive``."""

        def work(txn: Transaction) -> AskedRedrive | None:
            letter = _letter(txn, key.route_id, lsn)
            return (
                None if letter is None else _asked(letter, txn.get("redrives", lane_lsn(key, lsn)))
            )

        return self.store.read(work)

    def count_redrives(self, key: LaneKey) -> int:
        """See ``Ledger.count_redrives``."""
        return self.store.read(lambda txn: sum(1 for _ in txn.scan("redrives", lane_bytes(key))))

    def give_up_redrives(self, key: LaneKey, lsns: Sequence[Lsn]) -> None:
        """See ``Ledger.give_up_redrives``."""

        def work(txn: Transaction) -> None:
            for lsn in lsns:
                txn.delete("redrives", lane_lsn(key, lsn))

        self.store.write(work)

    # --- setting aside by hand ------------------------------------------------------------------

    def allow_aside(self, key: LaneKey, lsns: Sequence[Lsn], now_ns: int) -> None:
        """See ``Ledger.allow_aside``."""

        def work(txn: Transaction) -> None:
            for lsn in lsns:
                txn.put("allowed", lane_lsn(key, lsn), pack(now_ns))

        self.store.write(work)

    def allowed_aside(self, key: LaneKey) -> Collection[Lsn]:
        """See ``Ledger.allowed_aside``."""
        return self.store.read(
            lambda txn: frozenset(lsn_of(at) for at, _ in txn.scan("allowed", lane_bytes(key)))
        )

    # --- purging --------------------------------------------------------------------------------

    def purge(
        self, route_id: RouteId, lsns: Sequence[Lsn], now_ns: int, *, spare_asked: bool = False
    ) -> Purged:
        """See ``Ledger.purge``."""

        def work(txn: Transaction) -> Purged:
            gone: dict[LaneKey, int] = {}
            letters = spared = 0
            for lsn in lsns:
                letter = _letter(txn, route_id, lsn)
                if letter is None:
                    continue
                key = self._lane_of(route_id, letter)
                if self._is_needed(txn, key, lsn, spare_asked=spare_asked):
                    spared += 1
                    continue
                _purge_letter(txn, key, letter, now_ns)
                gone[key] = gone.get(key, 0) + letter.records
                letters += 1
            for key, records in gone.items():
                count_purged(txn, lane_bytes(key), records)
            return Purged(letters, sum(gone.values()), spared)

        return self.store.write(work)

    def recall_purges(
        self,
        lane: tuple[RouteId, int, int],
        time_ns: int,
        letters: Sequence[tuple[Lsn, int, int]],
        *,
        told_at: tuple[int, int],
    ) -> None:
        """See ``Ledger.recall_purges``."""
        key = LaneKey(self._log_id, *lane)

        def work(txn: Transaction) -> None:
            gone = 0
            for lsn, records, file in letters:
                letter = _letter(txn, key.route_id, lsn)
                if letter is None:
                    txn.put("purged", lane_lsn(key, lsn), pack([records, file, time_ns]))
                elif self._lane_of(key.route_id, letter) == key and _was_there(
                    letter, told_at, time_ns
                ):
                    _purge_letter(txn, key, letter, time_ns)
                    gone += letter.records
            if gone:
                count_purged(txn, lane_bytes(key), gone)

        self.store.write(work)

    def purged(self, key: LaneKey, *, without_body: bool = False) -> Mapping[Lsn, int]:
        """See ``Ledger.purged``."""

        def work(txn: Transaction) -> dict[Lsn, int]:
            rows = [
                (lsn_of(at), unpack(value)) for at, value in txn.scan("purged", lane_bytes(key))
            ]
            return {lsn: row[0] for lsn, row in rows if not (without_body and row[1])}

        return self.store.read(work)

    def _is_needed(self, txn: Transaction, key: LaneKey, lsn: Lsn, *, spare_asked: bool) -> bool:
        """Tell whether a letter is being sent, or, if that counts, waits to be."""
        manifest = get_lane(txn, key).manifest
        if manifest is not None and lsn in manifest.revisions[0].redriven:
            return True
        return spare_asked and txn.get("redrives", lane_lsn(key, lsn)) is not None

    # --- the dead log's files -------------------------------------------------------------------

    def move_letters(
        self, route_id: RouteId, places: Mapping[Lsn, tuple[int, int]], below_file: int
    ) -> None:
        """See ``Ledger.move_letters``."""

        def work(txn: Transaction) -> None:
            for lsn, (file, offset) in places.items():
                letter = _letter(txn, route_id, lsn)
                if letter is not None and 0 < letter.dead_file < below_file:
                    moved = replace(letter, dead_file=file, dead_offset=offset)
                    txn.put("dead", dead_key(route_id, lsn), pack(moved))

        self.store.write(work)

    def dead_files(self) -> Collection[int]:
        """See ``Ledger.dead_files``."""

        def work(txn: Transaction) -> set[int]:
            files = {letter_of(value).dead_file for _, value in txn.scan("dead")}
            for _, value in txn.scan("aside"):
                files |= {letter.dead_file for letter in letters_of(value)}
            return files

        return self.store.read(work)

    def forget_purged(self, below_file: int, named: Collection[Lsn]) -> int:
        """See ``Ledger.forget_purged``."""

        def work(txn: Transaction) -> int:
            gone = [
                at
                for at, value in txn.scan("purged")
                if 0 < unpack(value)[1] < below_file and lsn_of(at) not in named
            ]
            for at in gone:
                txn.delete("purged", at)
            return len(gone)

        return self.store.write(work)

    def note(self, name: str, value: object = None) -> object:
        """See ``Ledger.note``."""
        at = name.encode()
        if value is not None:
            self.store.write(lambda txn: txn.put("meta", at, pack(value)))
            return value
        found = self.store.read(lambda txn: txn.get("meta", at))
        return None if found is None else unpack(found)

    def _lane_of(self, route_id: RouteId, letter: DeadLetter) -> LaneKey:
        return LaneKey(self._log_id, route_id, letter.layout, letter.lane)


# --- inside a transaction -----------------------------------------------------------------------


def are_dead(txn: Transaction, route_id: RouteId, lsns: Sequence[Lsn]) -> bool:
    """Tell whether all of these are dead letters still: a purge may come at any time."""
    return all(txn.get("dead", dead_key(route_id, lsn)) is not None for lsn in lsns)


def settle_redrive(
    txn: Transaction,
    key: LaneKey,
    manifest: Manifest,
    sent: Sequence[Lsn],
    refused: Sequence[DeadLetter],
) -> None:
    """T8: what was sent leaves the index, and is asked for no more; nor is what was refused again.

    What was left out because the batch was too large stays asked for.
    """
    for lsn in sent:
        txn.delete("dead", dead_key(key.route_id, lsn))
    again = {letter.lsn for letter in refused}
    for lsn in manifest.revisions[0].redriven:
        if lsn in again or txn.get("dead", dead_key(key.route_id, lsn)) is None:
            txn.delete("redrives", lane_lsn(key, lsn))


def settle_allowed(txn: Transaction, key: LaneKey, letters: Sequence[DeadLetter]) -> None:
    """Forget the permission to set records aside that now are."""
    for letter in letters:
        txn.delete("allowed", lane_lsn(key, letter.lsn))


def settle_adopted(
    txn: Transaction, key: LaneKey, checkpoint: Checkpoint, letters: Sequence[DeadLetter]
) -> Checkpoint:
    """T12: ``letters`` become the lane's index, less those that were purged.

    A purged record that the chain does not name is pending again, or delivered: it counts there.
    What was to be sent again and is dead for another reason now is to be asked for anew.
    """
    codes = _forget_lane(txn, key)
    walked = {letter.lsn: letter for letter in letters}
    purged = 0
    for at, _ in list(txn.scan("purged", lane_bytes(key))):
        letter = walked.pop(lsn_of(at), None)
        if letter is None:
            txn.delete("purged", at)
        else:
            purged += letter.records
    put_lane(txn, key, LaneProgress(checkpoint, None))
    bury(txn, key.route_id, list(walked.values()))
    checkpoint = get_lane(txn, key).checkpoint
    for at, _ in list(txn.scan("redrives", lane_bytes(key))):
        letter = walked.get(lsn_of(at))
        if letter is None or codes.get(letter.lsn, letter.code) != letter.code:
            txn.delete("redrives", at)
    return replace(
        checkpoint, dead_letters=checkpoint.dead_letters - purged, purged=checkpoint.purged + purged
    )


def _forget_lane(txn: Transaction, key: LaneKey) -> dict[Lsn, str]:
    """Forget the lane's index; return why each was dead."""
    codes = {}
    for at, value in list(txn.scan("dead", ROUTE.pack(key.route_id))):
        letter = letter_of(value)
        if (letter.layout, letter.lane) == (key.layout, key.lane):
            codes[letter.lsn] = letter.code
            txn.delete("dead", at)
    return codes


def _asked(letter: DeadLetter, row: bytes | None) -> AskedRedrive:
    """Return what a row asks for; one of a release before has no third field."""
    transform, _, *rest = ("", 0) if row is None else unpack(row)
    return AskedRedrive(letter, transform, *rest)


def _letter(txn: Transaction, route_id: RouteId, lsn: Lsn) -> DeadLetter | None:
    found = txn.get("dead", dead_key(route_id, lsn))
    return None if found is None else letter_of(found)


def _was_there(letter: DeadLetter, told_at: tuple[int, int], time_ns: int) -> bool:
    """Tell whether a letter was set aside before a purge was told: clocks are set back at times.

    The dead log's order is not. What has no body has no place in it: there the clock is believed.
    """
    if letter.dead_file:
        return (letter.dead_file, letter.dead_offset) < told_at
    return letter.time_ns <= time_ns


def _purge_letter(txn: Transaction, key: LaneKey, letter: DeadLetter, now_ns: int) -> None:
    txn.delete("dead", dead_key(key.route_id, letter.lsn))
    txn.delete("redrives", lane_lsn(key, letter.lsn))
    row = pack([letter.records, letter.dead_file, now_ns])
    txn.put("purged", lane_lsn(key, letter.lsn), row)
