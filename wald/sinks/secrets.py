"""Secrets as they are by now: a file that holds one may have been mended, or rotated."""

from pathlib import Path

from wald import limits
from wald.model import Secret


def read_secret(path: str) -> str:
    """Return what a file holds, without the line's end; empty if it cannot be read, or is no text.

    At most ``limits.SECRET_MAX_BYTES`` of it.
    """
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            return file.read(limits.SECRET_MAX_BYTES).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        return ""


def renewed(secret: Secret) -> str:
    """Return a secret as its file has it now; as it was at the start where that cannot be read."""
    return read_secret(secret.source) or str(secret)
