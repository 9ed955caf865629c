"""What the settings of streams mean at the door: which ids are remembered, what records must be."""

from wald.config import Settings, StreamSettings
from wald.core.ids import DedupPolicy
from wald.core.rules import CONTENTS, StreamRules


def dedup_policies(settings: Settings) -> dict[str, DedupPolicy]:
    """Return how long the dedup ids of streams are remembered, by the name of a stream."""
    return {
        name: DedupPolicy(stream.dedup.window_s, stream.dedup.max_ids)
        for name, stream in settings.streams.items()
        if stream.dedup.window_s is not None
    }


def stream_rules(settings: Settings) -> dict[str, StreamRules]:
    """Return what streams ask of their records; nothing of a stream that asks nothing."""
    found = {name: _rules(stream) for name, stream in settings.streams.items()}
    return {name: rules for name, rules in found.items() if rules.checks or rules.compares_ids}


def _rules(stream: StreamSettings) -> StreamRules:
    codes = None if stream.content is None else {int(CONTENTS[name]) for name in stream.content}
    return StreamRules(
        stream.max_record_bytes,
        None if codes is None else frozenset(codes),
        stream.key == "required",
        stream.fields,
        stream.dedup.window_s is not None,
    )
