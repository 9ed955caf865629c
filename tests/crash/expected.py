"""What may come of a fault: a table by process, by what was struck, and by what it met.

The first row that fits says what may be seen; each outcome is compared with it, and
``docs/reliability.md`` prints it. In every case nothing acknowledged is lost, doubled or reordered,
no loss is reported, and once the fault is over everything is delivered.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tests.crash.faults import SYNCS, Fault, Outcome

FAILS = ("EIO", "ENOSPC", "EMFILE", "ENOMEM")
ANY = ""

WORDS = {
    "unharmed": "nobody notices: it is tried again, or nothing rests on it",
    "fresh segment": "the group goes to a fresh segment, and the status says ALARM",
    "restarted": "the process ends, says why, and is started again",
    "refused": "the producer is told that nothing was stored",
    "unknown": "the producer is not told in time, and knows that it was not",
    "retried": "the batch is sent again, and the route says why",
    "error told": "the question for the status is answered with an error that says why",
    "no answer": "the question for the status gets no answer",
    "supervisor ended": "the supervisor ends, and its children behind it",
}


class Row(NamedTuple):
    """What may be seen where ``place`` of ``role`` meets one of ``meets``.

    ``once`` and ``ever`` are words of ``WORDS``; with "unharmed" among them nothing need be seen.
    """

    role: str
    place: str
    meets: tuple[str, ...]
    once: frozenset[str]
    ever: frozenset[str]


def _row(role: str, place: str, meets: tuple[str, ...], once: str, ever: str) -> Row:
    return Row(role, place, meets, frozenset(once.split(", ")), frozenset(ever.split(", ")))


_GONE = "supervisor ended, no answer, refused, unknown"  # whoever asks while it is not there
_NOBODY = "restarted, refused, unknown"  # nothing is acknowledged while it lasts

EXPECTED = (
    _row(ANY, ANY, ("delay",), "unharmed", "unharmed"),
    _row("ingest", ANY, ("kill",), "restarted", _NOBODY),
    _row("drain", ANY, ("kill",), "restarted", "restarted"),
    _row("supervisor", ANY, ("kill",), _GONE, _GONE),
    _row("ingest", "segment", FAILS, "fresh segment", f"fresh segment, {_NOBODY}"),
    _row("ingest", "segment begun", FAILS, "unharmed, restarted", f"unharmed, {_NOBODY}"),
    _row("ingest", "segment ahead", FAILS, "unharmed", f"unharmed, {_NOBODY}"),
    _row("ingest", "identity", FAILS, "restarted", _NOBODY),
    _row("ingest", "directory", FAILS, "unharmed, restarted", f"unharmed, {_NOBODY}"),
    _row("ingest", "page", FAILS, "unharmed", "unharmed"),
    _row("ingest", "socket", FAILS, "unharmed", f"unharmed, {_NOBODY}"),
    _row("ingest", ANY, FAILS, "unharmed, restarted", f"unharmed, {_NOBODY}"),
    _row("drain", "ledger's flush", FAILS, "restarted", "restarted"),
    _row("drain", "ledger", FAILS, "unharmed, restarted", "restarted"),
    _row("drain", "dead log", FAILS, "retried, restarted", "retried, restarted"),
    _row("drain", "identity", FAILS, "restarted", "restarted"),
    _row("drain", "directory's flush", FAILS, "restarted", "restarted"),
    _row("drain", "directory", FAILS, "unharmed, restarted", "unharmed, restarted"),
    _row("drain", "progress", FAILS, "unharmed, restarted", "unharmed, restarted"),
    _row("drain", "page", FAILS, "unharmed", "unharmed"),
    _row("drain", "target", FAILS, "unharmed, retried", "unharmed, retried"),
    _row("supervisor", "socket", FAILS, "unharmed, no answer", "unharmed, no answer, refused"),
    _row("supervisor", ANY, FAILS, "unharmed, error told", "unharmed, error told"),
    _row("drain", ANY, FAILS, "unharmed, retried, restarted", "unharmed, retried, restarted"),
)


def row_of(fault: Fault, place: str) -> Row:
    """Return the row for a place that a fault struck."""
    places = {ANY, place, f"{place}'s flush" if fault.call in SYNCS else place}
    return next(
        row
        for row in EXPECTED
        if row.role in {ANY, fault.role} and row.place in places and fault.action in row.meets
    )


def unexpected(fault: Fault, outcome: Outcome) -> Iterator[str]:
    """Say where an outcome is not what the table allows; nothing where it is."""
    rows = {place: row_of(fault, place) for place in outcome.struck}
    words = {place: row.ever if fault.for_ever else row.once for place, row in rows.items()}
    allowed = frozenset().union(*words.values())
    where = ", ".join(sorted(outcome.struck))
    if outcome.struck and (others := outcome.seen - allowed):
        yield f"{where}: {', '.join(sorted(others))}, and not {' or '.join(sorted(allowed))}"
    for place, said in words.items():
        if not outcome.seen and "unharmed" not in said:
            yield f"{place}: nothing was seen, and not {' or '.join(sorted(said))}"
    if "fresh segment" in outcome.seen and not outcome.alarmed:
        yield "a write of the log failed, and the status does not say so"


def printed() -> Iterator[str]:
    """Yield the table, and what its words mean, as the page of reliability prints them."""
    yield "| process | what is struck | by | once | for ever |"
    yield "|---|---|---|---|---|"
    for row in EXPECTED:
        met = "any error" if row.meets == FAILS else "a delay" if "delay" in row.meets else "a kill"
        once, ever = (", ".join(w for w in WORDS if w in words) for words in (row.once, row.ever))
        yield f"| {row.role or 'any'} | {row.place or 'anything else'} | {met} | {once} | {ever} |"
    yield ""
    yield "| word | what happens |"
    yield "|---|---|"
    for word, meaning in WORDS.items():
        yield f"| {word} | {meaning} |"
