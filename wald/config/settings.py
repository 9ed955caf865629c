"""Settings as frozen values, and their form on the pipe to a child process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar, cast

from wald import limits
from wald.model import Secret

EACH_STREAM = "STREAM"  # with --to there is no route before its stream: this stands for all


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When a lane seals a batch: whichever comes first."""

    max_records: int = limits.BATCH_MAX_RECORDS
    max_bytes: int = limits.BATCH_MAX_BYTES
    max_age_s: float = limits.BATCH_MAX_AGE_S
    jitter_s: float = 0.0
    adaptive: bool = True
    latency_goal_s: float = limits.LATENCY_GOAL_S


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How many lanes of a route are at work at a time, by how far it lags; 0: all of them."""

    min: int = 1
    max: int = 0


@dataclass(frozen=True, slots=True)
class DeliverSettings:
    """When a route delivers at all: a daily window of local time, and how often."""

    window: str | None = None
    every_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterSettings:
    """How many dead letters a route keeps, for how long, and from how many on it says so."""

    quota_records: int = limits.DEAD_LETTERS_MAX
    max_age_s: float | None = None
    alarm_records: int = limits.DEAD_LETTERS_ALARM_RECORDS


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """How long dedup ids are remembered; ``window_s`` None: they are not compared."""

    window_s: float | None = None
    max_ids: int = limits.DEDUP_IDS_COUNT


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """A table ``[streams.NAME]``: what its producers meet at the door; None: no bound.

    The quotas are of what its slowest route has not delivered yet; from the share ``quota_soft``
    of one of them on, producers are asked to slow down.
    """

    name: str
    quota_pending_bytes: int | None = None
    quota_records: int | None = None
    quota_age_s: float | None = None
    quota_soft: float = limits.QUOTA_SOFT_SHARE
    max_record_bytes: int | None = None
    content: tuple[str, ...] | None = None  # "bytes", "msgpack", "json"
    key: str = "optional"  # "optional" | "required"
    fields: Mapping[str, str] = field(default_factory=dict)  # by name: of what type
    dedup: DedupSettings = field(default_factory=DedupSettings)


@dataclass(frozen=True, slots=True)
class StreamAccess:
    """A table ``[access.streams.NAME]``: who else than the daemon's user; None: as ``[access]``."""

    append: tuple[str, ...] | None = None
    read: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """The table ``[access]``: users, and groups as ``@name``, beside the daemon's own and root."""

    append: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    operate: tuple[str, ...] = ()
    streams: Mapping[str, StreamAccess] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The table ``[daemon.clients]``: what a connection may cost."""

    connections: int = limits.CONNECTIONS_MAX
    hello_timeout_s: float = limits.HELLO_TIMEOUT_S
    frame_timeout_s: float = limits.FRAME_TIMEOUT_S
    idle_s: float = limits.CONNECTION_IDLE_S


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """A table ``[sinks.NAME]``: the type, and what that type's factory checks.

    The costs are in whatever unit status is to show.
    """

    name: str
    type: str
    options: Mapping[str, object] = field(default_factory=dict)
    cost_per_request: float = 0.0
    cost_per_kib: float = 0.0


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A table ``[routes.NAME]``: one stream to one sink; ``options`` go to the sink's factory."""

    name: str
    stream: str
    sink: str
    start: str | None = None  # "oldest" | "now"; must be said for a new route of a stream in use
    abandon: int = 0  # so many pending records a change of the target may give up
    batch: BatchSettings = field(default_factory=BatchSettings)
    lanes: int = 1
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    deliver: DeliverSettings = field(default_factory=DeliverSettings)
    max_records_per_s: int | None = None
    live_share: float = 0.0
    fallback: str | None = None
    fallback_after_s: float = limits.FALLBACK_AFTER_S
    on_reject: str = "dead-letter"  # "dead-letter" | "halt"
    on_unknown: str = "resend"  # "resend" | "hold"; of a target that cannot tell a batch again
    on_rewind: str = "redeliver"  # "redeliver" | "park"
    guarantee: str | None = None  # "exactly-once" | "at-least-once"
    goal_age_s: float | None = None
    coalesce: str | None = None  # "last"
    transform: str | None = None  # "module:function"
    attempt_timeout_s: float = limits.ATTEMPT_TIMEOUT_S
    archive_bytes: int = 0  # so much of its stream is kept on purpose, delivered or not
    dead_letters: DeadLetterSettings = field(default_factory=DeadLetterSettings)
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a daemon is told.

    ``auto_sink`` names the sink of ``--to``: every new stream gets a route of its own name to it.
    ``access`` None: whoever may open the sockets may do everything.
    """

    data_dir: str
    socket: str
    sinks: Mapping[str, SinkSettings] = field(default_factory=dict)
    routes: Mapping[str, RouteSettings] = field(default_factory=dict)
    auto_sink: str | None = None
    segment_bytes: int = limits.SEGMENT_BYTES
    retain_after_delivery_s: float = limits.RETAIN_AFTER_DELIVERY_S
    retain_after_delivery_bytes: int = limits.RETAIN_AFTER_DELIVERY_BYTES
    repack_after_s: float = limits.REPACK_AFTER_S
    repack_after_bytes: int = limits.REPACK_AFTER_BYTES
    stop_deliver_for_s: float = limits.STOP_DELIVER_S
    trace_sample: float = 0.0
    socket_mode: int = 0o600  # whoever runs the daemon, and root
    socket_owner: str | None = None
    socket_group: str | None = None
    reserve_bytes: int = limits.DISK_RESERVE_BYTES
    clients: ClientLimits = field(default_factory=ClientLimits)
    access: AccessSettings | None = None
    streams: Mapping[str, StreamSettings] = field(default_factory=dict)

    def routes_to_check(self) -> list[RouteSettings]:
        """Return the routes; with ``--to`` one of a stream whose name stands for all of them."""
        if self.auto_sink is None:
            return list(self.routes.values())
        return [RouteSettings(EACH_STREAM, EACH_STREAM, self.auto_sink)]

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes and ``from_json`` makes into an equal value.

        Secrets are in it: it goes over a private pipe and nowhere else.
        """
        return cast("dict[str, Any]", _plain(asdict(self)))

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Settings":
        """Return the settings that ``to_json`` said.

        What a supervisor of another release says beyond those that there are here is left out, and
        what it does not say is at its default: a child begins with the code that is installed then.
        """
        fields = dict(cast("dict[str, Any]", _with_secrets(said)))
        fields["clients"] = _made(ClientLimits, fields.get("clients", {}))
        fields["access"] = _access(fields.get("access"))
        streams = fields.get("streams", {})
        fields["streams"] = {name: _stream(stream) for name, stream in streams.items()}
        fields["sinks"] = {
            name: _made(SinkSettings, sink) for name, sink in fields["sinks"].items()
        }
        fields["routes"] = {
            name: _made(RouteSettings, {**route, **_nested(route)})
            for name, route in fields["routes"].items()
        }
        return _made(cls, fields)


_T = TypeVar("_T")


def _made(kind: type[_T], said: Mapping[str, Any]) -> _T:
    known = {field.name for field in dataclass_fields(cast("Any", kind))}
    return kind(**{name: value for name, value in said.items() if name in known})


ROUTE_TABLES: Mapping[str, type] = {
    "batch": BatchSettings,
    "workers": WorkerSettings,
    "deliver": DeliverSettings,
    "dead_letters": DeadLetterSettings,
}


def _nested(route: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _made(kind, route[name]) for name, kind in ROUTE_TABLES.items() if name in route}


def _stream(said: Mapping[str, Any]) -> StreamSettings:
    content, dedup = _names(said.get("content")), _made(DedupSettings, said.get("dedup", {}))
    return _made(StreamSettings, {**said, "content": content, "dedup": dedup})


def _access(said: Mapping[str, Any] | None) -> AccessSettings | None:
    if said is None:
        return None
    named = {name: tuple(said.get(name, ())) for name in ("append", "read", "operate")}
    streams = {
        name: _made(StreamAccess, {who: _names(named) for who, named in table.items()})
        for name, table in said.get("streams", {}).items()
    }
    return AccessSettings(**named, streams=streams)


def _names(said: list[str] | None) -> tuple[str, ...] | None:
    return None if said is None else tuple(said)


_SECRET = "$secret"  # noqa: S105 - a marker, not a password


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return {_SECRET: [str(value), value.source]}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _with_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        if value.keys() == {_SECRET}:
            return Secret(*value[_SECRET])
        return {key: _with_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_secrets(item) for item in value]
    return value
