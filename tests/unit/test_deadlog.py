"""The dead log: entries durable before they are named, torn ones ignored, damage typed."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald.core import frame
from wald.errors import DiskFull, FormatDamaged, FormatNewer, LedgerFailed
from wald.model import NO_REVISION, Record
from wald.storage import deadlog
from wald.storage.deadlog import (
    DEAD_ALIGNMENT_BYTES,
    UNKNOWN_REASON,
    DeadEntry,
    DeadLog,
    DeadPlace,
    Final,
    Reason,
    decode_entry,
    encode_entry,
)
from wald.system import PosixFileSystem
from wald.testing.simfs import SimFileSystem, Stopped

DATA = "/data"
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
BODY = Record(7, 99, 1, b"value", "key", {"h": b"x"}, "id")
ENTRY = DeadEntry(A, NO_REVISION, (BODY, Record(9, 99, 0, b"")), (5, 6))


@pytest.fixture
def fs():
    made = SimFileSystem(Random(3), directories=())
    made.make_directory(DATA)
    made.sync_directory("/")
    return made


def test_an_entry_is_read_back_whole(fs):
    log = DeadLog(fs, DATA)
    first, second = log.append(ENTRY), log.append(DeadEntry(B, A, ()))
    assert log.read(first) == ENTRY
    assert log.read(second) == DeadEntry(B, A, ())
    assert (first.file, first.offset, second.file) == (1, 0, 1)
    log.close()
    log.close()


def test_what_was_appended_survives_a_power_cut(fs):
    log = DeadLog(fs, DATA)
    place = log.append(ENTRY)
    fs.crash()
    assert DeadLog(fs, DATA).read(place) == ENTRY


def test_each_start_begins_a_new_file_and_old_entries_stay(fs):
    first = DeadLog(fs, DATA)
    assert list(first.entries()) == []
    places = [first.append(ENTRY)]
    first.close()
    second = DeadLog(fs, DATA)
    places.append(second.append(DeadEntry(B, A, (BODY,))))
    assert [place for place, _ in second.entries()] == places
    assert [place.file for place in places] == [1, 2]
    second.close()


def test_a_full_file_is_followed_by_the_next(fs):
    log = DeadLog(fs, DATA, file_bytes=10)
    assert [log.append(ENTRY).file for _ in range(3)] == [1, 2, 3]
    log.close()


def test_a_torn_entry_ends_its_file_and_harms_no_other(fs):
    log = DeadLog(fs, DATA)
    log.append(ENTRY)
    log.close()
    file = fs.open(f"{DATA}/dead/dead-0000000001.log", write=True)
    file.pwritev([encode_entry(ENTRY)[:-3]], file.size())
    file.close()
    again = DeadLog(fs, DATA)
    place = again.append(DeadEntry(B, A, ()))
    assert [found for found, _ in again.entries()] == [DeadPlace(1, 0), place]
    again.close()


def flip(fs, at):
    file = fs.open(f"{DATA}/dead/dead-0000000001.log", write=True)
    (byte,) = file.pread(1, at)
    file.pwritev([bytes([byte ^ 4])], at)
    file.close()


@pytest.mark.parametrize("at", [0, 9, 12, 40])  # magic, length, checksum, body
def test_a_damaged_entry_hides_none_behind_it(fs, at):
    log = DeadLog(fs, DATA)
    first = log.append(ENTRY)
    places = [log.append(DeadEntry(B, NO_REVISION, (BODY,))), log.append(DeadEntry(C, B, ()))]
    log.close()
    flip(fs, at)
    again = DeadLog(fs, DATA)
    assert [place for place, _ in again.entries()] == places
    chain = again.walk(C)
    assert chain is not None
    assert set(chain.letters) == {BODY.lsn}
    with pytest.raises(FormatDamaged):
        again.read(first)
    again.close()


def test_what_looks_like_an_entry_in_a_damaged_one_is_none(fs):
    forged = encode_entry(DeadEntry(C, NO_REVISION, ()))
    long = DeadEntry(A, NO_REVISION, (BODY._replace(value=b"x" * 9_000),))
    at = encode_entry(long).index(b"x" * 99)
    body = BODY._replace(value=bytes(2 * DEAD_ALIGNMENT_BYTES - at) + forged)
    log = DeadLog(fs, DATA)
    log.append(DeadEntry(A, NO_REVISION, (body,)))
    place = log.append(DeadEntry(B, NO_REVISION, (BODY,)))
    log.close()
    assert log.read(DeadPlace(1, 2 * DEAD_ALIGNMENT_BYTES)).rev_id == C
    flip(fs, 40)
    assert [found for found, _ in log.entries()] == [place]


@pytest.mark.parametrize("place", [DeadPlace(9, 0), DeadPlace(1, 3), DeadPlace(1, 10_000)])
def test_a_place_without_an_entry_is_damage(fs, place):
    log = DeadLog(fs, DATA)
    log.append(ENTRY)
    with pytest.raises(FormatDamaged):
        log.read(place)
    log.close()


class Refuses:
    """A file system whose files fail to sync, as a full or a broken disk does."""

    def __init__(self, fs, errno):
        self._fs, self.errno = fs, errno

    def __getattr__(self, name):
        return getattr(self._fs, name)

    def create(self, path, *, mode=0o600):
        return _NoSync(self._fs.create(path, mode=mode), self)


class _NoSync:
    def __init__(self, file, owner):
        self._file, self._owner = file, owner

    def __getattr__(self, name):
        return getattr(self._file, name)

    def sync(self):
        if self._owner.errno:
            raise OSError(self._owner.errno, "injected")
        self._file.sync()


@pytest.mark.parametrize(("errno", "error"), [(28, DiskFull), (122, DiskFull), (5, LedgerFailed)])
def test_after_a_failed_sync_the_next_entry_goes_to_a_new_file(fs, errno, error):
    refusing = Refuses(fs, errno)
    log = DeadLog(refusing, DATA)
    with pytest.raises(error):
        log.append(ENTRY)
    refusing.errno = 0
    assert log.append(ENTRY) == DeadPlace(2, 0)
    log.close()


def test_other_files_in_the_directory_are_left_alone(fs):
    log = DeadLog(fs, DATA)
    log.append(ENTRY)
    fs.create(f"{DATA}/dead/notes.txt").close()
    assert log.files() == [1]
    log.close()


@given(st.data())
def test_no_flipped_bit_yields_another_entry(data):
    packed = bytearray(encode_entry(ENTRY))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatDamaged):
        decode_entry(bytes(packed))


@given(st.integers(0, len(encode_entry(ENTRY)) - 1))
def test_no_prefix_yields_an_entry(length):
    with pytest.raises(FormatDamaged):
        decode_entry(encode_entry(ENTRY)[:length])


def repacked(version, body):
    head = deadlog._HEAD.pack(deadlog.DEAD_MAGIC, version, 0, len(body))
    return head + deadlog._CRC.pack(frame.crc32c(head + body)) + body


def test_a_newer_entry_is_newer_and_not_damaged():
    with pytest.raises(FormatNewer):
        decode_entry(repacked(2, b"anything"))


@pytest.mark.parametrize("body", [b"\x80", b"\x01", b"\xc1"])
def test_a_whole_entry_that_says_nothing_is_damage(body):
    with pytest.raises(FormatDamaged):
        decode_entry(repacked(1, body))


# --- the chain ----------------------------------------------------------------------------------


def record(lsn):
    return Record(lsn, 99, 0, b"%d" % lsn)


C, D = b"c" * 16, b"d" * 16
CHAIN = [
    DeadEntry(A, NO_REVISION, (record(7), record(9)), reasons=(Reason(7, "no", "why", 3, 1, 5),)),
    DeadEntry(b"e" * 16, A, (record(8),)),  # a revision that took no effect: nobody names it
    DeadEntry(B, A, (), (7,)),
    DeadEntry(C, B, (record(12),)),
    DeadEntry(D, C, (record(7),), (12,)),
]


@pytest.mark.parametrize(
    ("dead_rev", "letters", "ever"),
    [
        (NO_REVISION, set(), set()),
        (A, {7, 9}, {7, 9}),
        (B, {9}, {7, 9}),
        (C, {9, 12}, {7, 9, 12}),
        (D, {7, 9}, {7, 9, 12}),
    ],
)
def test_a_chain_is_what_it_excluded_less_what_it_redrove_oldest_first(fs, dead_rev, letters, ever):
    log = DeadLog(fs, DATA, file_bytes=200)
    places = [log.append(entry) for entry in CHAIN]
    found = log.walk(dead_rev)
    assert found is not None
    assert (set(found.letters), found.ever) == (letters, frozenset(ever))
    if dead_rev == A:
        assert found.letters[7].reason == Reason(7, "no", "why", 3, 1, 5)
        assert found.letters[7].place == places[0]
        assert found.letters[9].reason.code == UNKNOWN_REASON
    log.close()


def test_a_chain_of_which_an_entry_is_missing_is_not_known(fs):
    log = DeadLog(fs, DATA)
    assert log.walk(A) is None
    for entry in CHAIN[2:]:
        log.append(entry)
    assert log.walk(D) is None
    log.append(DeadEntry(A, D, ()))  # a circle
    assert log.walk(D) is None
    log.close()


def test_an_entry_of_an_older_release_has_no_reasons():
    packed = encode_entry(ENTRY)
    said = frame.unpack_statement(packed[deadlog.DEAD_HEADER_BYTES :])
    del said["reasons"]
    assert decode_entry(repacked(1, frame.pack_statement(said))) == ENTRY


def test_a_final_entry_is_read_back_and_is_no_part_of_a_chain(tmp_path):
    log = DeadLog(PosixFileSystem(), str(tmp_path))
    first = DeadEntry(b"1" * 16, NO_REVISION, ())
    named = Final((1, 0, 2), 9, b"1" * 16, 50)
    for entry in (first, DeadEntry(b"f" * 16, NO_REVISION, (), final=named)):
        log.append(entry)
    assert log.finals() == [named]
    assert [place.offset for place in log.steps(b"1" * 16) or ()] == [0]
    log.close()


def numbered(number):
    return DeadEntry(bytes([number]) * 16, NO_REVISION, (BODY,))


def test_an_entry_that_is_torn_takes_none_before_it_along():
    for seed in range(60):  # what is being written may become garbage, by sector or by page
        torn = SimFileSystem(Random(seed), directories=(DATA,))
        log = DeadLog(torn, DATA)
        places = [log.append(numbered(number)) for number in (1, 2, 3)]
        torn.stop(1, kind="sync")
        with pytest.raises(Stopped):
            log.append(numbered(4))
        torn.crash()
        again = DeadLog(torn, DATA)
        assert [again.read(place) for place in places] == [numbered(n) for n in (1, 2, 3)], seed
        assert [found for _, found in again.entries()][:3] == [numbered(n) for n in (1, 2, 3)]


def test_files_of_before_have_no_room_between_their_entries(fs):
    fs.make_directory(f"{DATA}/dead")
    file = fs.create(f"{DATA}/dead/dead-0000000001.log")
    file.pwritev([b"".join(encode_entry(numbered(n)) for n in (1, 2, 3))], 0)
    file.close()
    log = DeadLog(fs, DATA)
    found = list(log.entries())
    assert [each for _, each in found] == [numbered(n) for n in (1, 2, 3)]
    assert [log.read(place) for place, _ in found] == [each for _, each in found]
