"""Settings: frozen values, parsed purely, then loaded from files; says which source set a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wald import limits


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
