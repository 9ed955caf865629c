"""The sink of the toy target, right as it is; ``bug`` plants one of those that happen."""

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from tests.contract.toy_target import TAKES_MAX
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.reading import OptionReader
from wald.sinks.values import BAD_VALUE, json_text, refusal, to_json

_KNOWN = ("port", "token", "class", "bug")
_TIMEOUT_S = 10.0


class ToySink:
    """See ``wald.ports.Sink``."""

    encoder = "toy/1"

    def __init__(self, port: int, token: str, replay: ReplayClass, bug: str) -> None:
        self.port = port
        self.token = token
        self.replay = replay
        self.bug = bug
        self.socket: socket.socket | None = None
        self.known: dict[LaneKey, ProgressRow] = {}

    @property
    def capabilities(self) -> Capabilities:
        records = TAKES_MAX * 2 if self.bug == "promises too much" else TAKES_MAX
        is_window = self.replay is ReplayClass.WINDOW
        window_s = 3600.0 if is_window else None
        awaits = self.replay is ReplayClass.TRANSACTIONAL
        return Capabilities(
            self.replay, records, 1 << 20, window_s, freezes=is_window, awaits_seal=awaits
        )

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        remembers = {ReplayClass.TRANSACTIONAL, ReplayClass.MONOTONE}
        if self.replay not in remembers or self.bug == "reads no row":
            return None
        if self.bug == "believes its own memory" and key in self.known:
            return self.known[key]
        try:
            answer = self.ask({"op": "row", "class": self.replay.value, "lane": self.lane(key)})
        except OSError as error:
            return self.unreachable(error)
        return self.trouble(answer) or row_of(answer)

    def encode(self, attempt: Attempt) -> bytes:
        return json.dumps([self.packed(attempt.key, record) for record in attempt.records]).encode()

    def deliver(self, attempt: Attempt) -> Outcome:
        refused, records = self.converted(attempt, attempt.records)
        if refused:
            return Rejected(refused, refused[0].message)
        if self.bug == "does nothing of an empty batch" and not records:
            return Delivered()
        if self.bug == "commits before the seal":
            outcome = self.send(attempt, self.delivery(attempt, records))
            attempt.await_seal()
            return outcome
        attempt.await_seal()
        return self.send(attempt, self.delivery(attempt, records))

    def send(self, attempt: Attempt, asked: dict[str, Any]) -> Outcome:
        try:
            if self.socket is None:
                self.connect(attempt.timeout_s)
        except OSError as error:
            return self.unreachable(error)
        try:
            answer = self.ask(asked, attempt.timeout_s)
        except OSError as error:
            if self.bug == "acks before the commit":
                return Delivered()
            return Unknown(f"no answer: {error!r}")
        if self.bug == "writes the row apart":
            self.ask({"op": "move", "lane": self.lane(attempt.key), "row": line_of(attempt.row)})
        self.known[attempt.key] = attempt.row
        return self.said(answer)

    def delivery(self, attempt: Attempt, records: list[list[Any]]) -> dict[str, Any]:
        replay = self.replay.value
        if self.bug in {"forgets the row", "writes the row apart"}:
            replay = "none"
        if self.bug == "remembers in its own memory":
            replay = "none"
            if attempt.row == self.known.get(attempt.key):
                records = []
        if self.bug == "reorders":
            records = records[::-1]
        number, prev, owner = attempt.stands_on
        batch = attempt.row.rev_id.hex()
        if self.bug == "takes another id for each attempt":
            batch += str(attempt.number)
        return {
            "op": "deliver",
            "class": replay,
            "lane": self.lane(attempt.key),
            "stands": [number, prev.hex(), owner],
            "row": line_of(attempt.row),
            "batch": batch,
            "records": json.loads(attempt.body) if attempt.body else records,
        }

    def said(self, answer: Any) -> Outcome:
        trouble = self.trouble(answer)
        outcome: Outcome = trouble or Delivered()
        if "moved" in answer and self.bug != "takes a moved row for success":
            outcome = RowMoved(row_of(answer["moved"]))
        elif "too_large" in answer:
            outcome = TooLarge(f"it takes {TAKES_MAX} records")
        elif "refused" in answer:
            outcome = self.rejected(tuple(RejectedRecord(*each) for each in answer["refused"]))
        elif "partial" in answer:
            outcome = Partial(tuple(RejectedRecord(*each) for each in answer["partial"]))
        return outcome

    def rejected(self, refused: tuple[RejectedRecord, ...]) -> Outcome:
        if self.bug == "drops bad records":
            return Delivered()
        if self.bug == "names the wrong record":
            refused = tuple(RejectedRecord(each.lsn - 1, each.code, "") for each in refused)
        return Rejected(refused, "negative numbers")

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        refused, made = self.converted(attempt, records)
        if refused:
            return refused
        try:
            asked = {**self.delivery(attempt, made), "op": "probe"}
            answer = self.ask(asked, attempt.timeout_s)
        except OSError as error:
            return self.unreachable(error)
        if isinstance(answer, dict) and "refused" in answer:
            outcome = self.rejected(tuple(RejectedRecord(*each) for each in answer["refused"]))
            return outcome.records if isinstance(outcome, Rejected) else ()
        return self.trouble(answer) or ()

    def check(self) -> Sequence[Finding]:
        if self.bug == "checks nothing":
            return []
        if self.bug == "writes when it checks":
            value = '{"host": "a", "n": 0}'
            self.ask({"op": "deliver", "class": "none", "records": [["00", 1, "k", value]]})
        try:
            answer = self.ask({"op": "row", "lane": "check"})
        except OSError as error:
            return [Finding(Severity.ERROR, "toy.unreachable", repr(error))]
        trouble = self.trouble(answer)
        if trouble:
            return [Finding(Severity.ERROR, f"toy.{trouble.kind.value}", trouble.message)]
        return [Finding(Severity.OK, "toy.found", f"answers at port {self.port}")]

    def close(self) -> None:
        closing, self.socket = self.socket, None
        if self.bug == "closes once":
            assert closing is not None, "closed already"
        if self.bug == "leaves its socket open":
            LEAKED.append(closing)
        elif closing is not None:
            closing.close()

    # --- the connection -------------------------------------------------------------------------

    def connect(self, timeout_s: float | None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout_s or _TIMEOUT_S)

    def ask(self, asked: dict[str, Any], timeout_s: float | None = None) -> Any:
        """Ask; of a connection that is not whole any more none is kept."""
        if self.socket is None:
            self.connect(timeout_s)
        assert self.socket is not None
        if self.bug == "waits for ever":
            timeout_s = 60.0
        self.socket.settimeout(timeout_s or _TIMEOUT_S)
        try:
            self.socket.sendall(json.dumps({**asked, "token": self.token}).encode() + b"\n")
            with self.socket.makefile("rb") as lines:
                line = lines.readline()
            if not line.endswith(b"\n"):
                msg = "it hung up"
                raise ConnectionResetError(msg)
        except OSError:
            if self.bug != "keeps a dead connection":
                self.close()
            if self.bug == "raises":
                msg = "an error of the driver"
                raise RuntimeError(msg) from None
            raise
        return json.loads(line)

    def converted(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> tuple[tuple[RejectedRecord, ...], list[list[Any]]]:
        refused, made = [], []
        for record in records:
            try:
                made.append(self.packed(attempt.key, record))
            except BAD_VALUE as error:
                if self.bug == "chokes on a value":
                    raise
                refused.append(refusal(record, error))
        return tuple(refused), made

    def packed(self, key: LaneKey, record: Record) -> list[Any]:
        log_id = "" if self.bug == "keeps no log id" else key.log_id.hex()
        value = to_json(record.value) if record.content == 0 else json_text(record)
        value.encode()
        text = record.key.hex() if isinstance(record.key, bytes) else record.key
        return [log_id, record.lsn, text, value]

    def lane(self, key: LaneKey) -> str:
        if self.bug == "knows one lane":
            return "the lane"
        log_id = "" if self.bug == "keeps no log id" else key.log_id.hex()
        return f"{log_id} {key.route_id} {key.layout} {key.lane}"

    def trouble(self, answer: Any) -> Systemic | None:
        if not isinstance(answer, dict) or "trouble" not in answer:
            return None
        kind = SystemicKind(answer["trouble"])
        if self.bug == "takes all trouble for one":
            kind = SystemicKind.UNREACHABLE
        shown = self.token if self.bug == "tells its secret" else "***"
        return Systemic(kind, f"the toy said {kind.value} to {shown}")

    def unreachable(self, error: OSError) -> Systemic | Rejected:
        if self.bug == "takes an outage for bad records":
            return Rejected((), "it does not take this")
        return Systemic(SystemicKind.UNREACHABLE, repr(error))


LEAKED: list[object] = []


def line_of(row: ProgressRow) -> list[Any]:
    anchor = list(row.anchor)
    return [row.batch_no, row.rev_id.hex(), row.owner, row.hi_lsn, anchor, row.dead_rev.hex()]


def row_of(line: Any) -> ProgressRow | None:
    if line is None:
        return None
    number, rev, owner, hi_lsn, anchor, dead_rev = line
    dead = bytes.fromhex(dead_rev) or NO_REVISION
    return ProgressRow(number, bytes.fromhex(rev), hi_lsn, Anchor(*anchor), owner, dead)


def make(route: str, stream: str, settings: Mapping[str, object]) -> ToySink:
    options = OptionReader("toy", route, settings, _KNOWN)
    words = [each.value for each in ReplayClass]
    return ToySink(
        options.count("port", 0, high=65_535),
        str(options.secret("token") or ""),
        ReplayClass(options.choice("class", words, "transactional")),
        str(settings.get("bug", "")),
    )
