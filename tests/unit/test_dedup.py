"""Dedup ids at the door: a record is stored once, and its duplicates are told, over restarts."""

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.logtools import STREAM, append
from tests.model.log_reader import block_offsets, read_log
from tests.turns import OPTIONS, Client, Site
from wald import limits
from wald.core import body as bodies
from wald.core.body import Body, Text
from wald.core.events import (
    Ack,
    Append,
    Capability,
    Duplicate,
    DuplicateRecords,
    Event,
    Failed,
    RefusedRecords,
)
from wald.core.frame import decode_block_header
from wald.core.ids import DedupPolicy, StreamIds, ids_in
from wald.core.rules import StreamRules
from wald.model import LostRange
from wald.storage.segment import segment_name

S_NS = limits.CLOCK_NS_PER_S
DEDUP = StreamRules(compares_ids=True)


def site(window_s: float = 3600.0, max_ids: int = 1_000, rules: StreamRules = DEDUP) -> Site:
    policy = DedupPolicy(window_s, max_ids)
    return Site(replace(OPTIONS, dedup={"orders": policy}), rules={"orders": rules})


def request(sequence: int, *ids: Text | None, lag: int = 1, values: list[object] | None = None):
    made = values if values is not None else [b"%d" % at for at in range(len(ids))]
    body = bodies.encode(Body(0, made, None, None, list(ids) or None))  # type: ignore[arg-type]
    return Append(STREAM, sequence, lag, body).encode()


def greeted(at: Site, session: int = 0) -> Client:
    client = at.client()
    client.hello("", session, Capability.DUPLICATES)
    return client


def look(at: Site) -> None:
    """What ingest does every second."""
    at.log.ids.table.forget_old(at.clock.wall_ns(), at.clock.boot_ns())


def told(client: Client) -> list[Event]:
    client.turn()
    return client.wire.events()


def duplicates(sequence: int, *pairs: tuple[int, int]) -> DuplicateRecords:
    return DuplicateRecords(sequence, tuple(Duplicate(*pair) for pair in pairs))


# --- what a duplicate is answered ---------------------------------------------------------------


def test_a_record_with_the_id_of_an_earlier_one_is_told_and_not_stored():
    at = site()
    client = greeted(at)
    client.send(request(1, "a", "b", "c"))
    (first,) = told(client)
    assert isinstance(first, Ack)
    client.send(request(2, "d", "b", "e", "a"))
    named, ack = told(client)
    lsn = first.first_lsn
    assert named == duplicates(2, (1, lsn + 1), (3, lsn))
    assert isinstance(ack, Ack)
    assert (ack.first_lsn, ack.durable_lsn) == (lsn + 3, lsn + 4)
    client.send(request(3, "d", "f"))
    named, _ = told(client)
    assert named == duplicates(3, (0, lsn + 3))


@pytest.mark.parametrize("together", [True, False], ids=["one request", "two requests"])
def test_duplicates_of_one_group_are_told_with_the_lsn_that_it_gets(*, together: bool):
    at = site()
    client = greeted(at)
    if together:
        client.send(request(1, "a", "b", "a"))
        named, ack = told(client)
        assert isinstance(ack, Ack)
        assert named == duplicates(1, (2, ack.first_lsn))
    else:
        client.send(request(1, "a", "b"), request(2, "b", "c", lag=2))
        named, ack = told(client)
        assert isinstance(ack, Ack)
        assert named == duplicates(2, (0, ack.first_lsn + 1))
    assert ack.durable_lsn - ack.first_lsn == 1 + (not together)


def test_of_two_clients_in_one_group_the_first_in_the_group_has_the_record():
    at = site()
    one, other = greeted(at), greeted(at)
    one.send(request(1, "x"))
    other.send(request(1, "a", "x", "b"))
    one.send(request(2, "b", lag=2))  # stands before the other's in the group
    at.loop.turn()
    (first,) = one.wire.events()
    named, second = other.wire.events()
    assert isinstance(first, Ack)
    assert isinstance(second, Ack)
    lsn = first.first_lsn
    assert named == duplicates(1, (1, lsn), (2, lsn + 1))
    assert (second.first_lsn, second.durable_lsn) == (lsn + 2, lsn + 2)


def test_ids_behind_a_plain_request_of_the_same_turn_are_looked_at():
    at = site()
    client = greeted(at)
    client.send(request(1, "a"))
    (first,) = told(client)
    assert isinstance(first, Ack)
    client.send(request(2, values=[b"plain"]))  # a read of its own: it takes the short way
    client.send(request(3, "a", lag=2))
    named, _ = told(client)
    assert named == duplicates(3, (0, first.first_lsn))


def test_text_and_bytes_are_different_ids_and_no_id_is_none():
    at = site()
    client = greeted(at)
    client.send(request(1, "a", b"a", None, None))
    (ack,) = told(client)
    assert isinstance(ack, Ack)
    assert ack.durable_lsn - ack.first_lsn == 3


def test_refused_and_duplicate_records_of_a_request_are_told_by_their_own_indexes():
    at = site()
    client = greeted(at)
    client.send(request(1, "a"))
    (first,) = told(client)
    assert isinstance(first, Ack)
    client.send(request(2, "b", "a", "c", "d", values=[b"0", b"1", "no bytes", b"3"]))
    refused, named, ack = told(client)
    assert isinstance(refused, RefusedRecords)
    assert [each.record for each in refused.refusals] == [2]
    assert named == duplicates(2, (1, first.first_lsn))
    assert isinstance(ack, Ack)
    assert ack.durable_lsn - ack.first_lsn == 1
    # an id of a record that was refused was not used
    client.send(request(3, "c"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)


def test_a_request_of_duplicates_alone_uses_its_sequence_and_stores_nothing():
    at = site()
    client = greeted(at)
    client.send(request(1, "a", "b"))
    told(client)
    client.send(request(2, "a", "b"))
    named, ack = told(client)
    assert isinstance(named, DuplicateRecords)
    assert isinstance(ack, Ack)
    assert (ack.first, ack.through) == (2, 2)
    client.send(request(3, "c"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)


def test_what_is_stored_is_the_request_without_its_duplicates():
    at = site()
    client = greeted(at)
    client.send(request(1, "a", "b", "a", "c"))
    told(client)
    (found,) = read_log(at.fs, "/var/wald", at.log.frontier).requests
    assert bodies.decode(found.body).values == [b"0", b"1", b"3"]


def test_a_client_that_would_not_understand_is_refused_as_a_whole():
    at = site()
    client = at.client()
    client.hello()
    client.send(request(1, "a"), request(2, lag=2, values=[b"plain"]))
    refused, ack = told(client)
    assert isinstance(refused, RefusedRecords)
    assert refused.refusals[0].code == "request.dedup"
    assert isinstance(ack, Ack)
    assert (ack.first, ack.through) == (1, 2)


def test_without_the_setting_ids_are_stored_and_not_compared():
    at = Site()
    client = greeted(at)
    client.send(request(1, "a", "a"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)
    assert ack.durable_lsn - ack.first_lsn == 1


# --- sent again ---------------------------------------------------------------------------------

Again = Callable[[Site], Site]
LIVES: dict[str, Again] = {
    "running": lambda at: at,
    "restarted": lambda at: at.restarted(),
    "killed": lambda at: at.killed(),
    "power cut": lambda at: at.killed(cut=True),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_request_that_is_sent_again_gets_the_same_answer(life: str):
    at = site()
    client = at.client()
    session = client.hello("", 0, Capability.DUPLICATES).session
    sent = [
        request(1, "a", "b", lag=1),
        request(2, "b", "c", "b", "c", lag=2),
        request(3, "a", "d", None, "d", lag=3, values=[b"0", b"1", b"2", "no bytes"]),
        request(4, "a", "a", lag=4),
    ]
    client.send(*sent)
    first = told(client)
    at = LIVES[life](at)
    client = greeted(at, session)
    client.send(*sent)
    again = told(client)
    named = [each for each in first if isinstance(each, DuplicateRecords)]
    assert [each for each in again if isinstance(each, DuplicateRecords)] == named
    assert [each.sequence for each in named] == [2, 3, 4]
    acks = [each for each in again if isinstance(each, Ack)]
    assert [(each.first, each.through) for each in acks] == [(n, n) for n in (1, 2, 3, 4)]
    (original,) = [each for each in first if isinstance(each, Ack)]
    assert [each.first_lsn - original.first_lsn for each in acks] == [0, 2, 3, 5]
    assert sum(isinstance(each, RefusedRecords) for each in again) == 1


@pytest.mark.parametrize("life", LIVES)
def test_ids_are_known_after_any_kind_of_end(life: str):
    at = site()
    client = greeted(at)
    client.send(request(1, "a", "b"))
    (first,) = told(client)
    assert isinstance(first, Ack)
    at = LIVES[life](at)
    at = LIVES[life](at)  # the second start reads what the first wrote
    client = greeted(at)
    client.send(request(1, "b", "c"))
    named, _ = told(client)
    assert named == duplicates(1, (0, first.first_lsn + 1))


def test_a_request_whose_ids_are_forgotten_is_unknown_when_it_is_sent_again():
    at = site(max_ids=2)
    client = greeted(at)
    client.send(request(1, "a", "b"), request(2, "a", "x", lag=2))
    told(client)
    client.send(request(2, "a", "x", lag=1))
    (failed,) = told(client)
    assert isinstance(failed, Failed)
    assert failed.code == "outcome-unknown"


def test_a_request_whose_id_was_given_again_since_is_unknown_when_it_is_sent_again():
    at = site(max_ids=2)
    client = greeted(at)
    client.send(request(1, "a"), request(2, "a", lag=2))
    told(client)
    client.send(request(3, "x", "y", lag=3))
    told(client)
    client.send(request(4, "a", lag=4))
    assert len(told(client)) == 1
    client.send(request(2, "a", lag=2))
    (failed,) = told(client)
    assert isinstance(failed, Failed)
    assert failed.code == "outcome-unknown"


# --- bounds -------------------------------------------------------------------------------------


def test_an_id_is_forgotten_when_its_window_has_passed_and_no_earlier():
    at = site(window_s=64)
    client = greeted(at)
    for sequence in range(1, 65):  # one a second
        client.send(request(sequence, f"id-{sequence}"))
        told(client)
        at.clock.advance(1)
    look(at)
    client.send(request(65, "id-2", "id-64"))
    named, _ = told(client)
    assert isinstance(named, DuplicateRecords)
    assert len(named.duplicates) == 2
    at.clock.advance(70)
    look(at)
    client.send(request(66, "id-2", "id-64"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)


YEAR_S = 366 * 24 * 3600


@pytest.mark.parametrize("meanwhile", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("jump_s", [65, 3600, 10 * YEAR_S])
def test_a_wall_clock_that_is_set_forward_makes_no_id_forgotten_early(
    jump_s: int, *, meanwhile: bool
):
    at = site(window_s=64)
    client = greeted(at)
    client.send(request(1, "a"))
    told(client)
    look(at)
    at.clock.set_wall(at.clock.wall_ns() + jump_s * S_NS)
    if meanwhile:  # committed before the jump is seen
        client.send(request(2, "b"))
        told(client)
    look(at)
    at.clock.advance(60)
    look(at)
    client.send(request(3 if meanwhile else 2, "a"))
    assert told(client)[0] == duplicates(3 if meanwhile else 2, (0, 1))
    at.clock.advance(6)  # the window, and 1/64 of it
    look(at)
    client.send(request(4 if meanwhile else 3, "a", "b"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)


def test_a_wall_clock_that_is_set_back_makes_ids_kept_for_a_window_from_then():
    at = site(window_s=64)
    client = greeted(at)
    look(at)
    began_ns = at.clock.wall_ns()
    at.clock.set_wall(began_ns + 10 * YEAR_S * S_NS)
    client.send(request(1, "a"))
    told(client)
    look(at)
    at.clock.set_wall(began_ns + S_NS)
    look(at)
    at.clock.advance(63)
    look(at)
    client.send(request(2, "a"))
    assert told(client)[0] == duplicates(2, (0, 1))
    at.clock.advance(3)
    look(at)
    client.send(request(3, "a"))
    (ack,) = told(client)
    assert isinstance(ack, Ack)


def test_with_more_ids_than_are_kept_the_oldest_are_forgotten_and_counted():
    at = site(max_ids=3)
    client = greeted(at)
    client.send(request(1, "a", "b", "c", "d", "e"))
    told(client)
    ids = at.log.ids.table.known(STREAM)
    assert ids is not None
    assert (len(ids), ids.crowded_out) == (3, 2)
    client.send(request(2, "a", "e"))
    named, _ = told(client)
    assert isinstance(named, DuplicateRecords)
    assert [each.record for each in named.duplicates] == [1]


def test_a_table_of_ids_keeps_what_a_simple_model_keeps():
    ids = StreamIds(DedupPolicy(100.0, 50))
    model: dict[str, tuple[int, int]] = {}
    lsn = 0
    for step in range(2_000):
        now_ns = step * S_NS
        ids.forget_old(now_ns)
        name = f"id-{step * 7919 % 173}"
        if ids.get(name) is None:
            lsn += 1 + step % 3
            ids.add([lsn], [name], now_ns)
            model[name] = (lsn, now_ns)
        found = ids.get(name)
        assert found == model[name][0]
        certain = [
            key
            for key, (at, since) in sorted(model.items(), key=lambda each: -each[1][0])[:50]
            if now_ns - since < 100 * S_NS
        ]
        assert all(ids.get(key) == model[key][0] for key in certain)
        assert len(ids) <= 50
        expired = [key for key, (_, since) in model.items() if now_ns - since > 103 * S_NS]
        assert all(ids.get(key) is None for key in expired)


def test_of_ids_that_came_one_by_one_the_old_ones_are_forgotten_one_by_one():
    ids = StreamIds(DedupPolicy(64.0, 1_000))
    for second in range(100):
        ids.add([second + 1], [f"id-{second}"], second * S_NS)
    assert ids.oldest_ns == 0
    ids.forget_old(100 * S_NS)
    kept = [second for second in range(100) if ids.get(f"id-{second}") is not None]
    assert kept in (list(range(35, 100)), list(range(36, 100)))  # the window, and 1/64 of it
    assert ids.oldest_lsn == kept[0] + 1
    assert ids.oldest_ns == kept[0] * S_NS
    assert ids.crowded_out == 0


def test_an_id_that_was_given_again_stays_when_the_first_is_forgotten():
    ids = StreamIds(DedupPolicy(1e6, 2))
    ids.add([1, 2], ["a", "a"], 1)  # as a log says that was written before ids were compared
    assert ids.get("a") == 2
    ids.add([3], ["b"], 1)
    assert ids.get("a") == 2
    ids.add([4], ["c"], 1)
    assert ids.get("a") is None


def test_a_body_that_cannot_be_read_has_no_ids():
    broken = append(1, b"x")._replace(bodies=b"\xc1" * len(append(1, b"x").bodies))
    assert ids_in(broken, 1) is None
    assert ids_in(append(1, b"x"), 1) is None


def test_ids_of_lost_records_are_new_again():
    ids = StreamIds(DedupPolicy(100.0, 50))
    ids.add([1, 2, 3, 4], ["a", "b", "c", "d"], 1)
    ids.forget_lost(LostRange(2, 3, 1, 0, "hole"))
    assert [ids.get(each) for each in "abcd"] == [1, None, None, 4]
    ids.forget_lost(LostRange(1, 0, 1, 0, "nobody knows"))
    assert [ids.get(each) for each in "abcd"] == [None] * 4


# --- the files ----------------------------------------------------------------------------------


def small(at: Site) -> Site:
    """The same with a snapshot every few sections, so that ids reach their files."""
    at.log.close()
    options = replace(at.options, snapshot_every_sections=2)
    return Site(options, at.fs, at.clock, rules=at.rules)


@pytest.mark.parametrize("cut", [False, True], ids=["killed", "power cut"])
def test_ids_survive_snapshots_rolls_and_starts(monkeypatch: pytest.MonkeyPatch, *, cut: bool):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    at = small(site(max_ids=400))
    stored: dict[str, int] = {}
    for life in range(6):
        client = greeted(at)
        for sequence in range(1, 40):
            name = f"{life}-{sequence}"
            client.send(request(sequence, name))
            (ack,) = told(client)
            assert isinstance(ack, Ack)
            stored[name] = ack.first_lsn
        at = at.killed(cut=cut)
        client = greeted(at)
        client.send(request(1, *stored))
        named, _ = told(client)
        assert named == duplicates(1, *enumerate(stored.values()))


def test_files_go_when_all_their_ids_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    monkeypatch.setattr(limits, "DEDUP_FILE_BYTES", 4 * 4_096)
    at = small(site(max_ids=20))
    client = greeted(at)
    most = 0
    for sequence in range(1, 400):
        client.send(request(sequence, f"id-{sequence}" + "x" * 100))
        told(client)
        if at.fs.stat("/var/wald/ids"):
            most = max(most, len(at.fs.list_directory("/var/wald/ids")))
    assert 2 <= most <= 6
    at = at.killed(cut=True)
    client = greeted(at)
    client.send(request(1, "id-399" + "x" * 100))
    named, _ = told(client)
    assert isinstance(named, DuplicateRecords)


def test_without_the_setting_there_are_no_files():
    at = Site()
    client = greeted(at)
    client.send(request(1, "a"))
    told(client)
    at = at.restarted()
    assert at.fs.stat("/var/wald/ids") is None


def test_a_damaged_file_of_ids_is_told_of_and_forgets_no_more_than_it_held(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    at = small(site())
    client = greeted(at)
    for sequence in range(1, 20):
        client.send(request(sequence, f"id-{sequence}"))
        told(client)
    at = at.restarted()
    names = at.fs.list_directory("/var/wald/ids")
    assert len(names) >= 2
    at.log.close()
    at.fs.damage(f"/var/wald/ids/{names[0]}", 40, b"\xff")
    at = Site(at.options, at.fs, at.clock, rules=at.rules)
    assert any(names[0] in note for note in at.log.recovery.notes)
    client = greeted(at)
    client.send(request(1, "id-19", "new"))
    assert isinstance(told(client)[-1], Ack)


def test_a_torn_write_of_ids_harms_no_earlier_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    at = small(site())
    client = greeted(at)
    for sequence in range(1, 20):
        client.send(request(sequence, f"id-{sequence}"))
        told(client)
    at = at.killed(cut=True)
    directory = "/var/wald/ids"
    (name,) = (
        each
        for each in at.fs.list_directory(directory)
        if (found := at.fs.stat(f"{directory}/{each}")) and found.size_bytes > 4 * 4_096
    )
    at.log.close()
    at.fs.damage(f"{directory}/{name}", 3 * 4_096, bytes(range(1, 256)) * 10)
    at = Site(at.options, at.fs, at.clock, rules=at.rules)
    assert at.log.recovery.notes == (f"{name} cannot be read at byte 12,288",) * 1
    ids = at.log.ids.table.known(STREAM)
    assert ids is not None
    assert 15 <= len(ids) < 19


def test_ids_of_records_that_damage_took_are_new_again_for_good(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    at = small(site())
    client = greeted(at)
    lsns = {}
    for sequence in range(1, 12):
        client.send(request(sequence, f"id-{sequence}"))
        (ack,) = told(client)
        assert isinstance(ack, Ack)
        lsns[f"id-{sequence}"] = ack.first_lsn
    frontier = at.log.frontier
    path = f"/var/wald/log/{segment_name(frontier.segment)}"
    with at.fs.undisturbed():
        file = at.fs.open(path)
        data = file.pread(frontier.end_bytes, 0)
        file.close()
        offsets = [
            offset
            for offset in block_offsets(at.fs, path, frontier.end_bytes)
            if (header := decode_block_header(data, offset)) and header.records
        ]
    at.fs.kill()
    at.fs.settle()
    at.fs.damage(path, offsets[len(offsets) // 2], b"\0\0\0\0")
    at.fs.settle()
    at = Site(at.options, at.fs, at.clock, rules=at.rules)
    lost = [
        name
        for name, lsn in lsns.items()
        if any(each.first_lsn <= lsn <= each.last_lsn for each in at.log.recovery.losses)
    ]
    assert lost
    for again in range(2):
        ids = at.log.ids.table.known(STREAM)
        assert ids is not None
        assert [name for name in lsns if ids.get(name) is None] == lost, again
        at = at.killed(cut=True)


def test_a_request_is_unknown_when_ids_are_compared_no_more():
    at = site()
    client = at.client()
    session = client.hello("", 0, Capability.DUPLICATES).session
    client.send(request(1, "a"), request(2, "a", lag=2))
    told(client)
    at.log.close()
    at = Site(replace(OPTIONS), at.fs, at.clock)
    client = greeted(at, session)
    client.send(request(2, "a", lag=2), request(1, "a", lag=1))
    failed, ack = told(client)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.request) == ("outcome-unknown", 2)
    assert isinstance(ack, Ack)  # of a request without duplicates everything is known


def test_a_full_disk_refuses_what_would_need_a_snapshot_and_goes_on_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(limits, "SNAPSHOT_SHARE", 0)
    at = small(site())
    client = greeted(at)
    for sequence in range(1, 10):
        if sequence == 4:
            at.fs.fail(1, errno.ENOSPC, kind="open", for_ever=True)
        client.send(request(sequence, f"id-{sequence}"))
        (ack,) = told(client)
        assert isinstance(ack, Ack)
    at.fs.heal()
    at = at.killed(cut=True)
    ids = at.log.ids.table.known(STREAM)
    assert ids is not None
    assert len(ids) == 9
