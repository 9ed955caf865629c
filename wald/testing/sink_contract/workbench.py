"""What a sink's tests give to the suite: a fresh place at a target, and what can be done to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, NoReturn, TypeAlias, cast

import pytest

from wald.model import SystemicKind
from wald.ports import Sink, SinkFactory
from wald.testing.proxy import Address

Trouble: TypeAlias = Callable[[], AbstractContextManager[object]]

TROUBLES = tuple(kind for kind in SystemicKind if kind is not SystemicKind.OWNED)  # see one_owner
FACILITIES: Mapping[str, str] = {
    "holds": "the target keeps what it takes",
    "order": "the target can say in which order it took what it holds",
    "poison": "the target refuses some values for good",
    "secret": "the settings hold a secret",
    "server": "the target is a process of its own, which can be killed and started",
    "backup": "the target can be put back to what it held before",
    "connection": "the sink reaches the target by a connection, which a proxy can cut",
    "hang": "the target can be made to take for ever",
    **{f"trouble.{kind.value}": f"the target can be {kind.value}" for kind in TROUBLES},
}


class Held(NamedTuple):
    """A record as the target holds it; None for what it does not keep of it.

    ``value`` is the map that was appended: with ``host`` and ``n`` at least, which tell records
    apart where the target keeps no LSN.
    """

    log_id: bytes | None
    lsn: int | None
    key: object
    value: Mapping[str, Any]


class Workbench:
    """A fresh table, stream or folder at a target, for one test; subclass it.

    Attributes:
        factory: the sink's factory, as "module:function".
        settings: the merged tables of ``[sinks.X]`` and ``[routes.X]`` that lead to the place.
        poison: a value that the target refuses for good (facility ``poison``).
        one_owner: whether the place belongs to one log and route, and others are parked there.
        poison_is_named: whether it says which record it refuses.
        large_bytes: a text that a record may have for sure, as field ``text`` of its map; 0 if the
            place has no such field.
        secret: the secret in the settings, a text that occurs nowhere else.
    """

    factory: str = ""
    settings: Mapping[str, object]
    poison: object = None
    poison_is_named: bool = True
    one_owner: bool = False
    secret: str = ""
    large_bytes: int = 100_000

    @property
    def absent(self) -> Mapping[str, str]:
        """What of ``FACILITIES`` this target has not, each with the reason.

        A test that needs it is skipped with that reason; what is neither here nor overridden
        fails.
        """
        return {}

    @property
    def bad_input(self) -> Mapping[str, str]:
        """What becomes of each row of ``ODD``, by its name: ``LANDS``, or the dead letter's code.

        Begin with what a target of JSON documents does, ``{**DOCUMENT_INPUT, ...}``.
        """
        return {}

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        """How the target is brought into each kind of trouble, for as long as a block lasts.

        New connections and open ones alike. A server that is killed is out of reach; add to it:
        ``{**super().troubles, ...}``.
        """
        return {} if "server" in self.absent else {SystemicKind.UNREACHABLE: self._down}

    @contextmanager
    def _down(self) -> Iterator[None]:
        self.kill()
        yield
        self.start()

    def held(self) -> Sequence[Held]:
        """Return what the target holds now, in the order in which it took it, if it knows.

        Records of the suite only: values that are maps with ``host`` and ``n``.
        """
        raise NotImplementedError

    def backup(self) -> object:
        """Copy what the target holds."""
        self._lacks("backup")

    def restore(self, backup: object) -> None:
        """Put the target back to a copy."""
        del backup
        self._lacks("backup")

    def kill(self) -> None:
        """Kill the server (SIGKILL) and wait until it is gone."""
        self._lacks("server")

    def start(self) -> None:
        """Start the killed server again at the same address; return when it answers."""
        self._lacks("server")

    def address(self) -> Address:
        """Return where the server listens."""
        self._lacks("connection")

    def settings_through(self, address: Address) -> Mapping[str, object]:
        """Return the settings with the server's address replaced by a proxy's."""
        del address
        self._lacks("connection")

    def hangs(self) -> AbstractContextManager[object]:
        """Let the target not answer any attempt while a block lasts.

        Where there is a ``connection`` the suite holds it back by a proxy instead: override
        nothing.
        """
        self._lacks("hang")

    def close(self) -> None:
        """Give back what the place took."""

    # --- for the suite --------------------------------------------------------------------------

    @cached_property
    def said(self) -> list[str]:
        """Everything that the sinks of this workbench said, as it would be printed."""
        return []

    def need(self, facility: str) -> None:
        """Skip the test if the target has not what it needs, with the reason that it states."""
        assert facility in FACILITIES, facility
        if facility in self.absent:
            pytest.skip(f"{FACILITIES[facility]}: {self.absent[facility]}")

    def make(self, settings: Mapping[str, object] | None = None) -> Sink:
        """Make a sink, as the drain process does; what it says is kept in ``said``."""
        module, _, function = self.factory.partition(":")
        factory = cast("SinkFactory", getattr(import_module(module), function))
        merged = dict(self.settings if settings is None else settings)
        return cast("Sink", ToldSink(factory("contract", "events", merged), self.said))

    def _lacks(self, facility: str) -> NoReturn:
        msg = f"override what {facility!r} needs, or say in 'absent' why the target has it not"
        raise NotImplementedError(msg)


class ToldSink:
    """Passes everything on, and keeps what the sink says, as it would be printed."""

    def __init__(self, inner: Sink, said: list[str]) -> None:
        self._inner = inner
        self._said = said
        said.append(repr(inner))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the sink has
        found = getattr(self._inner, name)
        return self._told(found) if name in _TELLING else found

    def _told(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            try:
                answer = method(*arguments)
            except Exception as error:
                self._said.append(repr(error))
                raise
            self._said.append(repr(answer))
            return answer

        return call


_TELLING = frozenset({"deliver", "probe", "read_row", "check", "holds"})
