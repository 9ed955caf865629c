"""Settings as frozen values, and their form on the pipe to a child process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from wald import limits


class Secret(str):
    """Text that must not appear in any output: its ``repr`` hides it."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return what stands in for the secret in dumps and messages."""
        return "'***'"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a lane seals a batch: whichever comes first."""

    max_records: int = limits.BATCH_MAX_RECORDS
    max_bytes: int = limits.BATCH_MAX_BYTES
    max_age_s: float = limits.BATCH_MAX_AGE_S


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """A table ``[sinks.NAME]``: the type, and what that type's factory checks."""

    name: str
    type: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A table ``[routes.NAME]``: one stream to one sink; ``options`` go to the sink's factory."""

    name: str
    stream: str
    sink: str
    start: str | None = None  # "oldest" | "now"; must be said for a new route of a stream in use
    abandon: int = 0  # so many pending records a change of the target may give up
    batch: BatchSettings = field(default_factory=BatchSettings)
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a daemon is told.

    ``auto_sink`` names the sink of ``--to``: every new stream gets a route of its own name to it.
    """

    data_dir: str
    socket: str
    sinks: Mapping[str, SinkSettings] = field(default_factory=dict)
    routes: Mapping[str, RouteSettings] = field(default_factory=dict)
    auto_sink: str | None = None
    segment_bytes: int = limits.SEGMENT_BYTES
    retain_after_delivery_s: float = limits.RETAIN_AFTER_DELIVERY_S
    retain_after_delivery_bytes: int = limits.RETAIN_AFTER_DELIVERY_BYTES
    stop_deliver_for_s: float = limits.STOP_DELIVER_S

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes and ``from_json`` makes into an equal value.

        Secrets are in it: it goes over a private pipe and nowhere else.
        """
        return cast("dict[str, Any]", _plain(asdict(self)))

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Settings":
        """Return the settings that ``to_json`` said."""
        fields = dict(cast("dict[str, Any]", _with_secrets(said)))
        fields["sinks"] = {name: SinkSettings(**sink) for name, sink in fields["sinks"].items()}
        fields["routes"] = {
            name: RouteSettings(**{**route, "batch": BatchSettings(**route["batch"])})
            for name, route in fields["routes"].items()
        }
        return cls(**fields)


_SECRET = "$secret"  # noqa: S105 - a marker, not a password


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return {_SECRET: str(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _with_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        if value.keys() == {_SECRET}:
            return Secret(value[_SECRET])
        return {key: _with_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_secrets(item) for item in value]
    return value
