"""Which sink a mode is."""

from collections.abc import Mapping

from wald.ports import Sink
from wald.sinks.dynamodb.keyed import KeyedSink
from wald.sinks.dynamodb.options import read_options
from wald.sinks.dynamodb.transaction import TransactionSink


def make(route: str, stream: str, settings: Mapping[str, object]) -> Sink:
    """Make the sink of a route; connects lazily.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = read_options(route, stream, settings)
    if options.mode == "transaction":
        return TransactionSink(options)
    return KeyedSink(options)
