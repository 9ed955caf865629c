"""What was told beside the ledger: how far lanes are, the page that says it, and who is behind."""

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from wald import limits
from wald.core.told import Stand, Told, ToldRoute, is_held, stands_of, unpacked
from wald.drainer.recalling import begin_life
from wald.drainer.stands import StandsPage
from wald.model import ReplayClass, RouteBirth
from wald.storage.deadlog import DeadLog
from wald.storage.ledger import StoreLedger, found_ledger
from wald.system import PosixFileSystem
from wald.testing.memory_ledger import MemoryStore

FS = PosixFileSystem()
END = 1 << 40
TOLD = Told(
    4,
    900,
    {
        1: ToldRoute(100, 500, (Stand(2, 0, 700, 31), Stand(2, 1, 650, 30), Stand(0, 1, 40, 3))),
        2: ToldRoute(100, 5_000, None),
        3: ToldRoute(0, None, ()),
    },
)


@pytest.mark.parametrize(
    ("what", "lane", "expected"),
    [
        ("a lane at work is where it was told to be", (1, 2, 0, 600, END), Stand(2, 0, 700, 31)),
        ("a former lane that is named is not through", (1, 0, 1, 0, 80), Stand(0, 1, 100 - 20, 3)),
        ("a former lane that is not named is through", (1, 1, 0, 300, 600), Stand(1, 0, 600)),
        ("with no lane told it is where all were", (2, 0, 0, 0, END), Stand(0, 0, 100)),
        ("it is not beyond its end", (2, 0, 0, 0, 60), Stand(0, 0, 60)),
        ("it is not before its beginning", (2, 1, 0, 200, END), Stand(1, 0, 200)),
        ("of a layout that is not told nothing is known", (3, 0, 0, 7, END), Stand(0, 0, 7)),
        ("of a route that is not told nothing is known", (9, 0, 0, 7, END), Stand(0, 0, 7)),
    ],
)
def test_how_far_a_lane_surely_was(
    what: str, lane: tuple[int, int, int, int, int], expected: Stand
) -> None:
    assert TOLD.stand(*lane) == expected, what


@pytest.mark.parametrize(
    ("what", "route_id", "bounded", "expected"),
    [
        ("up to where batches were sealed", 1, True, 500),
        ("not beyond where the log ended", 2, True, 900),
        ("nothing was sealed where no bound was told", 3, True, 0),
        ("an older release told no bound", 3, False, 900),
    ],
)
def test_up_to_where_nobody_knows(
    what: str, route_id: int, expected: int, *, bounded: bool
) -> None:
    told = Told(TOLD.life, TOLD.through, TOLD.routes, bounded)
    assert told.unsure_through(route_id, END) == expected, what
    assert told.unsure_through(route_id, 300) == min(expected, 300)


def test_what_was_told_is_read_back() -> None:
    assert unpacked(TOLD.packed()) == TOLD
    assert unpacked(None) is None
    assert unpacked([]) is None
    assert stands_of(None) is None


@pytest.mark.parametrize(
    ("replay", "on_unknown", "held"),
    [
        (ReplayClass.WINDOW, "resend", True),
        (ReplayClass.NONE, "hold", True),
        (ReplayClass.NONE, "resend", False),
        (ReplayClass.KEYED, "hold", False),
    ],
)
def test_what_may_double_waits_for_a_person(
    replay: ReplayClass, on_unknown: str, *, held: bool
) -> None:
    assert is_held(replay, on_unknown) is held


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], StandsPage]]:
    """What opens the page of the test's directory; each is closed behind the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(StandsPage(FS, str(tmp_path))))


def test_the_page_keeps_what_it_was_told_for_living_routes(
    opened: Callable[[], StandsPage],
) -> None:
    page = opened()
    page.begin_life(3, {1: 50, 2: 60})
    page.reserve(1, 70)
    page.write({"1": [Stand(0, 0, 40, 2)], "2": [Stand(0, 0, 50, 3)]}, [1, 2])
    page.write({}, [1])  # what is not named stays as it was
    page.close()
    again = opened()
    assert again.life == 3
    assert again.told({1: 30}) == {
        1: ToldRoute(30, 70 + limits.SEALED_AHEAD_LSN, (Stand(0, 0, 40, 2),))
    }
    again.begin_life(4, {1: 1})  # a bound that was told stands
    assert again.told({})[1].sealed == 70 + limits.SEALED_AHEAD_LSN


def test_few_batches_wait_for_the_page(
    opened: Callable[[], StandsPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened()
    writes = []
    monkeypatch.setattr(StandsPage, "_write", lambda _, *said: writes.append(said))
    page._sealed = {"1": 10_000}
    for lsn in range(0, 10_000, 100):
        page.reserve(1, lsn)
    assert not writes
    page.reserve(1, 10_001)
    assert len(writes) == 1


def test_routes_with_most_lanes_are_left_out_where_the_page_is_full(
    opened: Callable[[], StandsPage],
) -> None:
    page = opened()
    many = [Stand(0, lane, 1 << 60, 1 << 40) for lane in range(limits.LANES_MAX)]
    stands = {str(route): many for route in range(1, limits.ROUTES_MAX)} | {"7777": many[:1]}
    page.write(stands, list(map(int, stands)))
    page.close()
    told = opened().told({})
    assert told[7777].stands == (many[0],)
    assert len(told) == 1 + (limits.STANDS_TOLD_MAX_COUNT - 1) // limits.LANES_MAX


def test_what_cannot_be_told_is_told_by_the_next_call(
    opened: Callable[[], StandsPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened()
    page.begin_life(1, {})

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as broken:
        broken.setattr("wald.storage.progress.TwoSlotPage.write", fails)
        with pytest.raises(OSError, match="no"):
            page.reserve(1, 5)
    page.reserve(1, 5)
    page.close()
    assert opened().told({})[1].sealed == 5 + limits.SEALED_AHEAD_LSN


# --- a ledger that is behind the page -----------------------------------------------------------


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[int, StandsPage], int]:
    """What begins a drainer where the log ends at an LSN; says where it did at the last loss.

    The ledger has one lane, which never gets further than its birth.
    """
    store = MemoryStore()
    store.write(lambda txn: found_ledger(txn, bytes(16)))
    ledger = StoreLedger(store, bytes(16))
    ledger.birth(RouteBirth(1, "orders", 1, "orders", "out", 0, 7))
    dead_log = DeadLog(FS, str(tmp_path))

    def begun(through: int, page: StandsPage) -> int:
        told = begin_life(ledger, dead_log, page, {}, lambda: through, random.Random(1))
        return told.through if told is not None else 0

    return begun


def test_a_ledger_is_found_to_be_behind_once_and_again_where_more_was_told(
    opened: Callable[[], StandsPage], begin: Callable[[int, StandsPage], int]
) -> None:
    page = opened()
    assert begin(10, page) == 0
    page.write({"1": [Stand(0, 0, 5, 2)]}, [1])
    assert begin(20, page) == 20  # it knows nothing of that batch: a copy of a running one
    assert begin(30, page) == 20  # its lane was not brought up to date yet, and sent nothing since
    page.write({"1": [Stand(0, 0, 8, 3)]}, [1])
    assert begin(40, page) == 40  # one did go on
    page.begin_life(page.life + 1, {})
    assert begin(50, page) == 50  # a drainer of another ledger was at work
