"""Durations and sizes as people write them: "200ms", "15min", "4MiB"."""

import re

_DURATIONS_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES_BYTES = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)")


def parse_duration_s(text: str) -> float:
    """Return seconds.

    Raises:
        ValueError: not a number with one of the units ms, s, min, h, d.
    """
    return _quantity(text, _DURATIONS_S, "a duration", '"200ms", "5s" or "15min"')


def parse_size_bytes(text: str) -> int:
    """Return bytes.

    Raises:
        ValueError: not a number with one of the units B, KiB, MiB, GiB, TiB, kB, MB, GB, TB.
    """
    return int(_quantity(text, _SIZES_BYTES, "a size", '"64KiB", "4MiB" or "1GB"'))


def format_size(size_bytes: int) -> str:
    """Return bytes in the largest binary unit that needs no fraction; inverse of parsing."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _SIZES_BYTES[unit] == 0:
            return f"{size_bytes // _SIZES_BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _quantity(
    text: str, units: dict[str, float] | dict[str, int], what: str, such_as: str
) -> float:
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2] not in units:
        msg = f"{text!r} is not {what} with a unit, such as {such_as}"
        raise ValueError(msg)
    return float(found[1]) * units[found[2]]
