"""What a route of the HTTP sink is told, as values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from wald import limits
from wald.model import ReplayClass, Secret
from wald.sinks.http.presets import PRESETS, Preset

NONE: Final = "none"
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a body is made of: see ``encoding``."""

    format: str = "array"  # "array" | "object" | "ndjson" | "bulk"
    records: str = "values"  # "values" | "envelopes"
    wrap: str = ""
    fields: tuple[str, ...] = ()
    compression: str = NONE
    objects: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """How a batch's id is told, and for how long the server says that it remembers it."""

    header: str = "Idempotency-Key"
    parameter: str = ""
    quoted: bool = True
    window_s: float | None = None
    window_batches: int | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the server is told an id."""
        return bool(self.header or self.parameter)


@dataclass(frozen=True, slots=True)
class Results:
    """Where an answer says what became of each record; ``path`` None: it says nothing of them.

    Paths are names of nested fields. ``record_field`` names the field of a record's value that
    ``field`` of an item repeats; empty: the id of its envelope.
    """

    path: tuple[str, ...] | None = None
    lists: str = "all"  # "all" | "failed"
    match: str = "index"  # "index" | "id"
    field: tuple[str, ...] = ()
    record_field: str = ""
    status: tuple[str, ...] = ()
    message: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told."""

    url: str
    shown_url: str  # without what may be secret
    secrets: tuple[str, ...]  # beside the token: what no message may hold
    preset: str = NONE
    places: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    shape: Shape = field(default_factory=Shape)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    token: Secret | None = None
    token_header: str = "Authorization"  # noqa: S105 - the name of a header
    token_scheme: str = "Bearer"  # noqa: S105 - the word before it
    idempotency: Idempotency = field(default_factory=Idempotency)
    conflict: str = "refused"
    answer: str = "any"  # "any" | "json" | "empty"
    results: Results = field(default_factory=Results)
    records_per_request: int = limits.HTTP_RECORDS_PER_REQUEST_MAX
    bytes_per_request: int = limits.HTTP_BYTES_PER_REQUEST
    requests_per_s: float | None = None
    records_per_s: float | None = None
    connect_timeout_s: float = limits.HTTP_CONNECT_TIMEOUT_S
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    proxy: str = NONE

    @property
    def known(self) -> Preset:
        """What the preset knows."""
        return PRESETS[self.preset]

    @property
    def replay(self) -> ReplayClass:
        """What makes sending a batch again harmless."""
        if self.shape.format == "bulk":
            return ReplayClass.KEYED
        window = self.idempotency
        stated = window.window_s is not None or window.window_batches is not None
        return ReplayClass.WINDOW if stated else ReplayClass.NONE


def is_header_value(text: str) -> bool:
    """Tell whether a text can be the value of a header: one line, no other control characters."""
    return _HEADER_VALUE.fullmatch(text) is not None
