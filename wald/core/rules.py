"""What a stream asks of its records at the door; nothing unless its settings say so.

A record that does not fit is refused by its index like any other bad one. Values are looked into
only where fields are asked for, and then no deeper than their types.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from wald import limits
from wald.core.body import BadRecord, Body
from wald.model import Content

CONTENTS: Final = {"bytes": Content.BYTES, "msgpack": Content.MSGPACK, "json": Content.JSON}
_CONTENT_NAMES: Final = {int(code): name for name, code in CONTENTS.items()}

# what a field may be asked to be, and which first bytes of msgpack that is; see docs/protocol.md
_TEXT = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))
_INTEGER = frozenset((*range(0x80), *range(0xE0, 0x100), *range(0xCC, 0xD4)))
_FIRST_BYTES: Final[Mapping[str, frozenset[int]]] = {
    "text": _TEXT,
    "bytes": frozenset((0xC4, 0xC5, 0xC6)),
    "integer": _INTEGER,
    "number": _INTEGER | {0xCA, 0xCB},
    "boolean": frozenset((0xC2, 0xC3)),
    "list": frozenset((*range(0x90, 0xA0), 0xDC, 0xDD)),
    "map": frozenset((*range(0x80, 0x90), 0xDE, 0xDF)),
}
_EXTENSIONS: Final = {"datetime": 1, "date": 2, "decimal": 3, "uuid": 4}
_BUILT: Final[Mapping[str, tuple[type, ...]]] = {
    "bytes": (bytes,),
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "map": (dict,),
}
_SMALL_BYTES: Final = 64 * limits.KIB  # decoded, such a value takes 5 MiB at most
_NO_MAP: Final = "the value is not a whole map of msgpack"
ANY: Final = "any"
FIELD_TYPES: Final = (ANY, *_FIRST_BYTES, *_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class StreamRules:
    """The rules of a stream, for one connection.

    Attributes:
        max_record_bytes: of a value.
        content: the codes that it takes.
        key_required: whether each record needs a key.
        fields: by name, of what type each field must be that a record must have.
        compares_ids: whether dedup ids are compared.
        tells_duplicates: whether the client understands what it is told of them.
    """

    max_record_bytes: int | None = None
    content: frozenset[int] | None = None
    key_required: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    compares_ids: bool = False
    tells_duplicates: bool = True

    @property
    def checks(self) -> bool:
        """Whether records are looked at: then no short cut may be taken."""
        return bool(
            self.max_record_bytes is not None
            or self.content is not None
            or self.key_required
            or self.fields
        )


def find_unruly(body: Body, rules: StreamRules) -> Iterator[BadRecord]:
    """Yield why records that are right in themselves do not fit their stream."""
    keys = body.keys
    for index, value in enumerate(body.values):
        code = body.content if isinstance(body.content, int) else body.content[index]
        if rules.max_record_bytes is not None and len(value) > rules.max_record_bytes:
            msg = f"the value has {len(value):,} bytes, the stream takes {rules.max_record_bytes:,}"
            yield BadRecord(index, "record.too-large", msg)
        elif rules.content is not None and code not in rules.content:
            wanted = " or ".join(_CONTENT_NAMES[each] for each in sorted(rules.content))
            msg = f"the content is {_CONTENT_NAMES.get(code, code)}, the stream takes {wanted}"
            yield BadRecord(index, "record.content", msg)
        elif rules.key_required and (keys is None or keys[index] is None):
            yield BadRecord(index, "record.key", "the stream wants a key, and there is none")
        elif rules.fields:
            why = _LOOK.get(code, _no_fields)(value, rules.fields)
            if why:
                yield BadRecord(index, "record.fields", why)


# --- fields -------------------------------------------------------------------------------------


def _no_fields(_value: bytes, fields: Mapping[str, str]) -> str:
    return f"bytes have no fields, the stream wants {next(iter(fields))!r}"


def _in_msgpack(value: bytes, fields: Mapping[str, str]) -> str:
    """Say what is wrong with the fields of a msgpack map."""
    if len(value) > _SMALL_BYTES:
        return _in_large_msgpack(value, fields)
    try:
        said: Any = msgpack.unpackb(value, strict_map_key=False, unicode_errors="surrogateescape")
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return _NO_MAP
    return _wrong_in(said, fields) if type(said) is dict else _NO_MAP


def _wrong_in(said: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    for name, wanted in fields.items():
        if name not in said:
            return _missing({name: wanted})
        if wanted != ANY and not _is_of(said[name], wanted):
            return f"the field {name!r} is not of the type {wanted}"
    return ""


def _is_of(found: object, wanted: str) -> bool:
    kinds = _BUILT.get(wanted)
    if kinds is not None:
        return type(found) in kinds
    return isinstance(found, msgpack.ExtType) and bool(found.code == _EXTENSIONS.get(wanted))


def _in_large_msgpack(value: bytes, fields: Mapping[str, str]) -> str:
    """Say the same of a large one, passing over values: few bytes may stand for much memory."""
    unpacker = msgpack.Unpacker(max_buffer_size=limits.RECORD_MAX_BYTES)
    missing = dict(fields)
    try:
        unpacker.feed(value)
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            at = unpacker.tell()
            unpacker.skip()
            wanted = missing.pop(name, ANY) if isinstance(name, str) else ANY
            if wanted != ANY and not _fits(value, at, wanted):
                return f"the field {name!r} is not of the type {wanted}"
        if unpacker.tell() != len(value):
            return "behind the map there is more"
    except (ValueError, msgpack.UnpackException, RecursionError):
        return _NO_MAP
    return _missing(missing)


def _fits(value: bytes, at: int, wanted: str) -> bool:
    first = value[at]
    known = _FIRST_BYTES.get(wanted)
    if known is not None:
        return first in known
    if 0xD4 <= first <= 0xD8:  # an extension of 1, 2, 4, 8 or 16 bytes
        return value[at + 1] == _EXTENSIONS[wanted]
    return 0xC7 <= first <= 0xC9 and value[at + 1 + (1 << (first - 0xC7))] == _EXTENSIONS[wanted]


def _in_json(value: bytes, fields: Mapping[str, str]) -> str:
    try:
        said: Any = json.loads(value)
    except (ValueError, RecursionError):
        return "the value is not JSON"
    return _wrong_in(said, fields) if type(said) is dict else "the value is not a JSON object"


def _missing(missing: Mapping[str, str]) -> str:
    for name, wanted in missing.items():
        kind = "" if wanted == ANY else f" of the type {wanted}"
        return f"the stream wants a field {name!r}{kind}, and there is none"
    return ""


_LOOK: Final[Mapping[int, Callable[[bytes, Mapping[str, str]], str]]] = {
    int(Content.MSGPACK): _in_msgpack,
    int(Content.JSON): _in_json,
}
