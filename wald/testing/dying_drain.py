"""A drain process that kills itself (SIGKILL) around the commit of a batch; for the contract.

    python -m wald.testing.dying_drain        with one line of JSON on standard input:

    {"settings": ..., "factory": "module:function", "dies": [2, "behind"]}

It delivers what the log holds, as ``wald replay`` does: real ledger, real lanes. With ``dies`` it
dies at the n-th attempt that took effect: ``before`` it is made, or ``behind`` the target's commit
and before our checkpoint. It prints the books.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from wald.config import RouteSettings, Settings, SinkSettings
from wald.drainer.replay import replay
from wald.model import Attempt, Delivered, Outcome
from wald.ports import Sink, SinkFactory
from wald.storage.log import Log, LogOptions
from wald.system import SystemClock
from wald.testing.quick_files import QuickFileSystem

_SEGMENT_BYTES = 4 << 20
_PATIENCE_S = 30.0


class DyingSink:
    """Passes everything on, and ends the process where it is told to."""

    def __init__(self, inner: Sink, left: int, where: str) -> None:
        self._inner = inner
        self._left = left
        self._where = where

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the sink has
        return getattr(self._inner, name)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Deliver, unless this is where the process dies."""
        if self._left == 1 and self._where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = self._inner.deliver(attempt)
        if isinstance(outcome, Delivered):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return outcome


def run(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Deliver what the log holds; returns the books."""
    settings = Settings.from_json(said["settings"])
    module, _, function = str(said["factory"]).partition(":")
    factory = cast("SinkFactory", getattr(import_module(module), function))
    left, where = said["dies"] or (0, "")

    def make(route: RouteSettings, sink: SinkSettings) -> Sink:
        made = factory(route.name, route.stream, {**sink.options, **route.options})
        return cast("Sink", DyingSink(made, int(left), str(where)))

    fs, clock, chance = QuickFileSystem(), SystemClock(), random.SystemRandom()
    options = LogOptions(segment_bytes=_SEGMENT_BYTES)
    log = Log.open(fs, settings.data_dir, clock, chance, options)
    try:
        return replay(
            settings,
            log,
            make_sink=make,
            fs=fs,
            clock=clock,
            chance=chance,
            patience_s=_PATIENCE_S,
        )
    finally:
        log.close()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.stdin.readline())), default=str))  # noqa: T201
