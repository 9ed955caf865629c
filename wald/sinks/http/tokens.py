"""A token that several lanes send, and that one of them renews once the server refuses it.

It is read anew from where it came from: a file or a credential that somebody else rotates.
"""

import threading
from typing import NamedTuple
from weakref import WeakValueDictionary

from wald.model import Secret
from wald.sinks.http.options import is_header_value
from wald.sinks.secrets import read_secret


class Worn(NamedTuple):
    """A token as a request was sent with it: which one it was, and its text."""

    version: int
    text: str


class Token:
    """Any thread."""

    def __init__(self, secret: Secret) -> None:
        self._source = secret.source
        self._lock = threading.Lock()
        self._worn = Worn(0, str(secret))

    @property
    def now(self) -> Worn:
        """The token to send."""
        return self._worn

    def renew(self, refused: Worn) -> bool:
        """Read it anew behind a refusal; False if there is no other one.

        One lane reads, the others wait for it and take what it found.
        """
        with self._lock:
            if self._worn.version != refused.version:
                return True
            text = read_secret(self._source)
            if not text or text == self._worn.text or not is_header_value(text):
                return False
            self._worn = Worn(refused.version + 1, text)
            return True


class Tokens:
    """The tokens in use, each shared by all lanes that were given it. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: WeakValueDictionary[tuple[str, str], Token] = WeakValueDictionary()

    def of(self, secret: Secret) -> Token:
        """Return the token of a secret, as far as it was renewed by others."""
        with self._lock:
            key = (secret.source, str(secret))
            token = self._found.get(key)
            if token is None:
                token = self._found[key] = Token(secret)
            return token
