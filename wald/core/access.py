"""Who may do what: users and groups by verb and stream, and what each ask of a command needs.

Who a caller is the kernel says (``SO_PEERCRED``), as of the moment it connected. Without a table
``[access]`` there is no ``Access``: whoever may open the sockets may do everything.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from wald.errors import AccessDenied


class Verb(Enum):
    """What is asked for; who may operate may read."""

    APPEND = "append"
    READ = "read"
    OPERATE = "operate"


class Caller(NamedTuple):
    """Who connected. An id that stands for others too (a user namespace) is None, or left out."""

    uid: int | None
    gids: frozenset[int]
    pid: int = 0


class Listed(NamedTuple):
    """Users and groups that may."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def has(self, caller: Caller) -> bool:
        """Whether the caller is one of them."""
        return caller.uid in self.uids or not self.gids.isdisjoint(caller.gids)


NOBODY: Final = Listed()


class Access:
    """The rules of a table ``[access]``.

    Args:
        own_uid: of the daemon; it and root may do everything.
        everywhere: for each verb who may, where a stream has no rule of its own.
        streams: by name, the rules of single streams, for the verbs that they name.
    """

    def __init__(
        self,
        own_uid: int,
        everywhere: Mapping[Verb, Listed],
        streams: Mapping[str, Mapping[Verb, Listed]],
    ) -> None:
        self._trusted = frozenset((own_uid, 0))
        self._everywhere = everywhere
        self._streams = streams

    def is_trusted(self, caller: Caller) -> bool:
        """Whether it is the daemon's own user, or root."""
        return caller.uid in self._trusted

    def may(self, caller: Caller, verb: Verb, stream: str = "") -> bool:
        """Whether a caller may, with a stream; or everywhere, if none is named."""
        if self.is_trusted(caller):
            return True
        if verb is Verb.READ and self._everywhere.get(Verb.OPERATE, NOBODY).has(caller):
            return True
        rules = self._streams.get(stream, {})
        return rules.get(verb, self._everywhere.get(verb, NOBODY)).has(caller)

    def may_somewhere(self, caller: Caller, verb: Verb) -> bool:
        """Whether a caller may with some stream."""
        return self.may(caller, verb) or any(self.may(caller, verb, name) for name in self._streams)

    @property
    def admits_others(self) -> bool:
        """Whether somebody else than the daemon's own user and root may do something."""
        lists = [*self._everywhere.values()]
        for rules in self._streams.values():
            lists += rules.values()
        return any(each.uids - self._trusted or each.gids for each in lists)


# --- what commands ask --------------------------------------------------------------------------


class Needs(NamedTuple):
    """What an operation of the control socket needs: a verb, with a stream if it is about one.

    ``names`` is the field of the request that says which: ``stream``, or ``route`` for the stream
    of that route. Without it, or where the request leaves it out, the verb is needed everywhere.
    ``or_append``: who may append to the stream may too.
    """

    verb: Verb
    names: str = ""
    or_append: bool = False


_READS: Final = Needs(Verb.READ)
OPERATIONS: Final[Mapping[str, Needs]] = {
    "status": _READS,  # of the streams that the caller may read
    "drain.ping": _READS,
    "drain.where": _READS,
    "drain.delivered": Needs(Verb.READ, "stream", or_append=True),
    "drain.tail": Needs(Verb.READ, "stream"),
    "drain.batches": Needs(Verb.READ, "route"),
    "drain.batch.list": _READS,
    "drain.batch.show": _READS,
    "drain.dlq": Needs(Verb.READ, "route"),
    "drain.dlq.routes": _READS,
    "drain.probed": _READS,
    "drain.audit": _READS,
}
"""Operations that change nothing. One that is not listed needs ``operate``; ``ping`` nothing."""


def check_operation(
    access: Access, caller: Caller, request: Mapping[str, object], streams: Mapping[str, str]
) -> None:
    """Refuse what a caller may not ask the control socket.

    Args:
        access: the rules.
        caller: who asks.
        request: with its name under ``op``.
        streams: of each route the stream; empty: each route has its stream's name.

    Raises:
        AccessDenied: the caller may not.
    """
    name = str(request.get("op"))
    if name == "ping":
        return
    verb, named, or_append = OPERATIONS.get(name, Needs(Verb.OPERATE))
    said = request.get(named) if named else None
    stream = said if isinstance(said, str) else ""
    if named == "route":
        stream = streams.get(stream, "" if streams else stream)  # none of an orphan
    allowed = (
        access.may_somewhere(caller, verb)
        if name == "status"
        else access.may(caller, verb, stream)
        # who may append may hear what became of it
        or (or_append and bool(stream) and access.may(caller, Verb.APPEND, stream))
    )
    if not allowed:
        raise denied(caller, verb, stream)


def denied(caller: Caller, verb: Verb, stream: str = "") -> AccessDenied:
    """Return the refusal."""
    who = "a user of another namespace" if caller.uid is None else f"the user {caller.uid}"
    at = f" the stream {stream!r}" if stream else ""
    return AccessDenied(f"{who} may not {verb.value}{at}", verb=verb.value)
