"""Which sink a lane uses: the real one, behind its faults; or one in a process of its own."""

from wald import limits
from wald.drainer.faults import FaultySink
from wald.drainer.guarded import GuardedSink
from wald.drainer.route import LaneMemory, Route
from wald.drainer.sending import close_sink
from wald.ports import Sink


def fit_sink(route: Route, memory: LaneMemory) -> None:
    """Give the memory the sink that the open batch needs, if it has another one or none.

    A batch in which the process died again and again goes to a guarded sink until it is finished.
    """
    manifest = memory.held.manifest
    if manifest is None or manifest.number != memory.guarded_batch:
        memory.guarded_batch = 0
        if manifest is not None and manifest.crashes >= limits.GUARDED_AFTER_CRASHES_COUNT:
            memory.guarded_batch = manifest.number
    if memory.sink is not None and is_guarded(memory.sink) != bool(memory.guarded_batch):
        close_sink(route, memory)
    if memory.sink is None:
        memory.sink = _open(route, guarded=bool(memory.guarded_batch))
        memory.replay = memory.sink.capabilities.replay


def is_guarded(sink: Sink) -> bool:
    """Tell whether a lane's sink lives in a process of its own."""
    return isinstance(sink, FaultySink) and isinstance(sink.inner, GuardedSink)


def _open(route: Route, *, guarded: bool) -> Sink:
    shared = route.shared
    sink = shared.make_sink(route.settings, route.sink)
    if guarded:
        capabilities, encoder = sink.capabilities, str(getattr(sink, "encoder", ""))
        sink.close()
        sink = GuardedSink(shared.sink_command, route.settings, route.sink, capabilities, encoder)
    return FaultySink(sink, route.birth.name, shared.faults, shared.clock, shared.chance)
