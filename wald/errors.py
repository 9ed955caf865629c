"""Every exception of wald: one root, a stable code, facts as fields, a hint for the operator.

A driver's or the operating system's exception is translated into one of these once, at the edge
where it arises, with ``raise ... from``. The command line prints ``error[code]: message`` and
``hint: ...`` and leaves with ``exit_code``; a user's mistake never shows a traceback.

Exit codes follow sysexits.h: 1 the answer is no, 2 usage, 69 unavailable, 74 input/output,
75 time-out, 78 configuration.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_IO = 74
EXIT_TIMEOUT = 75
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it


class WaldError(Exception):
    """The root of all errors of wald.

    Attributes:
        code: a stable, dotted, machine-readable name.
        retryable: whether the same call may succeed later without a change by the caller.
        hint: what to do about it; may be empty.
        facts: the values that the message was made of, by name.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = EXIT_NO
    default_hint: ClassVar[str] = ""
    _stays: ClassVar[frozenset[str]] = frozenset()  # attributes that do not go to other processes

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.facts = facts
        self.add_note(f"[{self.code}] {self.hint}".rstrip())  # what a traceback shows behind it

    def __reduce__(self) -> tuple[object, ...]:
        """Return what makes it again in another process; what only this one can do stays here."""
        state = {name: value for name, value in vars(self).items() if name not in self._stays}
        return _made_again, (type(self), self.args, state)

    def as_dict(self) -> dict[str, object]:
        """Return code, message, hint and facts, as printed by ``--json``."""
        return {"code": self.code, "message": self.message, "hint": self.hint, **self.facts}


def _made_again(
    kind: type[WaldError], arguments: tuple[object, ...], state: dict[str, object]
) -> WaldError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(state)
    return error


# --- what a producer meets ----------------------------------------------------------------------


class Unavailable(WaldError):
    """No daemon answers at the socket; nothing was sent."""

    code = "unavailable"
    retryable = True
    exit_code = EXIT_UNAVAILABLE
    default_hint = "start it with 'wald serve', or say where it listens: --socket, WALD_SOCKET"


class Closed(WaldError):
    """The producer was closed by its user."""

    code = "closed"


class ProtocolMismatch(WaldError):
    """The two sides do not speak a common version, or one broke the protocol."""

    code = "protocol-mismatch"
    exit_code = EXIT_UNAVAILABLE
    default_hint = "client and daemon must share a protocol version; upgrade the older of the two"


class BadFrame(ProtocolMismatch):
    """The other side sent what the wire protocol does not allow; ``reason`` is the code for it."""

    code = "bad-frame"
    reason: str = ""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint, reason=reason)
        self.reason = reason


class Backpressure(WaldError):
    """A bound is reached; nothing was stored; come back after ``retry_after_s``."""

    code = "backpressure"
    default_hint = "come back after retry_after_s; 'wald status' says what is behind"
    retryable = True
    exit_code = EXIT_UNAVAILABLE
    retry_after_s: float = 0.0

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s


class DiskFull(Backpressure):
    """The log has no room; nothing was stored; come back after ``retry_after_s``."""

    code = "disk-full"
    default_hint = "free space on the file system of the data directory; acceptance resumes alone"


class OutcomeUnknown(WaldError):
    """The request was sent and not answered: it may or may not have been stored.

    Attributes:
        unsettled: what ``Producer.settle`` goes on waiting for; None if no answer will come, or if
            the error comes from another process.
    """

    _stays = frozenset({"unsettled"})

    code = "outcome-unknown"
    exit_code = EXIT_UNAVAILABLE
    default_hint = "it may be stored, and sending it again may store it twice"
    unsettled: Any = None


class NotOurs(OutcomeUnknown):
    """A record was submitted before a fork: its answer goes to the parent process."""

    code = "not-ours"
    default_hint = "the parent goes on with it; in the child, submit what the child has to say"


class Fenced(WaldError):
    """Another client has taken this producer's name."""

    code = "fenced"
    default_hint = "the other one goes on; run this again when it has ended"


class Refusal(WaldError):
    """The request is the caller's to mend; nothing of it was stored."""

    code = "refused"


_STREAM_HINT = "see [streams.NAME] in the configuration of the daemon, or mend the record"
REFUSAL_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "record.content": _STREAM_HINT,
        "record.value": "bytes, or what msgpack has; see 'Values' in docs/protocol.md",
        "record.too-large": "split it, or keep the large part elsewhere and append where it is",
        "record.key": "text or bytes of at most 1,024 bytes; a stream may want one of each record",
        "record.dedup-id": "text or bytes of at most 256 bytes",
        "record.headers": "at most 64 names of text, each with text or bytes, 16 KiB in all",
        "record.fields": _STREAM_HINT,
        "request.malformed": "the client made no request of it: upgrade it, or mend its encoder",
        "request.refusals": "so many wrong records are one mistake: mend it, and append them again",
        "request.dedup": "the client must ask for 'duplicates' in HELLO: upgrade it",
        "backpressure": "come back later; 'wald status' says what the quota waits for",
        "access-denied": "ask who runs the daemon: [access] in its configuration",
    }
)


class RecordRefused(Refusal):
    """One record of a request was refused; ``index`` is its place in the request."""

    code = "record-refused"
    reason: str = ""
    index: int = 0

    def __init__(self, message: str, *, reason: str, index: int, hint: str = "") -> None:
        hint = hint or REFUSAL_HINTS.get(reason, "")
        super().__init__(message, hint=hint, reason=reason, index=index)
        self.reason = reason
        self.index = index


class UnknownStream(Refusal):
    """The stream's name is not allowed, or the stream cannot be made."""

    code = "unknown-stream"
    default_hint = "a stream's name is 1 to 64 of a-z 0-9 . _ - and starts with a letter or digit"


class AccessDenied(Refusal):
    """The caller may not do this: the table ``[access]`` of the daemon does not list it."""

    code = "access-denied"
    default_hint = "whoever runs the daemon lists users and groups under [access]"


class SequenceConflict(Refusal):
    """The sequence number was used before with another body."""

    code = "sequence-conflict"
    default_hint = "a body may not change between two tries; go on with the next sequence"


class SequenceGap(Refusal):
    """A sequence number was skipped; nothing was stored."""

    code = "sequence-gap"
    default_hint = "send again from the last sequence + 1, which WELCOME says"


class WaitTimeout(WaldError):
    """A wait ended before what it waited for."""

    code = "timeout"
    retryable = True
    exit_code = EXIT_TIMEOUT


class Undeliverable(WaldError):
    """What is waited for is delivered by no amount of waiting: a person has to decide."""

    code = "undeliverable"


class DeliveryTimeout(WaitTimeout):
    """A record **is durable**, and was not delivered within the time: it will be, on its own.

    Attributes:
        receipt: what is promised of it; the first undelivered one of several.
        routes: by name, where it is at each route of its stream.
        results: of ``append_many``: all results, durable or refused; else None.
    """

    code = "delivery.timeout"
    retryable = False
    default_hint = "it is stored: do not send it again; 'wait' for it, or see 'wald status --lsn'"
    receipt: Any = None
    routes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    results: Any = None


class DeliveryPending(DeliveryTimeout):
    """A record **is durable**, and its delivery waits for a person: told at once."""

    code = "delivery.pending"


class DeliveryRefused(WaldError):
    """A record was durable, and a target refused it for good, or it was lost: a dead letter.

    Attributes:
        receipt: what was promised of it.
        routes: by name, where it is at each route of its stream, with the target's words.
        results: of ``append_many``: all results, durable or refused; else None.
    """

    code = "delivery.refused"
    default_hint = "'wald dlq show' prints it; mend the target, then 'wald dlq redrive'"
    receipt: Any = None
    routes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    results: Any = None


# --- what an operator meets ---------------------------------------------------------------------


class ConfigError(WaldError):
    """A setting is unknown, of a wrong type, or contradicts another."""

    code = "config"
    exit_code = EXIT_CONFIG


class UnknownSetting(ConfigError):
    """A key that no setting has."""

    code = "config.unknown-key"


class WrongSetting(ConfigError):
    """A value of a wrong type or outside its range."""

    code = "config.wrong-value"


class InputError(WaldError):
    """A file or a command's argument cannot be read as what it should be."""

    code = "input"
    exit_code = EXIT_USAGE


class NoDeadLetter(WaldError):
    """No dead letter is what a command asked for."""

    code = "dead-letter.none"
    default_hint = "'wald dlq list' shows which there are"


class NoRecord(WaldError):
    """No record has the LSN that was asked for."""

    code = "record.none"
    default_hint = "a receipt says the LSN of its record, 'wald status --json' the highest one"


class RangeGone(WaldError):
    """The log does not hold all of a range that is wanted again."""

    code = "replay.range-gone"


class ReplayRefused(WaldError):
    """A past range cannot be delivered again as it was asked for."""

    code = "replay.refused"


class RedriveRefused(WaldError):
    """What is asked for cannot be sent again, or nothing would send it."""

    code = "redrive.refused"


class OutputFailed(WaldError):
    """What a command prints cannot be written."""

    code = "output"
    exit_code = EXIT_IO


class DataDirectoryHeld(WaldError):
    """Another process holds a lock of the data directory."""

    code = "data.held"
    exit_code = EXIT_UNAVAILABLE


class DataDirectoryForeign(WaldError):
    """The directory holds files that are not this log's."""

    code = "data.foreign"
    exit_code = EXIT_CONFIG
    default_hint = "name wald's own data directory; 'wald status --json' of its daemon says which"


class DataDirectoryUnusable(WaldError):
    """The directory cannot be read or written, or its owner or mode is unsafe."""

    code = "data.unusable"
    exit_code = EXIT_IO


class StartFailed(WaldError):
    """The system refused what a start needs, for a reason that may pass."""

    code = "start.failed"
    retryable = True
    exit_code = EXIT_IO
    default_hint = "see the system's log, its memory and its limit of open files"


class SocketUnusable(WaldError):
    """The path of a socket cannot be bound."""

    code = "socket.unusable"
    exit_code = EXIT_IO


class SocketHeld(WaldError):
    """Another daemon listens at the path of the socket."""

    code = "socket.held"
    exit_code = EXIT_UNAVAILABLE


class FormatNewer(WaldError):
    """A file was written by a newer release that this one cannot read; it is not damaged."""

    code = "format.newer"
    exit_code = EXIT_CONFIG
    default_hint = "run the release that wrote it, or a newer one"


class FormatDamaged(WaldError):
    """Bytes on disk or socket are not what they should be."""

    code = "format.damaged"
    exit_code = EXIT_IO


class NotUncertain(WaldError):
    """A decision is given on a batch that does not wait for one."""

    code = "batch.not-uncertain"


class LogFailed(WaldError):
    """The log cannot go on: writing it, and then a fresh segment, failed."""

    code = "log.failed"
    exit_code = EXIT_IO
    default_hint = "see the system's log for errors of the disk; wald starts again by itself"


class LedgerFailed(WaldError):
    """The ledger cannot be read or written."""

    code = "ledger.failed"
    exit_code = EXIT_IO


class LedgerDamaged(LedgerFailed):
    """The ledger is not what was written: it is set aside, and made anew from log and targets."""

    code = "ledger.damaged"
    default_hint = "the next start sets it aside; 'wald log salvage' says what that means"


class SinkFailed(WaldError):
    """A sink could not be opened or asked; see ``model.Systemic`` for delivery outcomes."""

    code = "sink.failed"
    retryable = True
    exit_code = EXIT_UNAVAILABLE


# --- errors that another process told -----------------------------------------------------------


def reported(said: Mapping[str, object]) -> WaldError:
    """Return the error that another process told as a map: of its class, with its exit code."""
    code = str(said.get("code", WaldError.code))
    known = _by_code(WaldError).get(code, WaldError)
    given = said.get("exit_code")
    error = known.__new__(known)  # a class of its own facts may ask for some that were not told
    vars(error)["code"] = code
    WaldError.__init__(error, str(said.get("message", "")), hint=str(said.get("hint") or ""))
    vars(error)["exit_code"] = given if type(given) is int else known.exit_code
    return error


def _by_code(root: type[WaldError]) -> dict[str, type[WaldError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found = {**_by_code(kind), **found}
    return found
