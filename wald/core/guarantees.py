"""What the class of a target promises, and whether a route asks for more, as a labelled table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.model import Capabilities, Finding, ReplayClass, Severity

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly-once", "at-least-once"
_ALLOWED_HINT = 'say guarantee = "at-least-once", or deliver to a target of another class'


class Promise(NamedTuple):
    """A row of the table: what a class promises, whether that is exactly once, and why."""

    replay: ReplayClass
    promise: str
    guarantee: str
    why: str


PROMISES: tuple[Promise, ...] = (
    Promise(
        ReplayClass.TRANSACTIONAL,
        "exactly once",
        EXACTLY_ONCE,
        "the progress row moves in the data's own transaction",
    ),
    Promise(
        ReplayClass.MONOTONE,
        "exactly once",
        EXACTLY_ONCE,
        "the target takes no record at or below its highest again",
    ),
    Promise(
        ReplayClass.KEYED,
        "exactly once per key",
        EXACTLY_ONCE,
        "a record that is sent again meets itself under its key",
    ),
    Promise(
        ReplayClass.WINDOW,
        "exactly once within the target's window",
        EXACTLY_ONCE,
        "the target knows a batch by its id for a time; beyond it the batch is held for a person",
    ),
    Promise(
        ReplayClass.NONE,
        "at least once",
        AT_LEAST_ONCE,
        "the target cannot tell a batch that it took from a new one",
    ),
)
# of the records of a key, as the target takes them; a redriven dead letter is late at each
_IN_ORDER = "in order for each key"
_UNLESS_ASKED = f"{_IN_ORDER}; a record that the target wants later comes behind its batch"
ORDER: Mapping[ReplayClass, str] = {
    ReplayClass.TRANSACTIONAL: _IN_ORDER,
    ReplayClass.MONOTONE: _IN_ORDER,
    ReplayClass.KEYED: _UNLESS_ASKED,
    ReplayClass.WINDOW: _UNLESS_ASKED,
    ReplayClass.NONE: _UNLESS_ASKED,
}
assert ORDER.keys() == set(ReplayClass)
BY_CLASS = {row.replay: row for row in PROMISES}
assert BY_CLASS.keys() == set(ReplayClass)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route asks for, and what its sink says of itself.

    Attributes:
        able: the sink's capabilities.
        encodes: whether the sink can freeze what it sends (``EncodingSink``).
        guarantee: what the route states; None for nothing.
        on_unknown: what becomes of a batch without an answer at a target of the class ``none``.
        attempt_timeout_s: how long an attempt may take.
    """

    able: Capabilities
    encodes: bool
    guarantee: str | None
    on_unknown: str
    attempt_timeout_s: float


def findings(wish: Wish) -> Sequence[Finding]:
    """Return what is wrong or doubtful about what a route asks for; errors refuse the start."""
    row = BY_CLASS[wish.able.replay]
    found: list[Finding] = []
    if wish.able.replay is ReplayClass.WINDOW:
        found += _of_a_window(wish)
    if wish.guarantee == EXACTLY_ONCE and row.guarantee != EXACTLY_ONCE:
        message = f"exactly once cannot be had of a target of the class {row.replay.value}: "
        found.append(_error("guarantee.exactly-once", message + row.why, _ALLOWED_HINT))
    elif wish.guarantee is None and row.guarantee != EXACTLY_ONCE:
        lost = "is sent again" if wish.on_unknown == "resend" else "waits for a person"
        message = f"at least once: {row.why}; a batch whose answer is lost {lost}"
        hint = 'guarantee = "at-least-once" says that this is wanted'
        found.append(Finding(Severity.WARNING, "guarantee.at-least-once", message, hint))
    return found


def _of_a_window(wish: Wish) -> list[Finding]:
    able, found = wish.able, list[Finding]()
    if not wish.encodes:
        message = "a sink of the class window must freeze what it sends, and this one does not"
        found.append(_error("sink.no-encoder", message, "it needs 'encoder' and 'encode'"))
    if able.window_s is None and able.window_batches is None:
        message = "the sink states no window: every batch whose answer is lost waits for a person"
        exact = wish.guarantee == EXACTLY_ONCE
        severity = Severity.ERROR if exact else Severity.WARNING
        hint = _ALLOWED_HINT if exact else "state the window of the target"
        found.append(Finding(severity, "guarantee.no-window", message, hint))
    if able.window_s is not None and not _leaves_time(able.window_s, wish.attempt_timeout_s):
        message = (
            f"attempt_timeout of {wish.attempt_timeout_s:g} s leaves nothing of a window of "
            f"{able.window_s:g} s: every batch whose answer is lost waits for a person"
        )
        hint = "a shorter attempt_timeout leaves time to send it again"
        found.append(Finding(Severity.WARNING, "guarantee.short-window", message, hint))
    return found


def _leaves_time(window_s: float, timeout_s: float) -> bool:
    """Tell whether behind one attempt that ran into its bound another one fits."""
    return 2 * timeout_s + limits.WINDOW_MARGIN_SHARE * window_s < window_s


def _error(code: str, message: str, hint: str) -> Finding:
    return Finding(Severity.ERROR, code, message, hint)
