"""Where a record is: each row of the table, what all routes come to, which traces are kept."""

from dataclasses import replace

import pytest

from tests.documents import printed_table
from wald.core.where import (
    REFUSED,
    SETTLED,
    WHEREABOUTS,
    Facts,
    Fate,
    Standing,
    Verdict,
    is_sampled,
    judge,
    sampled,
    whereabouts,
)
from wald.limits import TRACES_PER_BATCH_MAX
from wald.model import DeadLetter, FinishedBatch, Manifest, Revision

REV = bytes(15) + b"r"
LETTER = DeadLetter("r", 7, "SQLITE_CONSTRAINT", "no", 3, REV, 1, 0, dead_file=1, through_lsn=7)
HOLE = replace(LETTER, code="damaged", dead_file=0, lsn=5, through_lsn=9)
OPEN = Manifest(4, 6, REV, 2, (Revision(REV, 9, settled=(8,)),), 4, 0)
AGAIN = Manifest(4, 9, REV, 1, (Revision(REV, 9, redriven=(7,)),), 1, 0)
LINE = FinishedBatch(3, REV, 5, 9, 5, 0, 1, 0, 0)
LATE = replace(LINE, number=6, redriven=(7,))

CASES = [
    ("born-later", Facts(7, birth_lsn=7, checkpoint_lsn=9)),
    ("being-sent-again", Facts(7, checkpoint_lsn=9, letter=LETTER, manifest=AGAIN)),
    ("asked-again", Facts(7, checkpoint_lsn=9, letter=LETTER, asked=True)),
    ("damaged", Facts(7, checkpoint_lsn=9, letter=HOLE, line=LINE)),
    ("dead-letter", Facts(7, checkpoint_lsn=9, letter=LETTER, line=LINE)),
    ("purged", Facts(7, checkpoint_lsn=9, purged=True, line=LINE)),
    ("redriven", Facts(7, checkpoint_lsn=9, line=LINE, redriven=LATE)),
    ("superseded", Facts(7, checkpoint_lsn=9, line=LINE, superseded=True)),
    ("in-history", Facts(7, checkpoint_lsn=9, line=LINE, dropped=True)),
    ("in-history", Facts(7, checkpoint_lsn=7, line=LINE)),
    ("longer-ago", Facts(7, checkpoint_lsn=9)),
    ("given-up", Facts(7, checkpoint_lsn=6, dropped=True)),
    ("held", Facts(7, checkpoint_lsn=5, manifest=replace(OPEN, held="no answer"))),
    ("taken", Facts(8, checkpoint_lsn=5, manifest=OPEN)),
    ("sealed", Facts(7, checkpoint_lsn=5, manifest=OPEN)),
    ("sealed", Facts(9, checkpoint_lsn=5, manifest=OPEN)),
    ("waiting", Facts(10, checkpoint_lsn=5, manifest=OPEN)),
    ("waiting", Facts(10, checkpoint_lsn=9, manifest=AGAIN)),
    ("waiting", Facts(7, checkpoint_lsn=5, line=LINE)),  # of before its target went back
]


@pytest.mark.parametrize(("label", "facts"), CASES)
def test_each_row_is_where_a_record_is(label: str, facts: Facts) -> None:
    assert whereabouts(facts).label == label


def test_every_row_has_a_case_and_every_fate_a_row() -> None:
    assert {row.label for row in WHEREABOUTS} == {label for label, _ in CASES}
    assert {row.fate for row in WHEREABOUTS} == set(Fate)
    assert not SETTLED & REFUSED


def test_the_architecture_prints_the_table() -> None:
    assert printed_table("Where a record is") == [
        (f"`{row.label}`", row.when, row.fate.value) for row in WHEREABOUTS
    ]


JUDGED = [
    ("no route is no delivery", [], Verdict.PENDING),
    ("a route that was born later does not count", [Standing(Fate.NOT_OURS)], Verdict.PENDING),
    ("all", [Standing(Fate.DELIVERED), Standing(Fate.SUPERSEDED)], Verdict.DELIVERED),
    ("sent again counts", [Standing(Fate.REDRIVEN), Standing(Fate.NOT_OURS)], Verdict.DELIVERED),
    ("one waits", [Standing(Fate.DELIVERED), Standing(Fate.SEALED)], Verdict.PENDING),
    ("one is parked", [Standing(Fate.DURABLE, "parked"), Standing(Fate.SEALED)], Verdict.BLOCKED),
    ("delivered before it was parked", [Standing(Fate.DELIVERED, "parked")], Verdict.DELIVERED),
    ("uncertain", [Standing(Fate.UNCERTAIN)], Verdict.BLOCKED),
    ("a refusal first", [Standing(Fate.DEAD_LETTER), Standing(Fate.DURABLE, "x")], Verdict.REFUSED),
    ("to be sent again", [Standing(Fate.REDRIVING)], Verdict.PENDING),
]


@pytest.mark.parametrize(("_", "standings", "verdict"), JUDGED, ids=[each[0] for each in JUDGED])
def test_all_routes_of_a_stream_decide(_: str, standings: list[Standing], verdict: Verdict) -> None:
    assert judge(standings) is verdict


def test_sampling_says_the_same_whenever_it_is_asked_and_keeps_its_share() -> None:
    first = [is_sampled(lsn, 0.1) for lsn in range(1, 20_001)]
    assert first == [is_sampled(lsn, 0.1) for lsn in range(1, 20_001)]
    assert 1_800 < sum(first) < 2_200
    assert all(is_sampled(lsn, 1.0) for lsn in range(1, 100))
    assert not any(is_sampled(lsn, 0.0) for lsn in range(1, 100))
    # a larger share keeps what a smaller one keeps
    assert all(is_sampled(lsn, 0.5) for lsn, kept in enumerate(first, 1) if kept)


def test_of_a_batch_a_bounded_number_of_traces_is_kept() -> None:
    def kept(share: float, traces: list[str]) -> tuple[tuple[int, str], ...]:
        return sampled(list(enumerate(traces, 1)), lambda r: r[0], lambda r: r[1], share)

    assert kept(1.0, ["a", "", "c"]) == ((1, "a"), (3, "c"))
    assert kept(0.0, ["a"]) == ()
    some = tuple((lsn, "t") for lsn in range(1, 21) if is_sampled(lsn, 0.5))
    assert kept(0.5, ["t"] * 20) == some[:TRACES_PER_BATCH_MAX]
    assert 0 < len(some) < 20
    assert len(kept(1.0, ["t"] * 100)) == TRACES_PER_BATCH_MAX
