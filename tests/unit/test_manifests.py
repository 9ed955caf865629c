"""The ledger's steps of one lane that settle doubt: T3, T4 and T11, as pure functions."""

from dataclasses import replace

import pytest

from wald.core import manifests
from wald.model import (
    AttemptStamp,
    Checkpoint,
    Decision,
    LaneProgress,
    Manifest,
    Mark,
    Revision,
)

PREV, FIRST, SECOND, THIRD = (bytes([n]) * 16 for n in (1, 2, 3, 4))
AT = Checkpoint(5, PREV, 50)
BEGAN = Revision(FIRST, 60, boot_id="boot-1", boot_clock_ns=10, time_ns=100, batches=1)
OPEN = Manifest(6, 51, PREV, 1, (BEGAN,), 10, 0)


def held(**changes):
    return LaneProgress(AT, replace(OPEN, **changes))


def stamp(*, cleared=0, begins=True):
    return AttemptStamp("boot-2", 20, 200, "why", 0, cleared, begins, 7)


def window_of(progress):
    revision = progress.manifest.current
    return revision.boot_id, revision.boot_clock_ns, revision.time_ns, revision.batches


def test_a_window_begins_with_the_first_attempt_that_may_have_taken_effect():
    doubtful = manifests.attempt(held(), FIRST, stamp())
    assert doubtful is not None
    assert window_of(doubtful) == ("boot-1", 10, 100, 1)
    cleared = manifests.attempt(held(), FIRST, stamp(cleared=1))
    assert cleared is not None
    assert window_of(cleared) == ("boot-2", 20, 200, 7)
    assert cleared.manifest is not None
    assert (cleared.manifest.attempts, cleared.manifest.cleared) == (2, 1)
    assert manifests.is_in_doubt(cleared.manifest)


def test_a_held_batch_has_no_attempts():
    assert manifests.attempt(held(held="why"), FIRST, stamp()) is None


def test_a_revision_that_waits_counts_no_attempt():
    waiting = manifests.revise(held(), FIRST, Revision(SECOND, 55), stamp(cleared=1, begins=False))
    assert waiting is not None
    assert waiting.manifest is not None
    assert (waiting.manifest.attempts, waiting.manifest.cleared) == (1, 1)
    assert not manifests.is_in_doubt(waiting.manifest)


def test_revisions_that_no_row_can_name_are_replaced_but_for_the_first():
    progress = held(revisions=(BEGAN, Revision(SECOND, 60)))
    for replaces, left in ((True, [FIRST, THIRD]), (False, [FIRST, SECOND, THIRD])):
        after = manifests.revise(progress, SECOND, Revision(THIRD, 60), stamp(), replaces=replaces)
        assert after is not None
        assert after.manifest is not None
        assert [item.rev_id for item in after.manifest.revisions] == left


@pytest.mark.parametrize(
    ("before", "mark", "after"),
    [
        ({}, Mark(held="why"), {"held": "why"}),
        ({"decision": "delivered"}, Mark(held="why"), {"held": "why", "decision": ""}),
        ({}, Mark(cleared=1), {"cleared": 1}),
        ({"cleared": 1}, Mark(), {"cleared": 1}),
        ({"held": "why"}, Mark(decision=Decision.DELIVERED), {"held": "", "decision": "delivered"}),
        (
            {"held": "why"},
            Mark(decision=Decision.DEAD_LETTER),
            {"held": "", "decision": "dead-letter"},
        ),
        ({"held": "why"}, Mark(decision=Decision.NOT_DELIVERED), {"held": "", "cleared": 1}),
    ],
)
def test_a_mark_changes_what_it_says_and_nothing_else(before, mark, after):
    marked = manifests.mark(held(**before), FIRST, mark)
    assert marked == LaneProgress(AT, replace(OPEN, **{**before, **after}))


def test_a_mark_on_something_else_does_nothing():
    assert manifests.mark(held(), SECOND, Mark(held="why")) is None
    assert manifests.mark(LaneProgress(AT, None), FIRST, Mark(held="why")) is None
    assert manifests.mark(held(), FIRST, Mark(decision=Decision.DELIVERED)) is None
