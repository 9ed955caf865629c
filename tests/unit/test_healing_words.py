"""A route's note of a target that went back in time, made of those of its lanes."""

import pytest

from wald import limits
from wald.core.healing import Healing, of_lanes

S = limits.CLOCK_NS_PER_S
NEWEST = Healing(1_000 * S, 8, 9, 18_000, records=1_500, base=10, again=1_500, done_ns=1_002 * S)


@pytest.mark.parametrize(
    ("other", "records", "again", "done_ns"),
    [
        pytest.param(
            Healing(999 * S, 7, 9, records=500, again=500, done_ns=1_003 * S),
            2_000, 2_000, 1_003 * S, id="both lanes are counted, and the later end",
        ),
        pytest.param(
            Healing(999 * S, 7, 9, records=500, again=20), 2_000, 1_520, 0, id="one is still at it"
        ),
        pytest.param(
            Healing(900 * S, 7, 9, records=500, again=500, done_ns=901 * S),
            1_500, 1_500, 1_002 * S, id="an earlier restore is another one",
        ),
        pytest.param(
            Healing(999 * S, 9, 7), 1_500, 1_500, 1_002 * S, id="a ledger that was older is another"
        ),
    ],
)  # fmt: skip
def test_what_lanes_sent_again_after_one_restore_is_added(other, records, again, done_ns):
    for notes in ([NEWEST, other], [other, NEWEST]):
        note = of_lanes(notes)
        assert (note.records, note.again, note.done_ns) == (records, again, done_ns)
        assert (note.held_batch, note.had_batch) == (8, 9)
