"""What each line of the contract comes to at a target of each class, as a table.

``holds`` is shown by a test. Anything else is what is true instead: where that can be shown too
(``at least once``) the test shows it, elsewhere it is the reason with which the test is skipped.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from wald.model import ReplayClass

HOLDS: Final = "holds"
AT_LEAST_ONCE: Final = "at least once"


class Line(Enum):
    """The lines that depend on the class; all others hold at every target."""

    TWICE = "the same batch twice has one effect"
    LOST_ANSWER = "a batch whose answer was lost has one effect"
    LATE = "an attempt that arrives late, behind its own repetition, has no effect"
    DRAINER_KILLED = "a drainer killed between commit and checkpoint doubles nothing"
    TARGET_KILLED = "a target killed at any moment loses and doubles nothing"
    CUT = "a connection cut while the commit was on its way loses and doubles nothing"
    CLONE = "a clone with the same log id is parked as diverged"
    RESTORED = "a target that was restored is rewound and gets the rest again"
    GAP = "a gap in the chain, and a second writer, are detected"


_T, _M, _K, _W, _N = ReplayClass
_EXACT: Mapping[ReplayClass, str] = {
    _T: HOLDS,
    _M: HOLDS,
    _K: HOLDS,
    _W: HOLDS,
    _N: AT_LEAST_ONCE,
}
_NO_ROW = "the target keeps no row that says whose lane it is, and how far"

PROMISES: Mapping[Line, Mapping[ReplayClass, str]] = {
    Line.TWICE: _EXACT,
    Line.LOST_ANSWER: _EXACT,
    Line.LATE: _EXACT,
    Line.DRAINER_KILLED: _EXACT,
    Line.TARGET_KILLED: _EXACT,
    Line.CUT: _EXACT,
    Line.CLONE: {
        _T: HOLDS,
        _M: "the target knows its owner by the log id, which a clone shares",
        _K: _NO_ROW,
        _W: _NO_ROW,
        _N: _NO_ROW,
    },
    Line.RESTORED: {
        _T: HOLDS,
        _M: "nothing asks the target how far it is: wald replay --route sends a range again",
        _K: "nothing asks the target how far it is: wald replay --route sends a range again",
        _W: "nothing asks the target how far it is: wald replay --route sends a range again",
        _N: "nothing asks the target how far it is: wald replay --route sends a range again",
    },
    Line.GAP: {
        _T: HOLDS,
        _M: "the target sees only whether a record is above its highest",
        _K: _NO_ROW,
        _W: _NO_ROW,
        _N: _NO_ROW,
    },
}
assert PROMISES.keys() == set(Line)
assert all(row.keys() == set(ReplayClass) for row in PROMISES.values())
