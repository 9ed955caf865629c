"""Reading a sink's settings: what every factory shares. Wrong ones are errors that say what to do.

A factory makes an ``OptionReader`` of the merged tables of ``[sinks.NAME]`` and ``[routes.NAME]``
with the names that it knows, and asks it for each setting with its default and its bounds. Every
method raises ``WrongSetting`` for a value that it cannot be, ``ConfigError`` for one that is
missing. For sinks of other packages too.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, TypeVar, cast

from wald import limits
from wald.core.units import parse_duration_s, parse_size_bytes
from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.model import Secret

_T = TypeVar("_T", int, float)
_WORD = re.compile(r"\w+")


class OptionReader:
    """The settings of one route's sink, asked for one by one.

    Args:
        kind: the sink's type, for messages.
        route: the route's name, for messages.
        settings: the merged tables.
        known: every setting that the sink has.
        table: the dotted name of a table inside, with a dot behind it; see ``table``.

    Raises:
        UnknownSetting: there is one that is not known; the nearest known one is suggested.
    """

    def __init__(
        self,
        kind: str,
        route: str,
        settings: Mapping[str, object],
        known: Collection[str],
        *,
        table: str = "",
    ) -> None:
        self._kind = kind
        self._route = route
        self._settings = settings
        self._table = table
        for name in settings:
            if name not in known:
                raise self._unknown(name, known)

    def __contains__(self, name: str) -> bool:
        return name in self._settings

    # --- texts ----------------------------------------------------------------------------------

    def text(self, name: str, default: str | None = None, *, such_as: str = "") -> str:
        """Return a text that is not empty; it must be said if there is no default.

        A secret (``{ file = ... }`` in the configuration) is a text that stays a ``Secret``.
        """
        value = self._settings.get(name, default)
        if value is None:
            self.lack(name, such_as)
        if not isinstance(value, str) or not value or "\0" in value:
            self.refuse(name, "a text" + (f" such as {such_as}" if such_as else ""))
        return value

    def secret(self, name: str) -> Secret | None:
        """Return a secret, or None; written into the configuration itself it is refused."""
        value = self._settings.get(name)
        if value is None:
            return None
        if not isinstance(value, Secret):
            if not isinstance(value, str):
                self.refuse(name, 'a secret: { file = "/run/credentials/..." }')
            msg = f"{self._at(name)}: a secret does not belong into the configuration"
            hint = f'{name} = {{ file = "..." }}, {{ env = "..." }} or {{ credential = "..." }}'
            raise WrongSetting(msg, hint=hint, **self._facts(name))
        return value

    def choice(self, name: str, words: Sequence[str], default: str) -> str:
        """Return one of some words."""
        value = self._settings.get(name, default)
        if value not in words:
            close = difflib.get_close_matches(str(value), words, n=1)
            hint = f"did you mean {close[0]!r}?" if close else ""
            self.refuse(name, " or ".join(map(repr, words)), hint)
        return str(value)

    def names(self, name: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a list of names, each once."""
        value = self._settings.get(name, default)
        found = tuple(value) if isinstance(value, list | tuple) else ()
        if not isinstance(value, list | tuple) or not all(map(is_name, found)):
            self.refuse(name, "a list of names")
        if len(set(found)) < len(found):
            self.refuse(name, "a list of names, each once")
        return cast("tuple[str, ...]", found)

    def mapping(self, name: str, what: str = "a table of column = field") -> dict[str, str]:
        """Return a table of names to texts; empty if it is absent."""
        value = self._settings.get(name, {})
        if not isinstance(value, Mapping) or not all(
            is_name(key) and isinstance(text, str) and text for key, text in value.items()
        ):
            self.refuse(name, what)
        return dict(value)

    # --- numbers --------------------------------------------------------------------------------

    def count(self, name: str, default: int, *, low: int = 0, high: int) -> int:
        """Return a whole number between two bounds."""
        value = self._settings.get(name, default)
        if type(value) is not int:
            self.refuse(name, "a whole number")
        return self._within(name, value, low, high, f"{low:,} to {high:,}")

    def number(self, name: str, default: float, *, low: float = 0.0, high: float) -> float:
        """Return a number between two bounds."""
        value = self._settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "a number")
        return self._within(name, float(value), low, high, f"{low:g} to {high:g}")

    def duration_s(
        self, name: str, default: str, *, low_s: float = 0.0, high_s: float = 86_400.0
    ) -> float:
        """Return a duration between two bounds, written as text: "200ms"."""
        seconds = self._measured(name, default, parse_duration_s, 'a duration such as "5s"')
        return self._within(name, seconds, low_s, high_s, f"{low_s:g} s to {high_s:g} s")

    def size_bytes(self, name: str, default: str, *, low: int = 1, high: int = 1 << 40) -> int:
        """Return a size between two bounds, written as text: "4MiB"."""
        size = self._measured(name, default, parse_size_bytes, 'a size such as "4MiB"')
        return self._within(name, size, low, high, f"{low:,} to {high:,} bytes")

    def switch(self, name: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._settings.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    # --- tables, errors -------------------------------------------------------------------------

    def table(self, name: str, known: Collection[str]) -> "OptionReader":
        """Return the reader of a table inside, empty if it is absent."""
        value = self._settings.get(name, {})
        if not isinstance(value, Mapping):
            self.refuse(name, f"a table of {', '.join(known)}")
        prefix = f"{self._table}{name}."
        return OptionReader(self._kind, self._route, value, known, table=prefix)

    def refuse(self, name: str, wanted: str, hint: str = "") -> NoReturn:
        """Raise the error of a setting that is not what is wanted; a secret is not shown.

        Raises:
            WrongSetting: always.
        """
        shown = repr(self._settings.get(name))[: limits.SHOWN_VALUE_MAX_CHARS]
        msg = f"{self._at(name)} is {shown}, not {wanted}"
        raise WrongSetting(msg, hint=hint, **self._facts(name))

    def contradict(self, why: str, hint: str = "") -> NoReturn:
        """Raise the error of settings that do not go together; the first that it names is meant.

        Raises:
            WrongSetting: always.
        """
        msg = f"route {self._route!r}: {why}"
        named = next((word for word in _WORD.findall(why) if word in self._settings), "")
        raise WrongSetting(msg, hint=hint, **self._facts(named))

    def lack(self, name: str, such_as: str = "") -> NoReturn:
        """Raise the error of a setting that must be said.

        Raises:
            ConfigError: always.
        """
        msg = f"route {self._route!r}: a {self._kind} sink needs a {self._table + name!r}"
        hint = f"{name} = {such_as}" if such_as else ""
        raise ConfigError(msg, hint=hint, **self._facts(name))

    def _unknown(self, name: str, known: Collection[str]) -> UnknownSetting:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        of = f"of a {self._kind} sink"
        msg = f"route {self._route!r}: unknown setting {self._table + name!r} {of}"
        return UnknownSetting(msg, hint=hint, **self._facts(name))

    def _facts(self, name: str) -> dict[str, str]:
        return {"route": self._route, "setting": self._table + name if name else ""}

    def _measured(self, name: str, default: str, parse: Callable[[str], _T], what: str) -> _T:
        value = self._settings.get(name, default)
        if not isinstance(value, str):
            self.refuse(name, what)
        try:
            return parse(value)
        except ValueError:
            self.refuse(name, what)

    def _within(self, name: str, value: _T, low: _T, high: _T, bounds: str) -> _T:
        if not low <= value <= high:
            self.refuse(name, f"within {bounds}")
        return value

    def _at(self, name: str) -> str:
        return f"route {self._route!r}: {self._table}{name}"


def is_name(name: object) -> bool:
    """Tell whether something can name a table, a column or a field: any text but NUL."""
    return isinstance(name, str) and bool(name) and "\0" not in name
