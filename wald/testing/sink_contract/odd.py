"""Records that are odd in one way each: what producers send, and somebody has to tell apart."""

from collections.abc import Mapping
from itertools import count
from typing import Final, NamedTuple

import msgpack

from wald import limits
from wald.model import Content
from wald.sinks.values import VALUE_REFUSED

LANDS: Final = "lands"
_HOST = "odd"


class Odd(NamedTuple):
    """A record that is odd in one way. ``name`` is the row in ``Workbench.bad_input``."""

    name: str
    value: bytes
    content: Content = Content.MSGPACK
    key: str | bytes = "k"


def _map(**fields: object) -> bytes:
    packed: bytes = msgpack.packb({"host": _HOST, "n": next(_numbers), **fields})
    return packed


def _json(rest: str) -> bytes:
    return b'{"host": "%s", %s}' % (_HOST.encode(), rest.encode())


def _json_map(rest: str) -> bytes:
    return _json(f'"n": {next(_numbers)}, {rest}')


def _key(name: str, key: str | bytes) -> Odd:
    return Odd(f"a key: {name}", _map(), key=key)


_numbers = count(7)  # no two share a number: where that is the key, both land
_TWICE = b"\x83\xa4host\xa3odd\xa1n\x05\xa1n\x06"
_SURROGATE = b"\x83\xa4host\xa3odd\xa1n\x03\xa4text\xa3\xed\xa0\x80"

ODD: tuple[Odd, ...] = (
    Odd("a list", msgpack.packb([1, 2])),
    Odd("a text", msgpack.packb("seven")),
    Odd("a number", msgpack.packb(7)),
    Odd("nothing", msgpack.packb(None)),
    Odd("bytes", b"\x00\xff", Content.BYTES),
    Odd("no msgpack", b"\xc1"),
    Odd("msgpack cut short", _map()[:-1]),
    Odd("no JSON", b'{"host": "odd"', Content.JSON),
    Odd("nested too deeply", b"\x91" * 2_000 + b"\xc0"),
    Odd("a field is missing", msgpack.packb({"host": _HOST})),
    Odd("a field too many", _map(more=[1, {"x": 2}])),
    Odd("a text for a number", _map(n="seven")),
    Odd("a map for a number", _map(n={"x": 1})),
    Odd("a fraction for a whole number", _map(n=77.5)),
    Odd("nil for a number", _map(n=None)),
    Odd("a number of 64 bits without a sign", _map(n=(1 << 64) - 1)),
    Odd("a number of 400 digits", _json(f'"n": 1{"0" * 399}'), Content.JSON),
    Odd("NaN", _map(n=float("nan"))),
    Odd("infinity", _map(n=float("inf"))),
    Odd("NaN in JSON", _json('"n": NaN'), Content.JSON),
    Odd("NUL in a text", _map(text="a\0b")),
    Odd("NUL in JSON", _json_map('"text": "a\\u0000b"'), Content.JSON),
    Odd("half of a surrogate pair", _SURROGATE),
    Odd("half of a surrogate pair in JSON", _json_map('"text": "\\ud800"'), Content.JSON),
    Odd("a key twice", _TWICE),
    Odd("a key twice in JSON", _json('"n": 1, "n": 2'), Content.JSON),
    Odd("nearly a megabyte", _map(text="x" * (limits.RECORD_MAX_BYTES - 1_000))),
    _key("SQL", "'); DROP TABLE events; --"),
    _key("a path", "../../../etc/passwd"),
    _key("line ends", "a\r\nX-Evil: 1\r\n\r\nb"),
    _key("NUL", "a\0b"),
    _key("not UTF-8", b"\xff\x00\xfe"),
    _key("empty", ""),
    _key("a kilobyte", "ä" * (limits.KEY_MAX_BYTES // 2)),
)

# what no sink can decode
UNREADABLE: Final = frozenset(
    {
        "no msgpack",
        "msgpack cut short",
        "no JSON",
        "nested too deeply",
        "NaN in JSON",
        "half of a surrogate pair",
    }
)
NO_MAP: Final = frozenset({"a list", "a text", "a number", "nothing", "bytes"})
DOCUMENT_INPUT: Final[Mapping[str, str]] = {
    odd.name: VALUE_REFUSED if odd.name in UNREADABLE else LANDS for odd in ODD
}
