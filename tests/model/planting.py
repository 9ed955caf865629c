"""Bugs planted in the real code: a function is compiled anew with a piece of its text replaced.

Where the text is not there any more, planting fails, and the bug has to be described anew: a
planted bug never quietly stops being one.
"""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType

import pytest


@dataclass(frozen=True)
class Patch:
    """In the function ``name`` of ``owner`` (a class or a module) each old text becomes a new one.

    ``also`` are the modules that imported the function by its name.
    """

    owner: type | ModuleType
    name: str
    changes: Sequence[tuple[str, str]]
    also: Sequence[ModuleType] = ()


def plant(monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """Put a bug in place until the test ends."""
    original = patch.owner.__dict__[patch.name]
    assert isinstance(original, FunctionType)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in patch.changes:
        count = source.count(old)
        assert count == 1, f"{patch.name} holds the text to replace {count} times:\n{old}"
        source = source.replace(old, new)
    namespace: dict[str, Callable[..., object]] = {}
    code = compile(source, f"<bug in {patch.name}>", "exec")
    exec(code, original.__globals__, namespace)
    for owner in (patch.owner, *patch.also):
        monkeypatch.setattr(owner, patch.name, namespace[patch.name])
