"""A route's coalescing and transform: loads the function, finds the records at which it fails."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Protocol, cast

from wald import limits
from wald.config import RouteSettings
from wald.core import shaping
from wald.core.shaping import TRANSFORM_FAILED, Output, Transform
from wald.errors import ConfigError
from wald.model import Record, RejectedRecord

_HINT = 'say "module:function"; the module must be importable by the drain process'


class RecordsFail(Exception):
    """Records with which nothing can be made to be sent; they are refused for good."""

    def __init__(self, refused: tuple[RejectedRecord, ...]) -> None:
        super().__init__(refused[0].message)
        self.refused = refused


class NeverWorks(Exception):
    """No record is to blame: a function is not there, or fails whatever it is given."""


@dataclass(slots=True)
class Shaping:
    """Since when the transform of a lane works, by the monotonic clock; 0: it does not."""

    since_ns: int = 0


class Elsewhere(Protocol):
    """Calls a transform where it ends another process than this one."""

    def transform(self, name: str, records: list[Record], timeout_s: float) -> Iterable[object]:
        """Return what the transform of this name makes of records, within a time."""
        ...


class Shaper:
    """What is sent of the batches of a lane: coalescing and transform, as the route says."""

    def __init__(self, settings: RouteSettings) -> None:
        self._coalesce = settings.coalesce == "last"
        self._name = settings.transform
        self._timeout_s = settings.attempt_timeout_s
        self._loaded: Transform | None = None
        self._worked = False

    @property
    def shapes(self) -> bool:
        """Whether anything but the records as they are is sent."""
        return self._coalesce or self._name is not None

    def shape(
        self,
        records: Sequence[Record],
        without: Collection[int],
        elsewhere: Elsewhere | None = None,
    ) -> tuple[Output, ...]:
        """Return what is sent of a batch, without what was refused or took effect before.

        Args:
            records: the batch.
            without: LSNs of what is left out.
            elsewhere: calls the transform; None: it is called here.

        Raises:
            RecordsFail: the transform fails at some.
            NeverWorks: it fails at all, or is not there.
        """
        transform = probed = self._transform()
        if self._name is not None and elsewhere is not None:
            probe_s = min(self._timeout_s, limits.GUARDED_PROBE_TIMEOUT_S)
            transform = partial(_call, elsewhere, self._name, self._timeout_s)
            probed = partial(_call, elsewhere, self._name, probe_s)
        try:
            outputs = shaping.shaped(records, without, coalesce=self._coalesce, transform=transform)
        except BaseException as error:  # it may panic, or leave the interpreter: anybody's code
            assert probed is not None
            kept = shaping.shaped(records, without, coalesce=self._coalesce, transform=None)
            raise self._failure([each.record for each in kept], probed) from error
        self._worked = self._worked or bool(outputs)
        return outputs

    def _failure(self, records: Sequence[Record], transform: Transform) -> Exception:
        return failure(
            records,
            lambda some: shaping.transformed(some, transform),
            TRANSFORM_FAILED,
            f"transform {self._name}",
            worked=self._worked,
        )

    def _transform(self) -> Transform | None:
        if self._name is not None and self._loaded is None:
            try:
                self._loaded = load_transform(self._name)
            except ConfigError as error:
                raise NeverWorks(error.message) from error
        return self._loaded


def _call(
    elsewhere: Elsewhere, name: str, timeout_s: float, records: list[Record]
) -> Iterable[object]:
    return elsewhere.transform(name, records, timeout_s)


def failure(
    records: Sequence[Record],
    attempt: Callable[[list[Record]], object],
    code: str,
    what: str,
    *,
    worked: bool,
) -> Exception:
    """Return what is said of a function that failed: of which records, or of it."""
    found = shaping.find_failing(records, attempt, code, worked=worked)
    if found.refused:
        return RecordsFail(found.refused)
    why = found.always or "it fails now and then with the same records"
    return NeverWorks(f"{what} fails for no record's fault: {why}")


def load_transform(name: str) -> Transform:
    """Return the function that "module:function" names.

    Raises:
        ConfigError: it is not there, or is no function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except BaseException as error:
        msg = f"transform {name!r} cannot be loaded: {error!r}"
        raise ConfigError(msg[: limits.ERROR_TEXT_MAX_CHARS], hint=_HINT) from error
    if not callable(found):
        msg = f"transform {name!r} is not a function"
        raise ConfigError(msg, hint=_HINT)
    return cast("Transform", found)
